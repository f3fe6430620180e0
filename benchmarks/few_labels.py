"""mIoU over the number of labeled images: labels alone, and with a teacher on scenes without labels.

    python -m benchmarks.few_labels --output_dir runs/few_labels --counts 8 16 32 64 --seeds 0 1 2

Everything is drawn (`--dataset synthetic`): a teacher that learned from 400 labeled scenes, and for each count N two
students of one schedule, `baseline` on N labeled scenes and `few_labels` on these and on 392 others without labels.
Writes `few_labels.json` and prints a table; finished runs are kept, so that it may be stopped and started again.
"""

import argparse
import json
import statistics
from pathlib import Path

from dataset_builders import open_dataset
from hf_segkd.commands import distill
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table, percent

POOL = 392  # scenes without labels; other ones than those with


def main(argv: list[str] | None = None) -> dict:
    arguments = parser().parse_args(argv)
    folder = Path(arguments.output_dir)
    common = ["datasets/synthetic"]
    more = ["--use_cpu"] if arguments.use_cpu else []
    teacher = folder / "teacher"
    run([*common, "pairs/synthetic_teacher", "baseline", *more, *steps(arguments.teacher_steps)], teacher)
    labeled = max(arguments.counts)
    pool = draw_pool(folder / f"unlabeled_from_{labeled}", labeled)  # other counts have another pool
    results = {}
    for count in arguments.counts:
        data = ["--dataset_config.num_train", str(count)]
        for method in ("baseline", "few_labels"):
            extra = ["--teacher", str(teacher), "--unlabeled", str(pool)] if method == "few_labels" else []
            scores = []
            for seed in arguments.seeds:
                options = [*data, *extra, *more, *steps(arguments.steps), "--seed", str(seed)]
                report = run([*common, "pairs/synthetic", method, *options], folder / f"{method}-{count}-{seed}")
                scores.append(report["mean_iou"])
            results.setdefault(str(count), {})[method] = scores
    write_json(results, folder / "few_labels.json")
    print(table(results))
    return results


def run(argv: list[str], folder: Path) -> dict:
    """Train, unless the folder holds the finished run."""
    if not (folder / "metrics.json").is_file():
        distill.main([*argv, "--output_dir", str(folder), "--resume"])
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def steps(count: int | None) -> list[str]:
    return [] if count is None else ["--max_steps", str(count)]


def draw_pool(folder: Path, labeled: int) -> Path:
    """Scenes that follow the labeled ones, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = open_dataset("synthetic", num_train=labeled + POOL).split("train")
    for index in range(labeled, labeled + POOL):
        file = folder / f"{index}.png"
        if not file.is_file():
            rows[index]["image"].save(file)
    return folder


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Mean of the seeds and their standard deviation, in percent."""
    rows = [
        [count, *(_cell(scores[method]) for method in ("baseline", "few_labels"))] for count, scores in results.items()
    ]
    return markdown_table(["labeled images", "labels alone", "few_labels"], rows)


def _cell(scores: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    return percent(statistics.mean(scores)).strip() + spread


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "few_labels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output_dir", required=True, help="folder for runs, unlabeled scenes and few_labels.json")
    add("--counts", type=int, nargs="+", default=[8, 16, 32, 64], help="numbers of labeled images (at least a batch)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students")
    add("--steps", type=int, help="steps of each student (default: the recipe's)")
    add("--teacher_steps", type=int, help="steps of the teacher (default: the recipe's)")
    add("--use_cpu", action="store_true", help="run on the CPU although there is a GPU")
    return parser


if __name__ == "__main__":
    main()

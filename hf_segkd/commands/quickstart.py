"""The whole library in a few minutes on a CPU: teacher, student alone, distilled student, on synthetic street scenes.

    hf-segkd quickstart --output_dir runs/demo

The teacher learns from 400 labeled scenes, as a released model does. The student's owner has 400 scenes too, but
labeled only 8 of them: alone, the student learns from these 8; distilled, also from the teacher's predictions on the
others. Same labels, steps, batch size and schedule. Every run goes through `hf-segkd distill`, as on real data.
With `--seeds 0 1 2 3 4` it repeats all three and writes the table of paired gains; finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from hf_segkd.commands import distill
from hf_segkd.commands.flags import CommandParser

DATA = "datasets/synthetic"
TEACHER = "pairs/synthetic_teacher"
PAIR = "pairs/synthetic"
BASELINE = "methods/baseline"
METHOD = "methods/kd_cwd"


def main(argv: list[str] | None = None) -> None:
    """Train the three models for each seed; finished ones are not trained again."""
    arguments = parser().parse_args(argv)
    from hf_segkd.reports.files import write_json

    folder = Path(arguments.output_dir)
    results = [one_seed(seed, folder / f"seed{seed}", arguments.overwrite) for seed in arguments.seeds]
    write_json({"runs": results}, folder / "summary.json")
    (folder / "summary.md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))
    print(f"Students, figures and curves: {folder}/seed*/")


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("quickstart", __doc__)
    parser.add_argument("--output_dir", required=True, help="folder for models, figures and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds; each trains all three models")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier runs in output_dir")
    return parser


def one_seed(seed: int, folder: Path, overwrite: bool) -> dict:
    """Train teacher, student alone and distilled student with one seed and the same student budget."""
    from hf_segkd.reports.run_folder import write_curves

    teacher = folder / "teacher"
    runs = {
        "teacher": (teacher, [DATA, TEACHER, BASELINE]),
        "student alone": (folder / "student_alone", [DATA, PAIR, BASELINE, "--dataset_config.num_train", "8"]),
        "distilled student": (
            folder / "student_distilled",
            [DATA, PAIR, METHOD, "--dataset_config.num_labelled", "8", "--teacher", str(teacher)],
        ),
    }
    scores = {}
    history = {}
    for name, (output_dir, argv) in runs.items():
        if overwrite or not (output_dir / "metrics.json").is_file():
            print(f"\n=== {name}, seed {seed} ===", flush=True)
            resume = "--overwrite" if overwrite else "--resume"
            distill.main([*argv, "--output_dir", str(output_dir), "--seed", str(seed), resume])
        scores[name] = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))["mean_iou"]
        history[name] = json.loads((output_dir / "training_log.json").read_text(encoding="utf-8"))
    write_curves(history, folder / "curves.png")
    return {"seed": seed, **scores}


def markdown(results: list[dict]) -> str:
    """One row per seed, mIoU in percent, and the mean paired gain with its standard error when there are several."""
    from hf_segkd.reports.tables import markdown_table

    names = [name for name in results[0] if name != "seed"]
    rows = []
    gains = [100 * (row["distilled student"] - row["student alone"]) for row in results]
    for row, gain in zip(results, gains, strict=True):
        rows.append([str(row["seed"]), *(f"{100 * row[name]:.2f}" for name in names), f"{gain:+.2f}"])
    text = markdown_table(["seed", *names, "gain"], rows) + "\n"
    if len(gains) > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        text += f"\nMean paired gain {statistics.mean(gains):+.2f} points, standard error {error:.2f}.\n"
    return text

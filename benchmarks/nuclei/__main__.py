"""Nuclei from folder to int8 file: a teacher, students with and without it, an export; then docs/nuclei.md's tables.

    python -m benchmarks.nuclei --data_dir nuclei --weights espnetv2_s_2.0_pascal_256x256.pth \\
        --output_dir runs/nuclei
    python -m benchmarks.nuclei --report

`data_dir` holds `images` and `masks` of 0 and 255. Each part may be stopped and continued; what was found is copied to
`benchmarks/results/nuclei`, from which `--report` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path

import yaml
from safetensors.torch import load_file
from torch import Tensor

from dataset_builders import open_dataset
from hf_segkd.commands import benchmark, distill, evaluate, export
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports.files import write_json
from hf_segkd.reports.method_benchmark import COUNTS, RESULTS, read_results
from hf_segkd.reports.prediction_figure import prediction_figure
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.finished_run import missing_of_run

HERE = Path(__file__).resolve().parent
FOUND = HERE.parent / "results" / "nuclei"
PAGE = HERE.parents[1] / "docs" / "nuclei.md"
FIGURE = HERE.parents[1] / "docs" / "images" / "nuclei.png"
MARKS = ("<!-- results -->\n", "<!-- end of results -->\n")
SCORES = ("per_class_iou", "per_class_dice", "images")
TRAINING = ("steps", "seconds_per_step", "hardware", "commit", "models")
FOLDER = ("dataset", "labels", "value_255", "validation_fraction")  # keys of data.yaml that every command takes
VIEWS = ("--teacher_flip",)
METHODS, SEEDS, DEPLOYED = ("baseline", "kd", "kd_cwd"), ("1", "2", "3"), "baseline"


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if not arguments.report:
        run(arguments)
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + tables() + MARKS[1] + after, encoding="utf-8")


def run(arguments: argparse.Namespace) -> None:
    root = Path(arguments.output_dir)
    data, place = str(HERE / "data.yaml"), ["--data_dir", arguments.data_dir]
    teacher, students = root / "teacher", root / "students"
    if missing_of_run(teacher):
        start = ["--student", arguments.weights, "--output_dir", str(teacher), "--resume"]
        distill.main([data, str(HERE / "teacher.yaml"), "baseline", *place, *start])
    described = ["--teacher", str(teacher), *VIEWS]
    settings = yaml.safe_load(Path(data).read_text(encoding="utf-8"))
    folder = {key: settings[key] for key in FOLDER} | {"data_dir": arguments.data_dir}
    flags = ["--split", "validation"]
    for key, value in folder.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    scored = root / "teacher_scores"
    if not (scored / "metrics.json").is_file():
        evaluate.main([*described, *flags, "--output_dir", str(scored)])
    pair = [data, str(HERE / "student.yaml"), *place, *described, "--teacher_cache", str(root / "teacher_maps")]
    queue = ["--methods", *METHODS, "--seeds", *SEEDS, "--split", "validation", "--output_dir", str(students)]
    if failed := benchmark.main([*pair, *queue]):
        raise SystemExit(f"{failed} runs failed. Their logs lie in {students}.")
    precisions = ["--precisions", "fp32", "fp16", "int8", "int8_dynamic"]
    file = root / "onnx"
    export.main([str(students / DEPLOYED / "seed1"), *flags, *precisions, "--output_dir", str(file), "--overwrite"])

    FOUND.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS, COUNTS):
        shutil.copyfile(students / name, FOUND / name)
    shutil.copyfile(file / "export.md", FOUND / "export.md")
    alone, viewed = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (teacher, scored))
    kept = {key: alone[key] for key in (*SCORES, *TRAINING)} | {"viewed": {key: viewed[key] for key in SCORES}}
    write_json(kept, FOUND / "teacher.json")
    drawn = {name: students / name / "seed1" for name in ("baseline", "kd")} | {"teacher": teacher}
    segmenters = {title: Segmenter(*load_model(str(model))) for title, model in drawn.items()}
    dataset = open_dataset(folder.pop("dataset"), **folder)
    prediction_figure(segmenters, dataset.evaluation_set("validation"), dataset.spec).save(FIGURE)


def tables() -> str:
    """Scores of teacher and students, then those of the files."""
    if not (FOUND / "teacher.json").is_file():
        return "Not run yet.\n"
    teacher = json.loads((FOUND / "teacher.json").read_text(encoding="utf-8"))
    rows = [["teacher", *of_nucleus(teacher), "", minutes(teacher)]]
    rows += [["teacher, flipped pictures too", *of_nucleus(teacher["viewed"]), "", ""]]
    counts = load_file(FOUND / COUNTS)
    for result in read_results(FOUND):
        found = [nucleus(counts[f"{result.method}/{seed}"]) for seed in result.mean_iou]
        time = {"steps": result.facts["steps"], "seconds_per_step": result.seconds_per_step}
        gain = "" if result.gain is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * x for x in result.gain))
        rows.append([result.method, *(mean(list(values)) for values in zip(*found, strict=True)), gain, minutes(time)])
    head = ["", "IoU of nucleus %", "Dice of nucleus %", "gain in mIoU [95 % interval]", "minutes of training"]
    note = (
        f"\n\n{teacher['images']} pictures held out, whole, at their size; students: seeds 1, 2 and 3, mean and "
        "standard deviation. The gain is that over the baseline in the mean IoU of both classes. "
        f"{teacher['hardware']}, shared with other work.\n\nThe files of the student of seed 1:\n\n"
    )
    return markdown_table(head, rows) + note + (FOUND / "export.md").read_text(encoding="utf-8").strip() + "\n"


def of_nucleus(metrics: dict) -> list[str]:
    return [f"{100 * metrics[score]['nucleus']:.2f}" for score in ("per_class_iou", "per_class_dice")]


def nucleus(counts: Tensor) -> tuple[float, float]:
    """IoU and Dice of class 1 over all images; `counts` (N, 2, K): intersections and unions, pixels."""
    intersection, union = counts.sum(0)[:, 1].tolist()
    return intersection / union, 2 * intersection / (intersection + union)


def minutes(run: dict) -> str:
    return f"{run['steps'] * run['seconds_per_step'] / 60:.0f}"


def mean(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.nuclei", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", default="nuclei", help="folder with images and masks (default: nuclei)")
    add("--weights", help="file of ESPNetv2-2.0 that the teacher starts from: espnetv2_s_2.0_pascal_256x256.pth")
    add("--output_dir", default="runs/nuclei", help="folder of the runs (default: runs/nuclei)")
    add("--report", action="store_true", help="only write the page's tables again from the committed results")
    return parser


if __name__ == "__main__":
    main()

"""The same student and seeds under one teacher in several forms: live on crops, or stored from the whole image.

    python -m benchmarks.teacher_forms --output_dir runs/teacher_forms --seeds 0 1 2

Everything is drawn (`synthetic`, 400 scenes): a teacher from `pairs/synthetic_teacher`, then for each seed one student
of `kd_cwd` for each form. Finished runs are kept. `results.json`, `counts.safetensors` and `table.md` are those of
`hf-segkd benchmark`, on the test split; gains are over the live teacher.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import yaml

from hf_segkd.commands import benchmark, distill

RESULTS = Path(__file__).parent / "results" / "teacher_forms"
METHOD = Path(__file__).parents[1] / "hf_segkd" / "recipes" / "methods" / "kd_cwd.yaml"
# Views near the scales that the teacher was trained at.
VIEWS = {"teacher_flip": True, "teacher_scales": [0.75, 1.0, 1.25]}
# Form -> options, and whether the teacher's answers are stored.
FORMS = {"live_on_crops": ({}, False), "stored_whole_image": ({}, True), "stored_with_views": (VIEWS, True)}


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    folder = Path(arguments.output_dir)
    teacher = folder / "teacher"
    if not (teacher / "metrics.json").is_file():
        words = ["datasets/synthetic", "pairs/synthetic_teacher", "baseline", *steps(arguments.teacher_steps)]
        distill.main([*words, *device(arguments), "--output_dir", str(teacher), "--resume"])
    recipes = [str(write_recipe(form, folder)) for form in FORMS]
    seeds = [str(seed) for seed in arguments.seeds]
    words = ["datasets/synthetic", "pairs/synthetic", "--methods", *recipes, "--seeds", *seeds, "--split", "test"]
    flags = [*steps(arguments.steps), *device(arguments)]
    if failed := benchmark.main([*words, "--output_dir", str(folder / "runs"), *flags]):
        raise SystemExit(f"{failed} runs failed. Their logs lie in {folder / 'runs'}.")
    if arguments.results:
        Path(arguments.results).mkdir(parents=True, exist_ok=True)
        for name in ("results.json", "counts.safetensors", "table.md"):
            shutil.copyfile(folder / "runs" / name, Path(arguments.results, name))


def write_recipe(form: str, folder: Path) -> Path:
    """`kd_cwd` with the teacher in this form."""
    options, stored = FORMS[form]
    recipe = yaml.safe_load(METHOD.read_text(encoding="utf-8")) | {"teacher": str(folder / "teacher")} | options
    if stored:
        recipe["teacher_cache"] = str(folder / "caches" / form)
    file = folder / "recipes" / f"{form}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def steps(count: int | None) -> list[str]:
    return [] if count is None else ["--max_steps", str(count)]


def device(arguments: argparse.Namespace) -> list[str]:
    return ["--use_cpu"] if arguments.use_cpu else []


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.teacher_forms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output_dir", required=True, help="folder for teacher, caches and runs")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the students (default: 0 1 2)")
    add("--steps", type=int, help="steps of each student (default: the recipe's)")
    add("--teacher_steps", type=int, help="steps of the teacher (default: the recipe's)")
    add("--results", default=str(RESULTS), help="folder to copy the results to; '' for none")
    add("--use_cpu", action="store_true", help="run on the CPU although there is a GPU")
    return parser


if __name__ == "__main__":
    main()

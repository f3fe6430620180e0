"""The whole library in a few minutes on a CPU: teacher, student alone, distilled student, on synthetic street scenes.

    python scripts/quickstart.py --output_dir runs/demo

Every run goes through `scripts/distill.py`, exactly as on real data. With `--seeds 0 1 2 3 4` it repeats all three and
writes the table of the paired gains.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import distill

from hf_segkd.reporting import write_curves, write_json

RECIPES = Path(__file__).parent / "recipes"
DATA = str(RECIPES / "datasets" / "synthetic.yaml")
TEACHER, PAIR = str(RECIPES / "pairs" / "synthetic_teacher.yaml"), str(RECIPES / "pairs" / "synthetic.yaml")
BASELINE, METHOD = str(RECIPES / "methods" / "baseline.yaml"), str(RECIPES / "methods" / "kd_cwd.yaml")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder for models, figures and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--overwrite", action="store_true", help="replace earlier runs in output_dir")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.output_dir)
    results = [one_seed(seed, folder / f"seed{seed}", arguments.overwrite) for seed in arguments.seeds]
    write_json({"runs": results}, folder / "summary.json")
    (folder / "summary.md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))
    print(f"Students, figures and curves: {folder}/seed*/")


def one_seed(seed: int, folder: Path, overwrite: bool) -> dict:
    """Train teacher, student alone and distilled student with one seed and the same student budget."""
    options = ["--seed", str(seed), *(["--overwrite"] if overwrite else [])]
    teacher = folder / "teacher"
    runs = {
        "teacher": [DATA, TEACHER, BASELINE, "--output_dir", str(teacher), *options],
        "student alone": [DATA, PAIR, BASELINE, "--output_dir", str(folder / "student_alone"), *options],
        "distilled student": [
            *(DATA, PAIR, METHOD, "--teacher", str(teacher)),
            *("--output_dir", str(folder / "student_distilled"), *options),
        ],
    }
    reports, history = {}, {}
    for name, argv in runs.items():
        print(f"\n=== {name}, seed {seed} ===", flush=True)
        reports[name] = distill.main(argv)
        log = Path(argv[argv.index("--output_dir") + 1]) / "training_log.json"
        history[name] = json.loads(log.read_text(encoding="utf-8"))
    write_curves(history, folder / "curves.png")
    return {"seed": seed, **{name: report["mean_iou"] for name, report in reports.items()}}


def markdown(results: list[dict]) -> str:
    """One row per seed, mIoU in percent, and the mean paired gain with its standard error when there are several."""
    names = [name for name in results[0] if name != "seed"]
    lines = ["| seed | " + " | ".join(names) + " | gain |", "|---" * (len(names) + 2) + "|"]
    gains = [100 * (row["distilled student"] - row["student alone"]) for row in results]
    for row, gain in zip(results, gains, strict=True):
        cells = " | ".join(f"{100 * row[name]:.2f}" for name in names)
        lines.append(f"| {row['seed']} | {cells} | {gain:+.2f} |")
    text = "\n".join(lines) + "\n"
    if len(gains) > 1:
        error = statistics.stdev(gains) / len(gains) ** 0.5
        text += f"\nMean paired gain {statistics.mean(gains):+.2f} points, standard error {error:.2f}.\n"
    return text


if __name__ == "__main__":
    main()

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
import os
import statistics
import time
from pathlib import Path

from hf_segkd.commands import distill
from hf_segkd.commands.flags import CommandParser

DATA = "datasets/synthetic"
TEACHER = "pairs/synthetic_teacher"
PAIR = "pairs/synthetic"
BASELINE = "methods/baseline"
METHOD = "methods/kd_cwd"
LABELED = "8"
MAX_THREADS = 4  # the maps are too small to share among more


def main(argv: list[str] | None = None) -> None:
    """Train the three models for each seed; finished ones are not trained again."""
    arguments = parser().parse_args(argv)
    from hf_segkd.reports.files import write_json

    start = time.monotonic()
    folder = Path(arguments.output_dir)
    limit_threads()
    results = [one_seed(seed, folder / f"seed{seed}", arguments.overwrite) for seed in arguments.seeds]
    write_json({"runs": results}, folder / "summary.json")
    (folder / "summary.md").write_text(markdown(results), encoding="utf-8")
    print("\n" + markdown(results))
    print(closing_words(results[0], folder, time.monotonic() - start))


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("quickstart", __doc__)
    parser.add_argument("--output_dir", required=True, help="folder for models, figures and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds; each trains all three models")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier runs in output_dir")
    return parser


def limit_threads() -> None:
    """Let torch use the cores that others leave free; a number in `OMP_NUM_THREADS` stands.

    A thread that waits for a core holds up all others at the end of every convolution.
    """
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        print(f"Threads: {torch.get_num_threads()}, as OMP_NUM_THREADS says.", flush=True)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else cores  # Windows does not tell
    torch.set_num_threads(free_threads(cores, load))
    reason = f"{load:.1f} other processes were busy on {cores} cores in the last minute"
    print(f"Threads: {torch.get_num_threads()}, because {reason} (OMP_NUM_THREADS sets another number).", flush=True)


def free_threads(cores: int, load: float) -> int:
    """How many of `cores` a load of so many running processes leaves free, 1 to `MAX_THREADS`."""
    return max(1, min(MAX_THREADS, cores - round(load)))


def one_seed(seed: int, folder: Path, overwrite: bool) -> dict:
    """Train teacher, student alone and distilled student with one seed and the same student budget."""
    from hf_segkd.reports.run_folder import write_curves
    from hf_segkd.training.finished_run import missing_of_run

    teacher = folder / "teacher"
    runs = {
        "teacher": (teacher, [DATA, TEACHER, BASELINE]),
        "student alone": (folder / "student_alone", [DATA, PAIR, BASELINE, "--dataset_config.num_train", LABELED]),
        "distilled student": (
            folder / "student_distilled",
            [DATA, PAIR, METHOD, "--dataset_config.num_labeled", LABELED, "--teacher", str(teacher)],
        ),
    }
    scores = {}
    history = {}
    for name, (output_dir, argv) in runs.items():
        if overwrite or missing_of_run(output_dir):
            print(f"\n=== {name}, seed {seed} ===", flush=True)
            resume = "--overwrite" if overwrite else "--resume"
            argv = [*argv, "--output_dir", str(output_dir), "--cache_dir", str(folder / "decoded")]
            distill.main([*argv, "--seed", str(seed), resume])
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


def closing_words(result: dict, folder: Path, seconds: float) -> str:
    """What was shown with the first seed, where to look, and the commands for photos of one's own."""
    run = folder / f"seed{result['seed']}"
    teacher = f"{100 * result['teacher']:.1f} % mIoU"
    alone = f"{100 * result['student alone']:.1f} %"
    distilled = f"{100 * result['distilled student']:.1f} %"
    return f"""\
Shown in {seconds / 60:.1f} minutes: a small student that learns from {LABELED} labeled scenes reaches {alone} mIoU.
The same student reaches {distilled} when a teacher ({teacher}) also tells it what is in the 392 scenes without labels.

Look at     {run}/student_distilled/figures/predictions.png
            {run}/curves.png

Next, with your own photos in photos/images, masks for some of them in photos/masks, and the class names in
photos/labels.txt (docs/your_own_data.md):
  hf-segkd prepare photos --output photos_prepared
  hf-segkd distill --data photos --student pspnet-r18 --output_dir runs/teacher
  hf-segkd distill --data photos --student pspnet-mbv2 --teacher runs/teacher --output_dir runs/student
  hf-segkd predict runs/student photos/images --output_dir runs/predictions"""

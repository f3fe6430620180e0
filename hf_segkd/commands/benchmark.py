"""Train several methods with several seeds on the same budget and tabulate gain over the baseline and cost.

    hf-segkd benchmark camvid_released \
        --methods baseline kd cwd_logits kd_cwd --seeds 0 1 --split test --output_dir runs/bench \
        --student runs/espnet-c --teacher runs/espnet --data_dir CamVid

    hf-segkd benchmark --data photos --teacher runs/teacher --student espnet-c \
        --methods baseline kd kd_cwd --split validation --output_dir runs/bench

Recipes of data and pair, and every flag that is not named below, go to `hf-segkd distill` for each run. The first
method is the baseline. With --data, options that are not given are derived once, the same for all runs. Finished runs
are kept and an interrupted one is resumed: run the command again to continue the queue, also with further methods or
seeds. `--report FOLDER` writes table and plot again from an earlier run's files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from hf_segkd.commands.flags import CommandParser
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.reports.files import write_json

if TYPE_CHECKING:
    from dataset_builders.opened import OpenedDataset

METHODS = Path(__file__).resolve().parents[1] / "recipes" / "methods"
SCORES, COUNTS = "scores.json", "counts.safetensors"
DERIVED = "derived.yaml"
SCORING = threading.Lock()  # runs on several GPUs train side by side, but are scored one after the other


@dataclass(frozen=True)
class Run:
    """One run of the queue, and its arguments for `distill`."""

    method: str
    seed: int
    folder: Path
    argv: tuple[str, ...]


def main(argv: list[str] | None = None) -> int:
    """Run the queue and write the table; returns the number of failed runs."""
    argv = sys.argv[1:] if argv is None else argv
    recipes = list(takewhile(lambda word: not word.startswith("-"), argv))
    options, flags = parser().parse_known_args(argv[len(recipes) :])
    plain_logs()
    with readable_errors():
        if options.report:
            print(report(Path(options.report)))
            return 0
        if not options.output_dir:
            raise ValueError("No output folder. Give --output_dir FOLDER.")
        files = [method_file(method) for method in options.methods]
        recipes, dataset = open_data(recipes, files[0], options, flags)
        runs = plan(recipes, files, options, flags, dataset)
    devices = queue.SimpleQueue()
    for device in options.gpus or [None]:
        devices.put(device)
    with ThreadPoolExecutor(max_workers=len(options.gpus or [None])) as pool:
        done = list(pool.map(lambda run: work(run, devices, dataset, options.split), runs))
    finished = [run for run, succeeded in zip(runs, done, strict=True) if succeeded]
    with readable_errors():
        collect(finished, options)
        print("\n" + report(Path(options.output_dir)))
    for run in runs:
        if run not in finished:
            print(f"failed: {run.method}, seed {run.seed}; see {log_file(run)}")
    return len(runs) - len(finished)


def method_file(method: str) -> Path:
    """The recipe of a method, by name or path."""
    file = Path(method) if method.endswith(".yaml") else METHODS / f"{method}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in METHODS.glob("*.yaml")))
        raise ValueError(f"No method {method!r}. Known: {known}; or the path of a recipe.")
    return file


def open_data(
    recipes: list[str], baseline: Path, options: argparse.Namespace, flags: list[str]
) -> tuple[list[str], OpenedDataset]:
    """Recipes of all runs, and their dataset; with `--data`, the last recipe is what the baseline's run derives.

    Raises:
        ValueError: If a flag or the split is unknown.
    """
    from dataset_builders.arguments import find_data
    from hf_segkd.recipe import dump, parse
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.derived import derive_options
    from hf_segkd.training.inputs import open_training_data
    from hf_segkd.training.options import ScriptArguments

    argv = [*recipes, str(baseline), *flags, "--output_dir", options.output_dir]
    (script, config), recipe = parse((ScriptArguments, DistillationConfig), argv)
    find_data(script)
    dataset = open_training_data(script)
    dataset.check_split(options.split)
    if script.data is None:
        return recipes, dataset
    # Each method brings its own losses.
    derived = derive_options({"losses": {}} | recipe, script.student, dataset, config)
    file = Path(options.output_dir) / DERIVED
    file.parent.mkdir(parents=True, exist_ok=True)
    dump(derived, file)
    return [*recipes, str(file)], dataset


def plan(
    recipes: list[str], files: list[Path], options: argparse.Namespace, flags: list[str], dataset: OpenedDataset
) -> list[Run]:
    """All runs, seed by seed, so that an unfinished queue still compares methods.

    Raises:
        ValueError: If a flag is unknown, or a folder holds a run of other settings.
    """
    from hf_segkd.recipe import load_yaml, parse
    from hf_segkd.reports.method_benchmark import changed_keys
    from hf_segkd.training.class_weights import has_formula, resolve_class_weights
    from hf_segkd.training.config import DistillationConfig
    from hf_segkd.training.options import ScriptArguments

    numbers = {}
    runs = []
    for seed in options.seeds:
        for file in files:
            folder = Path(options.output_dir) / file.stem / f"seed{seed}"
            argv = (*recipes, str(file), *flags, "--seed", str(seed), "--output_dir", str(folder))
            _, recipe = parse((ScriptArguments, DistillationConfig), list(argv))
            if (folder / "recipe.yaml").is_file():
                earlier = load_yaml((folder / "recipe.yaml").read_text(encoding="utf-8"))
                if has_formula(recipe.get("losses", {})):  # the recipe that a run keeps has numbers
                    if file not in numbers:
                        numbers[file] = resolve_class_weights(recipe["losses"], dataset)
                    recipe["losses"] = numbers[file]
                if keys := changed_keys(earlier, recipe):
                    raise ValueError(f"{folder} was run with another {', '.join(keys)}. Use another --output_dir.")
            runs.append(Run(file.stem, seed, folder, argv))
    return runs


def work(run: Run, devices: queue.SimpleQueue, dataset: OpenedDataset, split: str) -> bool:
    """Train and score one run in its own process, unless that was done before; whether it succeeded."""
    from hf_segkd.training.finished_run import missing_of_run

    if is_scored(run, split):
        return True
    device = devices.get()
    print(f"{run.method}, seed {run.seed}: {log_file(run)}", flush=True)
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        if missing_of_run(run.folder):
            command = [sys.executable, "-m", "hf_segkd", "distill", *run.argv, "--resume"]
            with log_file(run).open("a") as log:
                trained = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            if trained.returncode:
                return False
        with SCORING:
            score(run, dataset, split)
        return True
    finally:
        devices.put(device)


def is_scored(run: Run, split: str) -> bool:
    """Whether the student that lies in a run's folder now was scored on this split."""
    from hf_segkd.training.finished_run import missing_of_run

    if missing_of_run(run.folder) or not (run.folder / COUNTS).is_file():
        return False
    try:
        scores = json.loads((run.folder / SCORES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (scores.get("split"), scores.get("student")) == (split, student_hash(run))


def student_hash(run: Run) -> str:
    """SHA-256 of the student's weights."""
    digest = hashlib.sha256()
    for file in sorted(run.folder.glob("model*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def score(run: Run, dataset: OpenedDataset, split: str) -> None:
    """Score a finished student on `split` and keep what was counted on each image."""
    from safetensors.torch import save_file

    from hf_segkd.evaluation.scoring import evaluate
    from hf_segkd.evaluation.segmenter import Segmenter, default_device
    from hf_segkd.loading.any_model import load_model

    images = dataset.evaluation_set(split)
    segmenter = Segmenter(*load_model(str(run.folder)), device=default_device())
    evaluation = evaluate(segmenter, images, ignore_index=dataset.spec.ignore_index)
    trained = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    scores = {"method": run.method, "seed": run.seed, "mean_iou": evaluation.scores()["mean_iou"]}
    scores |= {"dataset": dataset.spec.name, "split": split, "images": len(images)}
    scores |= {"protocol": str(segmenter.protocol), "student": student_hash(run)}
    kept = ("seconds_per_step", "peak_memory_mib", "loss_parameters", "steps", "hardware", "commit")
    save_file({"counts": evaluation.per_image.int()}, run.folder / COUNTS)
    write_json(scores | {key: trained[key] for key in kept}, run.folder / SCORES)  # last: it says that all is there


def collect(runs: list[Run], options: argparse.Namespace) -> None:
    """Put the scores of all finished runs into `results.json` and `counts.safetensors` of the output folder."""
    from safetensors.torch import load_file

    from hf_segkd.reports.method_benchmark import write_results

    scores = [json.loads((run.folder / SCORES).read_text(encoding="utf-8")) for run in runs]
    for run, entry in zip(runs, scores, strict=True):
        entry["log_sha256"] = hashlib.sha256(log_file(run).read_bytes()).hexdigest()
    counts = [load_file(run.folder / COUNTS)["counts"] for run in runs]
    write_results(scores, counts, Path(options.methods[0]).stem, Path(options.output_dir))


def report(folder: Path) -> str:
    """Write `table.md` and `gains.png` from a folder's results; returns the table."""
    from hf_segkd.reports.method_benchmark import plot_gains, read_results, results_table

    results = read_results(folder)
    text = results_table(results)
    (folder / "table.md").write_text(text, encoding="utf-8")
    try:
        plot_gains(results, folder / "gains.png")
    except ImportError as error:
        print(f"gains.png was not drawn: {error}")
    return text


def log_file(run: Run) -> Path:
    return run.folder.with_suffix(".log")


def parser() -> argparse.ArgumentParser:
    """Command line of this command; unknown options are passed on to `distill`."""
    parser = CommandParser("benchmark", __doc__, usage="%(prog)s [RECIPE ...] [options]", allow_abbrev=False)
    add = parser.add_argument
    add("--methods", nargs="+", default=["baseline"], help="names of method recipes, or paths; the baseline first")
    add("--seeds", type=int, nargs="+", default=[0], help="seeds; each method is trained once with each (default: 0)")
    add("--split", default="test", help="split that is scored (default: test)")
    add("--output_dir", help="folder of the queue: runs, table and plot")
    add("--gpus", nargs="+", help="GPUs to use, one run on each: 0 1 2")
    add("--report", metavar="FOLDER", help="only write table and plot from its results.json")
    return parser

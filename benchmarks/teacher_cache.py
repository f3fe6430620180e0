"""What a step of a distillation costs with the teacher live and with its answers stored, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.teacher_cache --data_dir CamVid \\
        --teacher checkpoints/ESP_SD+KD+CITY_65.1.pth --output_dir runs/teacher_cache

The pair is CamVid's ESPNet and ESPNet-C under `kd_cwd`, as its recipe trains it. First the answers for all training
images are stored. Then each round trains some steps of both forms, each in a process of its own: seconds of the
processor from the end of one step to the end of the next (reading images or stored answers included), and the largest
resident size of the process, with and (where Linux tells) without the files that are mapped into it. Writes
teacher_cache.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from benchmarks.measuring import hardware
from hf_segkd.commands import distill
from hf_segkd.recipe import parse
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.inputs import open_training_data
from hf_segkd.training.options import ScriptArguments

FORMS = ("live", "stored")
RECIPES = ("camvid", "espnet_espnet-c", "kd_cwd")
# Nothing but steps: no evaluation, no checkpoint, and images are read in the process that is measured.
PLAIN = "--eval_strategy no --save_strategy no --load_best_model_at_end false --dataloader_num_workers 0".split()


class StepSeconds(TrainerCallback):
    """Seconds of the processor from the end of one step to the end of the next."""

    def __init__(self):
        self.ends: list[float] = []
        self.own_mib = 0

    def on_step_end(self, *arguments, **kwargs):
        self.ends.append(time.process_time())
        self.own_mib = max(self.own_mib, own_mib())

    def seconds(self) -> list[float]:
        return [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]


def main(argv: list[str] | None = None) -> dict:
    arguments = parser().parse_args(argv)
    if arguments.measure:
        print("RESULT " + json.dumps(measure(words(arguments.measure, arguments))))
        return {}
    report = {"hardware": hardware(torch.get_num_threads()), "steps": arguments.steps, "forms": {}}
    report["store all training images"] = store(arguments)
    forms = report["forms"] = {form: {"seconds": [], "peak_mib": [], "own_mib": []} for form in FORMS}
    for form in FORMS * arguments.rounds:
        command = [sys.executable, "-m", "benchmarks.teacher_cache", *(argv or sys.argv[1:]), "--measure", form]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise RuntimeError(f"{form} failed:\n{done.stderr[-2000:]}")
        found = json.loads(lines[0].removeprefix("RESULT "))
        forms[form]["seconds"] += found["seconds"]
        for size in ("peak_mib", "own_mib"):
            forms[form][size].append(found[size])
        write_json(report, Path(arguments.output_dir) / "teacher_cache.json")
        print(f"{form}: {statistics.median(found['seconds']):.3f} s, {found['peak_mib']} MiB", flush=True)
    print(table(report))
    return report


def words(form: str, arguments: argparse.Namespace) -> list[str]:
    """The command line of `hf-segkd distill`; without a form, the one that fills the cache."""
    folder = Path(arguments.output_dir)
    given = [*RECIPES, "--data_dir", arguments.data_dir, "--teacher", arguments.teacher, "--check_data", "none"]
    given += [*PLAIN, "--use_cpu", "--max_steps", str(arguments.steps + 1), "--output_dir", str(folder / form)]
    if form != "live":
        given += ["--teacher_cache", str(folder / "cache")]
    return given


def store(arguments: argparse.Namespace) -> dict:
    """Fill the cache; what that took of the processor, and its size on disk."""
    start = time.process_time()
    maps = distill.main([*words("stored", arguments), "--cache_only"])["maps"]
    seconds = time.process_time() - start
    size = sum(file.stat().st_size for file in Path(arguments.output_dir, "cache").iterdir())
    return {"maps": maps, "seconds": round(seconds, 1), "mib": round(size / 2**20, 1)}


def measure(argv: list[str]) -> dict:
    """Train the steps of one form in this process. The first is not counted."""
    (script, config), _ = parse((ScriptArguments, DistillationConfig), argv)
    trainer, _ = distill.build(script, config, open_training_data(script))
    clock = StepSeconds()
    trainer.add_callback(clock)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": clock.seconds(), "peak_mib": round(peak), "own_mib": clock.own_mib}


def own_mib() -> int:
    """Resident memory of this process that is no mapped file, MiB; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def table(report: dict) -> str:
    """Markdown: median seconds of a step, and the largest sizes of the process."""
    rows = []
    for form, found in report["forms"].items():
        sizes = [str(max(found[size])) for size in ("peak_mib", "own_mib")]
        rows.append([form, f"{statistics.median(found['seconds']):.3f}", *sizes])
    return markdown_table(["teacher", "seconds of a step", "peak MiB", "without mapped files, between steps"], rows)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.teacher_cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", required=True, help="CamVid")
    add("--teacher", required=True, help="folder or original checkpoint of its ESPNet")
    add("--output_dir", required=True, help="folder for the cache and teacher_cache.json")
    add("--steps", type=int, default=12, help="counted steps of each process (default: 12)")
    add("--rounds", type=int, default=2, help="processes of each form, by turns (default: 2)")
    add("--measure", choices=FORMS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()

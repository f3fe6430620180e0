"""Time and memory of the losses beside the originals' formulations: forward and backward at 512×1024 crops.

    python -m benchmarks.losses --output runs/benchmarks/losses

writes losses.json and losses.md (a few minutes, 4 GB). `--only skd ifvd` measures the cases whose names hold one of
these. Every measurement runs in its own process, the two forms by turns. Memory is the peak of bytes that torch's
allocator hands out beyond the inputs, temporaries inside operators included: the profiler sees each allocation, which
makes the figure exact and the same on every machine, unlike resident memory, which holds whatever is not given back.
Time is the processor's, so that waiting for other processes does not count; with more threads it is their sum.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import dense
from hf_segkd.losses import LOSSES, LossSetup
from hf_segkd.losses.similarity import bank_kl, unit_vectors
from hf_segkd.models import SegmentationOutput

STRIDE = 8
LIMIT = 30.0  # seconds; a process stops repeating beyond it


class MemoryBank(nn.Module):
    """The relation terms of CIRKD's memory: pixels against 4104 pixel keys and 1026 region keys, no queue update."""

    def __init__(self, setup: LossSetup, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature
        channels = setup.teacher["features"][1]
        for name, keys in (("pixels", 4104), ("regions", 1026)):
            self.register_buffer(name, F.normalize(torch.randn(keys, channels), dim=1))

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        maps = (x.features.flatten(2).transpose(1, 2).flatten(0, 1) for x in (student, teacher))
        students, teachers = (unit_vectors(x) for x in maps)
        weights = students.new_full((len(students),), 1 / len(students))
        return sum(bank_kl(students, teachers, keys, weights, self.temperature) for keys in self.buffers())


@dataclass(frozen=True)
class Case:
    """A loss, its plain formulation, and the sizes to measure it at."""

    loss: type[nn.Module]
    dense: Callable
    field: str
    student_channels: int
    teacher_channels: int
    num_labels: int = 19
    options: dict = field(default_factory=dict)

    def build(self, batch: int, crop: tuple[int, int]) -> tuple[nn.Module, tuple]:
        """The loss and random inputs for it, always the same: student with gradient, teacher, labels."""
        torch.manual_seed(0)
        size = tuple(side // STRIDE for side in crop)
        student = torch.randn(batch, self.student_channels, *size).requires_grad_()
        teacher = torch.randn(batch, self.teacher_channels, *size)
        labels = torch.randint(0, self.num_labels, (batch, *crop))
        labels[:, : crop[0] // 8] = 255
        shapes = [{self.field: x.shape} for x in (student, teacher)]
        loss = self.loss(LossSetup(shapes[0], self.num_labels, shapes[1]), **self.options)
        return loss, (*(SegmentationOutput(**{self.field: x}) for x in (student, teacher)), labels)


def _cases() -> dict[str, Case]:
    cases = {
        "CIRKD mini-batch 512/512": Case(LOSSES["cirkd_minibatch"], dense.cirkd_minibatch, "features", 512, 512),
        "CIRKD mini-batch 128/256": Case(LOSSES["cirkd_minibatch"], dense.cirkd_minibatch, "features", 128, 256),
        "CIRKD memory bank 512": Case(MemoryBank, dense.memory_bank, "features", 512, 512),
        "SKD pair-wise 512/512": Case(LOSSES["skd_pairwise"], dense.skd_pairwise, "features", 512, 512),
        "SKD pair-wise 128/256": Case(LOSSES["skd_pairwise"], dense.skd_pairwise, "features", 128, 256),
        "IFVD 512/512, K=19": Case(LOSSES["ifvd"], dense.ifvd, "features", 512, 512),
        "CWD features 512/512": Case(LOSSES["cwd"], dense.cwd, "features", 512, 512),
        "AT 512/512": Case(LOSSES["at"], dense.at, "features", 512, 512),
    }
    for classes in (19, 150):
        sizes = ("logits", classes, classes, classes)
        cases[f"task with upsampling, K={classes}"] = Case(LOSSES["task"], dense.task, *sizes)
        cases[f"KD, K={classes}"] = Case(LOSSES["kd"], dense.kd, *sizes)
        cases[f"CWD logits, K={classes}"] = Case(LOSSES["cwd"], dense.cwd, *sizes, {"layer": "logits"})
    return cases


CASES = _cases()


def forward_backward(case: Case, form: str, loss: nn.Module, inputs: tuple) -> None:
    """One pass of the `"ours"` or the `"dense"` form; the gradient is thrown away with the graph."""
    value = loss(*inputs) if form == "ours" else case.dense(loss, *inputs)
    torch.autograd.grad(value, inputs[0][case.field])


def peak_bytes(function: Callable[[], None]) -> int:
    """Peak of the CPU bytes that torch holds during a call, beyond those that it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(case: Case, form: str, passes: int) -> dict:
    """CPU seconds of each pass after a first one, and the peak of bytes of one more."""
    loss, inputs = case.build(batch=2, crop=(512, 1024))
    seconds: list[float] = []
    for _ in range(passes + 1):
        start = time.process_time()
        forward_backward(case, form, loss, inputs)
        seconds.append(time.process_time() - start)
        if sum(seconds) > LIMIT:
            break
    return {"seconds": seconds[1:] or seconds, "bytes": peak_bytes(lambda: forward_backward(case, form, loss, inputs))}


def hardware(threads: int) -> str:
    """CPU model, cores, threads used and versions, in one line."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {threads} thread(s), {versions}"


def table(results: dict[str, dict]) -> str:
    """Markdown: ratios dense/ours first, then medians in seconds and peaks in MiB."""
    lines = ["| loss | time ratio | memory ratio | s dense | s ours | MiB dense | MiB ours |", "|---|" + "---|" * 6]
    for name, forms in results.items():
        seconds = [statistics.median(forms[form]["seconds"]) for form in ("dense", "ours")]
        mebibytes = [forms[form]["bytes"] / 2**20 for form in ("dense", "ours")]
        ratios = f"{seconds[0] / seconds[1]:.1f}x | {mebibytes[0] / mebibytes[1]:.1f}x"
        times = " | ".join(f"{value:.3f}" for value in seconds)
        lines.append(f"| {name} | {ratios} | {times} | " + " | ".join(f"{value:.0f}" for value in mebibytes) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of the cases to measure")
    parser.add_argument("--rounds", type=int, default=3, help="processes per case and form")
    parser.add_argument("--passes", type=int, default=5, help="timed passes per process, after a first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/losses"), help="path without suffix")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "FORM"), help="one measurement, printed as JSON")
    args = parser.parse_args()
    if args.measure:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(CASES[args.measure[0]], args.measure[1], args.passes)))
        return
    command = [sys.executable, "-m", "benchmarks.losses", f"--threads={args.threads}", f"--passes={args.passes}"]
    results = {}
    for name in (name for name in CASES if any(part.lower() in name.lower() for part in args.only)):
        forms = results[name] = {form: {"seconds": []} for form in ("dense", "ours")}
        for form in ("dense", "ours") * args.rounds:
            run = subprocess.run([*command, "--measure", name, form], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            forms[form]["seconds"] += found["seconds"]
            forms[form]["bytes"] = found["bytes"]
        print(table({name: forms}).splitlines()[-1], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"hardware": hardware(args.threads), "results": results}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(f"{table(results)}\n\n{report['hardware']}\n")


if __name__ == "__main__":
    main()

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
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.cases import CASES, Case, forward_backward
from benchmarks.measuring import cpu_seconds, hardware, peak_bytes

LIMIT = 30.0  # seconds; a process stops repeating beyond it


def measure(case: Case, form: str, passes: int) -> dict:
    """CPU seconds of each pass after a first one, and the peak of bytes of one more."""
    loss, inputs = case.build()
    seconds: list[float] = []
    while len(seconds) <= passes and sum(seconds) < LIMIT:
        seconds.append(cpu_seconds(lambda: forward_backward(case, form, loss, inputs)))
    return {"seconds": seconds[1:] or seconds, "bytes": peak_bytes(lambda: forward_backward(case, form, loss, inputs))}


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

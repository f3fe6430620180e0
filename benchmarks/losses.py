"""Time and memory of the losses beside the originals' formulations: forward and backward at 512×1024 crops.

    python -m benchmarks.losses --output runs/benchmarks/losses

writes losses.json and losses.md (an hour, 8 GB). `--only skd ifvd` measures the cases whose names hold one of
these. Every measurement runs in its own process, the two forms by turns. Memory is the peak of bytes that torch's
allocator hands out beyond the inputs, temporaries inside operators included: the profiler sees each allocation, which
makes the figure exact and the same on every machine, unlike resident memory, which holds whatever is not given back.
Time is the processor's, so that waiting for other processes does not count; with more threads it is their sum.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.cases import CASES, forward_backward
from benchmarks.measuring import compare, measure, write

LIMIT = 30.0  # seconds; a process stops repeating beyond it


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
        case, form = CASES[args.measure[0]], args.measure[1]
        loss, inputs = case.build()
        print(json.dumps(measure(lambda: forward_backward(case, form, loss, inputs), args.passes, LIMIT)))
        return
    names = (name for name in CASES if any(part.lower() in name.lower() for part in args.only))
    options = [f"--threads={args.threads}", f"--passes={args.passes}"]
    write(args.output, compare("benchmarks.losses", names, options, args.rounds), args.threads)


if __name__ == "__main__":
    main()

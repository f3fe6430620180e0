"""What the benchmarks count and time: bytes, allocations, operations, processor seconds; two forms side by side."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_segkd.evaluation.profiling import hardware_name
from hf_segkd.reports.tables import markdown_table


def allocations(function: Callable[[], object]) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) of CPU memory by torch in a call, in order.

    The profiler sees each one, temporaries inside operators included: exact and the same on every machine, unlike
    resident memory, which holds whatever is not given back to the system.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak of the CPU bytes that torch holds during a call, beyond those that it held before."""
    return max(accumulate(allocations(function), initial=0))


def count_flops(function: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions of a call, forward and backward; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def cpu_seconds(function: Callable[[], object]) -> float:
    """Processor's time of a call: waiting for other processes does not count; with more threads it is their sum."""
    start = time.process_time()
    function()
    return time.process_time() - start


def hardware(threads: int) -> str:
    """CPU model, cores, threads used and versions, in one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{hardware_name('cpu')}, {os.cpu_count()} cores, {threads} thread(s), {versions}"


def measure(function: Callable[[], object], passes: int, limit: float) -> dict:
    """Processor's seconds of each call after a first one, until `limit` seconds are over, and the peak of one more."""
    seconds: list[float] = []
    while len(seconds) <= passes and sum(seconds) < limit:
        seconds.append(cpu_seconds(function))
    return {"seconds": seconds[1:] or seconds, "bytes": peak_bytes(function)}


def compare(module: str, cases: Iterable[str], options: list[str], rounds: int) -> dict[str, dict]:
    """Run `python -m module --measure CASE FORM` for the dense form and ours by turns, each in a process of its own.

    Prints a line of the table per case as soon as it is there.
    """
    results = {}
    for case in cases:
        forms = results[case] = {form: {"seconds": []} for form in ("dense", "ours")}
        for form in ("dense", "ours") * rounds:
            command = [sys.executable, "-m", module, *options, "--measure", case, form]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            forms[form]["seconds"] += found["seconds"]
            forms[form]["bytes"] = found["bytes"]
        print(table({case: forms}).splitlines()[-1], flush=True)
    return results


def table(results: dict[str, dict]) -> str:
    """Markdown: ratios dense/ours first, then medians in seconds and peaks in MiB."""
    head = ("case", "time ratio", "memory ratio", "s dense", "s ours", "MiB dense", "MiB ours")
    rows = []
    for name, forms in results.items():
        seconds = [statistics.median(forms[form]["seconds"]) for form in ("dense", "ours")]
        mebibytes = [forms[form]["bytes"] / 2**20 for form in ("dense", "ours")]
        ratios = [f"{dense / ours:.1f}x" for dense, ours in (seconds, mebibytes)]
        rows.append([name, *ratios, *(f"{x:.3f}" for x in seconds), *(f"{x:.0f}" for x in mebibytes)])
    return markdown_table(head, rows)


def write(output: Path, results: dict[str, dict], threads: int) -> None:
    """The results as `output`.json and their table as `output`.md, both with the hardware."""
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"hardware": hardware(threads), "results": results}
    output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(f"{table(results)}\n\n{report['hardware']}\n")

"""What the benchmarks count and time: bytes, allocations, operations, processor seconds."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode


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
    live = peak = 0
    for size in allocations(function):
        live += size
        peak = max(peak, live)
    return peak


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
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {threads} thread(s), {versions}"

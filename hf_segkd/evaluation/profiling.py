"""What a model costs: parameters, operations, time and memory of one forward pass."""

from __future__ import annotations

import copy
import platform
import resource
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_segkd.evaluation.settings import VARIANTS
from hf_segkd.loading.frozen import folded_batch_norms
from hf_segkd.models import input_channels


def count_macs(model: PreTrainedModel, size: tuple[int, int]) -> int:
    """Multiply-accumulate operations of one forward pass of one image: convolutions, linear layers, attention.

    Counted by PyTorch's own counter on tensors without content, so that it takes no time at any size.

    Args:
        model (`PreTrainedModel`): Left as it is.
        size (`tuple[int, int]`): Height and width of the image, pixels.
    """
    ghost = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(pixel_values=torch.empty(1, input_channels(model.config), *size, device="meta", dtype=model.dtype))
    return counter.get_total_flops() // 2


def measure(
    model: nn.Module,
    size: tuple[int, int],
    variant: str = "eager",
    batch_size: int = 1,
    device: str = "cpu",
    repeats: int = 20,
    warmup: int = 3,
    channels: int = 3,
) -> dict[str, float]:
    """Time and peak memory of forward passes on random images.

    Args:
        model (`nn.Module`): Called as `model(pixel_values=...)`; is moved to `device` and put in eval mode.
        size (`tuple[int, int]`): Height and width of the images, pixels.
        variant (`str`, *optional*, defaults to `"eager"`): One of `VARIANTS`; `"folded"` has its batch norms in
            the convolutions before them, `"bf16"` casts the weights too.
        batch_size (`int`, *optional*, defaults to `1`): Images at once.
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"` or `"cuda"`.
        repeats, warmup (`int`): Timed passes, and passes before them.
        channels (`int`, *optional*, defaults to `3`): Channels of the images.

    Returns:
        `dict[str, float]`: `p50_ms` and `p90_ms` of one pass, `images_per_second` (at the median), `peak_mib`: on a
        GPU what PyTorch allocated, weights included; on a CPU by how much the passes raised the process's largest
        resident size, so only the first measurement of a process is meaningful.

    Raises:
        ValueError: On an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Unknown variant {variant!r}. Variants: {', '.join(VARIANTS)}.")
    model = model.to(device).eval()
    images = torch.randn(batch_size, channels, *size, device=device)
    if variant == "channels_last":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if variant == "bf16":
        model, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    if variant == "compiled":
        model = torch.compile(model)
    before = peak_memory_mib(device)
    folding = folded_batch_norms(model, size) if variant == "folded" else nullcontext()
    with folding, torch.inference_mode():
        for _ in range(warmup):
            model(pixel_values=images)
        # Each pass is timed, because the 90th percentile is asked for: `benchmark.Timer` reports means of several.
        seconds = []
        for _ in range(repeats):
            start = timer()  # waits for the GPU
            model(pixel_values=images)
            seconds.append(timer() - start)
    seconds.sort()
    median = statistics.median(seconds)
    return {
        "p50_ms": 1000 * median,
        "p90_ms": 1000 * seconds[min(len(seconds) - 1, round(0.9 * (len(seconds) - 1)))],
        "images_per_second": batch_size / median,
        "peak_mib": peak_memory_mib(device) - (0 if device == "cuda" else before),
    }


def peak_memory_mib(device: str | torch.device) -> float:
    """Largest memory so far, MiB: on a GPU what PyTorch allocated there, on a CPU the resident size of the process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def thread_count(threads: int) -> str:
    """`"1 thread"` or `"2 threads"`, for the conditions of a measurement."""
    return f"{threads} thread" if threads == 1 else f"{threads} threads"


def hardware_name(device: str | torch.device) -> str:
    """Name of the GPU, or of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

"""The dilated convolutions of a student whose gradients are wrong in bfloat16 on this CPU.

Seen with torch 2.13 where maps are stored channels last, as inductor stores them too. On an Intel Xeon with AMX, the
weight gradient of a depthwise convolution had nothing to do with the right one, or was infinite. On an AMD EPYC the
same holds for any convolution of several groups, and for more than 16 input channels that are no multiple of 16; some
of these ended the process. So a process of its own computes them:

    python -m hf_segkd.training.bfloat16 '[[25, 25, [3, 3], [1, 1], [2, 2], [2, 2], 1]]'
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from torch import nn

# Exit statuses that say nothing of a gradient: Python's after an exception, and that of SIGKILL, for want of memory.
ERROR, KILLED = 1, -9


def wrong_convolution(student: nn.Module) -> str | None:
    """Name of a dilated convolution whose weight gradient this CPU computes wrongly in bfloat16, if there is one.

    Raises:
        RuntimeError: If a gradient could not be computed for another reason.
    """
    names: dict[str, str] = {}  # of the first convolution of each shape
    for name, module in student.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.dilation) > 1:
            names.setdefault(json.dumps(shape(module)), name)
    if not names:
        return None
    command = [sys.executable, "-m", "hf_segkd.training.bfloat16", f"[{', '.join(names)}]"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode in (ERROR, KILLED):
        reason = done.stderr or "the system ended the process, which it does when memory runs out."
        raise RuntimeError(f"The gradients in bfloat16 could not be checked:\n{reason}")
    right = done.stdout.split().count("right")
    return None if right == len(names) else list(names.values())[right]


def shape(module: nn.Conv2d) -> list:
    """What `is_wrong` has to know of a convolution, as JSON can hold it."""
    channels = [module.in_channels, module.out_channels]
    return [*channels, module.kernel_size, module.stride, module.padding, module.dilation, module.groups]


def main(argv: list[str]) -> None:
    """Print "right" for each shape, up to the first wrong one."""
    for in_channels, out_channels, kernel, stride, padding, dilation, groups in json.loads(argv[0]):
        padding = padding if isinstance(padding, str) else tuple(padding)
        sizes = tuple(kernel), tuple(stride), padding, tuple(dilation)
        if is_wrong(nn.Conv2d(in_channels, out_channels, *sizes, groups=groups, bias=False)):
            return
        print("right", flush=True)


def is_wrong(convolution: nn.Conv2d) -> bool:
    """Whether its weight gradient in bfloat16 differs by a tenth or more from that in float32, on noise."""
    random = torch.Generator().manual_seed(0)
    image = torch.randn(1, convolution.in_channels, 44, 60, generator=random)
    along = torch.randn(convolution(image).shape, generator=random)

    def weight_gradient(dtype: torch.dtype) -> torch.Tensor:
        maps, gradient = (value.to(dtype, memory_format=torch.channels_last) for value in (image, along))
        convolved = convolution.to(dtype)(maps)
        return torch.autograd.grad(convolved, convolution.weight, gradient)[0].float()

    right, rounded = weight_gradient(torch.float32), weight_gradient(torch.bfloat16)
    # Not "greater than": the wrong gradient may be NaN.
    return not (rounded - right).norm() < 0.1 * right.norm()


if __name__ == "__main__":
    main(sys.argv[1:])

"""No step waits for a value on the device: on a GPU, whose queue would run dry.

The losses run on tensors without content, where whatever looks at one raises. What is sent to the device is seen by a
dispatch mode.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.loss_cases import build, labels_for, pair, total
from hf_segkd.losses import LOSSES
from hf_segkd.training.config import DistillationConfig

OPTIONS = [
    # skd_pairwise chooses between two sums by the size of the first: it waits once a step, and says so.
    *((name, {}) for name in LOSSES if name != "skd_pairwise"),
    ("adversarial", {"objective": "wgan-gp"}),
    ("cskd", {"comparison": "mse", "pam_projection": "learned"}),
    ("cskd", {"pam_projection": "resample"}),
    ("cirkd_memory", {"sampling": "original"}),
    ("af_dcd", {"pooling": 1}),
]


class NoWaitingCopies(TorchDispatchMode):
    """Refuses copies from the host for which the host would wait until all before them is done."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and "device" in kwargs and args[0].device != kwargs["device"]:
            assert kwargs.get("non_blocking"), f"a copy of {tuple(args[0].shape)} to the device waits for it"
        return function(*args, **kwargs)


def without_content(x):
    return x.detach().to("meta").requires_grad_(x.requires_grad)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda x: x if isinstance(x, str) else ",".join(x))
def test_no_loss_waits_for_the_device(name, options, monkeypatch):
    """One .item(), boolean index or blocking copy makes host and GPU take turns, at every step."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # It has no such device.
    loss = build(name, **options).to("meta")
    sides = pair(name)
    for side in sides:
        for key, value in list(side.items()):
            side[key] = tuple(map(without_content, value)) if isinstance(value, tuple) else without_content(value)
    labels = labels_for(name).to("meta")
    with NoWaitingCopies():
        value = loss(*sides, labels)
        total(value).backward()


def test_images_travel_while_the_gpu_computes(tmp_path, monkeypatch):
    """accelerate's default waits for every batch to arrive."""
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    assert not DistillationConfig(**options).accelerator_config.non_blocking
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert DistillationConfig(**options).accelerator_config.non_blocking
    assert not DistillationConfig(**options, dataloader_pin_memory=False).accelerator_config.non_blocking

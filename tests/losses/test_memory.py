"""What the losses allocate, counted in bytes, and the plain formulations that they are measured against."""

import importlib
import sys
from itertools import accumulate

import pytest
import torch

from helpers.paths import ROOT
from hf_segkd.losses import LOSSES, LossSetup, build_losses, skd
from hf_segkd.losses.functional import attention, cross_entropy, similarity
from hf_segkd.losses.functional.similarity import unit_vectors
from hf_segkd.models import SegmentationOutput

sys.path.append(str(ROOT))
cases, dense, measuring = (importlib.import_module(f"benchmarks.{name}") for name in ("cases", "dense", "measuring"))

K = 4
CHANNELS = {"logits": (K, K), "aux_logits": (K, K), "features": (8, 12), "hidden_states.0": (8, 12)}


# At 256x512: operations of products and peak of bytes, in parts of the plain form's, and allocations of at least the
# size of a map. They are counted, not timed: the same on every machine, and above them something got worse.
COUNTS = {
    "CIRKD mini-batch 128/256": (0.70, 0.085, 2),
    "CIRKD memory, its bank": (1.01, 0.16, 10),
    "CIRKDv2, its context block": (1.09, 0.52, 19),
    "SKD pair-wise 128/256": (0.51, 0.57, 0),
    "CSKD PAM, whole map": (1.04, 0.26, 109),
    "AT 512/512": (0, 0.26, 1),
    "DSD": (1.01, 0.28, 1),
    "IFVD 512/512, K=19": (None, 0.05, 4),  # The plain form has no products.
    "CWD features 512/512": (0, 0.51, 6),
    "KD, K=150": (0, 0.61, 6),
    "task with upsampling, K=150": (None, 0.02, 34),
}
# Seconds each, and of the same kernels as the others.
COSTLY = {"CIRKD memory, its bank", "CIRKDv2, its context block", "CSKD PAM, whole map", "CIRKD mini-batch 128/256"}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks far smaller than the maps: at the real sizes, a map of the tests would fit into one."""
    monkeypatch.setattr(similarity, "CPU_TILE", 64)
    monkeypatch.setattr(similarity, "CPU_BLOCK", 2**14)
    monkeypatch.setattr(skd, "TILE", 64)
    monkeypatch.setattr(attention, "CPU_QUERIES", 32)
    monkeypatch.setattr(cross_entropy, "CPU_BAND", 2**12)
    monkeypatch.setattr(cross_entropy, "FEWEST_ROWS", 4)


def output(side: int, size: tuple[int, int], batch: int, seed: int, scale: float = 1.0) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(seed)
    maps = {
        name: scale * torch.randn(batch, channels[side], *size, generator=generator)
        for name, channels in CHANNELS.items()
    }
    hidden = maps.pop("hidden_states.0")
    return SegmentationOutput(
        **{name: x.requires_grad_(side == 0) for name, x in maps.items()}, hidden_states=(hidden,)
    )


def build(name: str, size: tuple[int, int], **options) -> torch.nn.Module:
    torch.manual_seed(0)
    shapes = [{field: torch.Size((1, c[side], *size)) for field, c in CHANNELS.items()} for side in (0, 1)]
    modules, _ = build_losses({name: options}, LossSetup(shapes[0], num_labels=K, teacher=shapes[1]))
    return modules[name]


def total(value):
    return sum(value.values()) if isinstance(value, dict) else value


def peak(name: str, size: tuple[int, int]) -> int:
    """Peak of bytes of one forward and backward, inputs and the loss itself not counted."""
    loss, batch = build(name, size), max(2, LOSSES[name].min_batch)
    student, teacher = output(0, size, batch, seed=0), output(1, size, batch, seed=1)
    labels = torch.randint(0, K, (batch, 4 * size[0], 4 * size[1]))

    def step():
        total(loss(student, teacher, labels)).backward()

    step()  # Gradient buffers of the inputs exist from here on.
    return measuring.peak_bytes(step)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_with_the_map_not_with_its_square(name):
    """One N x N matrix would pass every other test, and not fit a GPU at the published sizes."""
    side = max(16, LOSSES[name].min_side)
    small, large = peak(name, (side, 3 * side // 2)), peak(name, (2 * side, 3 * side // 2))
    assert large < 2.5 * small, f"{small} -> {large} bytes"


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in COSTLY else x for x in COUNTS])
def test_counts_stay_what_they_are(name):
    """The benchmarks run by hand; between two of them a loss could grow slow or large."""
    torch.set_num_threads(1)  # Matrix products hold a buffer per thread, which is counted.
    case, counted = cases.CASES[name], {}
    loss, inputs = case.build(crop=(256, 512))
    map_size = max(x.nbytes for side in inputs[:2] for x in side.values())
    for form in ("dense", "ours"):
        cases.forward_backward(case, form, loss, inputs)  # Buffers of the first pass exist from here on.
        operations = measuring.count_flops(lambda form=form: case.value(form, loss, inputs).backward())
        sizes = measuring.allocations(lambda form=form: cases.forward_backward(case, form, loss, inputs))
        counted[form] = operations, max(accumulate(sizes)), sum(size >= map_size for size in sizes)
    (dense, dense_peak, _), (ours, peak, large) = counted["dense"], counted["ours"]
    operations, bytes_, allocations = COUNTS[name]
    assert operations is None or ours <= operations * dense, f"{ours / max(dense, 1):.3f} of the operations"
    assert peak <= bytes_ * dense_peak, f"{peak / dense_peak:.3f} of the bytes"
    assert large <= allocations, f"{large} allocations of the size of a map"


@pytest.mark.usefixtures("small_blocks")
def test_task_loss_holds_no_upsampled_logits():
    """At 150 classes the upsampled logits alone are most of a training step's memory."""
    case = cases.Case(LOSSES["task"], dense.task, {"logits": (16, 16)}, num_labels=16, crop=(256, 256))
    loss, inputs = case.build()
    found = measuring.peak_bytes(lambda: cases.forward_backward(case, "ours", loss, inputs))
    assert found < inputs[2].numel() * 16 * 4 / 8


@pytest.mark.parametrize("name, options", [("kd", {}), ("cwd", {"layer": "logits"})])
def test_fused_logit_losses_keep_one_tensor(name, options):
    """Autograd would keep both log-probabilities and the target until the backward pass."""
    student, teacher = output(0, (16, 16), 2, seed=0), output(1, (16, 16), 2, seed=1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        build(name, (16, 16), **options)(student, teacher, None)
    assert sum(kept) == student.logits.numel()


@pytest.mark.parametrize("scale", [1e4, 6e4], ids=["logits of 1e4", "features at the end of float16"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_at_the_ends_of_the_number_range(name, scale):
    """Half-precision networks reach these sizes; a square or an exponential of them must not overflow."""
    batch, side = max(2, LOSSES[name].min_batch), max(8, LOSSES[name].min_side)
    student, teacher = (output(whose, (side, side), batch, seed=whose, scale=scale) for whose in (0, 1))
    value = total(build(name, (side, side))(student, teacher, torch.randint(0, K, (batch, 4 * side, 4 * side))))
    value.backward()
    gradients = [x.grad for x in (student.logits, student.features) if x.grad is not None]
    assert value.isfinite() and gradients and all(x.isfinite().all() for x in gradients)


def test_unit_vectors_equal_normalize_on_zero_rows_too():
    """Its backward is written by hand; dead channels give zero rows, which must not become NaN."""
    rows = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    weights = torch.arange(20, dtype=torch.float64).view(5, 4)
    for function in (unit_vectors, lambda x: torch.nn.functional.normalize(x, dim=-1)):
        x = rows.clone().requires_grad_()
        units = function(x)
        (units * weights).sum().backward()
        if function is unit_vectors:
            found = units.detach(), x.grad
    torch.testing.assert_close(found[0], units.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], x.grad, rtol=1e-12, atol=1e-12)

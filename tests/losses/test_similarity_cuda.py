"""The Triton kernels of the similarity KL against whole maps in float64: on a GPU, or in Triton's interpreter.

    python -m pytest tests/test_similarity_cuda.py

on a machine with an NVIDIA GPU; without one, `TRITON_INTERPRET=1` in front runs the small cases on the CPU, slowly.
"""

import os

import pytest
import torch

from helpers import golden_cirkd
from helpers.golden_losses import assert_reproduced, cases, load
from helpers.relations import units, whole_bank, whole_pairs
from hf_segkd.losses.functional import similarity
from hf_segkd.losses.functional.similarity import bank_kl, image_pair_kl

GPU, INTERPRETED = torch.cuda.is_available(), os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
pytestmark = pytest.mark.skipif(not GPU and not INTERPRETED, reason="needs a CUDA GPU, or TRITON_INTERPRET=1")
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")

# Relative errors. Float32: 1e-5 for sums of some hundred terms in another order, in three tf32 products on a GPU.
FLOAT32, TF32, FLOAT16, BFLOAT16 = 1e-5, 1e-2, 2e-3, 2e-2


def compare(function, reference, arguments, tolerance, dtype=torch.float32):
    """Value and gradient of the kernels on `arguments` rounded to `dtype`, and of float64 formulas on the same."""
    tensors = [x.to(DEVICE, dtype) for x in arguments[:-1]]
    student = tensors[0].clone().requires_grad_()
    value = function(student, *tensors[1:], arguments[-1])
    assert type(value.grad_fn).__name__ in ("PairKLBackward", "BankKLBackward"), "PyTorch's form was tested"
    (3 * value).backward()
    exact = tensors[0].double().requires_grad_()
    expected = reference(exact, *(x.double() for x in tensors[1:]), arguments[-1])
    (3 * expected).backward()
    assert value.dtype == student.grad.dtype == dtype
    assert abs(value.double() - expected).item() <= tolerance * expected.abs().item() + 1e-6
    error = (student.grad.double() - exact.grad).norm()
    assert error.item() <= tolerance * exact.grad.norm().item() + 1e-6


@pytest.mark.parametrize(
    "images, positions, student, teacher, temperature, tile",
    [
        (2, 135, 20, 33, 0.1, 4096),  # more than one tile of each kernel, with a rest
        (3, 20, 5, 7, 0.1, 16),  # blocks of D below the size of an image
        (1, 1, 3, 3, 0.1, 16),
        (1, 9, 600, 3, 1.0, 16),  # many chunks of channels, of one side alone
        (2, 9, 3, 130, 1 / 60, 16),  # the last temperature with plain exponentials
    ],
)
def test_pairs_equal_the_formula(images, positions, student, teacher, temperature, tile, monkeypatch):
    """Each edge of a block has its mask; one that is wrong adds keys that do not exist."""
    monkeypatch.setattr(similarity, "GPU_TILE" if GPU else "CPU_TILE", tile)
    arguments = units(images, positions, student), units(images, positions, teacher, seed=1), temperature
    compare(image_pair_kl, whole_pairs, arguments, FLOAT32)


@pytest.mark.parametrize("temperature", [0.01, 1e-3])
def test_pairs_equal_the_formula_at_low_temperatures(temperature):
    """exp(1000) is infinite in every format, so that running maxima must be subtracted in both kernels."""
    # Similarities of 1/temperature have 1/temperature times the absolute error.
    arguments = units(2, 70, 16), units(2, 70, 9, seed=1), temperature
    compare(image_pair_kl, whole_pairs, arguments, FLOAT32 / temperature / 10)


def test_equal_student_and_teacher_have_no_loss_and_no_gradient():
    """Near the optimum the loss is a small difference of large numbers."""
    x = units(2, 40, 24).to(DEVICE, torch.float32)
    student = x.clone().requires_grad_()
    value = image_pair_kl(student, x, 0.1)
    value.backward()
    # The terms of the gradient, of size 1/(B·N·temperature), cancel but for float32's rounding.
    assert abs(value.item()) <= 1e-6 and student.grad.abs().max().item() <= 1e-6 / (2 * 40 * 0.1)


@pytest.mark.parametrize("anchors, keys, block", [(135, 70, 2**20), (9, 33, 5 * 33), (1, 1, 1)])
@pytest.mark.parametrize("temperature", [0.1, 0.002])
def test_bank_equals_the_formula(anchors, keys, block, temperature, monkeypatch):
    """The gradient is formed in the forward pass, block of anchors by block."""
    monkeypatch.setattr(similarity, "GPU_BLOCK" if GPU else "CPU_BLOCK", block)
    weights = torch.rand(anchors, generator=torch.Generator().manual_seed(0)).double()
    weights[::3] = 0
    weights[0] = 0.5
    arguments = units(anchors, 12), units(anchors, 12, seed=1), units(keys, 12, seed=2), weights, temperature
    compare(bank_kl, whole_bank, arguments, FLOAT32 if temperature == 0.1 else 1e-3)


def test_bank_without_gradient_is_only_a_value():
    """Under no_grad the second kernel has nothing to do."""
    tensors = [x.to(DEVICE, torch.float32) for x in (units(5, 4), units(5, 4, seed=1), units(11, 4, seed=2))]
    with torch.no_grad():
        value = bank_kl(*tensors, torch.ones(5, device=DEVICE), 0.1)
    assert value > 0 and not value.requires_grad


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)])
def test_half_precision_inputs_are_summed_in_float32(dtype, tolerance):
    """Sums of thousands of bfloat16 terms stop growing at 256 times a term."""
    compare(image_pair_kl, whole_pairs, (units(1, 70, 20), units(1, 70, 9, seed=1), 0.1), tolerance, dtype)
    weights = torch.full((70,), 1 / 64).double()
    arguments = units(70, 20), units(70, 20, seed=1), units(70, 20, seed=2), weights, 0.1
    compare(bank_kl, whole_bank, arguments, tolerance, dtype)


def test_rounding_to_bfloat16_rounds_the_inputs_alone(monkeypatch):
    """Of rounded similarities only the difference of student and teacher would be left: noise, late in training."""
    monkeypatch.setenv("HF_SEGKD_SIMILARITY", "bf16")
    arguments = [units(2, 60, 20), units(2, 60, 9, seed=1), 0.1]
    rounded = [x.to(torch.bfloat16).double() for x in arguments[:2]] + arguments[2:]
    # Inputs that are bfloat16 already lose nothing; each entry of D loses up to 1/512 of itself.
    compare(image_pair_kl, whole_pairs, rounded, 1e-2)
    values = [image_pair_kl(*(x.to(DEVICE, torch.float32) for x in a[:2]), a[2]) for a in (arguments, rounded)]
    assert torch.equal(*values)


@pytest.mark.golden
@pytest.mark.parametrize("case", cases({"cirkd_minibatch"}), ids=lambda case: case["name"])
def test_kernels_reproduce_the_original(case, monkeypatch):
    """The values that PyTorch's form is held to."""
    if case["dtype"] != "float32":
        pytest.skip("the kernels compute no float64")
    if INTERPRETED and max(case["hparams"]["hw"]) > 64:
        pytest.skip("takes minutes in the interpreter")
    tensors = {key: x.to(DEVICE) for key, x in load(case).items()}
    if "in.feat_s" in tensors:
        tensors["in.feat_s"] = tensors["in.feat_s"].detach().requires_grad_()
    used = []
    monkeypatch.setattr(similarity, "uses_kernels", lambda x, f=similarity.uses_kernels: used.append(f(x)) or f(x))
    found = golden_cirkd.minibatch(tensors, case["hparams"], monkeypatch)
    assert_reproduced(case, tensors, found)
    assert used == [True]


@needs_gpu
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_pairs_and_bank_at_real_sizes(dtype, tolerance):
    """More rows than a block of D, more channels than the largest backbone has, keys as CIRKD draws them."""
    compare(image_pair_kl, whole_pairs, (units(2, 4225, 128), units(2, 4225, 256, seed=1), 0.1), tolerance, dtype)
    compare(image_pair_kl, whole_pairs, (units(1, 500, 2048), units(1, 500, 2048, seed=1), 0.1), tolerance, dtype)
    weights = torch.full((8192,), 2.0**-13).double()
    arguments = units(8192, 512), units(8192, 512, seed=1), units(4104, 512, seed=2), weights, 0.1
    compare(bank_kl, whole_bank, arguments, tolerance, dtype)


@needs_gpu
def test_tf32_is_used_where_pytorch_uses_it():
    """It is three times faster than the float32 products, and the user's choice."""
    arguments, before = (units(2, 300, 64), units(2, 300, 64, seed=1), 0.1), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        compare(image_pair_kl, whole_pairs, arguments, TF32)
        with pytest.raises(AssertionError):
            compare(image_pair_kl, whole_pairs, arguments, FLOAT32 / 10)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_gpu
def test_the_gpu_is_never_waited_for_and_holds_no_map():
    """A synchronization per block would leave the GPU idle; a map of 8192 positions is 256 MiB."""
    student, teacher = (units(2, 8192, 64, seed=seed).to(DEVICE, torch.float32) for seed in (0, 1))
    student.requires_grad_()
    image_pair_kl(student, teacher, 0.1).backward()  # compiles
    student.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        image_pair_kl(student, teacher, 0.1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20

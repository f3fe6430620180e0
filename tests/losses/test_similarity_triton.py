"""The kernels of the similarity KL without a GPU: in Triton's interpreter, compiled, and when they are used."""

import os
import subprocess
import sys

import pytest
import torch

from helpers.paths import ROOT, TESTS
from helpers.relations import units
from hf_segkd.losses.functional import similarity
from hf_segkd.losses.functional.similarity import image_pair_kl


@pytest.mark.slow
def test_kernels_are_right_in_the_interpreter():
    """The cases of two files; in its own process, because Triton decides when it is imported. Warnings are errors."""
    pytest.importorskip("triton")
    cases = [str(TESTS / "losses" / name) for name in ("test_similarity_cuda.py", "test_similarity_bounds.py")]
    # numpy warns where an exponential overflows.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::RuntimeWarning", *cases]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout


# Bytes of shared memory that one block may have, by compute capability.
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


@pytest.mark.parametrize(
    "capability, dtype, precision",
    [
        (90, torch.bfloat16, "ieee"),
        *(
            pytest.param(capability, dtype, precision, marks=pytest.mark.slow)
            for capability in SHARED_MEMORY
            for dtype, precision in [(torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "tf32x3")]
        ),
    ],
)
def test_kernels_compile_for_gpus_and_fit_their_memory(capability, dtype, precision, monkeypatch, tmp_path):
    """The interpreter takes what the compiler refuses, and knows no limits."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels = compiled(capability, dtype, precision, monkeypatch)
    assert len(kernels) == 4
    for kernel in kernels:
        assert "mma" in kernel.asm["ptx"], "the matrix products do not run on tensor cores"
        assert 0 < kernel.metadata.shared <= SHARED_MEMORY[capability]


def compiled(capability, dtype, precision, monkeypatch):
    """Both kernels with the options of a launch at 512 and 256 channels, the second in its three variants."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_segkd.losses.functional import similarity_triton as kernels

    monkeypatch.setattr(kernels, "_capability", lambda x: divmod(capability, 10))
    options = kernels._options(torch.empty(1, 512, dtype=dtype), torch.empty(1, 256, dtype=dtype), precision)
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages")}
    number = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    types = dict.fromkeys(("anchors_s", "anchors_t", "keys_s", "keys_t"), number) | {"scale": "fp32"}
    types |= dict.fromkeys(("row_count", "column_count", "images", "stride"), "i32")
    types["output"] = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    variants = [{}, *({"SYMMETRIC": s, "PLAIN": p} for s, p in ((True, True), (True, False), (False, True)))]
    found = []
    for variant in variants:
        kernel, constants = kernels._differences if variant else kernels._sums, options | variant
        names = enumerate(kernel.arg_names)
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for _, name in names}
        aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(signature) if name in types}
        aligned = {key: x for key, x in aligned.items() if kernel.arg_names[key[0]] not in ("scale", "images")}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        found.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch))
    return found


def test_the_processor_and_float64_keep_pytorchs_form(monkeypatch):
    """Without a GPU the kernels cannot run, and the tests' float64 must not be rounded."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = units(1, 3, 4, dtype=torch.float32).requires_grad_()
    assert type(image_pair_kl(x, x, 0.1).grad_fn).__name__ == "_SymmetricPairKLBackward"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert similarity.uses_kernels(x) and not similarity.uses_kernels(x.double())


def test_pytorchs_form_can_be_forced(monkeypatch):
    """To compare, and to go on where a kernel fails."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("HF_SEGKD_SIMILARITY", "torch")
    x = units(1, 3, 4, dtype=torch.float32).requires_grad_()
    assert type(image_pair_kl(x, x, 0.1).grad_fn).__name__ == "_SymmetricPairKLBackward"


def test_an_unknown_form_is_refused(monkeypatch):
    """`off` would otherwise leave the kernels on."""
    monkeypatch.setenv("HF_SEGKD_SIMILARITY", "off")
    with pytest.raises(ValueError, match="must be one of auto, torch, bf16, got 'off'"):
        image_pair_kl(units(1, 3, 4), units(1, 3, 4), 0.1)

"""Streamed similarity KL against the formula written out with whole maps."""

import pytest
import torch

from helpers.relations import units, whole_bank, whole_pairs
from hf_segkd.losses.functional import similarity
from hf_segkd.losses.functional.similarity import bank_kl, image_pair_kl


def assert_same_value_and_gradient(function, reference, student, *arguments):
    values, gradients = [], []
    for f in (function, reference):
        x = student.clone().requires_grad_()
        value = f(x, *arguments)
        (3 * value).backward()
        values.append(value.detach())
        gradients.append(x.grad)
    assert torch.allclose(*values, rtol=1e-12, atol=1e-13)
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.01], ids=["symmetric tiles", "rows"])
@pytest.mark.parametrize("block", [1, 3, 7, 1000], ids=lambda size: f"blocks of {size}")
@pytest.mark.parametrize("images", [1, 3])
def test_pairs_equal_the_formula_whatever_the_blocks(temperature, block, images, monkeypatch):
    """A tile counted twice, or once too few at an edge, shows at some sizes only."""
    monkeypatch.setattr(similarity, "CPU_TILE", block)
    monkeypatch.setattr(similarity, "CPU_BLOCK", block * 7)
    student, teacher = units(images, 7, 4), units(images, 7, 5, seed=1)
    assert_same_value_and_gradient(image_pair_kl, whole_pairs, student, teacher, temperature)


@pytest.mark.parametrize("block", [1, 11, 40, 1000])
def test_bank_equals_the_formula_whatever_the_blocks(block, monkeypatch):
    """The gradient is formed in the forward pass, so a wrong block would be silent."""
    monkeypatch.setattr(similarity, "CPU_BLOCK", block)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.1, 0.15], dtype=torch.float64)
    arguments = (units(5, 4, seed=1), units(11, 4, seed=2), weights, 0.1)
    assert_same_value_and_gradient(bank_kl, whole_bank, units(5, 4), *arguments)


def test_both_forms_agree_where_both_are_exact(monkeypatch):
    """They are one function to the user: the temperature must not change more than the temperature."""
    student, teacher = units(2, 6, 4), units(2, 6, 5, seed=1)
    plain = image_pair_kl(student, teacher, 0.1)
    monkeypatch.setattr(similarity, "LARGEST_PLAIN_EXPONENT", 1.0)
    assert torch.allclose(plain, image_pair_kl(student, teacher, 0.1), rtol=1e-13)


@pytest.mark.parametrize("temperature", [1 / 60, 1e-3])
def test_pairs_are_finite_in_float32_at_low_temperatures(temperature):
    """exp(1000) is infinite: without maxima the loss would be NaN from the first step."""
    student, teacher = units(2, 64, 4, dtype=torch.float32).requires_grad_(), units(2, 64, 5, dtype=torch.float32)
    value = image_pair_kl(student, teacher, temperature)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


def test_backward_keeps_no_map(monkeypatch):
    """The point of it: a map of 8192 positions is 256 MB per image pair."""
    kept = []
    monkeypatch.setattr(similarity, "CPU_TILE", 16)
    student, teacher = units(2, 256, 4).requires_grad_(), units(2, 256, 4, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        image_pair_kl(student, teacher, 0.1)
        weights = torch.ones(512, dtype=torch.float64)
        bank_kl(student.flatten(0, 1), teacher.flatten(0, 1), units(300, 4), weights, 0.1)
    assert kept and max(kept) <= student.numel()


def test_bank_without_gradient_is_only_a_value():
    """Under no_grad the gradient need not be formed, and there is nothing to keep."""
    with torch.no_grad():
        value = bank_kl(units(5, 4), units(5, 4, seed=1), units(11, 4, seed=2), torch.ones(5).double(), 0.1)
    assert value > 0 and not value.requires_grad


def test_pairs_of_different_sizes_are_refused():
    """Zipping 6 positions with 7 would compare other places."""
    with pytest.raises(ValueError, match=r"same images and rows, got \(2, 6\) and \(2, 7\)"):
        image_pair_kl(units(2, 6, 4), units(2, 7, 4), 0.1)

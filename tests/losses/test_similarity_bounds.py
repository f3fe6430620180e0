"""A divergence is never negative: the relational losses over temperatures and numbers of keys, in float32.

`TRITON_INTERPRET=1` in front tests the kernels in Triton's interpreter instead of PyTorch's form.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.relations import units
from hf_segkd.losses.functional.similarity import bank_kl, image_pair_kl

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of float32. A term is rounded when it is formed, when it is weighted and when it is added.
ROUNDINGS = 4
inputs = {
    "temperature": st.floats(0.002, 1.0),
    "keys": st.integers(1, 300),
    "channels": st.integers(1, 20),
    "distance": st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
    "seed": st.integers(0, 10**6),
}


def student_and_teacher(*shape, distance, seed):
    """Unit vectors, and others that lie about `distance` away; float32."""
    student = units(*shape, seed=seed)
    teacher = F.normalize(student + distance * units(*shape, seed=seed + 1), dim=-1)
    return student.to(DEVICE, torch.float32), teacher.to(DEVICE, torch.float32)


def rounding(student, teacher, keys_s, keys_t, temperature):
    """What rounding of its own terms may take from the KL of each anchor (..., N), given in float32, found in float64.

    The terms are `p_t |log p_t|` and `p_t |log p_s|`. They do not grow with 1/temperature: one key alone has none.
    """
    similarities = [a.double() @ b.double().mT / temperature for a, b in ((student, keys_s), (teacher, keys_t))]
    log_s, log_t = (x.log_softmax(dim=-1) for x in similarities)
    terms = (log_t.exp() * (log_t.abs() + log_s.abs())).sum(dim=-1)
    return ROUNDINGS * torch.finfo(torch.float32).eps * (1 + terms)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**inputs)
def test_bank_kl_is_negative_by_no_more_than_its_terms_are_rounded(temperature, keys, channels, distance, seed):
    """Similarities of 700 that cancel only after they were rounded left -5e-6 where one key has exactly 0."""
    student, teacher = student_and_teacher(5, channels, distance=distance, seed=seed)
    bank = units(keys, channels, seed=seed + 2).to(DEVICE, torch.float32)
    weights = torch.full((5,), 0.2, device=DEVICE)
    value = bank_kl(student, teacher, bank, weights, temperature)
    assert value.item() >= -rounding(student, teacher, bank, bank, temperature).mean().item()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**inputs)
def test_image_pair_kl_is_negative_by_no_more_than_its_terms_are_rounded(temperature, keys, channels, distance, seed):
    """Both of PyTorch's forms and the kernels: temperatures on both sides of 1/60."""
    student, teacher = student_and_teacher(2, keys, channels, distance=distance, seed=seed)
    value = image_pair_kl(student, teacher, temperature)
    bound = rounding(student[:, None], teacher[:, None], student[None], teacher[None], temperature).mean()
    assert value.item() >= -bound.item()


@pytest.mark.parametrize("temperature", [1.0, 1 / 60, 0.002])
def test_one_key_leaves_no_divergence(temperature):
    """A softmax over one key is 1 whatever its similarity."""
    student, teacher = student_and_teacher(1, 1, 12, distance=1.0, seed=0)
    rounding_of_logarithms = 4 * torch.finfo(torch.float32).eps
    assert abs(image_pair_kl(student, teacher, temperature).item()) <= rounding_of_logarithms
    weights = torch.ones(1, device=DEVICE)
    value = bank_kl(student[0], teacher[0], units(1, 12, seed=2).to(student), weights, temperature)
    assert abs(value.item()) <= rounding_of_logarithms

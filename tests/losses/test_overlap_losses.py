"""Dice and Lovász-Softmax by hand, from their definitions, and on pixels that do not count."""

import math
from fractions import Fraction

import pytest
import torch

from hf_segkd.losses import LOSSES, LossSetup
from hf_segkd.models import SegmentationOutput

IGNORE = 255


def loss_of(name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = LOSSES[name](LossSetup({"logits": logits.shape}, logits.shape[1], align_corners=False))
    return loss(SegmentationOutput(logits=logits), None, labels)


def scores(probabilities: list[list[float]]) -> torch.Tensor:
    """Logits (1, K, 1, P) whose softmax has these columns, one list per class."""
    return torch.tensor(probabilities, dtype=torch.float64).log()[None, :, None]


def jaccard_loss(wrong: set[int], labeled: set[int]) -> Fraction:
    """1 - IoU of a class when exactly the pixels `wrong` are mistaken."""
    predicted = labeled ^ wrong
    return 1 - Fraction(len(labeled & predicted), len(labeled | predicted))


def lovasz_by_definition(errors: list[float], labeled: set[int]) -> float:
    """Berman et al., definition 1: errors in decreasing order, weighed by the growth of the loss over sets."""
    order = sorted(range(len(errors)), key=lambda index: -errors[index])
    value = 0.0
    for place, index in enumerate(order):
        growth = jaccard_loss({*order[: place + 1]}, labeled) - jaccard_loss({*order[:place]}, labeled)
        value += errors[index] * float(growth)
    return value


def test_dice_of_a_case_done_by_hand():
    """Sums without squares, or over both images at once, would give other fractions."""
    foreground = [[0.5, 0.25, 0.75, 0.5]]
    logits = scores([*foreground, [1 - x for x in foreground[0]]])
    labels = torch.tensor([[[0, 1, 0, IGNORE]]])
    first = 2 * (0.5 + 0.75) / (0.25 + 0.0625 + 0.5625 + 2)
    second = 2 * 0.75 / (0.25 + 0.5625 + 0.0625 + 1)
    assert loss_of("dice", logits, labels).item() == pytest.approx(1 - (first + second) / 2, abs=1e-12)


def test_dice_leaves_out_classes_that_an_image_lacks_and_images_without_labels():
    """A constant 1 for each absent class would hide what is learned; an unlabeled image would halve the loss."""
    logits = scores([[0.5, 0.25], [0.25, 0.25], [0.25, 0.5]])
    labels = torch.tensor([[[0, 0]]])
    alone = 1 - 2 * 0.75 / (0.25 + 0.0625 + 2)
    assert loss_of("dice", logits, labels).item() == pytest.approx(alone, abs=1e-12)
    pair = torch.cat([labels, torch.full_like(labels, IGNORE)])
    assert loss_of("dice", logits.expand(2, -1, -1, -1), pair).item() == pytest.approx(alone, abs=1e-12)


def test_lovasz_equals_the_growth_of_the_jaccard_loss():
    """The definition over sets, in fractions; sorted the wrong way round it is another number."""
    foreground = [0.9, 0.4, 0.2, 0.7, 0.35]
    logits = scores([[1 - x for x in foreground], foreground])
    labeled = {0, 1, 4}
    labels = torch.tensor([[[1, 1, 0, 0, 1]]])
    errors = [1 - x if index in labeled else x for index, x in enumerate(foreground)]
    expected = (lovasz_by_definition(errors, labeled) + lovasz_by_definition(errors, {2, 3})) / 2
    assert loss_of("lovasz", logits, labels).item() == pytest.approx(expected, abs=1e-12)


def test_lovasz_of_certain_predictions_is_one_less_the_mean_iou():
    """What it is a surrogate of: class 0 has IoU 1/3, class 1 has 2/4."""
    logits = 1e3 * torch.tensor([[[[1.0, 0, 1, 0, 0]], [[0.0, 1, 0, 1, 1]]]])
    labels = torch.tensor([[[0, 0, 1, 1, 1]]])
    assert loss_of("lovasz", logits, labels).item() == pytest.approx(1 - (1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_ignored_pixels_change_neither_value_nor_gradient(name):
    """Whatever is predicted where nothing is labeled, it is not wrong."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 1, IGNORE, 2, IGNORE, 1]]])
    value = loss_of(name, logits, labels)
    value.backward()
    counted = labels[0, 0] != IGNORE
    assert not logits.grad[..., ~counted].any() and logits.grad[..., counted].any()
    assert torch.allclose(value, loss_of(name, logits[..., counted], labels[..., counted]), atol=1e-12)


@pytest.mark.parametrize("name", ["dice", "lovasz"])
@pytest.mark.parametrize("size", [(4, 5), (7, 9)])
def test_gradients_are_exact(name, size):
    """Also through the upsampling to the size of the labels."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, *size), generator=generator)
    labels[:, 0, :2] = IGNORE
    assert torch.autograd.gradcheck(lambda x: loss_of(name, x, labels), (logits,))


def test_lovasz_in_float32_keeps_small_increments():
    """The difference of two Jaccard losses over 10^6 pixels has one digit left in float32."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 2, 1000, 1000, generator=generator)
    labels = (torch.rand(1, 1000, 1000, generator=generator) < 0.01).long()
    found, expected = (loss_of("lovasz", logits.to(dtype), labels).item() for dtype in (torch.float32, torch.float64))
    assert math.isclose(found, expected, rel_tol=1e-5)

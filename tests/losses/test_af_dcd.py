"""Af-DCD: contrasts that can be computed by hand, gradients against plain loops, patches, and masks that resume."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_segkd.losses import LOSSES, LossSetup, af_dcd
from hf_segkd.models import SegmentationOutput

# Float64 sums of some thousand terms in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(channels, teacher_channels=None, **options):
    torch.manual_seed(0)
    shapes = [{"features": torch.Size((1, c, 8, 8))} for c in (channels, teacher_channels or channels)]
    return LOSSES["af_dcd"](LossSetup(shapes[0], num_labels=2, teacher=shapes[1]), **options).double()


def call(loss, student, teacher):
    return loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)


def plain_contrast(student, teacher, groups, patch, temperature):
    """The formula, anchor by anchor, for maps whose sides are multiples of the patch."""
    batch, _, height, width = student.shape
    s, t = (x.unflatten(1, (groups, -1)) for x in (student, teacher))
    places = [(i, j) for i in range(height) for j in range(width)]
    total = 0
    for b, m, (i, j) in [(b, m, place) for b in range(batch) for m in range(groups) for place in places]:
        anchor = s[b, m, :, i, j]
        near = [(k, q) for k, q in places if k // patch == i // patch and q // patch == j // patch]
        pieces = [t[b, m, :, i, j], *(t[b, g, :, k, q] for k, q in near for g in range(groups) if g != m)]
        scores = torch.stack([-(anchor - piece).abs().sum() / temperature for piece in pieces])
        total = total - scores.log_softmax(0)[0]
    return total / (batch * height * width)


def test_contrast_of_two_groups_at_one_position():
    """Pieces 0 and 1, τ = 1: each anchor is 0 from its positive and 1 from its negative, so 2·log(1 + e⁻¹)."""
    x = torch.tensor([0.0, 1.0]).double().view(1, 2, 1, 1)
    value = build(2, groups=2, temperature=1.0, pooling=1).contrast(x, x)
    assert value.item() == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-12)


@pytest.mark.parametrize("size, pooling, positions", [((16, 16), 4, 16), ((8, 8), 1, 16), ((2, 3), 1, 6)])
def test_contrast_of_constant_maps_is_the_number_of_pieces(size, pooling, positions):
    """All P·(M − 1) negatives tie with the positive: M·log(1 + P·(M − 1)), the docstring's value before training."""
    x = torch.ones(2, 32, *size).double()
    value = build(32, pooling=pooling).contrast(x, x)
    assert value.item() == pytest.approx(16 * math.log(1 + positions * 15), rel=1e-12)


def test_other_positions_of_the_own_group_are_no_negatives():
    """Groups far apart, positions alike: nothing is left to tell apart. With them the loss would be 2·log 16."""
    x = torch.tensor([0.0, 1000.0]).double().view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert build(2, groups=2, pooling=1).contrast(x, x).item() == pytest.approx(0, abs=1e-12)


def test_contrast_has_the_value_and_gradient_of_plain_loops():
    """A patch cut along the wrong axis, or groups mixed with channels, would still train."""
    student, teacher = draw(2, 6, 8, 12).requires_grad_(), draw(2, 6, 8, 12, seed=1)
    found = build(6, groups=3, patch=2, pooling=2, temperature=0.5).contrast(student, teacher)
    pooled = (F.max_pool2d(x, 2) for x in (student, teacher))
    expected = plain_contrast(*pooled, groups=3, patch=2, temperature=0.5)
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (found, expected)), **EXACT)


def test_blocks_change_neither_value_nor_gradient(monkeypatch):
    """Large maps take many blocks, tests one: a lost remainder would show on the user's machine only."""
    student, teacher = draw(1, 4, 12, 8).requires_grad_(), draw(1, 4, 12, 8, seed=1)
    loss = build(4, groups=2, pooling=1)
    whole = loss.contrast(student, teacher)
    monkeypatch.setattr(af_dcd, "BLOCK", 4 * 32**2)  # 4 of the 6 patches of 16·2 pieces
    blocks = loss.contrast(student, teacher)
    torch.testing.assert_close(blocks, whole, **EXACT)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (blocks, whole)), **EXACT)


def test_contrast_keeps_no_distances():
    """Without pooling the distances of a 64 x 128 map take 134 MB an image, three times over."""
    sizes, student = [0], draw(1, 8, 24, 24).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        build(8, groups=8, pooling=1).contrast(student, draw(1, 8, 24, 24, seed=1))
    assert max(sizes) <= student.numel()  # 36 patches · (16·8)² distances would be 128 times as many


def test_rows_and_columns_that_fill_no_patch_are_left_out():
    """45 x 45 maps (CamVid) make 11 x 11 patches, as in the authors' code, instead of failing."""
    student, teacher, loss = draw(1, 4, 9, 13), draw(1, 4, 9, 13, seed=1), build(4, groups=2, pooling=1)
    expected = loss.contrast(student[..., :8, :12], teacher[..., :8, :12])
    torch.testing.assert_close(loss.contrast(student, teacher), expected, **EXACT)


def test_feature_is_mgd_and_contrast_compares_the_regenerated_map():
    """With the student's own map in the contrast, masked positions would never be contrasted."""
    student, teacher = draw(2, 3, 8, 8), draw(2, 4, 8, 8, seed=1)
    loss = build(3, 4, groups=2, pooling=1)
    shapes = [{"features": x.shape} for x in (student, teacher)]
    mgd = LOSSES["mgd"](LossSetup(shapes[0], num_labels=2, teacher=shapes[1])).double()
    mgd.load_state_dict(loss.state_dict())
    found = call(loss, student, teacher)
    torch.testing.assert_close(found["feature"], call(mgd, student, teacher), **EXACT)
    mgd.generation.draws.load_state_dict({"drawn": torch.tensor(0)})
    torch.testing.assert_close(found["contrast"], loss.contrast(mgd.generation(student), teacher), **EXACT)


def test_masks_continue_from_the_state_dict():
    """A resumed run that masks other positions is another run."""
    loss, resumed, x, teacher = build(2, 4), build(2, 4), draw(1, 2, 8, 8), draw(1, 4, 8, 8)
    call(loss, x, teacher)
    resumed.load_state_dict(loss.state_dict())
    assert torch.equal(resumed.generation.draw_mask(1, 8, 8), loss.generation.draw_mask(1, 8, 8))


@pytest.mark.parametrize("channels, expected", [(2048, 16), (512, 16), (50, 10), (6, 6), (15, 15)])
def test_groups_are_the_largest_divisor_of_the_channels(channels, expected):
    """Unequal groups would have distances of different scale; an error on 15 channels would rule small models out."""
    assert build(2, channels, groups=16).groups == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"groups": 1}, "groups must be an integer from 2"),
        ({"patch": 0}, "patch must be an integer from 1"),
        ({"pooling": 2.0}, "pooling must be an integer from 1"),
        ({"teacher_channels": 17}, "the 17 channels .* cannot be divided into 2 to 16 equal groups"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """A single group has no negatives: the loss would be constant zero."""
    with pytest.raises(ValueError, match=message):
        build(4, **options)

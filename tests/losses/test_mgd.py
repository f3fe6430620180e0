"""MGD: sums that can be computed by hand, gradients against a plain formula, and masks that resume."""

import pytest
import torch
import torch.nn.functional as F

from hf_segkd.losses import LOSSES, LossSetup
from hf_segkd.models import SegmentationOutput

# Float64 sums of some hundred terms in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(student, teacher, seed=0, **options):
    torch.manual_seed(0)
    shapes = {"features": student.shape}, {"features": teacher.shape}
    setup = LossSetup(shapes[0], num_labels=2, teacher=shapes[1], seed=seed)
    return LOSSES["mgd"](setup, **options).double()


def call(loss, student, teacher):
    return loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)


def identity(loss):
    """Let the generator copy its (non-negative) input."""
    for layer in (loss.generation.generator[0], loss.generation.generator[2]):
        torch.nn.init.dirac_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return loss


def convolution(x, weight, bias):
    """3×3 convolution with zero padding, as the sum over its nine shifts."""
    padded, (height, width) = F.pad(x, (1, 1, 1, 1)), x.shape[-2:]
    shifts = [(i, j, padded[..., i : i + height, j : j + width]) for i in range(3) for j in range(3)]
    return sum(torch.einsum("oc,bchw->bohw", weight[..., i, j], part) for i, j, part in shifts) + bias[:, None, None]


def test_mgd_sums_over_channels_and_positions_and_averages_over_images():
    """A mean would void the published weight of 2e-5: 3 channels · 4 positions · 3² = 108 per image."""
    student, teacher = torch.full((2, 3, 2, 2), 2.0).double(), torch.full((2, 3, 2, 2), 5.0).double()
    loss = identity(build(student, teacher, mask_ratio=0.0))
    assert call(loss, student, teacher).item() == 108


def test_masked_positions_are_regenerated_too():
    """The loss runs over the whole map; where the student is masked, the copy is 0: 3 positions · 2 channels · 2²."""
    x = torch.full((1, 2, 2, 3), 2.0).double()
    loss = identity(build(x, x))
    loss.generation.draw_mask = lambda *shape: torch.tensor([[1, 0, 0], [1, 1, 0]])[None, None]
    assert call(loss, x, x).item() == 24


def test_gradients_equal_those_of_the_plain_formula():
    """Student, projector and generator learn together; a detached one would stay as it was drawn."""
    student, teacher = draw(2, 3, 4, 5).requires_grad_(), draw(2, 4, 4, 5, seed=1)
    loss, mask = build(student, teacher), draw(2, 1, 4, 5, seed=2) > 0
    loss.generation.draw_mask = lambda *shape: mask
    projector, first, last = loss.generation.projector, loss.generation.generator[0], loss.generation.generator[2]
    projected = torch.einsum("oc,bchw->bohw", projector.weight[..., 0, 0], student) + projector.bias[:, None, None]
    hidden = convolution(projected * mask, first.weight, first.bias).clamp(min=0)
    dense = (convolution(hidden, last.weight, last.bias) - teacher).square().sum() / 2
    value, inputs = call(loss, student, teacher), [student, *loss.parameters()]
    torch.testing.assert_close(value, dense, **EXACT)
    for found, expected in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(dense, inputs), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_a_masked_position_shows_nothing_of_the_student_nor_of_the_projector():
    """Masked before the projector, its bias would mark the positions as if they had been seen."""
    student, teacher = draw(1, 2, 4, 4).requires_grad_(), draw(1, 3, 4, 4, seed=1)
    loss = build(student, teacher)
    loss.generation.draw_mask = lambda *shape: torch.zeros(1, 1, 4, 4)
    call(loss, student, teacher).backward()
    assert student.grad.abs().max() == 0 and loss.generation.projector.bias.grad.abs().max() == 0


def test_the_mask_hides_the_asked_fraction_of_positions_image_by_image():
    """A swapped comparison would mask a quarter instead of three quarters."""
    x = draw(1, 2, 4, 4)
    mask = build(x, x, mask_ratio=0.75).generation.draw_mask(2, 64, 64).double()
    # 0.02: four standard deviations of a mean over 8192 positions.
    assert mask.shape == (2, 1, 64, 64) and mask.mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(mask[0], mask[1])


def test_masks_continue_from_the_state_dict_and_follow_the_seed():
    """A resumed run that masks other positions is another run."""
    x = draw(2, 2, 4, 4)
    loss, resumed, other = build(x, x), build(x, x), build(x, x, seed=1)
    call(loss, x, x)
    resumed.load_state_dict(loss.state_dict())
    following = loss.generation.draw_mask(2, 8, 8)
    assert torch.equal(resumed.generation.draw_mask(2, 8, 8), following)
    call(other, x, x)
    assert not torch.equal(other.generation.draw_mask(2, 8, 8), following)


def test_the_global_generator_is_left_alone():
    """Otherwise adding the loss would change the crops and the dropout of the run."""
    x = draw(1, 2, 4, 4)
    loss, before = build(x, x), torch.get_rng_state()
    call(loss, x, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_projector_is_there_only_when_channels_differ():
    """Between equal channels the authors mask the student's map itself."""
    assert isinstance(build(draw(1, 2, 4, 4), draw(1, 2, 4, 4)).generation.projector, torch.nn.Identity)
    assert build(draw(1, 2, 4, 4), draw(1, 5, 4, 4)).generation.projector.weight.shape == (5, 2, 1, 1)


def test_a_teacher_of_another_stride_is_resized():
    """The authors' code stops here; constant maps stay constant: 1 channel · 16 positions · 3²."""
    student, teacher = torch.full((1, 1, 4, 4), 2.0).double(), torch.full((1, 1, 7, 9), 5.0).double()
    assert call(identity(build(student, teacher, mask_ratio=0.0)), student, teacher).item() == pytest.approx(144)


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan")])
def test_mask_ratio_outside_its_range_is_refused(ratio):
    """With everything masked the student gets no gradient, silently."""
    with pytest.raises(ValueError, match=r"mask_ratio must be a fraction in \[0, 1\)"):
        build(draw(1, 2, 4, 4), draw(1, 2, 4, 4), mask_ratio=ratio)

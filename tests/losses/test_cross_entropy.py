"""Banded cross-entropy and fused KL against the formulas written out, values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from hf_segkd.loading.any_model import load_model
from hf_segkd.losses import LossSetup, build_losses
from hf_segkd.losses.functional import cross_entropy
from hf_segkd.losses.functional.cross_entropy import upsampled_cross_entropy
from hf_segkd.losses.functional.divergence import softmax_kl
from hf_segkd.losses.task import TaskLoss
from hf_segkd.models import SegmentationOutput
from hf_segkd.models.outputs import segmentation_loss
from hf_segkd.training.distiller import loss_setup

K, IGNORE = 3, 255
RESNET = {"model_type": "segkd_resnet", "stem_width": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 16]}
SIZES = {
    "enlarged": ((5, 7), (40, 56)),
    "odd ratio": ((5, 7), (33, 50)),
    "same size": ((9, 7), (9, 7)),
    "reduced": ((33, 29), (8, 11)),
    "higher and narrower": ((4, 30), (29, 8)),
    "one row": ((1, 4), (6, 5)),
    "to one pixel": ((6, 5), (1, 1)),
}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_labels(size, batch=2):
    labels = torch.randint(0, K + 1, (batch, *size), generator=torch.Generator().manual_seed(1))
    return labels.where(labels < K, IGNORE)


def value_and_gradient(function, x):
    before, x = x, x.detach().clone().requires_grad_()
    value = function(x)
    (3 * value).backward()
    assert torch.equal(before, x), "the input was changed in place"
    return value.detach(), x.grad


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 1000], ids=lambda rows: f"bands of {rows} rows")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bands_equal_the_whole_map_whatever_the_sizes(sizes, rows, align_corners, monkeypatch):
    """A row of logits that is missed at the edge of a band shows at some ratios only, and trains silently."""
    monkeypatch.setattr(cross_entropy, "CPU_BAND", 1)
    monkeypatch.setattr(cross_entropy, "FEWEST_ROWS", rows)
    labels = draw_labels(sizes[1])
    labels[:, 0, 0] = 0
    found, expected = (
        value_and_gradient(lambda x, f=f: f(x, labels, IGNORE, align_corners), draw(2, K, *sizes[0]))
        for f in (upsampled_cross_entropy, segmentation_loss)
    )
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("height, target", [(24, 360), (47, 360), (64, 512), (97, 769), (55, 713), (33, 2049)])
def test_bands_read_every_row_that_has_a_weight(height, target, align_corners):
    """Positions are computed here in float64 and by torch in float32: at an integer they may round to either side."""
    resize = cross_entropy._Bilinear(torch.zeros(1, 1, height, 1), (target, 1), align_corners)
    for start in range(target):
        rows = slice(start, start + 1)
        used = resize.rows[:, rows].any(dim=1).nonzero()
        reads = resize.reads(rows)
        assert reads.start <= used.min() and used.max() < reads.stop <= height


def test_class_weights_count_as_in_torch():
    """Weights of the sum that are forgotten in the mean's divisor would change the learning rate instead."""
    labels, weights = draw_labels((40, 56)), [0.5, 4.0, 0.0625]
    loss = TaskLoss(LossSetup({"logits": (1, K, 5, 7)}, K, align_corners=False), class_weights=weights).double()

    def plain(x):
        x = F.interpolate(x, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(x, labels, torch.tensor(weights, dtype=torch.float64), ignore_index=IGNORE)

    found = value_and_gradient(lambda x: loss(SegmentationOutput(logits=x), None, labels), draw(2, K, 5, 7))
    for ours, theirs in zip(found, value_and_gradient(plain, draw(2, K, 5, 7)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert not loss.state_dict()


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], [1.0, "2", 1.0], "abc"])
def test_wrong_class_weights_are_refused(weights):
    with pytest.raises(ValueError, match="class_weights must be 3 positive numbers"):
        TaskLoss(LossSetup({"logits": (1, K, 5, 7)}, K), class_weights=weights)


@pytest.mark.parametrize("ignore_index, dtype", [(255, torch.uint8), (-100, torch.long), (255, torch.int32)])
def test_labels_of_any_integer_type_count_alike(ignore_index, dtype):
    """Images come as uint8; torch compares uint8 156 as equal to -100 when asked directly."""
    labels = draw_labels((8, 8)).where(draw_labels((8, 8)) != IGNORE, ignore_index)
    found = upsampled_cross_entropy(draw(2, K, 4, 4), labels.to(dtype), ignore_index, True)
    torch.testing.assert_close(found, segmentation_loss(draw(2, K, 4, 4), labels, ignore_index, True))


def test_a_batch_without_labeled_pixels_gives_zero_and_a_zero_gradient():
    """0/0 would be a NaN that the optimizer spreads over all weights."""
    labels = torch.full((2, 8, 8), IGNORE)
    value, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels, IGNORE, True), draw(2, K, 4, 4))
    assert value == 0 and gradient.abs().max() == 0


def test_large_logits_and_autocast_give_the_float32_value():
    """Autocast would run the upsampling products in bf16, and exp(1e4) is infinite."""
    logits, labels = 1e4 * draw(2, K, 4, 4, dtype=torch.float32), draw_labels((8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = value_and_gradient(lambda x: upsampled_cross_entropy(x, labels, IGNORE, True), logits)
    assert value.dtype == torch.float32 and gradient.isfinite().all()
    torch.testing.assert_close(value, segmentation_loss(logits, labels, IGNORE, True))
    half = upsampled_cross_entropy(logits.bfloat16(), labels, IGNORE, True)
    torch.testing.assert_close(half, segmentation_loss(logits.bfloat16().float(), labels, IGNORE, True))


def test_without_gradient_only_the_value_is_formed():
    """Evaluation must not pay for a gradient; a second backward must find the first one's tensor unchanged."""
    x, labels = draw(2, K, 4, 4).requires_grad_(), draw_labels((8, 8))
    with torch.no_grad():
        assert not upsampled_cross_entropy(x, labels, IGNORE, True).requires_grad
    value = upsampled_cross_entropy(x, labels, IGNORE, True)
    first, second = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_auxiliary_logits_of_another_size_add_their_share():
    """The auxiliary head of some networks is at another stride: each is brought to the labels by itself."""
    logits, aux, labels = draw(2, K, 8, 8), draw(2, K, 4, 4, seed=1), draw_labels((16, 16))
    loss = TaskLoss(LossSetup({"logits": (1, K, 8, 8)}, num_labels=K, align_corners=False))
    parts = [segmentation_loss(x, labels, IGNORE, False) for x in (logits, aux)]
    found = loss(SegmentationOutput(logits=logits, aux_logits=aux), None, labels)
    torch.testing.assert_close(found, parts[0] + 0.4 * parts[1], rtol=1e-12, atol=0)


def test_logits_and_labels_of_other_images_are_refused():
    """Walking over images, a missing one would go unnoticed."""
    with pytest.raises(ValueError, match="with the same B"):
        upsampled_cross_entropy(draw(2, K, 4, 4), draw_labels((8, 8), batch=3), IGNORE, True)


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_fused_kl_equals_the_formula(dim, temperature):
    """Its gradient is written by hand: a lost temperature would change every published weight's meaning."""
    teacher = draw(2, K, 7, seed=1)

    def plain(x):
        logs = ((y / temperature).log_softmax(dim) for y in (x, teacher))
        return F.kl_div(*logs, reduction="sum", log_target=True)

    found = value_and_gradient(lambda x: softmax_kl(x, teacher, dim, temperature), draw(2, K, 7))
    for ours, expected in zip(found, value_and_gradient(plain, draw(2, K, 7)), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_fused_kl_never_reaches_the_teacher_and_is_finite_for_large_logits():
    """A teacher that learns would come to meet the student; a softmax that underflows has no logarithm."""
    student, teacher = ((1e4 * draw(2, K, 7, seed=seed, dtype=torch.float32)).requires_grad_() for seed in (0, 1))
    value = softmax_kl(student, teacher, dim=1)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and teacher.grad is None


def test_fused_kl_refuses_shapes_that_would_broadcast():
    """One channel against three would be compared with each of them, silently."""
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3, 7\) and \(2, 1, 7\)"):
        softmax_kl(draw(2, 3, 7), draw(2, 1, 7), dim=-1)


@pytest.mark.parametrize("align_corners", [True, False])
def test_training_upsamples_as_the_students_config_says(align_corners):
    """Trained one way and scored the other, a student loses points that no curve shows."""
    spec = {"model_type": "deeplabv3", "backbone": RESNET, "hidden_size": 8, "align_corners": align_corners}
    student = load_model(spec, id2label={index: str(index) for index in range(K)})[0].eval()
    pixel_values, labels = draw(2, 3, 40, 56, dtype=torch.float32), draw_labels((40, 56))
    losses, _ = build_losses({"task": {}}, loss_setup(student, None, (40, 56), IGNORE))
    with torch.no_grad():
        output = student(pixel_values, labels=labels)
        torch.testing.assert_close(losses["task"](output, None, labels), output.loss)

"""BPKD: borders drawn by hand, values computed by hand, gradients against plain loops, and what needs no labels."""

import math

import pytest
import torch

from hf_segkd.losses import LOSSES, LossSetup
from hf_segkd.losses.bpkd import class_edges, edges
from hf_segkd.models import SegmentationOutput

# Float64 sums of some hundred terms in another order.
EXACT = {"rtol": 1e-10, "atol": 1e-12}

# Class 0 above, 1 below on the left, 2 below on the right; "." is no class.
LABELS = """
00000000
00000000
00000000
11110000
11112222
11112222
1111..22
1111..22
"""
# Where a 3 × 3 window holds two classes. Row 2 sees the 1s of row 3 up to column 4; row 6 sees the 2s of row 5;
# row 7 sees 1 or 2 and pixels of no class.
EDGES = """
........
........
#####...
########
...#####
...##...
...##...
........
"""
# Of these, the pixels whose window holds class 0, 1 or 2.
CLASS_EDGES = (
    """
........
........
#####...
########
...#####
........
........
........
""",
    """
........
........
#####...
#####...
...##...
...##...
...##...
........
""",
    """
........
........
........
...#####
...#####
...##...
...##...
........
""",
)


def pixels(drawing, empty=0):
    """Drawing as (1, 1, h, w): digits are classes, `#` is 1 and a dot `empty`."""
    values = {"#": 1, ".": empty, "0": 0, "1": 1, "2": 2}
    return torch.tensor([[[[values[c] for c in row] for row in drawing.split()]]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(name, student, teacher, **options):
    setup = LossSetup({"logits": student.shape}, num_labels=student.shape[1], teacher={"logits": teacher.shape})
    return LOSSES[name](setup, **options)


def call(student, teacher, labels, name="bpkd", **options):
    outputs = (SegmentationOutput(logits=x) for x in (student, teacher))
    return build(name, student, teacher, **options)(*outputs, labels)


def random_labels(*shape, classes=3, seed=0):
    """Labels with some pixels of no class (255)."""
    labels = torch.randint(0, classes + 1, shape, generator=torch.Generator().manual_seed(seed))
    return labels.masked_fill(labels == classes, 255)


def window(labels, b, y, x, width):
    """Set of the classes around a pixel."""
    r = width // 2
    part = labels[b, max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
    return {int(k) for k in part.flatten()} - {255}


def plain_mask(labels, classes, width):
    """The class borders (B, K, H, W), pixel by pixel."""
    batch, height, columns = labels.shape
    mask = torch.zeros(batch, classes, height, columns, dtype=torch.float64)
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        seen = window(labels, b, y, x, width)
        mask[b, list(seen), y, x] = float(len(seen) > 1)
    return mask


def kl(teacher, student):
    return (teacher.softmax(0) * (teacher.log_softmax(0) - student.log_softmax(0))).sum()


def plain_terms(student, teacher, mask, temperature):
    """The two formulas of the docstring, class by class and position by position."""
    batch, classes, height, width = student.shape
    edge = body = 0
    for b, c in torch.cartesian_prod(torch.arange(batch), torch.arange(classes)).tolist():
        s, t, m = student[b], teacher[b], mask[b]
        inside = [(x[c] * (1 - m[c]) / temperature).flatten() for x in (t, s)]
        body = body + temperature**2 * kl(*inside) / (batch * classes)
        if m[c].sum() > 0:
            at = [(y, x) for y in range(height) for x in range(width)]
            values = [m[c, y, x] * kl((t * m)[:, y, x] / temperature, (s * m)[:, y, x] / temperature) for y, x in at]
            edge = edge + temperature**2 * sum(values) / m[c].sum() / batch
    return {"edge": edge, "body": body}


def test_edges_of_a_drawing():
    """One pixel too wide or too narrow changes a third of the border; a pixel without a class must not make one."""
    assert torch.equal(edges(pixels(LABELS, -1), 3), pixels(EDGES).bool())


@pytest.mark.parametrize("k", [0, 1, 2])
def test_class_edges_of_a_drawing(k):
    """Both sides of a border belong to both classes: dilation less erosion, not the class's own pixels alone."""
    mask = class_edges(pixels(LABELS, -1), 3, torch.zeros(1, 3, 8, 8))
    assert torch.equal(mask[:, k : k + 1], pixels(CLASS_EDGES[k]).float())


def test_class_edges_are_averaged_over_a_position():
    """Rows 2 to 4 of class 0 end in the middle of blocks of 2 × 2 pixels: a mask of 0 and 1 would round them."""
    mask = class_edges(pixels(LABELS, -1), 3, torch.zeros(1, 3, 4, 4))
    assert mask[0, 0].tolist() == [[0, 0, 0, 0], [1, 1, 0.75, 0.5], [0, 0.25, 0.5, 0.5], [0, 0, 0, 0]]


@pytest.mark.parametrize("width", [3, 5, 7])
def test_class_edges_equal_a_search_of_every_window(width):
    """Rows and columns are pooled one after the other; the image's own border must be no edge."""
    blocks = random_labels(2, 5, 6, seed=width).repeat_interleave(3, 1).repeat_interleave(3, 2)
    found = class_edges(blocks.masked_fill(blocks == 255, -1)[:, None], width, torch.zeros(2, 3, 15, 18).double())
    assert torch.equal(found, plain_mask(blocks, 3, width))


def test_terms_of_a_row_of_four_pixels():
    """Labels 0 0 1 1: the middle two are border. Teacher (log 3, 0) against (0, 0): q = ¾·log 1.5 + ¼·log 0.5 each.

    `edge`: two classes, each with mean q. `body`: the teacher's class 0 is (log 3, 0, 0, log 3), which makes
    (3, 1, 1, 3)/8 against ¼, again q; its class 1 is 0 everywhere; the mean over both is q/2.
    """
    teacher = torch.tensor([math.log(3), 0.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    value = call(torch.zeros(1, 2, 1, 4).double(), teacher, torch.tensor([[[0, 0, 1, 1]]]), width=3)
    q = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value["edge"].item() == pytest.approx(2 * q, rel=1e-12)
    assert value["body"].item() == pytest.approx(q / 2, rel=1e-12)


def test_values_and_gradients_equal_plain_loops():
    """Masks multiply the logits before the softmax and the divergence after it: one of them alone would train, too."""
    student, teacher = draw(2, 3, 6, 7).requires_grad_(), draw(2, 3, 6, 7, seed=1)
    labels = random_labels(2, 6, 7)
    labels[1] = 2  # an image without a border: its classes add nothing to `edge`
    found = call(student, teacher, labels, width=3, temperature=2.0)
    expected = plain_terms(student, teacher, plain_mask(labels, 3, 3), 2.0)
    for name in ("edge", "body"):
        torch.testing.assert_close(found[name], expected[name], **EXACT)
        gradients = (torch.autograd.grad(x[name], student, retain_graph=True)[0] for x in (found, expected))
        torch.testing.assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("label", [1, 255], ids=["one class", "no class"])
def test_without_a_border_body_is_cwd_of_the_logits_and_edge_zero(label):
    """An unlabeled image must give neither NaN (0/0) nor a border around the image."""
    student, teacher = draw(2, 3, 6, 7).requires_grad_(), draw(2, 3, 6, 7, seed=1)
    labels = torch.full((2, 24, 28), label)
    value = call(student, teacher, labels, temperature=4.0)
    cwd = call(student, teacher, labels, "cwd", layer="logits", temperature=4.0)
    torch.testing.assert_close(value["body"], cwd, **EXACT)
    value["edge"].backward()
    assert value["edge"].item() == 0 and student.grad.abs().max() == 0


def test_an_ignored_label_below_the_number_of_classes_is_no_class():
    """Some datasets ignore label 0: its borders would be distilled as if they had been drawn."""
    student, teacher = draw(1, 3, 2, 4), draw(1, 3, 2, 4, seed=1)
    shapes = {"logits": student.shape}
    setup = LossSetup(shapes, num_labels=3, teacher=shapes, ignore_index=2)
    labels = torch.tensor([[[1, 1, 2, 2], [1, 1, 2, 2]]])
    outputs = (SegmentationOutput(logits=x) for x in (student, teacher))
    assert LOSSES["bpkd"](setup, width=3)(*outputs, labels)["edge"].item() == 0


def test_every_image_weighs_alike_however_long_its_borders_are():
    """A sum over positions would let images with many small objects decide alone."""
    student, teacher = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1)
    labels = torch.stack([random_labels(8, 8), pixels(LABELS, 255)[0, 0]])
    single = [call(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1], width=3)["edge"] for i in (0, 1)]
    torch.testing.assert_close(call(student, teacher, labels, width=3)["edge"], sum(single) / 2, **EXACT)


def test_temperature_divides_the_logits_and_scales_by_its_square():
    """Without temperature², a warmer softmax would weaken the gradient."""
    student, teacher, labels = draw(2, 3, 6, 7), draw(2, 3, 6, 7, seed=1), random_labels(2, 24, 28)
    cold = call(student, teacher, labels)
    warm = call(2 * student, 2 * teacher, labels, temperature=2.0)
    for name in ("edge", "body"):
        torch.testing.assert_close(warm[name], 4 * cold[name], **EXACT)


def test_classes_of_other_teachers_are_refused():
    """Class k of one model is not class k of the other."""
    with pytest.raises(ValueError, match="same classes"):
        call(draw(1, 3, 4, 4), draw(1, 4, 4, 4), None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 4}, "width must be an odd number of pixels from 3"),
        ({"width": 1}, "width must be an odd number of pixels from 3"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    """An even window is off by half a pixel, one of a single pixel holds no border."""
    with pytest.raises(ValueError, match=message):
        call(draw(1, 3, 4, 4), draw(1, 3, 4, 4), None, **options)

"""Images without labels: every method that needs none learns from them, and the others leave them out."""

import pytest
import torch

from helpers.loss_cases import (
    IGNORE,
    STUDENT_CHANNELS,
    TEACHER_CHANNELS,
    TinyNet,
    build,
    images,
    labels_for,
    side,
    total,
)
from hf_segkd.losses import LOSSES
from hf_segkd.training.distiller import Distiller

# Terms that read the labels, as they are logged: 0 with a graph without them.
NEED_LABELS = {
    *("task", "ifvd", "cirkd_memory_pixel", "cirkd_memory_region"),
    *("cirkdv2_memory_pixel", "cirkdv2_memory_region", "bpkd_edge", "dice", "lovasz"),
}
# Terms to which the labels give a part of the image: without labels all of it. All other terms must not notice.
WHOLE_WITHOUT_LABELS = {"bpkd_body"}


def distiller_for(name: str, *more: str) -> Distiller:
    return Distiller(TinyNet(STUDENT_CHANNELS, seed=1), {loss: build(loss) for loss in (name, *more)})


def forward(distiller: Distiller, name: str, labels: torch.Tensor):
    torch.manual_seed(0)
    pixel_values = torch.randn(images(name), 3, side(name), side(name))
    with torch.no_grad():
        teacher = TinyNet(TEACHER_CHANNELS, seed=2)(pixel_values)
    return distiller(pixel_values, labels, teacher)


@pytest.mark.parametrize("name", LOSSES)
def test_a_term_either_ignores_the_labels_or_is_zero_without_them(name):
    """A term that is scaled by the labeled pixels, though it reads none, is NaN or 0 on the unlabeled images."""
    labeled = forward(distiller_for(name), name, labels_for(name)).terms
    unlabeled = forward(distiller_for(name), name, labels_for(name, value=IGNORE))
    unlabeled.loss.backward()
    for term, value in unlabeled.terms.items():
        if term in NEED_LABELS:
            assert value.item() == 0.0 and labeled[term].item() > 0.0, term
        elif term in WHOLE_WITHOUT_LABELS:
            assert value.item() > 0.0 and not torch.equal(value, labeled[term]), term
        else:
            assert torch.equal(value, labeled[term]), term


@pytest.mark.parametrize("name", LOSSES)
def test_student_learns_from_unlabeled_images_unless_all_terms_need_labels(name):
    """Structured KD's best CamVid result is trained on 2000 of them; a lost graph would crash or teach nothing."""
    distiller = distiller_for(name)
    before = [x.clone() for x in distiller.student.parameters()]
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = forward(distiller, name, labels_for(name, value=IGNORE))
        output.loss.backward()
        optimizer.step()
    moved = any(not torch.equal(a, b) for a, b in zip(before, distiller.student.parameters(), strict=True))
    assert moved != (set(output.terms) <= NEED_LABELS)
    assert all(x.isfinite().all() for x in distiller.state_dict().values())


@pytest.mark.parametrize("name", LOSSES)
def test_mixed_batch_trains_with_the_task_loss(name):
    """Labeled and unlabeled images come in one loader: the cross-entropy must be that of the labeled ones."""
    mixed = labels_for(name)
    mixed[0] = IGNORE
    distiller = distiller_for(name, "task")
    output = forward(distiller, name, mixed)
    output.loss.backward()
    assert output.loss.isfinite() and all(x.grad.isfinite().all() for x in distiller.student.parameters())
    torch.manual_seed(0)
    labeled = torch.randn(images(name), 3, side(name), side(name))[1:]
    alone = total(build("task")(distiller.student(labeled), None, mixed[1:]))
    assert output.terms["task"].item() == pytest.approx(alone.item(), rel=1e-5)


def test_unlabeled_image_adds_nothing_to_ifvd_and_enters_no_queue():
    """In a mixed batch, what has no class must be neither a center nor a key."""
    labels = labels_for("ifvd")
    mixed = labels.clone()
    mixed[0] = IGNORE
    both, one = (forward(distiller_for("ifvd"), "ifvd", x).terms["ifvd"].item() for x in (labels, mixed))
    second = labels.clone()
    second[1] = IGNORE
    other = forward(distiller_for("ifvd"), "ifvd", second).terms["ifvd"].item()
    assert both == pytest.approx(one + other, rel=1e-5)
    distiller = distiller_for("cirkd_memory")
    forward(distiller, "cirkd_memory", mixed)
    assert distiller.losses["cirkd_memory"].region_pointer.tolist() == [1, 1, 1]

"""Losses: golden values and gradients, and the contract every loss keeps."""

import math

import golden_losses as golden
import pytest
import torch

from hf_segkd.losses import LOSSES, CWDLoss, LossSetup, build_losses, check_losses
from hf_segkd.models import SegmentationOutput

K, IGNORE = 3, 255
SHAPES = {
    "logits": (1, K, 8, 8),
    "aux_logits": (1, K, 8, 8),
    "features": (1, 4, 8, 8),
    "hidden_states.0": (1, 4, 8, 8),
}
TEACHER_SHAPES = {**SHAPES, "features": (1, 6, 8, 8)}


def output(channels: int, size=(8, 8), batch=2, scale=1.0, seed=0) -> SegmentationOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(c):
        return (scale * torch.randn(batch, c, *size, generator=generator)).requires_grad_()

    return SegmentationOutput(logits=draw(K), aux_logits=draw(K), features=draw(channels), hidden_states=(draw(4),))


def detached(x: SegmentationOutput) -> SegmentationOutput:
    fields = {
        name: tuple(v.detach() for v in x[name]) if isinstance(x[name], tuple) else x[name].detach() for name in x
    }
    return SegmentationOutput(**fields)


def enlarged(name: str, size) -> tuple[int, int]:
    """A size made for maps of 8x8, as many times larger as the loss needs for its smallest map."""
    factor = -(-LOSSES[name].min_side // 8)
    return factor * size[0], factor * size[1]


def setup_for(name: str, teacher_shapes) -> LossSetup:
    shapes = [{key: (*x[:2], *enlarged(name, x[2:])) for key, x in y.items()} for y in (SHAPES, teacher_shapes)]
    return LossSetup(shapes[0], num_labels=K, teacher=shapes[1])


def build(name: str, **options):
    torch.manual_seed(0)
    modules, _ = build_losses({name: options}, setup_for(name, TEACHER_SHAPES))
    return modules[name]


def total(value):
    return sum(value.values()) if isinstance(value, dict) else value


def labels_for(batch=2, value=None):
    labels = torch.randint(0, K, (batch, 32, 32), generator=torch.Generator().manual_seed(1))
    return labels if value is None else torch.full_like(labels, value)


@pytest.mark.golden
@pytest.mark.parametrize("case", golden.cases(), ids=lambda case: case["name"])
def test_loss_has_the_value_and_gradients_of_the_original(case):
    """A wrong scale, axis or detach would change the published weights' meaning."""
    tensors = golden.load(case)
    loss, value = golden.METHODS[case["method"]](tensors, case["hparams"])
    outputs = value if isinstance(value, dict) else {"loss": value}
    golden.objective(outputs, tensors, case["hparams"]).backward()
    found = {f"out.{name}": x.detach() for name, x in outputs.items()}
    for key in tensors:
        if key.startswith("grad."):
            name = key.removeprefix("grad.")
            own = dict(loss.named_parameters()).get(golden.PARAMETERS.get(name, ""))
            found[key] = (tensors[name] if own is None else own).grad
    for key, x in found.items():
        reference = tensors[key]
        size = max(reference.abs().max().item(), 1e-6)
        noise = case.get("float32_relative_noise_vs_float64", {}).get(key, 0.0)
        tolerance = 1e-10 * size + 1e-14 if case["dtype"] == "float64" else max(1e-4, 20 * noise) * size
        assert (x - reference).abs().max().item() <= tolerance, key


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "student_size, teacher_size, batch, label",
    [((8, 8), (8, 8), 2, None), ((8, 8), (5, 7), 1, None), ((8, 8), (16, 16), 2, IGNORE)],
    ids=["plain", "one image, smaller teacher map", "all pixels ignored, larger teacher map"],
)
def test_loss_is_finite_and_reaches_the_student(name, student_size, teacher_size, batch, label):
    """NaN on an unlabelled batch, or a crash when strides differ, would kill a run after hours."""
    student_size, teacher_size = enlarged(name, student_size), enlarged(name, teacher_size)
    if batch < LOSSES[name].min_batch and batch == 1:
        with pytest.raises(ValueError, match="needs at least"):
            build(name)(output(4, student_size, batch), detached(output(6, teacher_size, batch)), labels_for(batch))
        return
    batch = max(batch, LOSSES[name].min_batch)
    student, teacher = output(4, student_size, batch), detached(output(6, teacher_size, batch, seed=5))
    value = total(build(name)(student, teacher, labels_for(batch, label)))
    value.backward()
    gradients = [x.grad for x in (student.logits, student.aux_logits, student.features) if x.grad is not None]
    assert math.isfinite(value.item()) and gradients and all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_finite_on_huge_and_on_constant_maps(name):
    """softmax().log() gives inf where a probability underflows; a zero norm divides by zero."""
    for scale in (1e4, 0.0):
        batch, size = max(2, LOSSES[name].min_batch), enlarged(name, (8, 8))
        student, teacher = output(4, size, batch, scale), detached(output(6, size, batch, scale, seed=3))
        value = total(build(name)(student, teacher, labels_for(batch)))
        value.backward()
        assert math.isfinite(value.item())
        assert all(x.grad is None or x.grad.isfinite().all() for x in (student.logits, student.features))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_teacher])
def test_equal_student_and_teacher_give_zero(name):
    """The teacher is the target: a student that equals it has nothing left to learn."""
    modules, _ = build_losses({name: {}}, setup_for(name, SHAPES))
    if list(modules.parameters()):
        pytest.skip("an adapter that is always there stands between the two")
    student = output(4)
    assert abs(total(modules[name](student, detached(student), labels_for())).item()) < 1e-6


def test_cwd_ignores_a_constant_added_to_a_channel():
    """Softmax over positions must cancel it; a softmax over channels (a common slip) would not."""
    loss, student, teacher = build("cwd", layer="logits"), output(4), detached(output(6, seed=2))
    shifted = SegmentationOutput(logits=student.logits + torch.tensor([3.0, -2.0, 0.5]).view(1, K, 1, 1))
    assert torch.allclose(loss(student, teacher, None), loss(shifted, teacher, None), atol=1e-6)


def test_cwd_projects_only_when_channels_differ():
    """An untrained projection between equal channels would throw the teacher's layout away."""
    same = LossSetup(SHAPES, num_labels=K, teacher=SHAPES)
    assert not list(CWDLoss(same).parameters())
    assert build("cwd").projector.weight.shape == (6, 4, 1, 1)


def test_task_loss_of_uniform_logits_is_log_k_and_counts_only_labelled_pixels():
    """A mean over all pixels instead of the labelled ones would shrink the loss with the void area."""
    labels = labels_for()
    labels[:, :16] = IGNORE
    student = SegmentationOutput(logits=torch.zeros(2, K, 8, 8))
    assert build("task")(student, None, labels).item() == pytest.approx(math.log(K), rel=1e-6)


@pytest.mark.parametrize(
    "specs, message",
    [
        ({"cdw": {}}, "Unknown loss 'cdw'. Did you mean 'cwd'?"),
        ({"cwd": {"temprature": 1}}, "Unknown option losses.cwd.temprature. Did you mean 'temperature'?"),
        ({"kd": {"weight": "much"}}, "losses.kd.weight must be a finite number, got 'much'."),
        ({"kd": 3}, "losses.kd must be a mapping of options, got 3."),
        ({}, "The recipe has no losses."),
    ],
)
def test_wrong_losses_in_a_recipe_are_named(specs, message):
    """A misspelt option that is silently ignored would train something else than what was written."""
    with pytest.raises(ValueError) as error:
        check_losses(specs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("kd", {"temperature": 0}, "temperature must be positive"),
        ("kd", {"reduction": "mean"}, "reduction must be one of"),
        ("cwd", {"temperature": -1}, "temperature must be positive"),
        ("cwd", {"denominator": "both"}, "denominator must be"),
        ("at", {"layer": "feature"}, "Did you mean 'features'?"),
    ],
)
def test_wrong_loss_options_are_refused(name, options, message):
    """A zero temperature is a NaN, an unknown layer a KeyError deep in the first step."""
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        build(name, **options)


def test_logit_losses_refuse_different_numbers_of_classes():
    """Projecting 4 classes onto 3 would train, and mean nothing."""
    setup = LossSetup(SHAPES, num_labels=K, teacher={**SHAPES, "logits": (1, 4, 8, 8)})
    for specs in ({"kd": {}}, {"cwd": {"layer": "logits"}}):
        with pytest.raises(ValueError, match="same classes"):
            build_losses(specs, setup)

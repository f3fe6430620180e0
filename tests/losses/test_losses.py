"""Losses: golden values and gradients, and the contract every loss keeps."""

import math
import re
from inspect import signature

import pytest
import safetensors.torch
import torch
from torch import nn

from helpers import golden_adversarial, golden_cirkd, golden_folder
from helpers import golden_losses as golden
from helpers.loss_cases import (
    IGNORE,
    STUDENT_CHANNELS,
    TEACHER_CHANNELS,
    K,
    TinyNet,
    build,
    images,
    labels_for,
    named,
    output,
    pair,
    setup,
    side,
    total,
)
from helpers.paths import ROOT
from helpers.tiny import LABELS, TINY
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import LOSSES, LossSetup, build_losses, check_losses
from hf_segkd.models import SegmentationOutput
from hf_segkd.training.distiller import Distiller

# These run over all losses, so that a name in them says nothing about a loss's own values.
COMMON_TESTS = ("test_losses.py", "test_distributed.py", "test_unlabeled.py", "test_end_to_end.py")
# Values of a student that equals its teacher, where they are not 0.
FLOORS: dict[str, float] = {}
LAYERED = [name for name, loss in LOSSES.items() if "layer" in signature(loss).parameters]


@pytest.mark.golden
def test_every_golden_case_is_compared():
    """A method that no test runs, or a wrong folder, would pass as nothing."""
    run = {*golden.METHODS, *golden_cirkd.RUNS, *golden_adversarial.RUNS, "metric"}  # the last in test_metrics.py
    found = {case["method"] for case in golden_folder.loss_cases()}
    assert found and found <= run


@pytest.mark.golden
@pytest.mark.parametrize("case", golden.cases(golden.METHODS), ids=lambda case: case["name"])
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
    golden.assert_reproduced(case, tensors, found)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_returns_scalars_with_a_graph_in_the_dtype_it_is_given(name):
    """A map would be summed by the weight; a constant would train nothing; float32 inside would blur the goldens."""
    for dtype in (torch.float32, torch.float64):
        value = build(name).to(dtype)(*pair(name, dtype=dtype), labels_for(name))
        assert isinstance(value, torch.Tensor | dict)
        for term, x in named(value).items():
            assert x.ndim == 0 and x.requires_grad and x.dtype == dtype and (term == "" or term.isidentifier()), term


@pytest.mark.parametrize("name", LOSSES)
def test_loss_makes_its_parameters_and_state_at_construction(name):
    """What is born in forward is in no optimizer, on no other process and in no checkpoint."""
    loss, (student, teacher), labels = build(name), pair(name), labels_for(name)
    before = {key: x.shape for key, x in loss.state_dict().items()}, {id(x) for x in loss.parameters()}
    copies = [x.clone() for x in (student.features, student.logits, teacher.features, teacher.logits, labels)]
    loss(student, teacher, labels)
    assert before == ({key: x.shape for key, x in loss.state_dict().items()}, {id(x) for x in loss.parameters()})
    given = (student.features, student.logits, teacher.features, teacher.logits, labels)
    assert all(torch.equal(a, b) for a, b in zip(copies, given, strict=True)), "other losses see the same tensors"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "options, label",
    [
        pytest.param({}, None, id="plain"),
        pytest.param({"batch": 1, "teacher_size": (5, 7)}, None, id="one image, smaller teacher map"),
        pytest.param({"teacher_size": (70, 66)}, IGNORE, id="all pixels ignored, larger teacher map"),
        pytest.param({"batch": 1}, IGNORE, id="one image without labels"),
        pytest.param({"scale": 1e4}, None, id="large logits"),
        pytest.param({"scale": 6e4}, None, id="features as large as float16 holds"),
        pytest.param({"constant": True}, None, id="constant maps"),
        pytest.param({"scale": 0.0}, None, id="maps of zeros"),
        pytest.param({"scale": 0.0}, IGNORE, id="maps of zeros without labels"),
    ],
)
def test_loss_and_gradients_are_finite(name, options, label):
    """NaN on an unlabeled batch, or a crash when strides differ, would kill a run after hours."""
    loss, (student, teacher) = build(name), pair(name, **options)
    labels = labels_for(name, options.get("batch"), label)
    if len(labels) < LOSSES[name].min_batch:
        with pytest.raises(ValueError, match="needs at least"):
            loss(student, teacher, labels)
        return
    value = total(loss(student, teacher, labels))
    value.backward()
    maps = student.logits, student.aux_logits, student.features, student.hidden_states[0]
    gradients = [x.grad for x in maps if x.grad is not None]
    own = [x.grad for x in loss.parameters() if x.grad is not None]
    assert math.isfinite(value.item()) and gradients and all(x.isfinite().all() for x in gradients + own)
    assert all(x.isfinite().all() for x in loss.state_dict().values())


@pytest.mark.parametrize("name", LOSSES)
def test_loss_restored_from_its_state_continues_with_the_same_bits(name):
    """Queues, pointers, generators and running statistics are part of the run: without them a resume is another."""

    def steps(loss, seeds):
        torch.manual_seed(1)  # the global generator is Trainer's to restore
        return [x for seed in seeds for x in named(loss(*pair(name, seed=seed), labels_for(name))).values()]

    first = build(name)
    steps(first, (0, 1, 2))
    saved = safetensors.torch.save({key: x.contiguous() for key, x in first.state_dict().items()})
    torch.manual_seed(5)  # other initial weights, the seed of the same run
    second = build_losses({name: {}}, setup(name))[0][name]
    second.load_state_dict(safetensors.torch.load(saved), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(steps(first, (3, 4)), steps(second, (3, 4)), strict=True))
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_bfloat16_models_is_computed_in_float32(name):
    """Sums over thousands of positions lose everything in bfloat16, whose steps are 1/128."""
    student, teacher = TinyNet(STUDENT_CHANNELS, seed=1), TinyNet(TEACHER_CHANNELS, seed=2)
    distiller, labels = Distiller(student, {name: build(name)}), labels_for(name)
    pixel_values = torch.randn(images(name), 3, side(name), side(name), generator=torch.Generator().manual_seed(0))
    # Two blocks: older releases of torch keep the weights that they cast without gradient to the end of a block.
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = student(pixel_values), teacher(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        found = distiller(pixel_values, labels, outputs[1])
    found.loss.backward()
    assert all(x.features.dtype == x.logits.dtype == torch.bfloat16 for x in outputs)
    expected = named(build(name)(*(x.float() for x in outputs), labels))
    for x, reference in zip(found.terms.values(), expected.values(), strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, reference.detach()) and x.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in distiller.parameters())


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_teacher])
def test_student_that_equals_its_teacher_reaches_the_floor(name):
    """The teacher is the target: a student that equals it has nothing left to learn."""
    loss = build(name, teacher_channels=STUDENT_CHANNELS)
    if any(isinstance(module, nn.Conv2d | nn.Linear) for module in loss.modules()):
        pytest.skip("an adapter that is always there stands between the two")
    student = output(STUDENT_CHANNELS, (side(name), side(name)), images(name))
    same = output(STUDENT_CHANNELS, (side(name), side(name)), images(name), grad=False)
    assert total(loss(student, same, labels_for(name))).item() == pytest.approx(FLOORS.get(name, 0.0), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_has_a_test_of_its_own_and_says_where_it_comes_from(name):
    """The tests of this file know no right value: a method without a golden or hand check would pass them all."""
    loss, files = LOSSES[name], [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests").rglob("golden_*.py")]
    text = "".join(path.read_text() for path in files if path.name not in COMMON_TESTS)
    assert re.search(rf"\b{loss.__name__}\(|[(\[]\"{name}\"", text)
    sections = ["Args:", "Returns:"] + ["Reference:"] * loss.needs_teacher
    positions = [loss.__doc__.index(section) for section in sections]
    assert positions == sorted(positions)
    if loss.needs_teacher:
        assert loss.paper.startswith("https://") and loss.citation.startswith("@") and loss.paper in loss.__doc__


@pytest.mark.parametrize("path", sorted((ROOT / "hf_segkd" / "losses").rglob("*.py")), ids=lambda path: path.stem)
def test_loss_leaves_devices_and_processes_to_others(path):
    """A fixed device crashes elsewhere; a collective of its own waits for ever where no group was started."""
    assert not re.search(r"\.cuda\(|\bdist\.|torch\.distributed", path.read_text())


def test_cwd_ignores_a_constant_added_to_a_channel():
    """Softmax over positions must cancel it; a softmax over channels (a common slip) would not."""
    loss, student, teacher = build("cwd", layer="logits"), *pair("cwd")
    shifted = SegmentationOutput(logits=student.logits + torch.tensor([3.0, -2.0, 0.5]).view(1, K, 1, 1))
    assert torch.allclose(loss(student, teacher, None), loss(shifted, teacher, None), atol=1e-6)


def test_cwd_projects_only_when_channels_differ():
    """An untrained projection between equal channels would throw the teacher's layout away."""
    assert not list(build("cwd", teacher_channels=STUDENT_CHANNELS).parameters())
    assert build("cwd").projector.weight.shape == (TEACHER_CHANNELS, STUDENT_CHANNELS, 1, 1)


def test_task_loss_of_uniform_logits_is_log_k_and_counts_only_labeled_pixels():
    """A mean over all pixels instead of the labeled ones would shrink the loss with the void area."""
    labels = labels_for("task")
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
    """A misspelled option that is silently ignored would train something else than what was written."""
    with pytest.raises(ValueError) as error:
        check_losses(specs)
    assert message in str(error.value)


def test_a_module_that_is_no_distillation_loss_is_refused_by_name(monkeypatch):
    """A first loss of one's own is often a plain module, as in the README; in a recipe it ended in a stack trace."""
    monkeypatch.setitem(LOSSES, "mine", torch.nn.MSELoss)
    with pytest.raises(ValueError, match="'mine' is a MSELoss, which is no subclass of DistillationLoss"):
        check_losses({"mine": {}})


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
    shapes = setup("kd")
    other = LossSetup(shapes.student, K, {**shapes.teacher, "logits": (1, 4, 8, 8)})
    for specs in ({"kd": {}}, {"cwd": {"layer": "logits"}}):
        with pytest.raises(ValueError, match="same classes"):
            build_losses(specs, other)


def test_every_loss_of_one_map_lets_the_recipe_choose_it():
    """DIST's published rows compare the auxiliary logits too; the two that are left read several maps at once."""
    assert set(LOSSES) - set(LAYERED) == {"task", "dsd"}


@pytest.mark.parametrize("name", LAYERED)
def test_a_loss_of_the_auxiliary_logits_is_that_of_a_model_whose_logits_they_are(name):
    """A loss that went on reading `logits` in one place would count the main head twice, or a mixture of both."""
    size = 8 * side(name)  # ESPNet's auxiliary logits are at 1/8, its logits as large as the image
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(images(name), 3, size, size, generator=generator)
    labels = torch.randint(0, len(LABELS), (images(name), size, size), generator=generator)
    torch.manual_seed(0)
    networks = [load_model({**TINY, "use_decoder": True}, id2label=LABELS)[0].eval() for _ in range(2)]
    with torch.no_grad():
        outputs = [network(pixel_values=pixel_values) for network in networks]
    shapes = [output_shapes(network, (size, size)) for network in networks]

    def value(layer, shapes, outputs):
        torch.manual_seed(0)
        setup = LossSetup(shapes[0], len(LABELS), shapes[1])
        return named(LOSSES[name](setup, layer=layer)(*outputs, labels))

    moved = [SegmentationOutput(logits=output.aux_logits) for output in outputs]
    found = value("aux_logits", shapes, outputs)
    expected = value("logits", [{"logits": x["aux_logits"]} for x in shapes], moved)
    main = value("logits", shapes, outputs)
    assert outputs[0].aux_logits.shape[-1] == side(name) and outputs[0].logits.shape[-1] == size
    for term, x in expected.items():
        assert torch.equal(found[term], x) and not torch.equal(found[term], main[term]), term


def test_a_layer_may_be_counted_from_the_last():
    """The last stage of a backbone has another number in every network."""
    names = ("hidden_states.0", "hidden_states.-1")
    first, last = (build("fitnet", layer=layer)(*pair("fitnet"), None) for layer in names)
    assert torch.equal(first, last)
    with pytest.raises(ValueError, match="has no output 'hidden_states.-1'"):
        build("fitnet", layer="hidden_states.-2")

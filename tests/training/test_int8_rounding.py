"""Quantization-aware training: the student computes on what its int8 file will hold, and is saved as floats."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.commands import distill, recipe, refusal
from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import equal, trainer_for, weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES, NETWORKS, SegmentationOutput
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.int8_rounding import Int8Rounding, round_weight


def tiny():
    torch.manual_seed(0)
    return load_model(TINY, id2label=LABELS)[0]


@pytest.mark.parametrize(("layer", "axis"), [(nn.Conv2d(6, 4, 3), 0), (nn.ConvTranspose2d(6, 4, 2), 1)])
def test_weights_have_one_grid_per_output_channel(layer, axis):
    """One grid for the whole tensor would teach the student to bear more than its file does."""
    weight = layer.weight.detach().clone()
    weight.select(axis, 1).mul_(100)
    rounded = round_weight(weight, axis)
    for values, original in zip(rounded.unbind(axis), weight.unbind(axis), strict=True):
        step = original.abs().max() / 64
        torch.testing.assert_close(values, (original / step).round() * step)


def calibrated(layer, images):
    rounding = Int8Rounding()
    rounding.calibrate(layer, images.split(1))
    return rounding


def test_maps_span_the_mean_of_the_images_ranges():
    """The export's calibration averages the images' ranges: with the extremes of all, outliers would never be cut."""
    x = torch.zeros(2, 1, 1, 3)
    x[0] = torch.tensor([-1.0, 0.0, 2.0])
    x[1] = torch.tensor([-3.0, 0.011, 6.0])
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    with torch.no_grad(), calibrated(layer, x):
        rounded = layer(x)
    step = (4.0 + 2.0) / 255
    assert rounded[0, 0, 0, 1] == 0  # padding stays what it is
    torch.testing.assert_close(rounded[0, 0, 0, [0, 2]], x[0, 0, 0, [0, 2]], rtol=0, atol=step / 2)
    torch.testing.assert_close(rounded[1, 0, 0, 2], torch.tensor(4.0), rtol=0, atol=step)
    assert rounded[1, 0, 0, 1].item() == pytest.approx(0, abs=1e-7)  # below half a step


def test_ranges_are_kept():
    """With the range of each batch, training would not know of what the file cuts off: measured, it gains nothing."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    with torch.no_grad(), calibrated(layer, torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)):
        rounded = layer(torch.full((1, 1, 1, 2), 5.0))
    torch.testing.assert_close(rounded, torch.ones(1, 1, 1, 2))


def test_a_convolution_and_its_batch_norm_are_rounded_as_one():
    """The file holds them as one: before the norm, one scale for all channels would drown the small ones."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([1.0, 1e-4]).view(2, 1, 1, 1))
        layer[1].running_var.copy_(torch.tensor([1.0, 1e-8]))
        layer[1].eps = 0
    x = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    with torch.no_grad(), calibrated(layer, x):
        rounded = layer(x)
    torch.testing.assert_close(rounded, x.expand(1, 2, 16, 16), rtol=0, atol=1.01 / 255)


def test_batch_norms_keep_their_statistics():
    """In the file they are constants; with the batch's, ranges and weights would be those of another network."""
    distiller = Distiller(tiny(), {"mean": Mean()}, quantization_aware=True).train()
    norms = [module for module in distiller.student.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert distiller.student.training


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norms_keep_their_statistics_in_a_run(tmp_path, frozen):
    """Scale and shift are trained all the same; nothing is rounded."""
    student = tiny()
    before = copy.deepcopy(student.state_dict())
    trainer = trainer_for(tmp_path, student, freeze_batch_norm=frozen)
    trainer.train()
    assert not isinstance(trainer.model.rounding, Int8Rounding)
    changed = {name for name, x in student.state_dict().items() if not torch.equal(x, before[name])}
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    assert statistics and changed - statistics
    assert (changed & statistics == set()) is frozen


def test_rounding_without_ranges_is_an_error():
    with pytest.raises(RuntimeError, match="Call calibrate first"), Int8Rounding():
        pass
    with pytest.raises(ValueError, match="at least one training image"):
        Int8Rounding().calibrate(nn.Conv2d(1, 1, 1), [])


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -2.0)])
def test_constant_maps_are_no_division_by_zero(x):
    """A channel that died would turn the whole run into nan."""
    layer = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(layer.weight)
    with torch.no_grad(), calibrated(layer, x):
        torch.testing.assert_close(layer(x), x)
    torch.testing.assert_close(round_weight(x, 0), x)


def test_gradients_pass_the_rounding():
    """Rounding is flat almost everywhere: with its own gradient nothing would be trained."""
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with calibrated(lambda image: F.conv2d(image, weight), 1.1 * x.detach()):  # nothing is cut off
        y = F.conv2d(x, weight)
    y.sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight).sum(), (x, weight))
    for found, plain in zip((x.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=0.02 * plain.abs().max().item())


@pytest.mark.parametrize("model_type", [*NETWORKS, "segformer"])
def test_every_convolution_and_linear_layer_is_rounded(model_type, monkeypatch):
    """One that is computed by another function would stay exact, and bring its loss with the file."""
    fields = {"model_type": model_type}
    if model_type in ("deeplabv3", "pspnet", "upernet"):
        fields["backbone"] = next(iter(BACKBONES))
    model = load_model(fields, id2label=LABELS)[0].eval()
    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    run, rounded = [], []
    for module in model.modules():
        if isinstance(module, layers):
            module.register_forward_pre_hook(lambda module, _: run.append(module.weight.data_ptr()))
    images = torch.randn(1, 3, 64, 64)
    rounding = calibrated(model, images)
    run.clear()
    module = sys.modules[Int8Rounding.__module__]
    monkeypatch.setattr(module, "round_weight", lambda weight, axis: rounded.append(weight.data_ptr()) or weight)
    with torch.no_grad(), rounding:
        model(pixel_values=images)
    assert run and rounded == run


def test_students_of_both_trainings_have_the_same_tensors(tmp_path):
    """The saved folder is an ordinary one; but what was trained must differ, or the flag does nothing."""
    teacher = tiny()
    trained = {}
    for rounded in (False, True):
        student = tiny()
        trainer_for(tmp_path / str(rounded), student, copy.deepcopy(teacher), quantization_aware=rounded).train()
        trained[rounded] = weights(student)
    assert trained[True].keys() == trained[False].keys() == teacher.state_dict().keys()
    assert not equal(trained[True], trained[False])


def test_evaluation_is_exact(tmp_path):
    """Scores of a run are the saved student's; the int8 file's are those that hf-segkd export prints."""
    student = tiny()
    trainer = trainer_for(tmp_path, student, quantization_aware=True)
    images = torch.stack([item["pixel_values"] for item in TinyScenes(2)])
    trainer.model.eval()
    plain = trainer_for(tmp_path, student).model.eval()
    assert torch.equal(trainer.model.predict(images), plain.predict(images))


@pytest.mark.parametrize("rounded", [False, True])
def test_a_compiled_step_rounds_too(rounded):
    """Where the compiler passes over the mode, the flag does nothing without a word."""
    torch.manual_seed(0)
    student = OneConvolution()
    images, labels = torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    distiller = Distiller(student, {"mean": Mean()}, quantization_aware=rounded)
    if rounded:
        distiller.calibrate_rounding(images.split(1))
    expected = distiller(images, labels).loss
    found = torch.compile(distiller, backend="aot_eager")(images, labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    exact = Distiller(student, {"mean": Mean()})(images, labels).loss
    assert torch.equal(exact, expected) is not rounded


class OneConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, pixel_values, output_hidden_states=False):
        return SegmentationOutput(logits=super().forward(pixel_values))


class Mean(nn.Module):
    needs_teacher = False

    def forward(self, student, teacher, labels):
        return student.logits.square().mean()


def test_maps_computed_twice_are_refused(tmp_path):
    """The second time there is no rounding: gradients would belong to other maps."""
    options = {"quantization_aware": True, "activation_checkpointing": True}
    with pytest.raises(ValueError, match="computed a second time without rounding"):
        trainer_for(tmp_path, tiny(), **options)


@pytest.mark.parametrize("flag", ["--quantization_aware", "--freeze_batch_norm"])
def test_a_student_without_trained_weights_is_refused(tmp_path, flag):
    """Ranges and statistics of a random network say nothing of the trained one."""
    assert "Train it first" in refusal([recipe(tmp_path), "--output_dir", str(tmp_path / "run"), flag])


def test_a_trained_student_is_trained_on_by_the_command(tmp_path, without_figures):
    """Ranges are found on whole images of the training split, whatever the crops."""
    student, processor = load_model(TINY, id2label=LABELS)
    student.save_pretrained(tmp_path / "student")
    processor.save_pretrained(tmp_path / "student")
    changes = {"student": str(tmp_path / "student"), "output_dir": str(tmp_path / "run")}
    report = distill.main([recipe(tmp_path, **changes), "--quantization_aware"])
    assert report["steps"] > 0


def test_a_convolution_gives_what_its_int8_file_gives(tmp_path):
    """Trained on another grid, the student would be fitted to a file that nobody makes."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    from hf_segkd.deployment.onnx_export import quantize_static

    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    images = torch.randn(2, 3, 16, 16)
    images[1] *= 3
    quantize_static(convolution_file(layer, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx", images.numpy())
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad(), calibrated(layer, images):
        rounded = layer(images)
    found = torch.cat([torch.from_numpy(session.run(None, {"images": image[None].numpy()})[0]) for image in images])
    # The same grid; a sum that lies between two steps may fall to either side.
    torch.testing.assert_close(found, rounded, rtol=0, atol=1.01 * (found.max() - found.min()).item() / 255)


def test_what_is_added_beside_several_convolutions_stays_exact_in_the_int8_file(tmp_path):
    """Training rounds what convolutions read, not what is added beside them; the file must not either."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    import onnx

    from hf_segkd.deployment.onnx_export import quantize_static

    file = onnx.load(convolution_file(nn.Conv2d(3, 3, 1), tmp_path / "fp32.onnx"))
    file.graph.node.append(onnx.helper.make_node("Conv", ["images", "weight"], ["second"]))
    file.graph.node.append(onnx.helper.make_node("Add", ["images", "second"], ["sum"]))
    file.graph.output[0].name = "sum"
    onnx.save_model(file, tmp_path / "shortcut.onnx")
    images = torch.randn(2, 3, 8, 8).numpy()
    quantized = onnx.load(quantize_static(tmp_path / "shortcut.onnx", tmp_path / "int8.onnx", images))
    (add,) = (node for node in quantized.graph.node if node.op_type == "Add")
    assert "images" in add.input


def convolution_file(layer, path):
    """One convolution as an ONNX file, from `images` (1, C, H, W)."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    values = {name: numpy_helper.from_array(x.detach().numpy(), name) for name, x in layer.named_parameters()}
    node = helper.make_node("Conv", ["images", *values], ["result"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", "result")]
    graph = helper.make_graph([node], "convolution", ports[:1], ports[1:], list(values.values()))
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path

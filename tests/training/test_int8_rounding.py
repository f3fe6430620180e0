"""Quantization-aware training: the student computes on what its int8 file will hold, and is saved as floats."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import equal, trainer_for, weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES, NETWORKS, SegmentationOutput
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.int8_rounding import Int8Rounding, round_map, round_weight


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


def test_maps_span_the_mean_of_the_images_ranges():
    """The export's calibration averages the images' ranges: with the batch's, outliers would never be cut."""
    x = torch.zeros(2, 1, 1, 3)
    x[0] = torch.tensor([-1.0, 0.0, 2.0])
    x[1] = torch.tensor([-3.0, 0.011, 6.0])
    rounded = round_map(x)
    step = (4.0 + 2.0) / 255
    assert rounded[0, 0, 0, 1] == 0  # padding stays what it is
    torch.testing.assert_close(rounded[0, 0, 0, [0, 2]], x[0, 0, 0, [0, 2]], rtol=0, atol=step / 2)
    torch.testing.assert_close(rounded[1, 0, 0, 2], torch.tensor(4.0), rtol=0, atol=step)
    assert rounded[1, 0, 0, 1].item() == pytest.approx(0, abs=1e-7)  # below half a step


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -2.0)])
def test_constant_maps_are_no_division_by_zero(x):
    """A channel that died would turn the whole run into nan."""
    torch.testing.assert_close(round_map(x), x)
    torch.testing.assert_close(round_weight(x, 0), x)


def test_gradients_pass_the_rounding():
    """Rounding is flat almost everywhere: with its own gradient nothing would be trained."""
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with Int8Rounding():
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
    module = sys.modules[Int8Rounding.__module__]
    monkeypatch.setattr(module, "round_weight", lambda weight, axis: rounded.append(weight.data_ptr()) or weight)
    with torch.no_grad(), Int8Rounding():
        model(pixel_values=torch.randn(1, 3, 64, 64))
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
    expected = distiller(images, labels).loss
    found = torch.compile(distiller, backend="aot_eager")(images, labels).loss
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    exact = Distiller(student, {"mean": Mean()})(images, labels).loss
    assert torch.equal(exact, expected) is not rounded


class OneConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, pixel_values, output_hidden_states):
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
    with torch.no_grad(), Int8Rounding():
        rounded = layer(images)
    found = torch.cat([torch.from_numpy(session.run(None, {"images": image[None].numpy()})[0]) for image in images])
    # The file's range of results is that of exact inputs: beyond the narrower of both, values are cut elsewhere, and
    # within it they may lie on neighboring steps.
    low = max(found.min(), rounded.min())
    high = min(found.max(), rounded.max())
    torch.testing.assert_close(found.clamp(low, high), rounded.clamp(low, high), rtol=0, atol=1.5 * (high - low) / 255)


def convolution_file(layer, path):
    """One convolution as an ONNX file, from `images` (1, C, H, W)."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    values = {name: numpy_helper.from_array(x.detach().numpy(), name) for name, x in layer.named_parameters()}
    node = helper.make_node("Conv", ["images", *values], ["result"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("images", "result")]
    graph = helper.make_graph([node], "convolution", ports[:1], ports[1:], list(values.values()))
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path

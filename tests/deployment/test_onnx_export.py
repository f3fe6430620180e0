"""Exported files: the same classes as PyTorch at any size, smaller in int8, and self-explaining."""

import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig

from helpers.paths import ROOT
from helpers.tiny import LABELS, TINY, TinyScenes
from hf_segkd.deployment.graphs import AnySizePooling
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import NETWORKS, default_processor

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
from hf_segkd.deployment import onnx_export, onnx_segmenter  # noqa: E402
from hf_segkd.deployment.onnx_segmenter import OnnxSegmenter, agreement, crops, measurements  # noqa: E402

SCENES = json.dumps({"num_train": 6, "num_validation": 3, "height": 48, "width": 64})
SIZES = (1, 64, 64), (2, 65, 67), (1, 40, 99), (3, 121, 58)


def images(batch, height, width):
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator) * 255
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def script():
    return importlib.import_module("hf_segkd.commands.export")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of a student with all four files of it beside, and the rows of the table."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    student = load_model(TINY, id2label=LABELS)[0]
    student.save_pretrained(folder / "student")
    default_processor(student.config).save_pretrained(folder / "student")
    argv = [str(folder / "student"), "--dataset", "synthetic", "--dataset_config", SCENES]
    argv += ["--precisions", "fp16", "int8", "int8_dynamic", "--calibration_images", "4", "--output_dir", str(folder)]
    return folder, script().main(argv)


@pytest.fixture
def reference(exported):
    student = str(exported[0] / "student")
    return Segmenter(*load_model(student))


def test_labels_are_pytorchs_at_sizes_the_exporter_never_saw(exported, reference):
    """A size, a batch or an align_corners frozen while tracing shows at another size only."""
    segmenter = OnnxSegmenter(exported[0] / "model_fp32.onnx")
    assert agreement(segmenter, reference, [images(*size) for size in SIZES]) >= 0.9999


@pytest.mark.parametrize("precision, least", [("fp16", 0.98), ("int8", 0.6), ("int8_dynamic", 0.9)])
def test_smaller_files_stay_near_pytorch(exported, reference, precision, least):
    """A wrong scale or a channel order lost in quantization leaves chance level: 10 %."""
    segmenter = OnnxSegmenter(exported[0] / f"model_{precision}.onnx")
    assert agreement(segmenter, reference, [images(*size) for size in SIZES]) >= least


def test_static_int8_stores_convolutions_in_bytes(exported):
    """A quantizer that skips every layer would agree with PyTorch perfectly."""
    file = onnx_export.onnx.load(exported[0] / "model_int8.onnx")
    weights = {item.name for item in file.graph.initializer if item.data_type == onnx_export.onnx.TensorProto.INT8}
    convolutions = [node for node in file.graph.node if node.op_type == "Conv"]
    sources = {output: node.input[0] for node in file.graph.node for output in node.output}
    assert convolutions and all(sources[node.input[1]] in weights for node in convolutions)


def test_every_file_says_what_a_caller_needs(exported, reference):
    """Without names and colors beside it, a file of class ids is a riddle."""
    for path in exported[0].glob("*.onnx"):
        metadata = OnnxSegmenter(path).metadata
        assert metadata["id2label"] == {str(index): name for index, name in LABELS.items()}
        assert len(metadata["palette"]) == len(LABELS) and metadata["size_multiple"] == 1
        assert metadata["channel_order"] == "BGR" and metadata["image_divisor"] == 1.0
        assert metadata["image_mean"] == pytest.approx(default_processor(reference.model.config).image_mean)
        assert metadata["align_corners"] is True
        assert metadata["precision"].split(",")[0] in path.stem


def test_files_hold_no_path_of_this_machine(exported):
    """The exporter notes stack traces: folder names would travel with the model."""
    for path in exported[0].glob("*.onnx"):
        content = path.read_bytes()
        assert str(ROOT).encode() not in content and b"site-packages" not in content and b'.py"' not in content


def test_script_reports_size_time_agreement_and_score(exported):
    """The table is what a deployer chooses by; PyTorch's row is what the others are read against."""
    folder, rows = exported
    assert [row["name"] for row in rows] == ["PyTorch", "fp32", "fp16", "int8", "int8_dynamic"]
    assert rows[0]["equal_pixels"] == 1.0 and rows[1]["mean_iou"] == pytest.approx(rows[0]["mean_iou"], abs=1e-3)
    assert all(row["p50_ms"] > 0 for row in rows)
    assert json.loads((folder / "export.json").read_text())["rows"] == rows
    table = (folder / "export.md").read_text()
    assert "| PyTorch |  |" in table and "48 x 64 pixels" in table and "3 images" in table


def test_int8_without_a_dataset_is_refused(tmp_path):
    """Calibrated on anything else, it would be a number about nothing."""
    with pytest.raises(SystemExit, match="int8 is calibrated on training images"):
        script().main(["student", "--precisions", "int8", "--output_dir", str(tmp_path)])


def test_fixed_size_logits_in_half_precision(tmp_path, reference):
    """A file for one size must refuse another; its logits upsample to the same classes."""
    model, size = reference.model, (40, 56)
    processor = default_processor(model.config)
    path = onnx_export.export_onnx(model, processor, tmp_path / "m.onnx", "logits", "fp16", size)
    segmenter, batch = OnnxSegmenter(path), images(3, *size)
    (logits,) = segmenter.session.run(None, {"images": batch})
    assert logits.shape == (3, len(LABELS), 5, 7) and logits.dtype == np.float32
    assert agreement(segmenter, reference, [batch]) >= 0.98
    assert model.dtype == torch.float32
    with pytest.raises(ValueError, match=r"for images of \[40, 56\] pixels"):
        segmenter(images(1, 48, 56))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 9), (13, 64)])
@pytest.mark.parametrize("cells", [1, 2, 3, 6, (2, 5), 8])
def test_pooling_for_export_is_pytorchs(size, cells):
    """PSPNet and UperNet pool into grids whose cells overlap unless the size divides."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, cells)
    with AnySizePooling():
        pooled = F.adaptive_avg_pool2d(x, cells), nn.AdaptiveAvgPool2d(cells)(x)
    for result in pooled:
        torch.testing.assert_close(result, expected)


class Demanding(nn.Module):
    """Halves and doubles maps as an encoder and decoder without cropping do."""

    dtype, device, config = torch.float32, torch.device("cpu"), PreTrainedConfig()

    def __init__(self, halvings):
        super().__init__()
        self.halvings = halvings

    def forward(self, pixel_values, output_hidden_states=False):
        x = pixel_values
        for _ in range(self.halvings):
            x = F.avg_pool2d(x, 2)
        logits = F.interpolate(x, scale_factor=2**self.halvings) + pixel_values
        return SimpleNamespace(items=lambda: [("logits", logits)], hidden_states=None)


@pytest.mark.parametrize("halvings, multiple", [(0, 1), (1, 2), (3, 8), (6, 64)])
def test_sizes_that_a_model_takes_are_found(halvings, multiple):
    """A file that promises any size and fails on most is found out in production."""
    assert onnx_export.size_multiple(Demanding(halvings)) == multiple


def test_a_model_of_one_size_asks_for_it():
    """Position embeddings for 224 pixels fit nothing else; the message must say what to pass."""
    with pytest.raises(ValueError, match="Pass that size"):
        onnx_export.size_multiple(Demanding(8))


class Sides(nn.Module):
    """What hangs on the image's size in published networks: SAME padding as a rounded-up division, grids of cells."""

    dtype, device = torch.float32, torch.device("cpu")
    config = PreTrainedConfig(num_labels=3)

    def forward(self, pixel_values, output_hidden_states=False):
        missing = [2 * -(-side // 2) - side for side in reversed(pixel_values.shape[-2:])]
        halves = F.avg_pool2d(F.pad(pixel_values, [0, missing[0], 0, missing[1]]), 2)
        means = F.adaptive_avg_pool2d(halves, 3)
        logits = halves - F.interpolate(means, size=halves.shape[-2:], mode="bilinear", align_corners=True)
        return SimpleNamespace(logits=logits, items=lambda: [("logits", logits)], hidden_states=None)


@pytest.mark.slow
def test_arithmetic_on_sizes_is_pythons(tmp_path):
    """The exporter truncates negative quotients and freezes grids: right at the example's size, wrong at most."""
    model = Sides()
    processor = default_processor(model.config)
    segmenter = OnnxSegmenter(onnx_export.export_onnx(model, processor, tmp_path / "m.onnx"))
    for size in SIZES:
        assert agreement(segmenter, Segmenter(model, processor), [images(*size)]) >= 0.9999, size


@pytest.mark.parametrize(
    "batch, message",
    [
        (np.zeros((1, 3, 64, 64), np.uint8), "uint8 RGB of shape"),
        (np.zeros((1, 64, 64, 3), np.float32), "uint8 RGB of shape"),
        (np.zeros((1, 64, 60, 3), np.uint8), "multiples of 8 pixels"),
    ],
)
def test_images_that_a_file_does_not_take_are_refused(exported, batch, message):
    """onnxruntime's own message speaks of node names."""
    segmenter = OnnxSegmenter(exported[0] / "model_fp32.onnx")
    segmenter.metadata["size_multiple"] = 8
    with pytest.raises(ValueError, match=message):
        segmenter(batch)


def test_foreign_files_are_refused(exported, tmp_path):
    """Any ONNX file opens; only ours says how its output is read."""
    file = onnx_export.onnx.load(exported[0] / "model_fp32.onnx")
    del file.metadata_props[:]
    onnx_export.onnx.save_model(file, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="not written by hf-segkd export"):
        OnnxSegmenter(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("options", [{"output": "probabilities"}, {"precision": "int8"}])
def test_unknown_outputs_and_precisions_are_refused(reference, tmp_path, options):
    """int8 is made from the fp32 file, by another function."""
    processor = default_processor(reference.model.config)
    with pytest.raises(ValueError, match="must be one of"):
        onnx_export.export_onnx(reference.model, processor, tmp_path / "m.onnx", **options)


def test_calibration_needs_images(exported, tmp_path):
    """onnxruntime's own message does not say what was missing."""
    with pytest.raises(ValueError, match="at least one image"):
        onnx_export.quantize_static(exported[0] / "model_fp32.onnx", tmp_path / "m.onnx", [])


def test_a_file_and_pytorch_are_scored_by_one_function(exported, reference):
    """Two loops over a dataset must not disagree about mIoU."""
    dataset = TinyScenes(count=3)
    found, expected = (evaluate(x, dataset) for x in (OnnxSegmenter(exported[0] / "model_fp32.onnx"), reference))
    assert found.matrix.sum() == expected.matrix.sum()
    assert found.scores()["mean_iou"] == pytest.approx(expected.scores()["mean_iou"], abs=1e-3)


def test_measurements_compare_with_the_first():
    """Compared with a neighbor instead, errors of a chain of files would hide."""
    zeros = np.zeros((1, 4, 6), np.uint8)
    half = zeros.copy()
    half[:, :2] = 1
    segmenters = {"PyTorch": lambda images: zeros, "a": lambda images: half, "b": lambda images: zeros}
    batch = np.zeros((1, 4, 6, 3), np.uint8)
    rows = measurements(segmenters, [batch], batch[0], None, num_labels=2, repeats=1)
    assert [row["equal_pixels"] for row in rows] == [1.0, 0.5, 1.0]
    assert "mIoU" not in onnx_segmenter.to_markdown(rows, {})


def test_crops_keep_to_the_multiple_and_to_the_image():
    """A crop larger than its image, or of a forbidden size, would stop the comparison."""
    shapes = [batch.shape[1:3] for batch in crops([np.zeros((100, 90, 3), np.uint8)], multiple=8)]
    assert shapes == [(96, 88), (96, 88), (64, 88), (96, 80)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        *((name, {}) for name in NETWORKS),
        ("segformer", {}),
        ("deeplabv3", {"backbone": "efficientnet_lite0"}),
        ("deeplabv3", {"backbone": "mobilevit_xxs"}),
    ],
)
def test_every_model_exports_for_any_size(model_type, fields, tmp_path):
    """One operation whose export depends on the example's size, and the file is wrong at every other."""
    torch.manual_seed(0)
    model = load_model({"model_type": model_type, **fields}, id2label=LABELS)[0].eval()
    processor = default_processor(model.config)
    path = onnx_export.export_onnx(model, processor, tmp_path / "m.onnx")
    batches = [images(*size) for size in SIZES]
    # Untrained networks have more ties than the 1 in 10 000 that trained ones are held to.
    assert agreement(OnnxSegmenter(path), Segmenter(model, processor), batches) >= 0.999

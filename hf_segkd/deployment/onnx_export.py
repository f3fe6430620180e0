"""Models as ONNX files: bytes of an image in, class ids out, with everything between inside the graph."""

from __future__ import annotations

import copy
import json
import logging
import operator
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.deployment.graphs import OUTPUTS
from hf_segkd.deployment.label_files import palette_of
from hf_segkd.loading.native import output_shapes
from hf_segkd.models import Bands, InputNormalization, upsamples_with_align_corners

try:
    import onnx
    import onnxscript
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxscript import opset18
except ImportError as error:
    raise ImportError("ONNX files need onnx, onnxscript and onnxruntime: pip install 'hf-segkd[onnx]'") from error

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
# Two images, because a batch of one would be written into the file.
_BATCH = 2
# Pixels; one more than these, so that every map of the example has odd sides: what a model does to odd maps only
# (MobileViT resizes them) is then in the file, and changes nothing for even ones.
_SIDES = 192, 256
_MULTIPLES = 1, 2, 4, 8, 16, 32, 64
# What onnxruntime runs in int8 on a CPU. The rest (PReLU, batch norms, upsampling) stays float: bytes there cost
# accuracy and a conversion on either side.
_INT8_OPERATORS = ["Conv", "ConvTranspose", "MatMul", "Gemm"]


def size_multiple(model: PreTrainedModel) -> int:
    """Smallest power of two, in pixels, whose multiples the model takes as height and width; 1: any size.

    Found by running the model: ESPNet, DeepLabV3, PSPNet, UperNet and SegFormer take any size.

    Raises:
        ValueError: If it takes none of them, as a model with fixed position embeddings.
    """
    for multiple in _MULTIPLES:
        side = multiple * (128 // multiple + 1)  # a multiple of this power of two and of no larger one
        try:
            output_shapes(model, (side, side))
        except (RuntimeError, ValueError):
            continue
        return multiple
    raise ValueError(
        f"{type(model).__name__} runs on no multiple of {_MULTIPLES[-1]} pixels: its image size is fixed. "
        "Pass that size (height, width)."
    )


def export_onnx(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    path: str | Path,
    output: str = "labels",
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
) -> Path:
    """Write a model as an ONNX file whose only input is `images`, uint8 RGB (B, H, W, 3): bytes as cameras and
    decoders give them, so that no caller has to know mean, std, channel order or `align_corners`. Of a model of other
    bands they are the stored values (B, H, W, C), uint8 for bytes, else float32.

    The file's metadata holds all that, the class names and the colors (JSON values).

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it; left as it is.
        processor (`BaseImageProcessor`): The one it was trained with.
        path (`str` or `Path`): File to write.
        output (`str`, *optional*, defaults to `"labels"`): `"labels"`, class ids (B, H, W) at image size; or
            `"logits"`, float32 (B, K, h, w) at the model's own size.
        precision (`str`, *optional*, defaults to `"fp32"`): `"fp32"` or `"fp16"`. Images and output are the same.
        size (`tuple[int, int]`, *optional*): Height and width, pixels, for a runtime that wants them fixed; by
            default any multiple of [`size_multiple`].

    Returns:
        `Path`: The file.

    Raises:
        ValueError: Unknown output or precision, or a model of fixed size without `size`.
    """
    if output not in OUTPUTS or precision not in PRECISIONS:
        raise ValueError(
            f"output must be one of {', '.join(OUTPUTS)} and precision one of {', '.join(PRECISIONS)}, "
            f"got {output!r} and {precision!r}."
        )
    model = copy.deepcopy(model).cpu().to(PRECISIONS[precision]).eval()
    graph = OUTPUTS[output](model, processor).eval()
    multiple = None if size else size_multiple(model)
    sides = size or [multiple * (side // multiple + 1) for side in _SIDES]
    example = torch.zeros(_BATCH, *sides, graph.normalization.channels, dtype=graph.normalization.dtype)
    axes = {0: Dim("batch")} | ({} if size else _dynamic_sides(multiple))
    file = trace(graph, example, "images", output, axes)
    facts = {"output": output, "precision": precision, "size": size, "size_multiple": multiple}
    onnx.helper.set_model_props(file, _metadata(model, processor) | {key: json.dumps(x) for key, x in facts.items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(file, path)
    return path


def trace(graph: nn.Module, example: Tensor, input_name: str, output_name: str, axes: dict) -> onnx.ModelProto:
    """The ONNX graph of a module with one input and one output; `axes` are the dynamic ones of the input."""
    with _quiet_exporter():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=[output_name],
            custom_translation_table={operator.floordiv: _floor_division},
            dynamic_shapes=(axes,),
            verbose=False,
        )
    file = program.model_proto  # made anew at each access
    _forget_source(file)
    return file


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide its warnings of torchvision, which nothing here needs, and of its own use of torch."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            yield
    finally:
        log.setLevel(level)


def _floor_division(numerator: onnxscript.INT64, denominator: onnxscript.INT64) -> onnxscript.INT64:
    """Python's `//`. The exporter's own truncates, which is wrong for `-(-size // stride)`, the usual ceiling."""
    remainder = opset18.Mod(numerator, denominator)  # has the sign of the denominator, as in Python
    return opset18.Div(opset18.Sub(numerator, remainder), denominator)


def _dynamic_sides(multiple: int) -> dict[int, Any]:
    sides = Dim("height"), Dim("width")
    return {axis: side if multiple == 1 else multiple * side for axis, side in enumerate(sides, start=1)}


def _forget_source(file: onnx.ModelProto) -> None:
    """Drop the exporter's notes, among them stack traces with the paths of this machine."""
    graph = file.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]


def _metadata(model: PreTrainedModel, processor: BaseImageProcessor) -> dict[str, str]:
    normalization = InputNormalization.from_processor(processor)
    bands = Bands.of(processor)
    kind = "uint8 RGB" if bands is None else f"{str(normalization.dtype).removeprefix('torch.')}, {bands}"
    id2label = {int(index): name for index, name in model.config.id2label.items()}
    facts = {
        "input": f"images: {kind} (batch, height, width, {normalization.channels}); normalized inside",
        "model_type": model.config.model_type,
        "id2label": id2label,
        "palette": palette_of(id2label),
        "image_mean": normalization.mean.flatten().tolist(),
        "image_std": normalization.std.flatten().tolist(),
        "image_divisor": normalization.divisor.item(),
        "channel_order": "BGR" if normalization.flip_channel_order else "RGB" if bands is None else "bands",
        "bands": None if bands is None else bands.names,
        "pixel_dtype": "uint8" if bands is None else bands.dtype,
        "pixel_range": None if bands is None else bands.pixel_range,
        "align_corners": upsamples_with_align_corners(model.config),
    }
    return {key: json.dumps(value) for key, value in facts.items()}


def quantize_static(source: str | Path, target: str | Path, images: Iterable[np.ndarray]) -> Path:
    """Write an fp32 file in int8: weights per channel, activations by their mean range on calibration images.

    Convolutions and matrix products run on bytes, everything else stays float32.

    Args:
        source (`str` or `Path`): File of [`export_onnx`] in fp32.
        target (`str` or `Path`): File to write.
        images (`Iterable[np.ndarray]`): A few dozen training images (H, W, C) as the file takes them.

    Raises:
        ValueError: Without images.
    """
    images = list(images)
    if not images:
        raise ValueError("Calibration needs at least one image. Pass a few dozen of the training split.")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            target,
            _CalibrationImages(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_INT8_OPERATORS,
            per_channel=True,
            # Without VNNI, the sum of two products of 8 bits saturates in 16: weights get 7.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                # The mean of the images' ranges: one odd image must not stretch the scale of all.
                "CalibMovingAverage": True,
                # A map that several convolutions read is rounded for them alone: what else reads it gets it exact.
                "DedicatedQDQPair": True,
            },
        )
    return _set_precision(source, target, f"int8, calibrated on {len(images)} images")


def quantize_dynamic(source: str | Path, target: str | Path) -> Path:
    """Write an fp32 file with int8 weights; the range of each activation is found anew for each image.

    Needs no data. Worth it for the matrix products of transformers; convolutions usually get slower.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        byte = quantization.QuantType.QUInt8
        quantization.quantize_dynamic(prepared, target, op_types_to_quantize=_INT8_OPERATORS, weight_type=byte)
    return _set_precision(source, target, "int8, dynamic")


class _CalibrationImages:
    """Images as onnxruntime asks for them: one at a time, `None` at the end."""

    def __init__(self, images: list[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"images": image[None]}


def _set_precision(source: str | Path, target: str | Path, precision: str) -> Path:
    metadata = {item.key: item.value for item in onnx.load(source, load_external_data=False).metadata_props}
    file = onnx.load(target)
    onnx.helper.set_model_props(file, metadata | {"precision": json.dumps(precision)})
    onnx.save_model(file, target)
    return Path(target)

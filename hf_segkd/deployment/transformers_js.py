"""Models as folders that transformers.js loads: `onnx/model.onnx` from `pixel_values` to `logits`, and two configs."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.deployment.graphs import AnySizePooling
from hf_segkd.deployment.onnx_export import PRECISIONS, onnx, quantize_dynamic, size_multiple, trace
from hf_segkd.models import Bands, InputNormalization, upsamples_with_align_corners

# By the `dtype` that a program asks transformers.js for: fp32, fp16 and q8.
FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8_dynamic": "model_quantized.onnx"}
# An architecture of transformers.js that runs one graph and upsamples its logits; the name decides nothing else.
_ARCHITECTURE = {"model_type": "segformer", "architectures": ["SegformerForSemanticSegmentation"]}


class PixelsToLogits(nn.Module):
    """From `pixel_values` (B, 3, H, W), float32 and normalized, to logits (B, K, H, W), float32, at image size.

    Upsampled inside, because transformers.js upsamples without `align_corners` whatever the model was trained with;
    at image size it has nothing left to do.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        align_corners = upsamples_with_align_corners(self.model.config)
        with AnySizePooling():
            logits = self.model(pixel_values=pixel_values.to(self.model.dtype)).logits.float()
        return F.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=align_corners)


def write_transformers_js(
    model: PreTrainedModel, processor: BaseImageProcessor, folder: str | Path, precisions: Sequence[str] = ("fp32",)
) -> dict[str, Path]:
    """Write the folder of a model for transformers.js.

    Args:
        model (`PreTrainedModel`): As [`~hf_segkd.loading.any_model.load_model`] returns it; left as it is.
        processor (`BaseImageProcessor`): The one it was trained with. Images keep their size, as everywhere in this
            library.
        folder (`str` or `Path`): Gets `config.json`, `preprocessor_config.json` and the files in `onnx/`.
        precisions (`Sequence[str]`, *optional*, defaults to `("fp32",)`): Keys of `FILES`; fp32 is always written.

    Returns:
        `dict[str, Path]`: The ONNX files, by precision.

    Raises:
        ValueError: An unknown precision, or a model that does not take images of every size.
    """
    unknown = [name for name in precisions if name not in FILES]
    if unknown:
        raise ValueError(f"The layout of transformers.js has files for {', '.join(FILES)}, got {', '.join(unknown)}.")
    if bands := Bands.of(processor):
        raise ValueError(
            f"transformers.js reads 8-bit RGB, this model reads {bands}. Export it with the layout 'file'."
        )
    multiple = size_multiple(model)
    if multiple != 1:
        raise ValueError(
            f"transformers.js hands over images at their own size, but {type(model).__name__} takes multiples of "
            f"{multiple} pixels only. Export it with the layout 'file' and pad images yourself."
        )
    folder = Path(folder)
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    wanted = [name for name in FILES if name == "fp32" or name in precisions]
    paths = {name: folder / "onnx" / FILES[name] for name in wanted}
    for name in wanted:
        if name in PRECISIONS:
            _write_graph(model, paths[name], PRECISIONS[name])
        else:
            quantize_dynamic(paths["fp32"], paths[name])
    for name, content in (("config", _config(model)), ("preprocessor_config", _preprocessing(processor))):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    return paths


def label_map(session: Any, processor: BaseImageProcessor, images: np.ndarray) -> np.ndarray:
    """Class ids (B, H, W) that a file of [`write_transformers_js`] gives uint8 RGB images (B, H, W, 3)."""
    normalization = InputNormalization.from_processor(processor)
    pixel_values = normalization(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    (logits,) = session.run(None, {"pixel_values": pixel_values})
    return logits.argmax(axis=1)


def _write_graph(model: PreTrainedModel, path: Path, dtype: torch.dtype) -> None:
    graph = PixelsToLogits(copy.deepcopy(model).cpu().to(dtype).eval()).eval()
    # Two images and odd maps: see export_onnx.
    example = torch.zeros(2, 3, 193, 257)
    axes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    onnx.save_model(trace(graph, example, "pixel_values", "logits", axes), path)


def _config(model: PreTrainedModel) -> dict[str, Any]:
    id2label = {str(index): name for index, name in model.config.id2label.items()}
    return {
        **_ARCHITECTURE,
        "num_labels": len(id2label),
        "id2label": id2label,
        "label2id": {name: int(index) for index, name in id2label.items()},
        # Without it, transformers.js looks for model_quantized.onnx on a processor.
        "transformers.js_config": {"dtype": "fp32"},
    }


def _preprocessing(processor: BaseImageProcessor) -> dict[str, Any]:
    """The same arithmetic in the words of transformers.js, which normalizes first and flips the channels after."""
    normalization = InputNormalization.from_processor(processor)
    flip = normalization.flip_channel_order
    step = -1 if flip else 1
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": normalization.divisor.item() != 1,
        "rescale_factor": 1 / normalization.divisor.item(),
        "do_normalize": True,
        "image_mean": normalization.mean.flatten().tolist()[::step],
        "image_std": normalization.std.flatten().tolist()[::step],
        "do_flip_channel_order": flip,
    }

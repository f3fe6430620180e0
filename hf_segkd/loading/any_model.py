"""One door for every model a user may name: Hub id, folder, original checkpoint, or the description of a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.conversion import convert, converted_processor, load_original, recognise
from hf_segkd.conversion.imagenet import load_backbone_weights
from hf_segkd.loading.class_map import keep_classes
from hf_segkd.loading.native import expose_features
from hf_segkd.loading.pretrained import load_processor, load_segmenter
from hf_segkd.models import default_processor

# Where a native model keeps its encoder under another name than `backbone`.
ENCODERS = {"segformer": "segformer"}


def load_with_processor(
    spec: str | dict[str, Any], id2label: dict[int, str] | None = None, **hub_kwargs: Any
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load or make a segmentation model, with the image processor that it wants its images from.

    Args:
        spec (`str` or `dict`): A Hub id; a folder; the `.pth` file of an original checkpoint, converted in memory; or
            the fields of a new model, as [`~hf_segkd.models.load_segmenter`] takes them. There, `backbone_weights`
            fills the backbone: see [`~hf_segkd.conversion.imagenet.load_backbone_weights`], whose report is logged.
            The processor then is the one of these weights, where that is known.
        id2label (`dict[int, str]`, *optional*): Class names; as many as a loaded model has. An ESPNetv2 that has these
            and others is cut down to them.
        hub_kwargs: Passed to `from_pretrained`: `revision`, `token`, ...; `trust_remote_code` is `False` unless given.

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`: The model returns [`~hf_segkd.models.SegmentationOutput`].

    Raises:
        ValueError: Nothing to load there, an unknown or incomplete checkpoint, or weights that do not fit.
    """
    if isinstance(spec, dict):
        fields = dict(spec)
        weights = fields.pop("backbone_weights", None)
        model = load_segmenter(fields, id2label)
        if weights is None:
            return model, load_processor(model)
        report = load_backbone_weights(_encoder(model), str(weights))
        return model, default_processor(model.config, **report.processor)
    if Path(spec).is_file():
        state_dict = load_original(spec)
        model = expose_features(convert(state_dict, id2label))
        if id2label is not None:
            keep_classes(model, id2label)
        return model, converted_processor(recognise(state_dict), model.config)
    return load_segmenter(spec, id2label, **hub_kwargs), load_processor(spec, **hub_kwargs)


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    name = ENCODERS.get(model.config.model_type, "backbone")
    if name not in dict(model.named_children()):
        raise ValueError(
            f"backbone_weights: {type(model).__name__} has no backbone of its own to fill. Leave it out, or start "
            "from a folder or Hub id of a whole model."
        )
    return model.get_submodule(name)

"""Load any model that a user can name: Hub id, folder, original checkpoint, or the description of a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.conversion import convert, converted_processor, load_original, recognize
from hf_segkd.conversion.imagenet import load_backbone_weights
from hf_segkd.loading.class_map import keep_classes
from hf_segkd.loading.finite import check_finite
from hf_segkd.loading.native import expose_features
from hf_segkd.loading.pretrained import new_model, pretrained_model, processor_of
from hf_segkd.loading.prompt_teacher import load_prompt_teacher
from hf_segkd.models import default_processor
from hf_segkd.recipe import load_yaml

# Where a native model keeps its encoder under another name than `backbone`.
ENCODERS = {"segformer": "segformer"}


def load_model(
    spec: str | dict[str, Any], id2label: dict[int, str] | None = None, **hub_kwargs: Any
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load a segmentation model, or make a new one, with the image processor that it takes its images from.

    Args:
        spec (`str` or `dict`): One of

            - a Hub id or folder of a semantic or universal model, loaded in float32;
            - the `.pth` file of an original checkpoint, converted in memory;
            - `{"model_type": "espnet", ...}` with fields of its config, for a new model with random weights. Ours
              go by their short name (`"espnet"` for `"segkd_espnet"`), native ones by theirs (`"segformer"`),
              backbones by a name of `BACKBONES` or by their config: `{"model_type": "deeplabv3", "backbone":
              "resnet18"}`. `align_corners`, how logits are upsampled, is a field of every model.
              `backbone_weights` fills the backbone: [`~hf_segkd.conversion.imagenet.load_backbone_weights`], whose
              report is logged; `backbone_weights_order`, `"rgb"` or `"bgr"`, says which order of channels these
              weights expect. `processor` holds fields of the image processor that are to differ from that of the
              weights, where it is known, or the model's default;
            - `{"model": "CIDAS/clipseg-rd64-refined", "prompts": {...}, "background": ...}`, classes in words:
              [`~hf_segkd.loading.prompt_teacher.load_prompt_teacher`];
            - the same as YAML text, `"{model_type: espnet}"`.
        id2label (`dict[int, str]`, *optional*): Class names. A new or converted model gets them; a loaded one must
            have as many. An ESPNetv2 that has these and others is cut down to them.
        hub_kwargs: Passed to `from_pretrained`: `revision`, `token`, ...; `trust_remote_code` is `False` unless given.

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`: The model returns [`~hf_segkd.models.SegmentationOutput`]. It is
        in evaluation mode when loaded, in training mode when new.

    Raises:
        ValueError: Nothing to load there, an unknown, damaged or incomplete checkpoint, weights that do not fit or are
            not finite, a package missing that the model needs, code of its own that is not trusted, another number of
            classes, or an unknown model type or config field.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = load_yaml(spec)
    if isinstance(spec, dict) and "prompts" in spec:
        return load_prompt_teacher(spec, **hub_kwargs)
    if isinstance(spec, dict):
        return _new_with_processor(dict(spec), id2label)
    if Path(spec).is_file():
        state_dict = load_original(spec)
        model = expose_features(convert(state_dict, id2label))
        if id2label is not None:
            keep_classes(model, id2label)
        return model, converted_processor(recognize(state_dict), model.config)
    model = expose_features(pretrained_model(str(spec), id2label, **hub_kwargs))
    check_finite(model, f"model at '{spec}'")
    return model, processor_of(model, **hub_kwargs)


def _new_with_processor(
    fields: dict[str, Any], id2label: dict[int, str] | None
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    weights = fields.pop("backbone_weights", None)
    order = fields.pop("backbone_weights_order", None)
    options = fields.pop("processor", None) or {}
    if not isinstance(options, dict):
        raise ValueError(f"student.processor must be a mapping, {{image_mean: [0, 0, 0], ...}}, got {options!r}.")
    model = expose_features(new_model(fields, id2label))
    with torch.device("cpu"):  # the model may be made on another one, also without content
        processor = default_processor(model.config, **options)
    if weights is None and order is not None:
        raise ValueError("backbone_weights_order says how backbone_weights are read, which are not given.")
    if weights is not None:
        wanted = "bgr" if processor.do_flip_channel_order else "rgb"
        report = load_backbone_weights(_encoder(model), str(weights), order=order, wanted=wanted)
        processor = default_processor(model.config, **(report.processor | options))
    return model, processor


def _encoder(model: PreTrainedModel) -> nn.Module:
    name = ENCODERS.get(model.config.model_type, "backbone")
    if name not in dict(model.named_children()):
        raise ValueError(
            f"backbone_weights: {type(model).__name__} has no backbone of its own to fill. Leave it out, or start "
            "from a folder or Hub id of a whole model."
        )
    return model.get_submodule(name)

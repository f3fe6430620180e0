"""Words as a teacher: CLIPSeg or SAM 3 asked for each class by its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPSegForImageSegmentation,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Sam3Model,
)

from hf_segkd.loading.finite import check_finite
from hf_segkd.models import PROCESSOR_FIELDS, SegmentationImageProcessor, SegmentationOutput
from hf_segkd.values import check_choice, did_you_mean

FIELDS = ("model", "prompts", "background", "combine", "revision")
# facebook/sam3 is saved as the video model, which holds the one for images.
MODELS = {"clipseg": CLIPSegForImageSegmentation, "sam3": Sam3Model, "sam3_video": Sam3Model}
COMBINE = ("max", "mean")
_HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}


class PromptTeacher(PreTrainedModel):
    """A model that finds what a sentence names, as a segmentation model of the classes that were described.

    With `z_j` the probability of prompt j at a position: CLIPSeg's sigmoid; of SAM 3 the largest over its queries of
    `sigmoid(class) · sigmoid(presence) · sigmoid(mask)`. The score of a class is the largest (or the mean) `z_j` of
    its prompts, that of the background `1 − max over classes`. `logits` are the logarithms of the scores divided by
    their sum: their softmax is the distribution over classes.

    Args:
        model (`PreTrainedModel`): `CLIPSegForImageSegmentation` or `Sam3Model`.
        tokens (`dict[str, torch.Tensor]`): `input_ids` and `attention_mask` (P, L) of all prompts, class by class.
        groups (`dict[str, list[str]]`): Class -> its prompts.
        background (`str`, *optional*): Name of the class of all that no prompt finds; the last one.
        combine (`str`, *optional*, defaults to `"max"`): `"max"` or `"mean"` over the prompts of a class.

    Returns:
        [`~hf_segkd.models.SegmentationOutput`]: `logits` (B, K, h, w) in float32, nothing else: images are resized
        to the square that the model reads, so that the map is a square whatever the image's sides.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: dict[str, Tensor],
        groups: dict[str, list[str]],
        background: str | None = None,
        combine: str = "max",
    ):
        names = [*groups, *([background] if background else [])]
        id2label = dict(enumerate(names))
        label2id = {name: index for index, name in id2label.items()}
        super().__init__(PreTrainedConfig(id2label=id2label, label2id=label2id))
        self.model = model
        self.sizes = [len(prompts) for prompts in groups.values()]
        self.background = background
        self.combine = combine
        self.side = model.config.vision_config.image_size
        for name, value in tokens.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None) -> SegmentationOutput:
        square = F.interpolate(pixel_values, (self.side, self.side), mode="bilinear", antialias=True)
        find = self._sam3 if isinstance(self.model, Sam3Model) else self._clipseg
        return SegmentationOutput(logits=self.scores_to_logits(find(square).float()))

    def scores_to_logits(self, found: Tensor) -> Tensor:
        """Log-probabilities (B, K, h, w) of the classes from probabilities (B, P, h, w) of the prompts."""
        parts = found.split(self.sizes, dim=1)
        if self.combine == "max":
            scores = torch.cat([part.amax(dim=1, keepdim=True) for part in parts], dim=1)
        else:
            scores = torch.cat([part.mean(dim=1, keepdim=True) for part in parts], dim=1)
        if self.background:
            scores = torch.cat([scores, 1 - scores.amax(dim=1, keepdim=True)], dim=1)
        scores = scores.clamp(min=1e-6)
        return scores.log() - scores.sum(dim=1, keepdim=True).log()

    def _clipseg(self, images: Tensor) -> Tensor:
        found = []
        for ids, mask in zip(self.input_ids, self.attention_mask, strict=True):
            count = len(images)
            words = {"input_ids": ids.expand(count, -1), "attention_mask": mask.expand(count, -1)}
            logits = self.model(pixel_values=images, **words).logits
            found.append(logits.reshape(count, *logits.shape[-2:]).sigmoid())
        return torch.stack(found, dim=1)

    def _sam3(self, images: Tensor) -> Tensor:
        seen = self.model.get_vision_features(images)
        found = []
        for ids, mask in zip(self.input_ids, self.attention_mask, strict=True):
            count = len(images)
            words = {"input_ids": ids.expand(count, -1), "attention_mask": mask.expand(count, -1)}
            output = self.model(vision_embeds=seen, **words)
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
            found.append((scores[..., None, None] * output.pred_masks.sigmoid()).amax(dim=1))
        return torch.stack(found, dim=1)


def load_prompt_teacher(
    fields: Mapping[str, Any], **hub_kwargs: Any
) -> tuple[PromptTeacher, SegmentationImageProcessor]:
    """Make a teacher of `{"model": ..., "prompts": {class: [prompt, ...]}, "background": class}`.

    Args:
        fields (`Mapping[str, Any]`): `model`, a folder or Hub id of CLIPSeg or SAM 3; `prompts`, class -> a prompt or
            several; `background`, *optional*, the class of all else; `combine`, *optional*, `"max"` or `"mean"`;
            `revision`, *optional*.
        hub_kwargs: Passed to `from_pretrained`.

    Raises:
        ValueError: An unknown field, prompts that are no words, nothing to load, or another kind of model.
    """
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        hint = did_you_mean(unknown[0], FIELDS)
        raise ValueError(f"A teacher with prompts has no field '{unknown[0]}'.{hint} Its fields: {', '.join(FIELDS)}.")
    groups = read_prompts(fields["prompts"])
    background = fields.get("background")
    if background in groups:
        raise ValueError(f"background: '{background}' has prompts of its own. Leave one of the two out.")
    if len(groups) + bool(background) < 2:
        raise ValueError("One class alone is no choice. Give a second class, or a background.")
    combine = fields.get("combine", "max")
    check_choice("combine", combine, COMBINE)
    if "model" not in fields:
        raise ValueError(
            "A teacher with prompts needs a model: CIDAS/clipseg-rd64-refined, facebook/sam3 or a folder."
        )
    spec = str(fields["model"])
    hub_kwargs = {name: value for name, value in hub_kwargs.items() if name != "trust_remote_code"}
    if "revision" in fields:
        hub_kwargs["revision"] = fields["revision"]
    try:
        kind = AutoConfig.from_pretrained(spec, **hub_kwargs).model_type
        check_choice("model_type of a teacher with prompts", kind, MODELS)
        model = MODELS[kind].from_pretrained(spec, dtype=torch.float32, **hub_kwargs)
        tokenizer = AutoTokenizer.from_pretrained(spec, **hub_kwargs)
        words = [prompt for prompts in groups.values() for prompt in prompts]
        tokens = tokenizer(words, padding=True, truncation=True, return_tensors="pt")
    except OSError as error:
        raise ValueError(f"No model with its tokenizer at '{spec}' ({str(error).splitlines()[0]}).") from error
    check_finite(model, f"model at '{spec}'")
    kept = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    return PromptTeacher(model.eval(), kept, groups, background, combine), _processor(spec, kind, hub_kwargs)


def read_prompts(prompts: Any) -> dict[str, list[str]]:
    """Class -> list of prompts.

    Raises:
        ValueError: If it is anything else.
    """
    if not isinstance(prompts, Mapping) or not prompts:
        raise ValueError(f"prompts must be a mapping, '{{road: [road, street], car: car}}', got {prompts!r}.")
    groups = {str(name): [given] if isinstance(given, str) else given for name, given in prompts.items()}
    for name, given in groups.items():
        if (
            not isinstance(given, list)
            or not given
            or not all(isinstance(word, str) and word.strip() for word in given)
        ):
            raise ValueError(f"prompts: '{name}' is given as {given!r}, expected a prompt or a list of them.")
    return groups


def _processor(spec: str, kind: str, hub_kwargs: dict[str, Any]) -> SegmentationImageProcessor:
    """Mean, std and scale of the saved processor, whose own class may need torchvision."""
    try:
        saved, _ = ImageProcessingMixin.get_image_processor_dict(spec, **hub_kwargs)
    except OSError:
        saved = _HALVES if kind.startswith("sam3") else {}
    fields = {name: saved[name] for name in PROCESSOR_FIELDS if saved.get(name) is not None}
    return SegmentationImageProcessor(**fields)

"""The teacher: one model, or an average of several models and views."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.evaluation.inference import View, resize, views
from hf_segkd.evaluation.settings import TeacherArguments
from hf_segkd.evaluation.teacher_member import TeacherMember, member_of
from hf_segkd.hub import pin_revision
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.class_map import map_classes, shared_classes
from hf_segkd.loading.native import expose_features
from hf_segkd.models import (
    Bands,
    InputNormalization,
    SegmentationImageProcessor,
    SegmentationOutput,
    upsamples_with_align_corners,
)
from hf_segkd.models.compat import PreTrainedConfig
from hf_segkd.recipe import mapping_or_text
from hf_segkd.values import check_choice

# Bytes plus one: 0 is left for padding, which each member replaces by its own mean.
BYTES_PLUS_ONE = SegmentationImageProcessor(do_rescale=False, image_mean=[-1.0] * 3, image_std=[1.0] * 3)


@dataclass(frozen=True)
class TeacherDescription:
    """Complete description of a teacher, shared by training, evaluation and the teacher cache.

    Args:
        members (`tuple[TeacherMember, ...]`): The models.
        stride (`int`, *optional*): Pixels per position of the averaged map, >= 1; by default it is as fine as the
            finest member's own.
        average (`str`, *optional*, defaults to `"probabilities"`): Or `"logits"`.

    Raises:
        ValueError: If there is no member, or a value is out of range.
    """

    members: tuple[TeacherMember, ...]
    stride: int | None = None
    average: str = "probabilities"

    def __post_init__(self):
        if not self.members:
            raise ValueError("teacher is an empty list. Name at least one model, or leave it out.")
        check_choice("teacher_average", self.average, ("probabilities", "logits"))
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"teacher_stride must be at least 1 pixel, got {self.stride}.")

    @classmethod
    def from_arguments(cls, arguments: TeacherArguments | Namespace) -> TeacherDescription | None:
        """What flags or a recipe describe; `None` without a teacher. A member's own entries win over the flags.

        Raises:
            ValueError: On an unknown key of a member (with the closest one), or a value that does not fit.
        """
        given = arguments.teacher
        if given is None:
            return None
        given = [_read(one) for one in (given if isinstance(given, list) else [given])]
        if len(given) > 1 and arguments.teacher_revision is not None:
            raise ValueError(
                "teacher_revision belongs to one teacher. With several, write {model: ..., revision: ...} for each."
            )
        common = {
            "classes": _read(arguments.teacher_classes),
            "revision": arguments.teacher_revision,
            "flip": arguments.teacher_flip,
            "scales": arguments.teacher_scales,
            "window": arguments.teacher_window,
        }
        members = tuple(member_of(one, common) for one in given)
        return cls(members, arguments.teacher_stride, arguments.teacher_average)

    def __str__(self) -> str:
        return " + ".join(map(str, self.members)) + (f", stride {self.stride}" if self.stride else "")

    @property
    def is_plain(self) -> bool:
        """Whether it is a single model that sees the image as it is: with features, and what else it has."""
        return len(self.members) == 1 and self.members[0].is_plain and self.stride is None

    def load(
        self, labels: tuple[str, ...], features: str | None = None, trust_remote_code: bool = False
    ) -> tuple[PreTrainedModel, BaseImageProcessor]:
        """Load all models, their classes brought into the order of `labels`.

        Args:
            labels (`tuple[str, ...]`): The dataset's class names.
            features (`str`, *optional*): Of a single model: [`~hf_segkd.loading.native.expose_features`].
            trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the code that they bring.

        Returns:
            `tuple`: The model, a [`TeacherEnsemble`] unless [`is_plain`], and the processor that it takes images from.

        Raises:
            ValueError: If one cannot be loaded or lacks a class, or `features` are asked of several.
        """
        if features is not None and not self.is_plain:
            raise ValueError(
                "teacher_features: several teachers or views have no common features. Leave it out, or give one "
                "teacher without views."
            )
        loaded = []
        for member in self.members:
            if not self.is_plain and shared_classes(labels, member.classes) is not None:
                raise ValueError(
                    f"teacher_classes: {member.model} lacks a class (null), which only a single teacher without views "
                    "may. Leave this model out, or take one that knows all classes."
                )
            options = {"revision": member.revision, "trust_remote_code": trust_remote_code}
            model, processor = load_model(member.spec, **options)
            loaded.append((map_classes(expose_features(model, features), labels, member.classes), processor))
        if self.is_plain:
            return loaded[0]
        if any(Bands.of(processor) for _, processor in loaded):
            raise ValueError(
                "Several teachers, or views of an image, are of 8-bit RGB models, and one of these reads bands. "
                "Give that one alone, without views."
            )
        return TeacherEnsemble(loaded, self, labels), BYTES_PLUS_ONE


class TeacherEnsemble(PreTrainedModel):
    """Several models and views of an image as one teacher, which has logits and nothing else.

    With p_mv the softmax of model m's logits for view v (a scale, mirrored or not), brought back to the whole image
    and bilinearly to the grid of the result, and w_m its weight:
    `logits = log( Σ_m w_m/(Σ w) · 1/V_m Σ_v p_mv )`, all in float32. With `average: logits` the logits themselves are
    averaged. The grid has `stride` pixels per position (1: that of the labels), or is as fine as the finest map of a
    view, counted in pixels of the unscaled image.

    Args:
        loaded (`list[tuple]`): Each model, with the classes of `labels`, and its processor.
        description (`TeacherDescription`): Weights and views.
        labels (`tuple[str, ...]`): Class names.

    Returns:
        [`~hf_segkd.models.SegmentationOutput`]: `logits` (B, K, h, w), float32. Each member normalizes by its own
        processor, so that `pixel_values` are the bytes plus one, as `BYTES_PLUS_ONE` makes them; 0 is padding.
    """

    config_class = PreTrainedConfig
    main_input_name = "pixel_values"

    def __init__(
        self,
        loaded: list[tuple[PreTrainedModel, BaseImageProcessor]],
        description: TeacherDescription,
        labels: tuple[str, ...],
    ):
        # The first model's way to upsample is the ensemble's; at stride 1 there is nothing to upsample.
        align_corners = upsamples_with_align_corners(loaded[0][0].config)
        config = PreTrainedConfig(
            id2label=dict(enumerate(labels)), label2id={name: index for index, name in enumerate(labels)}
        )
        config.align_corners = align_corners
        super().__init__(config)
        self.description = description
        self.models = torch.nn.ModuleList(model for model, _ in loaded)
        self.normalizations = torch.nn.ModuleList(InputNormalization.from_processor(x) for _, x in loaded)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> SegmentationOutput:
        padding = (pixel_values == 0).all(dim=1, keepdim=True)
        pixels = (pixel_values.float() - 1).round().clamp(min=0).to(torch.uint8)
        image_size = tuple(pixels.shape[-2:])
        seen = []
        for model, normalization, member in zip(
            self.models, self.normalizations, self.description.members, strict=True
        ):
            images = normalization(pixels).masked_fill(padding, 0).to(model.dtype)
            protocol = member.protocol(upsamples_with_align_corners(model.config))
            seen.append(list(views(model, images, protocol)))
        size = self._grid(image_size, [view for some in seen for view in some])
        weights = [member.weight for member in self.description.members]
        mean = 0
        for weight, some in zip(weights, seen, strict=True):
            for view in some:
                mean = mean + weight / (sum(weights) * len(some)) * self._scores(view, image_size, size)
        if self.description.average == "logits":
            return SegmentationOutput(logits=mean)
        return SegmentationOutput(logits=mean.clamp(min=torch.finfo(mean.dtype).tiny).log())

    def _scores(self, view: View, image_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Probabilities, or logits, of a view on the grid of the result."""
        logits = view.logit_map(slice(None), size if self._same_grid(view) else image_size)
        logits = resize(logits, size, self.config.align_corners)
        return logits if self.description.average == "logits" else logits.softmax(dim=1)

    def _same_grid(self, view: View) -> bool:
        """Whether view and result agree on align_corners; otherwise the view is resampled through the image's size."""
        return view.align_corners == self.config.align_corners

    def _grid(self, image_size: tuple[int, int], seen: list[View]) -> tuple[int, int]:
        if self.description.stride is not None:
            return tuple(-(-side // self.description.stride) for side in image_size)
        finest = [max(view.positions(axis, image_size[axis]) for view in seen) for axis in (0, 1)]
        return tuple(finest)


def pin_teacher(arguments: TeacherArguments, recipe: dict[str, Any]) -> None:
    """Replace branches and tags of Hub teachers by commits, so that the recipe stays reproducible.

    Args:
        arguments (`TeacherArguments`): Changed in place.
        recipe (`dict`): The record of the run, changed likewise.
    """
    given = arguments.teacher
    if isinstance(given, str):
        if revision := pin_revision(given, arguments.teacher_revision):
            arguments.teacher_revision = recipe["teacher_revision"] = revision
    elif given is not None:
        description = TeacherDescription.from_arguments(arguments)
        given = given if isinstance(given, list) else [given]
        pinned = []
        for entry, member in zip(given, description.members, strict=True):
            revision = pin_revision(member.model, member.revision)
            own = {"model": entry} if isinstance(entry, str) else entry
            pinned.append({**own, "revision": revision} if revision else entry)
        arguments.teacher = recipe["teacher"] = pinned


def _read(given: Any) -> Any:
    """YAML text of a mapping, which comes from a command line, as what it says."""
    return mapping_or_text(given) if isinstance(given, str) else given

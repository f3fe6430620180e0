"""What every distillation loss is built from and how it is called."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import did_you_mean


@dataclass(frozen=True)
class LossSetup:
    """Facts about student, teacher and data that a loss may need to build its parameters.

    Args:
        student (`dict[str, torch.Size]`): Shape of each output field for one crop, batch size 1, as
            [`~hf_segkd.models.output_shapes`] returns it: `{"logits": (1, 19, 64, 128), "features": ...}`.
        teacher (`dict[str, torch.Size]`, *optional*): The same for the teacher; empty when there is none.
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Label value of pixels without a class.
        align_corners (`bool`, *optional*, defaults to `True`): How the student's logits are upsampled to the image,
            in training as in evaluation.
        seed (`int`, *optional*, defaults to `0`): Seed of everything that a loss draws for itself.
        image_channels (`int`, *optional*, defaults to `3`): Channels of the images that the student reads.
    """

    student: dict[str, torch.Size]
    num_labels: int
    teacher: dict[str, torch.Size] = field(default_factory=dict)
    ignore_index: int = 255
    align_corners: bool = True
    seed: int = 0
    image_channels: int = 3

    def with_classes(self, count: int) -> LossSetup:
        """The same with class scores of `count` classes; those of the labels stay."""
        return replace(self, student=_with_classes(self.student, count), teacher=_with_classes(self.teacher, count))


class DistillationLoss(nn.Module):
    """Base class of all losses: parameters are made in `__init__` from a [`LossSetup`], never in `forward`.

    `forward(student, teacher, labels)` gets two [`~hf_segkd.models.SegmentationOutput`]s, the teacher's detached,
    and labels `(B, H, W)` at image size. A loss whose `forward` has a fourth parameter `images` is also given the
    images (B, C, H, W), normalized for the student. It returns a scalar or a dict of named scalars, in the dtype it is
    given. The loss must stay finite and differentiable: with all pixels ignored, one image, unequal map sizes.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs, number of classes, ignore index.
        layer (`str`, *optional*, defaults to `"features"`): Output field to compare: `"features"`, `"logits"`,
            `"aux_logits"`, `"hidden_states.3"` or, for the last stage of the backbone, `"hidden_states.-1"`.

    Raises:
        ValueError: If the student or the teacher has no such field.
    """

    paper: str = ""
    citation: str = ""
    # Orders of growth for docs/methods.md: B images, N positions, C channels, K classes, M keys, P of a patch.
    time_growth: str = ""
    memory_growth: str = ""
    fused: bool = False  # Whether it computes otherwise than its formula reads; benchmarks then compare both forms.
    needs_teacher: bool = True
    # Largest norm of the gradients of the loss's own parameters; the trainer clips them once per optimizer step.
    max_grad_norm: float | None = None
    min_batch: int = 1  # Images on one device below which `forward` raises a ValueError that says why.
    min_side: int = 1  # Positions per side of the student's logits below which `__init__` raises a ValueError.

    def __init__(self, setup: LossSetup, layer: str = "features"):
        super().__init__()
        self.setup, self.layer = setup, layer
        if self.needs_teacher:
            self.student_channels = map_shape(setup.student, layer, "student")[1]
            self.teacher_channels = map_shape(setup.teacher, layer, "teacher")[1]

    def forward(
        self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor
    ) -> Tensor | dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define forward(student, teacher, labels).")

    @classmethod
    def teacher_fields(cls, options: dict[str, Any]) -> tuple[str, ...]:
        """Output fields of the teacher that a loss with these options reads; none where it needs no teacher."""
        if not cls.needs_teacher:
            return ()
        return (options.get("layer", signature(cls).parameters["layer"].default),)

    def optimizer(self) -> torch.optim.Optimizer | None:
        """Optimizer of the parameters that play against the student; `None` when they are trained with it."""
        return None


def get_layer(output: SegmentationOutput, layer: str) -> Tensor:
    """Return the map named `layer` from a model's output, e.g. `"features"`, `"hidden_states.2"` or, for the last,
    `"hidden_states.-1"`.
    """
    name, _, index = layer.partition(".")
    value = output[name]
    return value[int(index)] if index else value


def channel_projector(
    student_channels: int, teacher_channels: int, bias: bool = False, always: bool = False
) -> nn.Module:
    """1×1 convolution from the student's channels to the teacher's; the identity where they are equal.

    With `always` equal channels have a convolution too, for the methods that learn a projection in any case.
    """
    if student_channels == teacher_channels and not always:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=bias)


def check_same_classes(name: str, student: int, teacher: int) -> None:
    """Refuse logits of different numbers of classes, which no projection could make comparable."""
    if student != teacher:
        raise ValueError(
            f"{name}: student and teacher must have the same classes, got {student} and {teacher} logit channels. "
            "Use a teacher trained on the same dataset."
        )


def resize_like(x: Tensor, reference: Tensor, align_corners: bool = True) -> Tensor:
    """Resize `x` (B, C, h, w) bilinearly to the height and width of `reference`.

    This is how a teacher of another stride is compared: its map moves to the student's grid.
    """
    if x.shape[-2:] == reference.shape[-2:]:
        return x
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=align_corners)


def _with_classes(shapes: dict[str, torch.Size], count: int) -> dict[str, torch.Size]:
    scores = {name: shape for name, shape in shapes.items() if name in ("logits", "aux_logits")}
    return shapes | {name: torch.Size((shape[0], count, *shape[2:])) for name, shape in scores.items()}


def map_shape(shapes: dict[str, torch.Size], layer: str, whose: str) -> torch.Size:
    """Shape (1, C, h, w) of the map named `layer`, as [`get_layer`] finds it.

    Raises:
        ValueError: If the model has no such output; the message lists what it has.
    """
    name, _, index = layer.partition(".")
    if index.startswith("-") and index[1:].isdigit():
        count = sum(field.startswith(f"{name}.") for field in shapes)
        layer = f"{name}.{count + int(index)}"
    if layer not in shapes:
        hint = did_you_mean(layer, shapes)
        raise ValueError(
            f"The {whose} has no output {layer!r}.{hint} It has {', '.join(sorted(shapes)) or 'none: none was given'}."
        )
    return shapes[layer]

"""Student and losses in one module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_segkd.loading.class_map import ClassMap
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import Weight, WeightSchedule, build_losses, build_schedules
from hf_segkd.losses.base import LossSetup
from hf_segkd.models import InputNormalization, SegmentationOutput, input_channels, upsamples_with_align_corners
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.int8_rounding import Int8Rounding


@dataclass
class DistillerOutput(ModelOutput):
    """Output of a training forward: the weighted sum, and every term before weighting, detached."""

    loss: Tensor | None = None
    terms: dict[str, Tensor] | None = None


class Distiller(nn.Module):
    """Student and losses in one module, so that one wrap (DDP, compile) covers every trainable parameter.

    Args:
        student (`PreTrainedModel`): Returns [`~hf_segkd.models.SegmentationOutput`].
        losses (`dict[str, DistillationLoss]`): Losses by the name they are logged under.
        weights (`dict[str, float | dict[str, float]]`, *optional*): Weight of each loss, or of each of its terms;
            1 where none is given.
        normalization (`InputNormalization`, *optional*): From stored pixels to what the student was made for; the
            default leaves the input as it is.
        schedules (`dict[str, WeightSchedule]`, *optional*): How the weights of these losses change over time. The
            buffer `progress`, a scalar from 0 to 1, is the time: the trainer sets it before each step.
        shared (`Sequence[int]`, *optional*): The classes that the teacher knows, by default all; see
            [`~hf_segkd.loading.class_map.shared_classes`].
        quantization_aware (`bool`, *optional*, defaults to `False`): Train on rounded values, see
            [`~hf_segkd.training.int8_rounding.Int8Rounding`]; call [`calibrate_rounding`] before the first step. It
            freezes batch norms too.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`): The student's batch norms normalize with their
            running statistics in training too, and keep them.

    Raises:
        ValueError: In `forward`, when a weight names a term that its loss does not return.
    """

    main_input_name = "pixel_values"
    # The loss is a mean of the local batch: Trainer itself divides by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(
        self,
        student: PreTrainedModel,
        losses: dict[str, nn.Module] | nn.ModuleDict,
        weights: dict[str, Weight] | None = None,
        normalization: InputNormalization | None = None,
        schedules: dict[str, WeightSchedule] | None = None,
        shared: Sequence[int] | None = None,
        quantization_aware: bool = False,
        freeze_batch_norm: bool = False,
    ):
        super().__init__()
        self.student = student
        self.losses = losses if isinstance(losses, nn.ModuleDict) else nn.ModuleDict(losses)
        self.weights = {name: 1.0 for name in self.losses} | (weights or {})
        self.normalization = normalization if normalization is not None else nn.Identity()
        self.image_dtype = normalization.dtype if normalization is not None else torch.uint8
        self.schedules = schedules or {}
        self.freeze_batch_norm = freeze_batch_norm or quantization_aware  # constants in the int8 file
        self.rounding = Int8Rounding() if quantization_aware else nullcontext()
        self.shared = None if shared is None else ClassMap([[index] for index in shared])
        self.given_images = {name for name, x in self.losses.items() if "images" in signature(x.forward).parameters}
        # A tensor, so that a compiled step is not compiled again for each value.
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor,
        teacher: SegmentationOutput | None = None,
        content: Tensor | None = None,
    ) -> DistillerOutput:
        if content is None:
            pixel_values = self.normalization(pixel_values)
        else:
            pixel_values = self.normalization(pixel_values, content)
        with self.rounding:
            student = self.student(pixel_values=pixel_values, output_hidden_states=True)
        terms, total = {}, 0.0
        # Float32 whatever the autocast: softmax sums over 10^5 positions and squared similarities lose in bf16.
        with torch.autocast(pixel_values.device.type, enabled=False):
            student, teacher = student.float(), teacher and teacher.float()
            compared = (student, teacher)
            if self.shared is not None:
                compared = (self.shared(student), teacher and self.shared(teacher))
            for name, loss in self.losses.items():
                outputs = (student, teacher) if self.shared is None or not loss.needs_teacher else compared
                options = {"images": pixel_values} if name in self.given_images else {}
                for term, value, weight in self._weighted(name, loss(*outputs, labels, **options)):
                    terms[term] = value.detach()
                    total = total + weight * value
        return DistillerOutput(loss=total, terms=terms)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.student.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def calibrate_rounding(self, images: Iterable[Tensor]) -> None:
        """Find the ranges of the student's maps on whole training images as they are stored, each (1, C, h, w)."""
        training = self.training
        self.eval()
        self.rounding.calibrate(self.predict, images)
        self.train(training)

    def activation_checkpointing_enable(self, **options) -> None:
        """Trade the student's speed for memory; see `PreTrainedModel.activation_checkpointing_enable`."""
        self.student.activation_checkpointing_enable(**options)

    def gradient_checkpointing_enable(self, **options) -> None:
        """The same under the name that `Trainer` calls in older releases of transformers."""
        self.student.gradient_checkpointing_enable(**options)

    def predict(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, K, h, w) of the student alone, from the same uint8 images that `forward` takes."""
        return self.student(pixel_values=self.normalization(pixel_values)).logits

    def _weighted(self, name: str, value: Tensor | dict[str, Tensor]) -> list[tuple[str, Tensor, float]]:
        """Name, value and weight of each term: `{"cwd": x}` stays, `{"cirkd": {"pixel": x}}` becomes `cirkd_pixel`."""
        weight = self.weights[name]
        factor = self.schedules[name].factor(self.progress) if name in self.schedules else 1.0
        if not isinstance(value, dict):
            if isinstance(weight, dict):
                raise ValueError(
                    f"losses.{name} has one term, but its weight names {', '.join(weight)}. Give a number."
                )
            return [(name, value, weight * factor)]
        if not isinstance(weight, dict):
            return [(f"{name}_{term}", x, weight * factor) for term, x in value.items()]
        if unknown := set(weight) - set(value):
            raise ValueError(
                f"losses.{name}.weight names {', '.join(sorted(unknown))}; its terms are {', '.join(value)}."
            )
        return [(f"{name}_{term}", x, weight.get(term, 1.0) * factor) for term, x in value.items()]


def loss_setup(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Tensor | None,
    size: tuple[int, int],
    ignore_index: int = 255,
    seed: int = 0,
) -> LossSetup:
    """Measure what the losses need to know from one forward of each model on a blank crop of `size` (h, w) pixels.

    Of a teacher that is not run, its stored logits (K, h, w) of one crop take the place.
    """
    teacher_shapes = {}
    if isinstance(teacher, Tensor):
        teacher_shapes = {"logits": teacher[None].shape}
    elif teacher is not None:
        teacher_shapes = output_shapes(teacher, size)
    return LossSetup(
        student=output_shapes(student, size),
        teacher=teacher_shapes,
        num_labels=student.config.num_labels,
        ignore_index=ignore_index,
        align_corners=upsamples_with_align_corners(student.config),
        seed=seed,
        image_channels=input_channels(student.config),
    )


def build_distiller(
    student: PreTrainedModel,
    teacher: PreTrainedModel | Tensor | None,
    args: DistillationConfig,
    normalization: InputNormalization,
    size: tuple[int, int],
    ignore_index: int = 255,
    shared: Sequence[int] | None = None,
) -> Distiller:
    """Put a student and the losses of `args.losses` together, for crops of `size` (h, w) pixels; see [`loss_setup`].

    `shared` are the classes that the teacher knows, see [`Distiller`].

    Raises:
        ValueError: If a loss refuses the outputs of student or teacher.
    """
    # Projectors are drawn from the run's seed too, whatever was built before.
    torch.manual_seed(args.seed)
    setup = loss_setup(student, teacher, size, ignore_index, args.seed)
    losses, weights = build_losses(args.losses, setup, shared)
    schedules = build_schedules(args.losses)
    trained_on = {"quantization_aware": args.quantization_aware, "freeze_batch_norm": args.freeze_batch_norm}
    return Distiller(student, losses, weights, normalization, schedules, shared, **trained_on)

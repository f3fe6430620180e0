"""Silent failure modes of a run, said once with what to do about them."""

from __future__ import annotations

import logging
import math
import os

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Subset
from transformers import TrainerCallback

from hf_segkd.data.sampling import evenly_spread
from hf_segkd.distributed import rank
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.scoring import predictions
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.losses import Weight
from hf_segkd.models import Bands

logger = logging.getLogger(__name__)

FEW_IMAGES = 4  # Below, batch norm's statistics are mostly noise.
DOMINANT = 100.0  # times the other terms together
LOW_TEACHER = 0.2  # mIoU; a teacher with permuted classes or wrong colors scores about 1 / number of classes
LONG_WAIT = 0.3  # share of the time


class Warnings(TrainerCallback):
    """Warns once about each silent failure mode, with what to do.

    Args:
        weights (`dict[str, float | dict[str, float]]`): Of the losses, as the `Distiller` has them.
    """

    def __init__(self, weights: dict[str, Weight]):
        self.weights = weights
        self.said = set()
        self.entries = 0

    def warn(self, subject: str, message: str, *values) -> None:
        """Log `message` if nothing has been said about `subject`, in the main process."""
        if subject not in self.said and rank() == 0:
            logger.warning(message, *values)
        self.said.add(subject)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        batch = args.per_device_train_batch_size
        kinds = {type(module) for module in model.student.modules() if isinstance(module, _BatchNorm)}
        if kinds - {nn.SyncBatchNorm} and batch < FEW_IMAGES:
            self.warn(
                "batch norm",
                "Batch norm sees only %d images at a time, which makes its statistics noise. Give each process %d or "
                "more (per_device_train_batch_size, with a smaller crop_size if memory is short); "
                "gradient_accumulation_steps does not help here.",
                *(batch, FEW_IMAGES),
            )
        effective = batch * args.gradient_accumulation_steps * args.world_size
        if args.total_batch_size not in (None, effective):
            self.warn(
                "batch",
                "The recipe is made for %d images a step, this run has %d (%d x %d accumulated x %d processes). "
                "Change per_device_train_batch_size or gradient_accumulation_steps, or scale learning_rate with it.",
                *(args.total_batch_size, effective, batch, args.gradient_accumulation_steps, args.world_size),
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        self.entries += 1
        terms = {
            key.removeprefix("loss_"): abs(value) * abs(self._weight(key.removeprefix("loss_")))
            for key, value in logs.items()
            if key.startswith("loss_")
        }
        largest = max(terms, key=terms.get)
        others = sum(terms.values()) - terms[largest]
        if others > 0 and terms[largest] > DOMINANT * others:
            self.warn(
                "dominant",
                "At step %d, loss %s is %.3g after weighting and all others together %.3g: they hardly count. Lower "
                "losses.%s.weight, or raise theirs.",
                *(state.global_step, largest, terms[largest], others, self._name(largest)),
            )
        # The first entry has the start of the workers in it.
        if self.entries > 1 and logs["time_data"] > LONG_WAIT:
            self.warn(
                "data",
                "%.0f %% of the time until step %d went into waiting for images. Raise dataloader_num_workers (now "
                "%d; this machine has %d cores), or store the images smaller.",
                *(100 * logs["time_data"], state.global_step, args.dataloader_num_workers, os.cpu_count()),
            )

    def _name(self, term: str) -> str:
        """The loss that a term belongs to: of `cwd` and `cwd_logits`, the longer one that fits."""
        return max((name for name in self.weights if term == name or term.startswith(f"{name}_")), key=len)

    def _weight(self, term: str) -> float:
        name = self._name(term)
        weight = self.weights[name]
        return weight.get(term.removeprefix(f"{name}_"), 1.0) if isinstance(weight, dict) else weight


class OneClass(TrainerCallback):
    """Warns at the first evaluation if the student predicts one class everywhere.

    Args:
        trainer (`DistillationTrainer`): Has counted the predictions.
        warnings ([`Warnings`]): Says it.
    """

    def __init__(self, trainer, warnings: Warnings):
        self.trainer = trainer
        self.warnings = warnings

    def on_evaluate(self, args, state, control, **kwargs):
        matrix = self.trainer.last_matrix
        predicted = matrix.sum(dim=0).nonzero().flatten().tolist()
        if len(predicted) != 1 or int((matrix.sum(dim=1) > 0).sum()) < 2:
            return
        self.warnings.warn(
            "one class",
            "At step %d the student predicts one class, %s, on every validation image. If that lasts: start from "
            "pretrained weights (backbone_weights, or a trained student), train for more steps, raise learning_rate, "
            "or weigh the rare classes (losses.task.class_weights).",
            *(state.global_step, self.trainer.student.config.id2label[predicted[0]]),
        )


class CheckTeacher(TrainerCallback):
    """Scores the teacher on a few evaluation images at the first evaluation, and warns if it knows next to nothing.

    Args:
        trainer (`DistillationTrainer`): Has the teacher, its processor and the evaluation images.
        warnings ([`Warnings`]): Says it.
        images (`int`, *optional*, defaults to `8`): How many, evenly spread.
    """

    def __init__(self, trainer, warnings: Warnings, images: int = 8):
        self.trainer, self.warnings, self.images, self.mean_iou = trainer, warnings, images, None

    def on_evaluate(self, args, state, control, **kwargs):
        if self.trainer.teacher is None or self.mean_iou is not None or not state.is_world_process_zero:
            return
        self.mean_iou = self._score()
        logger.info("Teacher: mIoU %.2f %% on %d evaluation images", 100 * self.mean_iou, self.images)
        if self.mean_iou < LOW_TEACHER:
            self.warnings.warn(
                "teacher",
                "The teacher reaches only %.1f %% mIoU on %d evaluation images. Score it alone with "
                "hf-segkd evaluate; mostly its classes are in another order (teacher_classes) or its image "
                "processor is not the one it was trained with (mean, std, channel order).",
                *(100 * self.mean_iou, self.images),
            )

    def _score(self) -> float:
        trainer, dataset = self.trainer, self.trainer.eval_dataset
        self.images = min(self.images, len(dataset))
        chosen = Subset(dataset, evenly_spread(len(dataset), self.images))
        bands = Bands.of(trainer.processing_class)
        how = {"device": trainer.args.device, "bands": bands}
        segmenter = Segmenter(trainer.teacher, trainer.teacher_processing_class, **how)
        matrix = 0
        try:
            for _, labels, predicted in predictions(segmenter, chosen):
                matrix = matrix + confusion_matrix(predicted, labels, trainer.num_labels, trainer.ignore_index)
        except ValueError as error:  # from a teacher that reads images of one size or shape only
            logger.info("The teacher is not scored: %s", error)
            return math.nan
        return scores(matrix.cpu())["mean_iou"]

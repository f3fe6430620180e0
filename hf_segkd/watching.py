"""What a run tells while it trains: where its time goes, and what quietly ruins it."""

from __future__ import annotations

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Subset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from hf_segkd.confusion import confusion_matrix, scores
from hf_segkd.distributed import rank
from hf_segkd.evaluation import predictions
from hf_segkd.losses import Weight

logger = logging.getLogger(__name__)

FEW_IMAGES = 4  # Below, batch norm's statistics are mostly noise.
DOMINANT = 100.0  # times the other terms together
LOW_TEACHER = 0.2  # mIoU; a teacher with permuted classes or wrong colours scores about 1 / number of classes
LONG_WAIT = 0.3  # share of the time


class StepClock:
    """Where the time between two log entries goes, evaluation and saving left out.

    On a GPU the parts that run there are measured between events in its own queue, and nobody waits for them before
    the log entry, for which Trainer waits anyway. Gradients and optimizer are what is left of 1.

    Args:
        device (`torch.device`): Where teacher and student run.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.start, self.images, self.spans = time.perf_counter(), 0, {}

    @contextmanager
    def span(self, name: str, on_host: bool = False) -> Iterator[None]:
        """Count what runs inside as `name`; `on_host` where the host itself waits or works."""
        begin = self.mark(on_host)
        yield
        self.add(name, begin, self.mark(on_host))

    def mark(self, on_host: bool = False) -> float | torch.cuda.Event:
        """Now, on the host or in the GPU's queue."""
        if on_host or not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, begin, end) -> None:
        """Count what lies between two marks as `name`."""
        self.spans.setdefault(name, []).append((begin, end))

    def report(self) -> dict[str, float]:
        """`images_per_second` and the shares of `time_data`, `time_teacher`, ...; starts anew."""
        spans = {name: sum(_seconds(*pair) for pair in pairs) for name, pairs in self.spans.items()}
        total = time.perf_counter() - self.start - spans.pop("pause", 0.0)
        if "student" in spans:
            spans["losses"] = spans.pop("model") - spans["student"]
        report = {"images_per_second": self.images / total}
        report |= {f"time_{name}": seconds / total for name, seconds in spans.items()}
        self.restart()
        return report


def _seconds(begin, end) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MiB: on a GPU what PyTorch allocated there, on a CPU the size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class TimeStudent(TrainerCallback):
    """Counts the student's forward apart from that of the losses; a compiled step cannot be looked into."""

    def __init__(self, student: PreTrainedModel, clock: StepClock):
        self.student, self.clock, self.hooks = student, clock, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.restart()
        if not args.torch_compile:
            before = self.student.register_forward_pre_hook(self._begin)
            self.hooks = [before, self.student.register_forward_hook(self._end)]

    def _begin(self, student, inputs):
        self.begin = self.clock.mark()

    def _end(self, student, inputs, output):
        if student.training:
            self.clock.add("student", self.begin, self.clock.mark())

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self.hooks:
            hook.remove()


class ProgressBar(ProgressCallback):
    """Trainer's bar, which also shows the last loss and mIoU."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.shown = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is None:
            return
        if "loss" in logs:
            self.shown["loss"] = f"{logs['loss']:.4g}"
        if "eval_mean_iou" in logs:
            self.shown["mIoU"] = f"{100 * logs['eval_mean_iou']:.2f} %"
        self.training_bar.set_postfix(self.shown)


class Warnings(TrainerCallback):
    """Says once, with what to do, what ruins a run without an error.

    Args:
        weights (`dict[str, float | dict[str, float]]`): Of the losses, as [`~hf_segkd.distiller.Distiller`] has them.
    """

    def __init__(self, weights: dict[str, Weight]):
        self.weights, self.said, self.entries = weights, set(), 0

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
                "scripts/evaluate.py; mostly its classes are in another order (teacher_classes) or its image "
                "processor is not the one it was trained with (mean, std, channel order).",
                *(100 * self.mean_iou, self.images),
            )

    def _score(self) -> float:
        trainer, dataset = self.trainer, self.trainer.eval_dataset
        self.images = min(self.images, len(dataset))
        chosen = Subset(dataset, [i * len(dataset) // self.images for i in range(self.images)])
        matrix = 0
        try:
            scored = predictions(trainer.teacher, trainer.teacher_processing_class, chosen, device=trainer.args.device)
            for _, labels, predicted in scored:
                matrix = matrix + confusion_matrix(predicted, labels, trainer.num_labels, trainer.ignore_index)
        except ValueError as error:  # from a teacher that reads images of one size or shape only
            logger.info("The teacher is not scored: %s", error)
            return math.nan
        return scores(matrix.cpu())["mean_iou"]

"""Trainer that distills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_segkd.data.transforms import collate
from hf_segkd.distributed import average
from hf_segkd.evaluation.profiling import peak_memory_mib
from hf_segkd.loading.class_map import class_names, map_classes, shared_classes
from hf_segkd.loading.fingerprint import fingerprint
from hf_segkd.loading.finite import check_finite
from hf_segkd.loading.frozen import folded_batch_norms, zero_subnormals
from hf_segkd.loading.norm_calibration import some_items
from hf_segkd.loading.pretrained import processor_of
from hf_segkd.models import Bands, InputNormalization, SegmentationOutput, upsamples_with_align_corners
from hf_segkd.training.advice import CheckTeacher, OneClass, Warnings
from hf_segkd.training.argument_checks import check_arguments
from hf_segkd.training.callbacks import ModelEMA, SaveOnSignal, SetEpoch, SetProgress
from hf_segkd.training.checkpointing import StudentCheckpoints
from hf_segkd.training.checkpoints import AtomicCheckpoints, remove_checkpoints
from hf_segkd.training.checks import check_run
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.distiller import Distiller, build_distiller
from hf_segkd.training.evaluating import ScoresByMatrices
from hf_segkd.training.faults import FiniteWatch, explained
from hf_segkd.training.hub_uploads import UploadCheckpoints, UploadsToHub
from hf_segkd.training.mixing import MixesUnlabeled
from hf_segkd.training.optim import chain, clip_own_gradients, loss_optimizers
from hf_segkd.training.processors import whole_image_processor
from hf_segkd.training.progress import LogLines, ProgressBar
from hf_segkd.training.streamed import ReadsStreams, data_facts, first_item
from hf_segkd.training.timing import StepClock, TimeStudent
from hf_segkd.training.work import StopUnlabeled, WorkDone, check_done

CALIBRATION_IMAGES = 32  # those that `hf-segkd export` takes too: others give other ranges


class DistillationTrainer(MixesUnlabeled, ReadsStreams, UploadsToHub, StudentCheckpoints, ScoresByMatrices):
    """[`~transformers.Trainer`] for a student, with or without a teacher.

    The trained module is a [`~hf_segkd.training.distiller.Distiller`] (student and losses); the teacher stays outside:
    frozen, in eval mode, never wrapped and never saved. Checkpoints hold the student, which anyone can load with
    `from_pretrained`, and `losses.safetensors` beside it.

    Args:
        student (`PreTrainedModel`): From [`~hf_segkd.loading.any_model.load_model`].
        teacher (`PreTrainedModel`, *optional*): From the same function; `None` trains with the labels alone.
        args (`DistillationConfig`): Training arguments and losses.
        losses (`dict[str, DistillationLoss]`, *optional*): Your own modules; defaults to those of `args.losses`.
        train_dataset, eval_dataset (`torch.utils.data.Dataset`): Items with `pixel_values` (C, h, w) as they are
            stored, mostly uint8 RGB, and int64 `labels` (h, w), e.g. [`~hf_segkd.data.SegmentationDataset`],
            `teacher_logits` with a stored one. To train on, a [`~hf_segkd.data.streaming.StreamedSet`] too.
        processing_class (*optional*): The student's image processor; saved beside it.
        teacher_processing_class (*optional*): The teacher's; defaults to what was saved with the teacher.
        teacher_classes (`dict[str, str | list[str]]`, *optional*): Where names differ, which of the teacher's classes
            each of the student's is made of, and which are learned from labels alone:
            [`~hf_segkd.loading.class_map.map_classes`].
        calibration_dataset (`torch.utils.data.Dataset`, *optional*): Whole training images, on which
            `quantization_aware` finds the ranges of maps before the first step; defaults to `train_dataset`.
        callbacks (`list[TrainerCallback]`, *optional*): As for `Trainer`.

    Raises:
        ValueError: If a class of the student has no counterpart among the teacher's, a loss refuses their outputs, or
            anything else is found by [`~hf_segkd.training.checks.check_run`].
        TrainingFault: In `train`, when a loss is not finite, memory is used up, a worker dies, an image cannot be read
            any more or the disk is full; or when the run that is resumed is not this one.

    The processor that is saved beside the student leaves images at their own size, at which the student is scored.
    The lock of the output folder and the comparison of recipes belong to `hf-segkd distill`: docs/reliability.md.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
        *,
        args: DistillationConfig,
        losses: dict[str, nn.Module] | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        teacher_processing_class=None,
        teacher_classes: dict[str, str | list[str]] | str | None = None,
        calibration_dataset=None,
        callbacks: list[TrainerCallback] | None = None,
        ignore_index: int = 255,
    ):
        check_arguments(args, student)
        check_finite(student, "student")
        if args.channels_last:
            student.to(memory_format=torch.channels_last)
        processing_class = whole_image_processor(processing_class or processor_of(student))
        first = first_item(train_dataset)
        size = tuple(first["labels"].shape)
        known = first.get("teacher_logits") if teacher is None else teacher
        if teacher is not None:
            check_finite(teacher, "teacher")
            map_classes(teacher, class_names(student.config), teacher_classes)
        normalization = InputNormalization.from_processor(processing_class)
        shared = shared_classes(class_names(student.config), teacher_classes)
        if losses is None:
            distiller = build_distiller(student, known, args, normalization, size, ignore_index, shared)
        else:
            options = {"quantization_aware": args.quantization_aware, "freeze_batch_norm": args.freeze_batch_norm}
            distiller = Distiller(student, losses, normalization=normalization, shared=shared, **options)
        if args.world_size > 1 and args.device.type == "cuda":
            distiller = nn.SyncBatchNorm.convert_sync_batchnorm(distiller)
        self.ignore_index = ignore_index
        self.num_labels = student.config.num_labels
        self.align_corners = upsamples_with_align_corners(student.config)
        self.eval_matrix = 0
        self.last_matrix = torch.zeros(self.num_labels, self.num_labels)
        self.eval_scores = {}
        self.train_size = size
        self.finite = FiniteWatch(args.output_dir)
        self.work = WorkDone(data_facts(args, train_dataset, eval_dataset), ignore_index)
        self.allow_changes = False  # of data, when a run is resumed
        self._terms = {}
        self._term_count = 0
        self.clock = StepClock(args.device)
        self.average = ModelEMA(student, args.ema_decay) if args.ema_decay else None
        warnings = Warnings(distiller.weights)
        super().__init__(
            model=distiller,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._add_to_metrics,
            callbacks=[
                AtomicCheckpoints(args.save_total_limit, lambda: self.accelerator.wait_for_everyone()),
                UploadCheckpoints(self),
                SetEpoch(train_dataset),
                SetProgress(distiller),
                SaveOnSignal(),
                *([self.average] if self.average else []),
                TimeStudent(student, self.clock),
                warnings,
                StopUnlabeled(self),
                OneClass(self, warnings),
                CheckTeacher(self, warnings),
                *(callbacks or []),
            ],
        )
        self.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
        self.add_callback(LogLines if args.disable_tqdm else ProgressBar)
        # Trainer divides by the accumulation steps itself; older releases (5.3) let accelerate divide once more.
        self.accelerator.gradient_accumulation_steps = 1
        # Native heads take **kwargs, which Trainer reads as "the loss is divided by the accumulation steps already".
        self.model_accepts_loss_kwargs = False
        self.student = student
        self.teacher = None
        self.run_teacher = None
        self.has_teacher = known is not None
        if teacher is not None:
            self._take(teacher, teacher_processing_class or processor_of(teacher))
        check_run(self)
        if args.quantization_aware:
            items = some_items(calibration_dataset or train_dataset, CALIBRATION_IMAGES)
            distiller.to(args.device)
            distiller.calibrate_rounding(item["pixel_values"][None].to(args.device) for item in items)

    def _take(self, teacher: PreTrainedModel, processing_class) -> None:
        self.work.data["teacher"] = fingerprint(teacher, processing_class)[:12]
        dtype = getattr(torch, self.args.teacher_dtype)
        self.teacher = zero_subnormals(teacher.requires_grad_(False).eval()).to(self.args.device, dtype)
        if self.args.channels_last:
            self.teacher.to(memory_format=torch.channels_last)
        self.run_teacher = self.teacher
        self.teacher_processing_class = processing_class
        images = Bands.of(self.processing_class)
        self.teacher_normalization = InputNormalization.from_processor(processing_class, images).to(self.args.device)

    def train(self, *args, **kwargs):
        if self.average:
            self.average.restart()
        # Trainer would remove older checkpoints before the new one is complete: AtomicCheckpoints does it.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            with explained(self.args, self.train_size, self), self._fast_teacher():
                result = super().train(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        check_done(self)
        average(list(self._statistics().values()))
        if self.average:
            self.average.apply()
        return result

    @contextmanager
    def _fast_teacher(self) -> Iterator[None]:
        """During training, run the teacher in its fastest form; restore it afterwards."""
        folding = nullcontext()
        # A CPU gains little (docs/measurements.md), and there the teacher gives the very bits that it gives alone.
        if self.teacher is not None and self.args.device.type == "cuda":
            folding = folded_batch_norms(self.teacher.to(memory_format=torch.channels_last), self.train_size)
        with folding:
            if self.teacher is not None and self.args.torch_compile:
                options = {"backend": self.args.torch_compile_backend, "mode": self.args.torch_compile_mode}
                self.run_teacher = torch.compile(self.teacher, **options)
            try:
                yield
            finally:
                self.run_teacher = self.teacher

    # ---- one step ------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        teacher = None
        if "teacher_logits" in inputs:
            teacher = SegmentationOutput(logits=inputs.pop("teacher_logits"))
        elif self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast(), self.clock.span("teacher"):
                pixel_values = self.teacher_normalization(inputs["pixel_values"], inputs.get("content"))
                pixel_values = pixel_values.to(self.teacher.dtype)
                teacher = self.run_teacher(pixel_values=pixel_values, output_hidden_states=True)
        with self.clock.span("model"):
            output = model(**inputs, teacher=teacher)
        self.clock.images += len(inputs["labels"]) * self.args.world_size
        self.work.see(inputs["labels"])
        for term, value in output.terms.items():
            self._terms[term] = self._terms.get(term, 0) + value
        self._term_count += 1
        self._batch = inputs
        self.finite.see(self.state.global_step + 1, {**output.terms, "loss": output.loss}, inputs)
        return (output.loss, output) if return_outputs else output.loss

    def get_batch_samples(self, *args):
        with self.clock.span("data", on_host=True):
            return super().get_batch_samples(*args)

    def log(self, logs, start_time=None):
        if "loss" in logs and self._term_count:
            for term, value in self._terms.items():
                logs[f"loss_{term}"] = self.accelerator.reduce(value / self._term_count, reduction="mean").item()
            self._terms, self._term_count = {}, 0
            logs |= self.clock.report() | {"peak_memory_mib": peak_memory_mib(self.args.device)}
        super().log(logs, start_time)

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # whose scaler skips such steps by design
            self.finite.see(self.state.global_step + 1, {"the gradient": grad_norm}, self._batch)
        return grad_norm

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            # What plays against the student (a discriminator) is stepped by an optimizer of its own.
            first = super().create_optimizer(model)
            clip_own_gradients(first, self.model.losses)
            self.optimizer = chain(first, loss_optimizers(self.model.losses).values())
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        # transformers divides by the number of steps after the warmup.
        warmup = self.args.get_warmup_steps(num_training_steps)
        return super().create_scheduler(max(num_training_steps, warmup + 1), optimizer)

    def get_decay_parameter_names(self, model):
        # One parameter group, norms and biases included, as in all the original repositories.
        return [name for name, _ in model.named_parameters()]

    # ---- the end -------------------------------------------------------------------------------------------------

    def save_student(self) -> None:
        """Save the final student into `output_dir`."""
        self.save_model(_internal_call=True)  # else Trainer would push a folder that is not complete yet

    def clean_up(self) -> None:
        """Remove the checkpoints, unless `keep_checkpoints` is set."""
        if self.args.should_save and not self.args.keep_checkpoints:
            remove_checkpoints(self.args.output_dir)

    def end(self):
        """Close trackers and process group, as `Trainer.end` of newer transformers does."""
        # Without this, gloo processes sometimes abort while the last one is still closing.
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    @property
    def interrupted(self) -> int:
        """Number of the signal that stopped training early, 0 if none did; the state is in the last checkpoint."""
        return max(x.received for x in self.callback_handler.callbacks if isinstance(x, SaveOnSignal))

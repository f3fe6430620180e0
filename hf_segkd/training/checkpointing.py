"""What the trainer saves and loads: the student alone, the losses beside it, and what each process needs to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from hf_segkd.console import TrainingFault
from hf_segkd.distributed import average, rank, world_size
from hf_segkd.hub import released_processor
from hf_segkd.loading.permissions import follow_umask
from hf_segkd.training.callbacks import statistics
from hf_segkd.training.checkpoints import PREFIX, begin, damage, saving

logger = logging.getLogger(__name__)

LOSSES_FILE = "losses.safetensors"
# With `ema_decay`: the weights that are trained, beside model.safetensors, which holds their average.
WEIGHTS_FILE = "weights.safetensors"
# With several processes: the batch norm statistics of each one's own images; model.safetensors holds their mean.
STATISTICS_FILE = "statistics_{}.safetensors"
EMA_PREFIX = "ema."


class StudentCheckpoints(Trainer):
    """[`~transformers.Trainer`] whose checkpoints are the student's folder, completed by [`AtomicCheckpoints`].

    Against `Trainer`, the weights are loaded through `from_pretrained`; the best checkpoint is looked for beside the
    one that is resumed, so that a run may be moved; and a checkpoint that has reached `max_steps` trains no further.
    Saving and evaluating leaves no trace in what is trained.
    """

    def _save_checkpoint(self, model, trial):
        self.finite.wait()
        self.state.stateful_callbacks |= self.work.state()
        folder = Path(self.args.output_dir) / f"{PREFIX}{self.state.global_step}"
        with self.clock.span("pause", on_host=True), saving(folder, self.args.should_save):
            if self.args.should_save:
                if not folder.parent.is_dir():
                    logger.warning("%s has been deleted; it is made again.", folder.parent)
                begin(folder)
            self.accelerator.wait_for_everyone()
            if world_size() > 1:
                save_file(self._statistics(), folder / STATISTICS_FILE.format(rank()), metadata={"format": "pt"})
            with self._shared_statistics():
                super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None):
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        distiller = self.accelerator.unwrap_model(self.model)
        with self._averaged():
            distiller.student.save_pretrained(output_dir)
        released_processor(self.processing_class, distiller.student.config).save_pretrained(output_dir)
        if self.average and self.is_in_train:
            save_file(distiller.student.state_dict(), output_dir / WEIGHTS_FILE, metadata={"format": "pt"})
        losses = {key: value.contiguous() for key, value in distiller.losses.state_dict().items()}
        if losses and output_dir != Path(self.args.output_dir):
            save_file(losses, output_dir / LOSSES_FILE, metadata={"format": "pt"})
        follow_umask(output_dir)

    # ---- what is evaluated and saved is not quite what is trained -------------------------------------------------

    def _averaged(self) -> AbstractContextManager:
        """While training, what is evaluated and saved is the moving average where there is one."""
        return self.average.applied() if self.average and self.is_in_train else nullcontext()

    @contextmanager
    def _shared_statistics(self) -> Iterator[None]:
        """Inside, batch norm statistics are the mean over the processes; afterwards each has its own again.

        Each process counts the statistics of its own images; only on CUDA they share them at every step.
        """
        tensors = list(self._statistics().values())
        local = [x.clone() for x in tensors] if world_size() > 1 else tensors
        average(tensors)
        try:
            yield
        finally:
            if world_size() > 1:
                for x, own in zip(tensors, local, strict=True):
                    x.copy_(own)

    def _statistics(self) -> dict[str, Tensor]:
        """Batch norm statistics of student, losses and moving average; the tensors themselves."""
        found = statistics(self.accelerator.unwrap_model(self.model).state_dict())
        ema = statistics(self.average.values) if self.average else {}
        return found | {EMA_PREFIX + key: value for key, value in ema.items()}

    # ---- loading ---------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        folder = Path(resume_from_checkpoint)
        distiller = self.accelerator.unwrap_model(self.model)
        with _same_run(folder, "student and losses"):
            self._load_student(folder)
            if (folder / WEIGHTS_FILE).is_file():
                distiller.student.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True)
            file = folder / LOSSES_FILE
            distiller.losses.load_state_dict(load_file(file) if file.is_file() else {}, strict=True)
            own = folder / STATISTICS_FILE.format(rank())
            if world_size() > 1 and own.is_file():
                saved = load_file(own)
                for key, value in self._statistics().items():
                    value.copy_(saved[key])

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is None:
            return
        with _same_run(Path(checkpoint), "optimizer"):
            # torch takes over the options of what is saved: an optimizer of another kind would miss its own later.
            options = [set(group) for group in self.optimizer.param_groups]
            super()._load_optimizer_and_scheduler(checkpoint)
            for own, group in zip(options, self.optimizer.param_groups, strict=True):
                if missing := own - set(group):
                    raise ValueError(f"its options lack {', '.join(sorted(missing))}")

    def _load_student(self, folder) -> None:
        student = self.accelerator.unwrap_model(self.model).student
        # Through from_pretrained: the files of native models carry the Hub's older names (SegFormer), which a plain
        # load_state_dict would skip with a mere warning.
        saved = type(student).from_pretrained(folder, dtype=torch.float32)
        student.load_state_dict(saved.state_dict(), strict=True)
        if self.average:
            self.average.restart()

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        reason = damage(best)
        if reason is not None:
            raise TrainingFault(
                f"{best.name}, the best so far, cannot be the result: {reason}. Run the same command with --resume: "
                "nothing is trained again, and the student of the last step becomes the result."
            )
        self._load_student(best)

    def _init_training_state(self, max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial):
        trained = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        saved = None
        if resume_from_checkpoint is not None:
            saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self._find_best(saved)
        self.work.begin(saved.stateful_callbacks if saved else {}, self.allow_changes)
        return trained

    def _find_best(self, saved: TrainerState) -> None:
        if saved.best_model_checkpoint is None:
            return
        best = Path(self.args.output_dir) / Path(saved.best_model_checkpoint).name
        self.state.best_model_checkpoint = str(best)
        reason = damage(best) if best.is_dir() else "it is gone"
        if reason is not None:
            logger.warning("%s, the best so far: %s; the best of what follows will be the result.", best.name, reason)
            self.state.best_metric = None
            self.state.best_global_step = None
            self.state.best_model_checkpoint = None

    def _run_epoch(self, **kwargs):
        # Trainer looks at max_steps after each step only: with a checkpoint of the last step it would train one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)


@contextmanager
def _same_run(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise TrainingFault(
            f"{folder.name} holds the {what} of another run: {reason[:300]}. --resume can only go on with the same "
            f"student, losses and optimizer. To start a new run from its weights, give --student {folder}."
        ) from error

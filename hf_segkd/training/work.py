"""What a run is asked to do, what it can do, and what it has done: steps, images and labeled pixels."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from hf_segkd.console import TrainingFault
from hf_segkd.distributed import world_size

logger = logging.getLogger(__name__)

KEY = "hf_segkd"  # of our entry in trainer_state.json


class WorkDone:
    """Counts images and labeled pixels that were trained on, in all processes and before a resume too.

    Args:
        data (`dict[str, int | str]`): Facts that a resumed run must share with the one before: the number of images,
            a hash of the teacher.
        ignore_index (`int`): Value of pixels that are not labeled.
    """

    def __init__(self, data: dict[str, int | str], ignore_index: int):
        self.data = data
        self.ignore_index = ignore_index
        self.begin({}, False)

    def begin(self, saved: dict, allow_changes: bool) -> None:
        """Start from what the `stateful_callbacks` of a checkpoint hold.

        Raises:
            TrainingFault: If they are not those of the checkpoint, unless changes are allowed.
        """
        entry = saved.get(KEY, {})
        self.images = entry.get("images", 0)
        self.labeled_images = entry.get("labeled_images", 0)
        self.labeled_pixels = entry.get("labeled_pixels", 0)
        self._images = 0
        self._labeled: Tensor | int = 0
        self._pixels: Tensor | int = 0
        was = {key: value for key, value in entry.get("data", {}).items() if value != self.data.get(key)}
        changes = "; ".join(f"{key}: was {value}, now {self.data.get(key)}" for key, value in was.items())
        if was.keys() - {"processes"} and not allow_changes:
            raise TrainingFault(
                f"The checkpoint is of a run with other data or another teacher ({changes}). Restore them, start a "
                "new run, or go on all the same with --resume_with_changes."
            )
        if was:
            logger.warning("The run that is resumed was another (%s): it will not end with the same bits.", changes)

    def see(self, labels: Tensor) -> None:
        """Count one batch (B, H, W) of this process; nothing waits for the device."""
        self._images += len(labels)
        labeled = (labels != self.ignore_index).flatten(1).sum(dim=1)
        self._labeled = self._labeled + (labeled > 0).sum()
        self._pixels = self._pixels + labeled.sum()

    def gather(self) -> dict[str, int]:
        """Add up all processes, which must all call this; returns `images`, `labeled_images` and `labeled_pixels`."""
        counts = torch.tensor([self._images, int(self._labeled), int(self._pixels)])
        if world_size() > 1 and isinstance(self._pixels, Tensor):
            counts = counts.to(self._pixels.device)
            torch.distributed.all_reduce(counts)
        self.images += int(counts[0])
        self.labeled_images += int(counts[1])
        self.labeled_pixels += int(counts[2])
        self._images = 0
        self._labeled = 0
        self._pixels = 0
        return {name: getattr(self, name) for name in ("images", "labeled_images", "labeled_pixels")}

    def state(self) -> dict[str, dict]:
        """What `trainer_state.json` keeps; all processes must call it."""
        return {KEY: {**self.gather(), "data": self.data}}


class StopUnlabeled(TrainerCallback):
    """Looks at the first log entry whether any training pixel was labeled until then: see [`check_labeled`]."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.looked = False

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs and not self.looked:
            self.looked = True
            check_labeled(self.trainer)


def check_labeled(trainer: Trainer) -> None:
    """Refuse to train without a labeled pixel; with a teacher only warn, because some losses read no labels.

    Raises:
        TrainingFault: If there is no teacher.
    """
    if trainer.work.gather()["labeled_pixels"] > 0:
        return
    message = f"Not one pixel of the training images was labeled until step {trainer.state.global_step}"
    if not trainer.has_teacher:
        raise TrainingFault(f"{message}: nothing can be learned. Check the masks and the label map.")
    if trainer.is_world_process_zero():
        logger.warning("%s: losses that read labels are 0, and only the teacher teaches.", message)


def check_done(trainer: Trainer) -> None:
    """Compare what was asked for with what was done, after training.

    Raises:
        TrainingFault: If training ended early without a signal, or without a labeled pixel.
    """
    done = trainer.state.global_step
    asked = trainer.state.max_steps
    if done > asked:
        logger.warning(
            "%d steps were asked for; the checkpoint had done %d already, and no step was added.", asked, done
        )
    if done < asked and trainer.interrupted:
        return
    if done < asked:
        raise TrainingFault(
            f"Training ended after {done} of {asked} steps: the data loader gave no more batches. Check that the "
            f"{trainer.work.data['training images']} training images fill a batch in every process."
        )
    check_labeled(trainer)

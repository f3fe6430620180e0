"""What happens around the steps of a run: augmentation epochs, weight schedules, signals, progress, EMA."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

STATISTICS = ("running_mean", "running_var")


class SetEpoch(TrainerCallback):
    """Tells the training dataset the epoch, from which it draws its augmentation (also after a resume)."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


class SaveOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C: finish the step, save a checkpoint, stop. A second signal acts as usual."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received, self._previous, self._pid = 0, {}, os.getpid()

    def on_train_begin(self, args, state, control, **kwargs):
        self._previous = {number: signal.signal(number, self._note) for number in self.signals}

    def _note(self, number, frame):
        if os.getpid() != self._pid:  # a data loader's worker: the parent stops it
            return
        self.received = number
        self._restore()

    def on_step_end(self, args, state, control, **kwargs):
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class SetProgress(TrainerCallback):
    """Tells the distiller how far training is, from which it weighs losses that have a schedule."""

    def __init__(self, distiller):
        self.distiller = distiller

    def on_step_begin(self, args, state, control, **kwargs):
        self.distiller.progress.fill_(state.global_step / state.max_steps)


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


class ModelEMA(TrainerCallback):
    """Exponential moving average of a model's weights and of its batch norm statistics.

    After each step, `average = decay · average + (1 - decay) · weights`, from the initial weights on; counters are
    copied. The average remembers about `1 / (1 - decay)` steps: choose it well below the length of the run.

    Args:
        model (`nn.Module`): Trained by somebody else.
        decay (`float`): Between 0 and 1, both excluded. 0.999 is common for 40 000 iterations.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.restart()

    def restart(self) -> None:
        """Begin again with the model's present weights."""
        self.values = {key: value.clone() for key, value in self.model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        weights = self.model.state_dict()
        floats = [key for key, value in weights.items() if value.is_floating_point()]
        # One launch for all: a lerp for each tensor would cost a small student more than its optimizer.
        torch._foreach_lerp_([self.values[key] for key in floats], [weights[key] for key in floats], 1 - self.decay)
        for key in weights.keys() - set(floats):
            self.values[key].copy_(weights[key])

    def apply(self) -> None:
        """Make the average the model's weights."""
        self.model.load_state_dict(self.values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average as its weights for a while."""
        weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)


def statistics(state: dict[str, Tensor]) -> list[Tensor]:
    """The running means and variances of all batch norms in a state dict."""
    return [value for key, value in state.items() if key.rsplit(".", 1)[-1] in STATISTICS]

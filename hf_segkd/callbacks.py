"""What happens around the steps of a run: augmentation epochs, weight schedules, signals."""

from __future__ import annotations

import os
import signal

from transformers import TrainerCallback


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

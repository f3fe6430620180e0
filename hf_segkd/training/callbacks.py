"""What happens around the steps of a run: augmentation epochs, weight schedules, signals, EMA."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from hf_segkd.distributed import world_size

STATISTICS = ("running_mean", "running_var")


class SetEpoch(TrainerCallback):
    """Tells the training dataset the epoch, from which it draws its augmentation (also after a resume)."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))


class SaveOnSignal(TrainerCallback):
    """On SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGUSR1: finish the step, save a checkpoint, stop.

    With several processes all stop after the same step, also where only one of them got the signal. Schedulers send
    signals twice, and to each process at another moment: for `patience` seconds all of them are ignored, in every
    process and also after training, so that the state is saved and all end together. Later ones act as usual.

    Args:
        patience (`float`, *optional*, defaults to `10.0`): Seconds.
    """

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

    def __init__(self, patience: float = 10.0):
        self.patience = patience
        self.received = 0
        self._noted = 0.0
        self._previous = {}
        self._pid = os.getpid()
        self._group = None

    def on_train_begin(self, args, state, control, **kwargs):
        if world_size() > 1 and self._group is None:
            # On the host: on the GPU's own group, reading the result would wait for all that is queued there.
            self._group = torch.distributed.new_group(backend="gloo")
        self.received = 0
        if threading.current_thread() is threading.main_thread():  # nobody else may handle signals
            for number in self.signals:
                if signal.getsignal(number) != self._note:  # it still is after a training that was interrupted
                    self._previous[number] = signal.signal(number, self._note)

    def _note(self, number, frame):
        if os.getpid() != self._pid:  # a data loader's worker: the parent stops it
            return
        if not self.received:
            self.received = number
            self._noted = time.monotonic()
        elif time.monotonic() - self._noted > self.patience:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)

    def on_step_end(self, args, state, control, **kwargs):
        if world_size() > 1:
            number = torch.tensor(self.received)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._group)
            if number and not self.received:
                self._noted = time.monotonic()
            self.received = int(number)
        if self.received:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        if self.received:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class SetProgress(TrainerCallback):
    """Tells the distiller the progress of training, for losses whose weight has a schedule."""

    def __init__(self, distiller):
        self.distiller = distiller

    def on_step_begin(self, args, state, control, **kwargs):
        self.distiller.progress.fill_(state.global_step / state.max_steps)


class ModelEMA(TrainerCallback):
    """Exponential moving average of a model's weights and of its batch norm statistics.

    After each step, `average = decay · average + (1 - decay) · weights`, from the initial weights on; counters are
    copied. The average remembers about `1 / (1 - decay)` steps: choose it well below the length of the run.

    Args:
        model (`nn.Module`): Trained by somebody else.
        decay (`float`): Between 0 and 1, both excluded. 0.999 is common for 40 000 iterations.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.update = get_ema_multi_avg_fn(decay)
        self.restart()

    def restart(self) -> None:
        """Restart the average from the model's current weights."""
        self.values = {key: value.clone() for key, value in self.model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        weights = self.model.state_dict()
        floats = [key for key, value in weights.items() if value.is_floating_point()]
        # All in one call: one for each tensor would cost a small student more than its optimizer. The number of
        # averaged models, the last argument, is not used by an exponential average.
        self.update([self.values[key] for key in floats], [weights[key] for key in floats], None)
        for key in weights.keys() - set(floats):
            self.values[key].copy_(weights[key])

    def apply(self) -> None:
        """Make the average the model's weights."""
        self.model.load_state_dict(self.values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Temporarily replace the model's weights by the average."""
        weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)


def statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The running means and variances of all batch norms in a state dict."""
    return {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] in STATISTICS}

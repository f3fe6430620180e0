"""What a run shows while it trains: a bar on a terminal, one readable line at a time in a log file."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

logger = logging.getLogger(__name__)


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


class LogLines(TrainerCallback):
    """Logs loss, its terms, mIoU, speed and time left as one line; the numbers are all in `training_log.json`."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.monotonic()
        self.first_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        parts = [f"step {state.global_step}/{state.max_steps}"]
        if "loss" in logs:
            parts += self._training(logs, state)
        elif "eval_mean_iou" in logs:
            parts.append(f"mIoU {100 * logs['eval_mean_iou']:.2f} %")
        elif "train_runtime" in logs:
            parts.append(f"trained in {_clock(logs['train_runtime'])}")
        else:
            return
        logger.info("  ".join(parts))

    def _training(self, logs: dict[str, float], state) -> list[str]:
        terms = [f"{key.removeprefix('loss_')} {value:.4g}" for key, value in logs.items() if key.startswith("loss_")]
        parts = [f"loss {logs['loss']:.4g}" + (f" ({', '.join(terms)})" if terms else "")]
        if "learning_rate" in logs:
            parts.append(f"learning rate {logs['learning_rate']:.3g}")
        if "images_per_second" in logs:
            parts.append(f"{logs['images_per_second']:.3g} images/s")
        done = state.global_step - self.first_step
        if done > 0:
            seconds = (time.monotonic() - self.begin) / done * (state.max_steps - state.global_step)
            parts.append(f"{_clock(seconds)} left")
        return parts


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))

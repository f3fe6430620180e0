"""What a run shows while it trains: a bar on a terminal, one readable line at a time in a log file."""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

logger = logging.getLogger(__name__)


class ProgressBar(ProgressCallback):
    """One bar for the steps of training, with the last loss and mIoU, and one for an evaluation while it lasts.

    `Trainer`'s own bar writes each entry of its log above itself, as a dictionary: `training_log.json` holds them.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        self.shown = {}
        self.current_step = state.global_step
        if state.is_world_process_zero:
            steps = {"total": state.max_steps, "initial": state.global_step}  # resumed: the time left is of the rest
            self.training_bar = tqdm(**steps, desc="training", unit="step", dynamic_ncols=True)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero and self.prediction_bar is None:
            batches = len(eval_dataloader)
            self.prediction_bar = tqdm(total=batches, desc="evaluating", unit="batch", leave=False, dynamic_ncols=True)
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
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

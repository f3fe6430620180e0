"""Lines of a run whose output is a file."""

import logging
from types import SimpleNamespace

import pytest
from transformers.trainer_callback import PrinterCallback

from helpers.trainers import trainer_for
from hf_segkd.training.progress import LogLines


@pytest.fixture
def lines(caplog, monkeypatch):
    """What is logged at step 50 of 200, 100 seconds after the start."""
    clock = iter([0.0, 100.0])
    monkeypatch.setattr("hf_segkd.training.progress.time.monotonic", lambda: next(clock))
    caplog.set_level(logging.INFO, logger="hf_segkd")

    def log(**logs):
        callback = LogLines()
        state = SimpleNamespace(global_step=0, max_steps=200, is_world_process_zero=True)
        callback.on_train_begin(None, state, None)
        state.global_step = 50
        callback.on_log(None, state, None, logs=logs)
        return caplog.messages

    return log


def test_training_line_tells_step_losses_speed_and_time_left(lines):
    """A dict of twelve quoted numbers is read by nobody."""
    logs = {"loss": 1.25, "loss_task": 1.0, "loss_kd": 0.25, "learning_rate": 0.01, "images_per_second": 12.34}
    assert lines(**logs, time_data=0.1, epoch=1) == [
        "step 50/200  loss 1.25 (task 1, kd 0.25)  learning rate 0.01  12.3 images/s  0:05:00 left"
    ]


def test_evaluation_line_tells_the_scores(lines):
    """mIoU as a fraction of 16 digits is no score that a paper prints."""
    assert lines(eval_mean_iou=0.45678, eval_overall_accuracy=0.9, eval_runtime=3.0) == ["step 50/200  mIoU 45.68 %"]


def test_run_without_a_terminal_prints_lines_and_no_dict(tmp_path, tiny_student):
    """Trainer's own printer beside ours would show everything twice."""
    trainer = trainer_for(tmp_path, tiny_student)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert LogLines in kinds and PrinterCallback not in kinds

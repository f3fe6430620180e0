"""What a run tells while it trains: times, memory, the progress bar, and warnings that are provoked for real."""

import logging
import time

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import trainer_for
from hf_segkd.loading.any_model import load_model
from hf_segkd.training.advice import CheckTeacher
from hf_segkd.training.progress import ProgressBar
from hf_segkd.training.timing import StepClock

ONE_RUN = {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"}
QUIET = {"per_device_train_batch_size": 4, **ONE_RUN}
SHARES = ("time_data", "time_teacher", "time_student", "time_losses")


class Slow(TinyScenes):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_shares_of_the_time_are_logged_with_throughput_and_memory(tmp_path, tiny_student, tiny_teacher):
    """Whoever buys a larger GPU for a run that waits for its images has bought nothing."""

    class SlowTeacher(torch.nn.Module):
        def forward(self, module, args):
            time.sleep(0.1)

    tiny_teacher.register_forward_pre_hook(SlowTeacher().forward)
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, train=Slow(), **ONE_RUN)
    start = time.perf_counter()
    trainer.train()
    took = time.perf_counter() - start
    # Accelerate reads one batch ahead: two before the first step, none before the last.
    for entry in entries(trainer)[1:-1]:
        assert all(entry[share] > 0 for share in SHARES) and sum(entry[share] for share in SHARES) < 1
        seconds = 2 / entry["images_per_second"]  # a step of two images
        assert 0.2 < seconds < took
        # Each image takes 0.05 s to read, the teacher 0.1 s a batch; the rest is theirs too on a busy machine.
        assert entry["time_data"] * seconds >= 0.1 and entry["time_teacher"] * seconds >= 0.1
        assert 100 < entry["peak_memory_mib"] < 100_000


def test_evaluation_and_saving_do_not_count_as_training_time(tmp_path, tiny_student):
    """Throughput that falls with every evaluation cannot be compared between runs."""

    class SlowEvaluation(TrainerCallback):
        def on_evaluate(self, *args, **kwargs):
            time.sleep(1.0)

    options = {"max_steps": 2, "eval_steps": 1, "load_best_model_at_end": False}
    trainer = trainer_for(tmp_path, tiny_student, callbacks=[SlowEvaluation()], **options)
    trainer.train()
    assert entries(trainer)[1]["images_per_second"] > 2 / 1.0


def test_student_is_timed_in_training_only_and_left_as_it_was(tmp_path, tiny_student):
    """A hook that stays makes the student impossible to pickle, and counts its later uses."""
    before = dict(tiny_student._forward_hooks), dict(tiny_student._forward_pre_hooks)
    trainer_for(tmp_path, tiny_student, **ONE_RUN).train()
    assert (dict(tiny_student._forward_hooks), dict(tiny_student._forward_pre_hooks)) == before


def test_clock_starts_anew_after_each_report():
    """Averages since the start of the run hide that it slows down."""
    clock = StepClock(torch.device("cpu"))
    with clock.span("data", on_host=True):
        time.sleep(0.02)
    assert clock.report()["time_data"] > 0.5
    assert clock.report() == {"images_per_second": 0.0}


def test_terms_and_times_reach_the_trackers_as_numbers(tmp_path, tiny_student, tiny_teacher):
    """TensorBoard's callback drops what is not a float or an int, with a warning that nobody reads."""
    seen = {}

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.update(logs)

    trainer_for(tmp_path, tiny_student, tiny_teacher, [Tracker()], **QUIET).train()
    assert {"loss_task", "loss_kd", "loss_cwd", *SHARES, "peak_memory_mib"} <= seen.keys()
    assert all(isinstance(value, float | int) for value in seen.values())


def test_tensorboard_gets_every_term(tmp_path, tiny_student, tiny_teacher, monkeypatch):
    """`report_to` is Trainer's own: the terms must be there when it writes."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer_for(tmp_path / "run", tiny_student, tiny_teacher, report_to="tensorboard", **QUIET).train()
    (file,) = (tmp_path / "logs").rglob("events*")
    tags = EventAccumulator(str(file)).Reload().Tags()["scalars"]
    assert {"train/loss_task", "train/loss_kd", "train/loss_cwd"} <= set(tags)


def test_progress_bar_shows_loss_and_miou(tmp_path, tiny_student, capsys):
    """The two numbers one looks for scroll away between the others, which the log's file holds."""
    trainer = trainer_for(tmp_path, tiny_student, disable_tqdm=False, load_best_model_at_end=False)
    bars = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, ProgressCallback)]
    assert [type(bar) for bar in bars] == [ProgressBar]
    shown = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            shown.append(bars[0].training_bar.postfix)

    trainer.add_callback(Look())
    trainer.train()
    loss, score = entries(trainer)[2]["loss"], trainer.state.log_history[2]["eval_mean_iou"]
    assert shown[3] == f"loss={loss:.4g}, mIoU={100 * score:.2f} %"
    drawn = capsys.readouterr().err
    assert "training: 100%" in drawn and "evaluating:" in drawn and "{" not in drawn


# ---- warnings ------------------------------------------------------------------------------------------------------


def warnings_of(caplog, trainer) -> list[str]:
    trainer.train()
    records = [record for record in caplog.records if record.name == "hf_segkd.training.advice"]
    said = [record.getMessage() for record in records if record.levelno >= logging.WARNING]
    # True of students of four steps, and tested in test_work.py.
    return [message for message in said if "predicts one class" not in message]


def test_sound_run_is_not_warned(tmp_path, tiny_student, caplog):
    """Warnings that always come are read by nobody."""
    assert warnings_of(caplog, trainer_for(tmp_path, tiny_student, total_batch_size=4, **QUIET)) == []


def test_few_images_for_batch_norm_are_warned_of_once(tmp_path, tiny_student, caplog):
    """Two images a process train without an error, some points of mIoU below."""
    (message,) = warnings_of(caplog, trainer_for(tmp_path, tiny_student, gradient_accumulation_steps=2, **ONE_RUN))
    assert "Batch norm sees only 2 images" in message and "4 or more (per_device_train_batch_size" in message


def test_other_batch_than_the_recipes_is_warned_of(tmp_path, tiny_student, caplog):
    """A recipe for 4 GPUs started on one is another recipe."""
    options = {"total_batch_size": 16, "gradient_accumulation_steps": 2, **QUIET}
    (message,) = warnings_of(caplog, trainer_for(tmp_path, tiny_student, **options))
    assert "made for 16 images a step, this run has 8 (4 x 2 accumulated x 1 processes)" in message


def test_term_that_drowns_the_others_is_warned_of(tmp_path, tiny_student, tiny_teacher, caplog):
    """A weight copied from a paper with another reduction makes the task loss invisible."""
    losses = {"task": {}, "cwd": {"weight": 1.0}, "cwd_logits": {"type": "cwd", "layer": "logits", "weight": 1e5}}
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, losses=losses, learning_rate=1e-12, **QUIET)
    (message,) = warnings_of(caplog, trainer)
    assert "loss cwd_logits is" in message and "Lower losses.cwd_logits.weight" in message


def test_weight_of_a_named_term_counts(tmp_path, tiny_student, caplog):
    """Terms are logged before weighting: one that is large and weighed by 0.001 is no danger, and the reverse is."""

    class Two(torch.nn.Module):
        def forward(self, student, teacher, labels):
            one = student.logits.mean() * 0 + 1
            return {"large": 1000 * one, "small": one}

    for weight, found in (({"large": 0.001}, 0), ({"small": 1e6}, 1)):
        caplog.clear()
        trainer = trainer_for(tmp_path, tiny_student, **QUIET)
        trainer.model.losses["two"], trainer.model.weights["two"] = Two(), weight
        assert len(warnings_of(caplog, trainer)) == found
    assert "loss two_small is 1e+06" in caplog.text


def test_teacher_that_knows_nothing_is_warned_of_at_the_first_evaluation(tmp_path, tiny_student, tiny_teacher, caplog):
    """Permuted classes or swapped color channels distill noise, and the losses go down all the same."""
    options = {**QUIET, "eval_strategy": "steps", "eval_steps": 1}
    messages = warnings_of(caplog, trainer_for(tmp_path, tiny_student, tiny_teacher, **options))
    assert len(messages) == 1 and "on 3 evaluation images" in messages[0] and "teacher_classes" in messages[0]
    assert not tiny_teacher.training


def test_good_teacher_is_not_warned_of(tmp_path, tiny_student, caplog):
    """The score must be the teacher's own: with its processor, at label size."""
    torch.manual_seed(1)
    teacher = load_model({**TINY, "use_decoder": True}, id2label=LABELS)[0]
    options = {**QUIET, "max_steps": 80, "learning_rate": 0.01, "optim": "adamw_torch", "logging_steps": 80}
    trainer_for(tmp_path / "teacher", teacher, **options).train()
    caplog.clear()
    trainer = trainer_for(tmp_path / "student", tiny_student, teacher, **{**QUIET, "eval_strategy": "steps"})
    messages = warnings_of(caplog, trainer)
    reference = trainer_for(tmp_path / "score", teacher).evaluate()["eval_mean_iou"]
    (check,) = (callback for callback in trainer.callback_handler.callbacks if isinstance(callback, CheckTeacher))
    assert check.mean_iou == pytest.approx(reference, abs=1e-12) and reference > 0.2 and messages == []


def test_waiting_for_images_is_warned_of(tmp_path, tiny_student, caplog):
    """A GPU at 40 % looks busy in every monitor."""
    messages = warnings_of(caplog, trainer_for(tmp_path, tiny_student, train=Slow(), **QUIET))
    assert len(messages) == 1 and "went into waiting for images" in messages[0]
    assert "dataloader_num_workers (now 0" in messages[0]

"""Weights that change while training goes on."""

import pytest
import torch

from helpers.tiny import TinyScenes
from hf_segkd.losses import WeightSchedule, check_losses
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer


@pytest.mark.parametrize(
    "schedule, values",
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup": 0.5}, [0, 0.5, 1, 1, 1]),
        ({"decay": 0.5}, [1, 1, 1, 0.5, 0]),
        ({"decay": 1.0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"warmup": 0.25, "decay": 0.25}, [0, 1, 1, 1, 0]),
        ({"warmup": 0.5, "decay": 0.5}, [0, 0.5, 1, 0.5, 0]),
    ],
)
def test_weight_rises_and_falls_linearly(schedule, values):
    """At progress 0, 1/4, 1/2, 3/4, 1; a schedule in steps would depend on the length of the run."""
    factors = [float(WeightSchedule(**schedule).factor(torch.tensor(i / 4))) for i in range(5)]
    assert factors == pytest.approx(values)


@pytest.mark.parametrize("resume", [False, True])
def test_trainer_weighs_each_step_by_its_place_in_the_run(tmp_path, tiny_student, tiny_teacher, resume):
    """A resumed run that started its warm-up again would not be the run that was interrupted."""

    def run(**options):
        losses = {"task": {}, "kd": {"weight": 2.0, "schedule": {"warmup": 0.5, "decay": 0.25}}}
        args = DistillationConfig(
            **{"losses": losses, "output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "max_steps": 8},
            **{"per_device_train_batch_size": 2, "logging_steps": 1, "eval_strategy": "no", "save_steps": 4},
            **{"load_best_model_at_end": False},
        )
        trainer = DistillationTrainer(tiny_student, tiny_teacher, args=args, train_dataset=TinyScenes())
        trainer.train(**options)
        return [entry for entry in trainer.state.log_history if "loss" in entry]

    entries = run()
    if resume:
        entries = run(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    factors = [0, 0.25, 0.5, 0.75, 1, 1, 1, 0.5]
    assert len(entries) == 8
    for entry, factor in zip(entries, factors, strict=True):
        assert entry["loss"] == pytest.approx(entry["loss_task"] + 2 * factor * entry["loss_kd"], rel=1e-4)


@pytest.mark.parametrize(
    "schedule, message",
    [
        ({"warmup": 2}, "losses.kd.schedule: warmup must be a fraction of the training steps between 0 and 1, got 2."),
        ({"warmup": 0.6, "decay": 0.6}, "losses.kd.schedule: warmup and decay overlap"),
        ({"warm_up": 0.1}, "losses.kd.schedule must be a mapping with warmup and decay, got {'warm_up': 0.1}."),
        ("linear", "losses.kd.schedule must be a mapping with warmup and decay, got 'linear'."),
    ],
)
def test_wrong_schedules_are_named(schedule, message):
    """A schedule in steps, or with a misspelled key, would silently weigh the loss as if it were constant."""
    with pytest.raises(ValueError) as error:
        check_losses({"kd": {"schedule": schedule}})
    assert message in str(error.value)

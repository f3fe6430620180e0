"""Trainers of tiny students, and how to compare what they did."""

import signal

import torch
from transformers import TrainerCallback

from helpers.tiny import TinyScenes
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer

LOSSES = {"task": {}, "kd": {"weight": 2.0}, "cwd": {"weight": 3.0}}


def trainer_for(folder, student, teacher=None, callbacks=None, train=None, losses=None, **options):
    arguments = {
        **{"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": 4, "logging_steps": 1},
        **{"per_device_train_batch_size": 2, "learning_rate": 0.01, "eval_steps": 2, "save_steps": 2},
        **options,
    }
    default = LOSSES if teacher is not None else {"task": {}}
    args = DistillationConfig(losses=losses or default, **arguments)
    train = train or TinyScenes()
    return DistillationTrainer(
        student, teacher, args=args, train_dataset=train, eval_dataset=TinyScenes(3, offset=100), callbacks=callbacks
    )


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class SignalAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)

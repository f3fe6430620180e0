"""Subnormal weights of a teacher."""

import torch
from torch import nn

from helpers.tiny import LABELS, TinyScenes
from hf_segkd.loading.frozen import zero_subnormals
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer


def test_only_what_is_subnormal_becomes_zero():
    """A threshold a little higher would take out weights that matter."""
    layer = nn.BatchNorm1d(3)
    smallest = torch.finfo(torch.float32).tiny
    layer.weight.data = torch.tensor([smallest / 2, -smallest / 4, -smallest])
    layer.running_mean = torch.tensor([1e-40, 0.0, 1e-37])
    zero_subnormals(layer)
    assert layer.weight.tolist() == [0.0, 0.0, -smallest]
    assert layer.running_mean.tolist() == [0.0, 0.0, torch.tensor(1e-37).item()]
    assert layer.num_batches_tracked == 0 and layer.weight.requires_grad


def test_trainer_rids_its_teacher_of_them(tiny_student, tiny_teacher, tmp_path):
    """Every step of a distillation on a CPU would wait for the teacher's dead channels."""
    weight = next(tiny_teacher.parameters())
    weight.data.view(-1)[:2] = torch.tensor([1e-40, 1.0])
    options = {"use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 2}
    args = DistillationConfig(output_dir=str(tmp_path), losses={"task": {}, "kd": {}}, **options)
    data = TinyScenes(4, len(LABELS))
    trainer = DistillationTrainer(tiny_student, tiny_teacher, args=args, train_dataset=data, eval_dataset=data)
    assert next(trainer.teacher.parameters()).view(-1)[:2].tolist() == [0.0, 1.0]

"""A user's program that touches every public name; never run: `make types` reads it, as an editor would."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

import hf_segkd
from dataset_builders.opened import OpenedDataset
from hf_segkd import (
    LOSSES,
    DistillationConfig,
    DistillationLoss,
    DistillationTrainer,
    Distiller,
    FinishedRun,
    SegmentationOutput,
    Segmenter,
    load_model,
    open_dataset,
)
from hf_segkd.data import TrainTransform
from hf_segkd.losses import LossSetup


class MyLoss(DistillationLoss):
    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        assert student.logits is not None and teacher.logits is not None
        return (student.logits - teacher.logits).square().mean()


def train_by_one_call() -> None:
    run = hf_segkd.distill(data="photos", teacher="teacher", student="segformer-b0", output_dir=Path("run"))
    assert_type(run, FinishedRun)
    assert_type(run.scores, dict[str, Any])
    assert_type(run.student, PreTrainedModel)
    assert_type(run.processor, BaseImageProcessor)
    assert_type(run.predict("photo.jpg"), np.ndarray)
    assert_type(run.predict([Image.new("RGB", (8, 8)), Path("photo.jpg")]), list[np.ndarray])
    assert_type(run.push("me/student", private=True), str)
    assert_type(FinishedRun.open("run"), FinishedRun)


def train_by_hand() -> None:
    dataset = open_dataset("camvid", "CamVid")
    assert_type(dataset, OpenedDataset)
    student, processor = load_model({"model_type": "espnet", "use_decoder": False}, dataset.spec.id2label)
    assert_type(student, PreTrainedModel)
    assert_type(processor, BaseImageProcessor)
    teacher, teacher_processor = load_model("teacher")
    trainer = DistillationTrainer(
        student,
        teacher,
        args=DistillationConfig(output_dir="run", max_steps=10, losses={"kd": {"temperature": 2.0}}),
        train_dataset=dataset.training_set(TrainTransform((64, 64))),
        eval_dataset=dataset.evaluation_set(),
        processing_class=processor,
        teacher_processing_class=teacher_processor,
    )
    trainer.train()
    trainer.save_model("run")


def write_a_loss(setup: LossSetup, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    assert_type(LOSSES["kd"], type[DistillationLoss])
    DistillationTrainer(student, teacher, args=DistillationConfig(output_dir="run"), losses={"mine": MyLoss(setup)})
    Distiller(student, {"mine": MyLoss(setup)})


def segment(model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    assert_type(Segmenter(model, processor)(Image.new("RGB", (8, 8))), np.ndarray | Tensor)

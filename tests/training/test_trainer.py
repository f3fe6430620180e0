"""DistillationTrainer: what is trained, what is saved, what is measured, and what an interruption costs."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainerCallback

from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import SignalAt, equal, trainer_for, weights
from hf_segkd.console import TrainingFault
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import expose_features
from hf_segkd.models import InputNormalization, default_processor
from hf_segkd.training.callbacks import SaveOnSignal
from hf_segkd.training.checkpoints import last_checkpoint
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.trainer import DistillationTrainer


def test_student_and_projector_learn_and_the_teacher_stays_as_it_was(tmp_path, tiny_student, tiny_teacher):
    """A teacher in train mode, or with gradients, would drift and quietly become another teacher."""
    tiny_teacher.train()
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher)
    before = weights(tiny_student), weights(tiny_teacher), weights(trainer.model.losses)
    trainer.train()
    assert not equal(before[0], weights(tiny_student))
    assert not equal(before[2], weights(trainer.model.losses))
    assert equal(before[1], weights(tiny_teacher)) and not tiny_teacher.training
    assert all(parameter.grad is None for parameter in tiny_teacher.parameters())


def test_every_term_is_logged_and_the_weighted_sum_is_the_loss(tmp_path, tiny_student, tiny_teacher):
    """A term that is not logged cannot be seen to dominate or to vanish."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    total = entry["loss_task"] + 2 * entry["loss_kd"] + 3 * entry["loss_cwd"]
    assert entry["loss"] == pytest.approx(total, rel=1e-4)


def test_label_to_ignore_is_the_datasets_in_training_and_in_evaluation(tmp_path, tiny_student, tiny_teacher):
    """Void trained as a class, or a class left out as void, shows in no shape."""
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=1, losses={"task": {}, "ifvd": {}})
    options = {"args": args, "train_dataset": TinyScenes(), "eval_dataset": TinyScenes(3), "ignore_index": 9}
    trainer = DistillationTrainer(tiny_student, tiny_teacher, **options)
    assert [loss.setup.ignore_index for loss in trainer.model.losses.values()] == [9, 9]
    assert trainer.ignore_index == 9


def test_checkpoint_holds_the_student_alone_and_reloads_equal(tmp_path, tiny_student, tiny_teacher):
    """Projectors or a teacher inside model.safetensors would make the student unloadable for others."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, load_best_model_at_end=False, keep_checkpoints=True)
    trainer.train()
    trainer.save_student()
    trainer.clean_up()
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == tiny_student.state_dict().keys()
    assert load_file(tmp_path / "checkpoint-4" / "losses.safetensors").keys() == {"cwd.projector.weight"}
    assert equal(weights(load_model(str(tmp_path))[0]), weights(tiny_student))
    assert "use_cache" not in json.loads((tmp_path / "config.json").read_text())


def test_final_folder_holds_no_training_state(tmp_path, tiny_student, tiny_teacher):
    """A released folder must hold neither pickles nor the gigabytes of optimizer and queues."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher)
    trainer.train()
    trainer.save_student()
    trainer.clean_up()
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_segkd.py"}


def test_evaluation_scores_every_image_once_at_label_size(tmp_path, tiny_student):
    """The Trainer's scores must be those of a plain loop over the images."""
    trainer = trainer_for(tmp_path, tiny_student, per_device_eval_batch_size=2)
    found = trainer.evaluate()["eval_mean_iou"]
    normalization, matrix = InputNormalization.from_processor(default_processor(tiny_student.config)), 0
    tiny_student.eval()
    for item in TinyScenes(3, offset=100):
        with torch.no_grad():
            logits = tiny_student(pixel_values=normalization(item["pixel_values"][None])).logits
        logits = torch.nn.functional.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=True)
        matrix = matrix + confusion_matrix(logits.argmax(1)[0], item["labels"], 10, 255)
    assert found == pytest.approx(scores(matrix)["mean_iou"], abs=1e-12)


@pytest.mark.parametrize("stop", [3, 4, 5], ids=["mid-epoch", "end of epoch", "after an evaluation"])
def test_interrupted_and_resumed_run_ends_with_the_same_bits(tmp_path, tiny_teacher, stop):
    """Lost momentum, RNG, queue or data position would make a resumed run another run."""

    def run(folder, callbacks=None, resume=None):
        torch.manual_seed(0)
        student = load_model(TINY, id2label=LABELS)[0]
        trainer = trainer_for(folder, student, tiny_teacher, callbacks, max_steps=8, load_best_model_at_end=False)
        trainer.train(resume_from_checkpoint=resume)
        return trainer, weights(trainer.model)

    _, whole = run(tmp_path / "whole")
    stopped, half = run(tmp_path / "parts", [SignalAt(stop - 1)])
    assert stopped.interrupted and stopped.state.global_step == stop and not equal(whole, half)
    _, resumed = run(tmp_path / "parts", resume=str(tmp_path / "parts" / f"checkpoint-{stop}"))
    assert equal(whole, resumed)


def test_signal_handlers_are_restored_after_training(tmp_path, tiny_student):
    """A library that keeps Ctrl-C for itself makes its host program unstoppable."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    trainer_for(tmp_path, tiny_student).train()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", SaveOnSignal.signals)
def test_signals_that_a_scheduler_sends_twice_save_once_and_stop(tmp_path, tiny_student, number):
    """Slurm sends SIGUSR1 or SIGTERM twice within milliseconds; a closed terminal sends SIGHUP."""

    class Twice(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                signal.raise_signal(number)
                signal.raise_signal(number)

    trainer = trainer_for(tmp_path, tiny_student, callbacks=[Twice()], load_best_model_at_end=False)
    trainer.train()
    assert trainer.interrupted == number and trainer.state.global_step == 3
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_signal_that_comes_late_does_not_end_a_process_that_has_saved(tmp_path, tiny_student):
    """Of two processes the second got its signal 300 ms later, after the end of training, and died of it."""
    trainer = trainer_for(tmp_path, tiny_student, callbacks=[SignalAt(2)], load_best_model_at_end=False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        trainer.train()
        signal.raise_signal(signal.SIGTERM)
        assert trainer.interrupted and trainer.state.global_step == 3
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert not trainer.interrupted and trainer.state.global_step == 4
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_after_some_seconds_acts_as_usual(tmp_path, tiny_student):
    """Whoever presses Ctrl-C again does not want to wait for the end of the step."""
    usual = []

    class Again(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            signal.raise_signal(signal.SIGUSR1)
            callback._noted -= callback.patience + 1
            signal.raise_signal(signal.SIGUSR1)

    trainer = trainer_for(tmp_path, tiny_student, callbacks=[Again()])
    callback = next(x for x in trainer.callback_handler.callbacks if isinstance(x, SaveOnSignal))
    before = signal.signal(signal.SIGUSR1, lambda number, frame: usual.append(number))
    try:
        trainer.train()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert usual == [signal.SIGUSR1]


def test_native_segformer_checkpoint_is_resumed_whole(tmp_path):
    """Trainer's own loader skips 116 of SegFormer's 124 tensors with a mere warning."""
    config = SegformerConfig(
        id2label=LABELS,
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
    )
    student = expose_features(SegformerForSemanticSegmentation(config))
    trainer = trainer_for(tmp_path, student, max_steps=2, load_best_model_at_end=False)
    trainer.train()
    trained = weights(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert equal(weights(student), trained)


def test_accumulated_small_batches_equal_one_large_batch(tmp_path, tiny_teacher):
    """Trainer multiplies the loss of a model with **kwargs by the accumulation steps: 4 times the gradient."""

    def run(folder, batch, accumulation):
        torch.manual_seed(0)
        student = load_model(TINY, id2label=LABELS)[0]
        for module in student.modules():  # batch statistics differ between 4 and 2 x 2 images by definition
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
                module.forward = lambda x, m=module: torch.nn.functional.batch_norm(
                    x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps
                )
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = trainer_for(folder, student, tiny_teacher, max_steps=3, load_best_model_at_end=False, **options)
        trainer.train()
        return weights(trainer.model)

    whole, parts = run(tmp_path / "a", 4, 1), run(tmp_path / "b", 2, 2)
    assert all(torch.allclose(whole[key].float(), parts[key].float(), atol=1e-5) for key in whole)


def test_nan_stops_the_run_with_the_term_named(tmp_path, tiny_student, tiny_teacher):
    """A run that goes on with NaN weights wastes days."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher)
    with torch.no_grad():
        tiny_teacher.decode_head.classifier.weight.fill_(float("nan"))
    with pytest.raises(TrainingFault, match="Not finite at step 1: kd = nan"):
        trainer.train()


def test_own_loss_modules_need_no_registration(tmp_path, tiny_student, tiny_teacher):
    """Users bring their own losses as plain modules."""

    class Difference(torch.nn.Module):
        def forward(self, student, teacher, labels):
            size = student.logits.shape[-2:]
            return {"l1": (student.logits - torch.nn.functional.interpolate(teacher.logits, size)).abs().mean()}

    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, logging_steps=1)
    trainer = DistillationTrainer(
        tiny_student,
        tiny_teacher,
        args=args,
        losses={"mine": Difference()},
        train_dataset=TinyScenes(),
        eval_dataset=TinyScenes(),
    )
    trainer.train()
    assert "loss_mine_l1" in trainer.state.log_history[0]

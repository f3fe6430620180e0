"""No finished folder for a run that did not train: what is asked, what can be and what was done are compared."""

import os
import shutil
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPTConfig, DPTForSemanticSegmentation, TrainerCallback

from helpers.commands import distill, recipe, refusal
from helpers.tiny import LABELS, TINY, TinyScenes
from helpers.trainers import equal, trainer_for, weights
from hf_segkd.console import TrainingFault
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import expose_features
from hf_segkd.training.advice import OneClass, Warnings
from hf_segkd.training.argument_checks import check_arguments, check_processes
from hf_segkd.training.config import DistillationConfig
from hf_segkd.training.dry_run import smallest_batch
from hf_segkd.training.run_lock import LOCK_FILE, run_lock


class Unlabeled(TinyScenes):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "labels": torch.full_like(item["labels"], 255)}


def test_fewer_images_than_one_step_needs_are_refused(tmp_path, tiny_student):
    """The data loader drops the only batch: a card with scores for 0 steps."""
    with pytest.raises(ValueError, match="1 training images are fewer than one step needs: 1 processes x 2 images"):
        trainer_for(tmp_path, tiny_student, train=TinyScenes(1))


def test_images_are_counted_per_process():
    """2 images on 3 processes are no batch for anyone."""
    with pytest.raises(ValueError, match="3 processes x 1 images"):
        smallest_batch(2, 1, 3, drop_last=True)
    assert smallest_batch(3, 1, 3, drop_last=True) == 1
    assert smallest_batch(5, 2, 1, drop_last=False) == 1 and smallest_batch(4, 2, 1, drop_last=False) == 2


def test_training_images_without_a_label_are_refused_without_a_teacher(tmp_path, tiny_student):
    """A loss of 0 at every step looks like success."""
    with pytest.raises(ValueError, match="Not one pixel of the 8 training images is labeled"):
        trainer_for(tmp_path, tiny_student, train=Unlabeled())


def test_labels_that_go_during_the_run_stop_it(tmp_path, tiny_student):
    """The first image has labels, the crops that are trained on have none."""
    trainer = trainer_for(tmp_path, tiny_student, eval_strategy="no", load_best_model_at_end=False)
    trainer.train_dataset = Unlabeled()
    with pytest.raises(TrainingFault, match="Not one pixel of the training images was labeled until step 1"):
        trainer.train()


def test_unlabeled_images_teach_with_a_teacher(tmp_path, tiny_student, tiny_teacher, caplog):
    """Distillation needs no labels: a refusal would take away what Structured KD's best result is made of."""
    trainer = trainer_for(tmp_path, tiny_student, tiny_teacher, train=Unlabeled(), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2 and "only the teacher teaches" in caplog.text


def test_validation_images_without_a_label_are_refused(tmp_path, tiny_student, monkeypatch):
    """Ten evaluations of NaN, and no best checkpoint."""
    monkeypatch.setattr("helpers.trainers.TinyScenes", Unlabeled)
    with pytest.raises(ValueError, match="Not one pixel of the 3 validation images is labeled"):
        trainer_for(tmp_path, tiny_student, train=TinyScenes())


def test_resumed_after_its_last_step_trains_no_further(tmp_path, tiny_student):
    """max_steps in mid-epoch: Trainer trained step 7 of 6 after a kill while the final folder was written."""
    options = {"max_steps": 6, "save_steps": 6, "eval_strategy": "no", "load_best_model_at_end": False}
    trainer = trainer_for(tmp_path, tiny_student, train=TinyScenes(8), **options)
    trainer.train()
    trained = weights(tiny_student)
    for steps in (6, 3):
        again = trainer_for(tmp_path, load_model(TINY, id2label=LABELS)[0], **{**options, "max_steps": steps})
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert again.state.global_step == 6 and equal(weights(again.student), trained)
    done = {"images": 12, "labeled_images": 12, "labeled_pixels": 12 * 32 * 32}
    assert again.work.gather() == trainer.work.gather() == done


def test_training_that_ends_early_is_a_fault(tmp_path, tiny_student):
    """A finished folder would say that all steps were done."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    with pytest.raises(TrainingFault, match="Training ended after 1 of 4 steps"):
        trainer_for(tmp_path, tiny_student, callbacks=[Stop()]).train()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: 0.1 cannot be used"),
        ({"batch_eval_metrics": False}, "batch_eval_metrics: False cannot be used"),
        ({"prediction_loss_only": True}, "prediction_loss_only: True cannot be used"),
        ({"label_names": ["mask"]}, "label_names"),
        ({"bf16_full_eval": True}, "bf16_full_eval"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"save_only_model": True}, "save_only_model"),
        ({"greater_is_better": False}, "greater_is_better"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers needs processes"),
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"activation_checkpointing": True}, "activation_checkpointing: ESPNetForSemanticSegmentation cannot do it"),
        ({"learning_rate": 0.0, "lr_scheduler_type": "constant"}, "learning_rate 0 trains nothing"),
        ({"report_to": ["wandb"]}, "report_to: wandb cannot be used"),
        ({"losses": {"task": {"weight": 0.0}}}, "have weight 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_argument_that_cannot_work_is_refused_before_training(tmp_path, tiny_student, options, message):
    """Ignored in silence, or a traceback at the first step."""
    with pytest.raises(ValueError, match=message):
        trainer_for(tmp_path, tiny_student, **options)


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    """torchrun on a CPU without --use_cpu: each process trains alone, all into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but each one would train alone.*--use_cpu"):
        check_processes(SimpleNamespace(world_size=1))
    check_processes(SimpleNamespace(world_size=2))


def test_one_image_in_a_batch_norm_batch_is_refused_and_leaves_the_student_alone(tmp_path):
    """`Expected more than 1 value per channel when training`, after the first epoch of an odd number of images."""
    student = load_model({"model_type": "pspnet", "backbone": "resnet18"}, id2label=LABELS)[0]
    before = weights(student)
    with pytest.raises(ValueError, match="cannot be trained on a batch of one image"):
        trainer_for(tmp_path, student, train=TinyScenes(3), dataloader_drop_last=False)
    assert equal(before, weights(student)) and student.training


def test_student_of_one_input_size_is_refused_before_the_first_evaluation(tmp_path):
    """DPT, Data2Vec and EoMT students died at the first whole-image evaluation."""
    config = DPTConfig(
        **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": 32, "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4},
        **{"fusion_hidden_size": 8, "id2label": LABELS, "use_auxiliary_head": False},
    )
    student = expose_features(DPTForSemanticSegmentation(config))

    class Wide(TinyScenes):
        def __getitem__(self, index):
            return {key: value.repeat_interleave(2, -1) for key, value in super().__getitem__(index).items()}

    trainer = trainer_for(tmp_path, student)
    with pytest.raises(ValueError, match="evaluated on whole images, but this one cannot read them"):
        type(trainer)(student, args=trainer.args, train_dataset=TinyScenes(), eval_dataset=Wide(3))


def test_validation_images_of_different_sizes_cannot_share_a_batch(tmp_path, tiny_student):
    """A traceback at the first evaluation, after a tenth of the run."""

    class Mixed(TinyScenes):
        def __getitem__(self, index):
            scenes = TinyScenes(self.count, size=32 + 32 * (index % 2))
            return scenes[index]

    trainer = trainer_for(tmp_path, tiny_student, per_device_eval_batch_size=2)
    with pytest.raises(ValueError, match="differ in size .32x32 and 64x64., so they cannot share a batch"):
        type(trainer)(tiny_student, args=trainer.args, train_dataset=TinyScenes(), eval_dataset=Mixed(3))


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, tiny_student, tiny_teacher, who):
    """A NaN teacher yielded "lower the learning rate" at step 1."""
    model = tiny_student if who == "student" else tiny_teacher
    with torch.no_grad():
        model.decode_head.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"The {who} holds weights that are NaN or infinite: 1 of"):
        trainer_for(tmp_path, tiny_student, tiny_teacher)


def test_student_that_predicts_one_class_is_remarked_at_once(tmp_path, tiny_student, caplog):
    """Ten evaluations of the same score went by without a word."""
    trainer = trainer_for(tmp_path, tiny_student, max_steps=1, eval_steps=1, save_steps=1)
    trainer.last_matrix = torch.zeros(10, 10)
    trainer.last_matrix[:, 3] = 5
    OneClass(trainer, Warnings({"task": 1.0})).on_evaluate(trainer.args, trainer.state, trainer.control)
    assert f"predicts one class, {LABELS[3]}, on every validation image" in caplog.text
    assert "class_weights" in caplog.text


def test_second_run_in_a_folder_is_refused_and_a_dead_one_is_taken_over(tmp_path):
    """A requeued job beside one that is not yet dead writes into the same checkpoints."""
    with run_lock(tmp_path, heartbeat=0.05):
        with pytest.raises(ValueError, match="Another run is writing into"), run_lock(tmp_path):
            pass
        assert (tmp_path / LOCK_FILE).is_file()
    assert not list(tmp_path.iterdir())
    dead = '{"host": "%s", "pid": 1, "started": 5.0}'
    for host, content in (("here", dead % socket.gethostname()), ("elsewhere", dead % "another"), ("cut", "{")):
        (tmp_path / LOCK_FILE).write_text(content)
        with run_lock(tmp_path, stale=0.3):
            assert socket.gethostname() in (tmp_path / LOCK_FILE).read_text(), host
    assert not list(tmp_path.iterdir())


def test_run_on_another_machine_that_gives_signs_of_life_is_not_taken_over(tmp_path):
    """Clocks differ between machines: what counts is whether the file is touched again."""
    (tmp_path / LOCK_FILE).write_text('{"host": "another", "pid": 1, "started": 5.0}')

    def touch():
        time.sleep(0.3)
        os.utime(tmp_path / LOCK_FILE)

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(ValueError, match="process 1 on another"), run_lock(tmp_path, stale=5.0):
        pass
    thread.join()


def test_resume_refuses_another_recipe_and_lists_it_and_keeps_both_with_changes(tmp_path, capsys):
    """recipe.yaml and the card stated what was not run; another student ended in a traceback."""
    folder = tmp_path / "run"
    command = [recipe(tmp_path, keep_checkpoints=True), "--output_dir", str(folder)]
    distill.main(command)
    changes = ["--learning_rate", "0.5", "--crop_size", "48", "32", "--losses.kd.weight", "2", "--teacher", "x"]
    message = refusal([*command, "--resume", *changes])
    for line in ("learning_rate: was 5e-05, now 0.5", "crop_size: was [32, 32], now [48, 32]", "losses", "teacher"):
        assert line in message, message
    metrics = distill.main([*command, "--resume", "--logging_steps", "3", "--dataloader_num_workers", "1"])
    assert metrics["steps"] == metrics["steps_asked"] == 4 and metrics["seconds_per_step"] is None
    metrics = distill.main([*command, "--resume_with_changes", "--max_steps", "3"])
    assert (metrics["steps"], metrics["steps_asked"]) == (4, 3)
    card = (folder / "README.md").read_text()
    assert "resumed with changes at step 4: max_steps: was 4, now 3" in card and "4 (3 were asked for)" in card
    assert "max_steps: 4" in (folder / "recipe_until_4.yaml").read_text()
    with pytest.raises(SystemExit) as stop:
        distill.main([*command, "--resume_with_changes", "--student.hidden_sizes", "[4, 12, 12]"])
    assert "holds the student and losses of another run" in str(stop.value.code)


def test_resume_notices_another_teacher_in_the_same_place(tmp_path, teacher):
    """The card would name one teacher, and two would have taught."""
    shutil.copytree(teacher, tmp_path / "teacher")
    kd = recipe(tmp_path, teacher=str(tmp_path / "teacher"), losses={"kd": {}}, keep_checkpoints=True)
    command = [kd, "--output_dir", str(tmp_path / "run")]
    distill.main(command)
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")  # as if it had been killed at step 2
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    save_file({name: x + 1 if x.is_floating_point() else x for name, x in weights.items()}, tmp_path / "other")
    (tmp_path / "other").replace(tmp_path / "teacher" / "model.safetensors")
    with pytest.raises(SystemExit, match="another teacher .teacher: was [0-9a-f]{12}, now [0-9a-f]{12}"):
        distill.main([*command, "--resume"])
    assert distill.main([*command, "--resume_with_changes"])["steps"] == 4


def test_figures_that_fail_leave_student_and_metrics_and_name_the_command(tmp_path, capsys, monkeypatch):
    """A class called $x^$ ended the run after training: matplotlib takes it for a formula."""
    monkeypatch.setattr("hf_segkd.reports.run_folder.plot_class_bars", lambda *args: 1 / 0)
    folder = tmp_path / "run"
    distill.main([recipe(tmp_path), "--output_dir", str(folder)])
    said = capsys.readouterr().out
    assert "figures/classes.png: not drawn (ZeroDivisionError" in said
    assert f"python -m hf_segkd.reports.run_folder {folder}" in said
    assert "README.md: not" not in said, said
    assert {"metrics.json", "README.md", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert load_file(folder / "model.safetensors") and not list(folder.glob("checkpoint-*"))


def test_a_network_whose_compiled_gradients_vanish_is_refused(tmp_path):
    """Inductor gives ESPNetv2 zero gradients and no error: the run would end as finished and have learned nothing."""
    student = load_model({"model_type": "espnetv2", "width": 0.5}, id2label=LABELS)[0]
    args = DistillationConfig(output_dir=str(tmp_path), use_cpu=True, max_steps=1, torch_compile=True)
    with pytest.raises(ValueError, match="ESPNetv2ForSemanticSegmentation cannot be compiled"):
        check_arguments(args, student)

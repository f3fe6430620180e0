"""What happens to files and limits while a run goes on: named, and nothing that was done is lost."""

import json
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dataset_builders import open_dataset
from helpers.commands import distill, recipe, refusal
from helpers.own_photos import NAMES, cut_off, picture, write_splits
from helpers.tiny import LABELS, RECIPE, TINY, TinyScenes
from helpers.trainers import equal, trainer_for
from hf_segkd.console import TrainingFault
from hf_segkd.data import TrainTransform
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.patches import PATCH_SEQUENCES
from hf_segkd.recipe import dump
from hf_segkd.training.callbacks import SetProgress
from hf_segkd.training.dry_run import check_sizes
from hf_segkd.training.trainer import DistillationTrainer

LONG = {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"}


def at_step(monkeypatch, step, act):
    """Do `act` before a step of any trainer, counted from 1."""
    begin = SetProgress.on_step_begin

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == step:
            act()
        begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(SetProgress, "on_step_begin", on_step_begin)


def fault_of(trainer) -> str:
    with pytest.raises(TrainingFault) as error:
        trainer.train()
    assert "\n" not in str(error.value)
    return str(error.value)


def photo_trainer(folder, **options):
    """Trains on eight files, each read once an epoch."""
    dataset = open_dataset("folder", str(write_splits(folder / "photos")), labels=NAMES)
    train = dataset.training_set(TrainTransform((32, 32), (1.0, 1.0)))
    torch.manual_seed(0)
    student = load_model({**TINY, "use_decoder": False}, id2label=dict(enumerate(NAMES)))[0]
    data = dataset.evaluation_set()
    made = trainer_for(folder / "run", student, train=train, max_steps=12, **LONG, **options)
    made.eval_dataset = data
    return made


def replaced(path):
    picture(99, (20, 20)).save(path)


FATES = {
    "deleted": (lambda path: path.unlink(), "No such file"),
    "cut short": (cut_off, "truncated"),
    "replaced": (replaced, "80"),  # its own size, or its annotation's
    "emptied": (lambda path: path.write_bytes(b""), "cannot identify image file"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fate", FATES)
def test_image_that_changes_during_the_run_is_named(tmp_path, monkeypatch, fate, workers):
    """Fifty lines of a worker's traceback named no file, or only its place in the epoch."""
    act, _ = FATES[fate]
    victim = tmp_path / "photos" / "images" / "train" / "train_3.png"
    trainer = photo_trainer(tmp_path, dataloader_num_workers=workers)
    at_step(monkeypatch, 4, lambda: act(victim))
    message = fault_of(trainer)
    assert "train_3" in message and "cannot be read any more" in message and "--resume" in message, message


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_file_descriptors_is_explained(tmp_path, monkeypatch, workers):
    """`OSError: [Errno 24]` was blamed on the image that happened to be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []

    def use_up():
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        try:
            while True:
                held.append(open(os.devnull))
        except OSError:
            pass

    trainer = photo_trainer(tmp_path, dataloader_num_workers=workers)
    at_step(monkeypatch, 5 if workers == 0 else 1, use_up)
    try:
        if workers:  # the workers are started at the first batch
            monkeypatch.setattr(DistillationTrainer, "get_train_dataloader", after(use_up))
        message = fault_of(trainer)
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "Out of file descriptors after step" in message and "ulimit -n" in message


def after(act):
    real = DistillationTrainer.get_train_dataloader

    def get(self):
        loader = real(self)
        act()
        return loader

    return get


def test_output_folder_that_is_deleted_is_made_again(tmp_path, monkeypatch, caplog):
    """An hour later the run ended in a traceback, without a student."""
    folder = tmp_path / "run"
    at_step(monkeypatch, 2, lambda: shutil.rmtree(folder))
    distill.main([recipe(tmp_path), "--output_dir", str(folder)])
    assert "has been deleted; it is made again" in caplog.text
    found = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "metrics.json", "recipe.yaml", "README.md", "figures"} <= found
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 4


def test_output_folder_that_is_deleted_after_training_is_made_again(tmp_path, monkeypatch, without_figures):
    """The best checkpoint is gone with it: the student of the last step is still in memory."""
    folder = tmp_path / "run"
    evaluate = DistillationTrainer.evaluate
    calls = []

    def delete_last(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:  # the evaluation after training
            shutil.rmtree(folder)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "evaluate", delete_last)
    distill.main([recipe(tmp_path), "--output_dir", str(folder)])
    assert {"model.safetensors", "metrics.json", "recipe.yaml"} <= {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    distill.main([recipe(folder), "--output_dir", str(folder / "run")])
    return folder / "run"


@pytest.mark.parametrize("room", [1, 4096, 8_000])
def test_full_disk_at_the_end_keeps_the_checkpoints_and_resumes_to_the_same_student(
    tmp_path, monkeypatch, room, whole, without_figures
):
    """A day of training, and the last second had no room for the folder."""
    options = [recipe(tmp_path), "--output_dir"]
    folder = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = DistillationTrainer.save_student

    def without_room(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        save(self)

    monkeypatch.setattr(DistillationTrainer, "save_student", without_room)
    try:
        message = refusal([*options, str(folder)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "Training is done, but the final folder" in message and "a file is too large" in message, message
    assert not (folder / "metrics.json").exists() and (folder / "checkpoint-4").is_dir()
    monkeypatch.setattr(DistillationTrainer, "save_student", save)
    report = distill.main([*options, str(folder), "--resume"])
    assert report["steps"] == 4 and not (folder / "checkpoint-4").exists()
    assert equal(load_file(folder / "model.safetensors"), load_file(whole / "model.safetensors"))


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_optimizer_of_another_kind_is_refused_on_resume(tmp_path, tiny_student, optim):
    """From Python no recipe is compared: another kind's options were taken over, and missed at the first step."""
    trainer_for(tmp_path, tiny_student, max_steps=2).train()
    other = trainer_for(tmp_path, tiny_student, optim=optim)
    with pytest.raises(TrainingFault, match="holds the optimizer of another run"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("model_type", PATCH_SEQUENCES)
def test_patch_students_are_asked_for_the_size_of_validation_images(model_type):
    """EoMT, DPT and Data2Vec students died at the first whole-image evaluation."""
    config = SimpleNamespace(model_type=model_type, image_size=64, patch_size=16)
    with pytest.raises(ValueError, match="evaluated on whole images, but this one cannot read them"):
        check_sizes(config, TinyScenes(3, size=40), batch=1)
    check_sizes(config, TinyScenes(3, size=64), batch=1)


@pytest.mark.parametrize(
    "student",
    [TINY, {"model_type": "pspnet", "backbone": "mobilenetv2"}, {"model_type": "dpt", "image_size": 64}],
    ids=["espnet", "pspnet", "dpt"],
)
def test_tiny_crops_are_trained_on_or_refused_before_training(tmp_path, student, monkeypatch, without_figures):
    """`crop_size 7 7` ended in `Kernel size can't be greater than actual input size` at the first step."""
    begun = []
    at_step(monkeypatch, 1, lambda: begun.append(1))
    given = recipe(tmp_path, student=student, crop_size=[7, 7], max_steps=1, eval_steps=1, save_steps=1)
    try:
        assert distill.main([given, "--output_dir", str(tmp_path / "run")])["steps"] == 1
    except SystemExit as stop:
        assert "crop_size" in str(stop.code) and not begun


def test_a_class_called_like_a_formula_is_drawn_and_released(tmp_path, capsys):
    """`$x^$` is no formula that matplotlib can set: it ended the run after training, before anything was saved."""
    names = ["$x^$", "a_b^{", r"\frac", *list(LABELS.values())[3:]]
    write_splits(tmp_path / "photos")
    options = ["--dataset", "folder", "--data_dir", str(tmp_path / "photos"), "--labels", *names]
    given = tmp_path / "given.yaml"
    dump({key: value for key, value in RECIPE.items() if not key.startswith("dataset")}, given)
    distill.main([str(given), *options, "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "not drawn" not in said, said
    assert Image.open(tmp_path / "run" / "figures" / "classes.png").width > 100
    assert load_model(str(tmp_path / "run"))[0].config.id2label == dict(enumerate(names))
    assert "&#36;x^&#36;" in (tmp_path / "run" / "README.md").read_text()

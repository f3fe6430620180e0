"""`--data` without further flags, and `hf_segkd.distill`: the same run, from a shell and from Python."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainingArguments

import hf_segkd
from dataset_builders import open_dataset
from dataset_builders.arguments import find_dataset
from helpers.commands import distill, refusal, script, trained_here
from helpers.own_photos import NAMES, write_photos, write_splits
from helpers.tiny import TINY
from hf_segkd.recipe import load_yaml
from hf_segkd.reports.method_benchmark import changed_keys
from hf_segkd.training import derived
from hf_segkd.training.derived import derive_options

pytestmark = pytest.mark.usefixtures("module_without_figures")

SEGFORMER = {
    **{"model_type": "segformer", "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4},
    "decoder_hidden_size": 8,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight training and four validation photos of 64x80 pixels, with their class names."""
    root = write_splits(tmp_path_factory.mktemp("own") / "photos")
    (root / "labels.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def own_teacher(photos):
    folder = photos.parent / "teacher"
    argv = ["--data", str(photos), "--student", str(TINY).replace("False", "false"), "--output_dir", str(folder)]
    distill.main([*argv, "--max_steps", "2", "--use_cpu"])
    return str(folder)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(derived, "FEWEST_STEPS", 3)
    monkeypatch.setattr(derived, "PASSES", 1)


class Photos:
    """As many training photos of one size as wanted, without a disk."""

    spec = open_dataset("synthetic").spec

    def __init__(self, count, size):
        self.count = count
        self.content = io.BytesIO()
        Image.new("L", size[::-1]).save(self.content, "PNG")

    def raw_splits(self):
        return {self.spec.train_split: self}

    def __len__(self):
        return self.count

    def read_image(self, index):
        return self.content.getvalue()


def choices(recipe, dataset, student="espnet", **config):
    return derive_options(recipe, student, dataset, TrainingArguments("unused", use_cpu=True, **config))


def test_four_flags_train_score_and_write_the_card(photos, own_teacher, few_steps, tmp_path, monkeypatch, caplog):
    """The command of somebody who has photos, a teacher and no opinion on learning rates."""
    monkeypatch.setitem(hf_segkd.loading.student_names.STUDENTS, "segformer-b0", SEGFORMER)
    argv = ["--data", str(photos), "--teacher", own_teacher, "--student", "segformer-b0"]
    report = distill.main([*argv, "--output_dir", str(tmp_path / "run")])
    assert report["steps"] == 3 and [*report["per_class_iou"]] == NAMES
    recipe = load_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["crop_size"] == [64, 64] and [*recipe["losses"]] == ["task", "kd", "cwd_logits"]
    assert "distilled from" in (tmp_path / "run" / "README.md").read_text()
    assert "crop_size                    64 64  (the median training image is 64x80" in caplog.text


def test_methods_are_compared_on_own_photos_with_one_derived_schedule(
    photos, own_teacher, few_steps, tmp_path, monkeypatch, caplog
):
    """`--data photos` was read as a recipe named photos. With a schedule for each method nothing is compared."""
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=trained_here, STDOUT=None))
    given = ["--data", str(photos), "--student", "espnet-c", "--teacher", own_teacher, "--use_cpu"]
    options = ["--methods", "baseline", "kd", "--split", "validation", "--output_dir", str(tmp_path)]
    assert benchmark.main([*given, *options]) == 0
    base, kd = (load_yaml((tmp_path / name / "seed0" / "recipe.yaml").read_text()) for name in ("baseline", "kd"))
    assert base["max_steps"] == 3 and [*base["losses"]] == ["task"] and [*kd["losses"]] == ["task", "kd"]
    assert changed_keys(base, kd | {"losses": base["losses"]}) == []
    assert caplog.text.count("hence derived from data and student") == 1
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *args, **kwargs: pytest.fail("trained again"))
    assert benchmark.main([*given, *options]) == 0


def test_a_run_shows_its_classes_once(tmp_path, caplog):
    """Said two or three times, they made a reader look for the difference."""
    photos = write_splits(tmp_path / "photos")  # which no run has prepared yet
    (photos / "labels.txt").write_text("\n".join(NAMES))
    argv = ["--data", str(photos), "--student", "espnet-c", "--max_steps", "1", "--use_cpu"]
    distill.main([*argv, "--output_dir", str(tmp_path / "run")])
    assert caplog.text.count("Classes from") == 1


def test_the_function_is_the_command(photos, own_teacher, tmp_path):
    """A notebook and a shell that disagree would be two libraries."""
    flags = {"teacher": own_teacher, "student": "espnet-c", "data": str(photos), "max_steps": 3, "seed": 5}
    options = {"crop_size": [32, 48], "use_cpu": True}
    run = hf_segkd.distill(method="kd", output_dir=tmp_path / "function", **flags, **options)
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    argv = ["kd", *argv, "--crop_size", "32", "48", "--use_cpu"]
    report = distill.main([*argv, "--output_dir", str(tmp_path / "command")])
    timed = ("seconds", "time", "peak_memory", "images_per_second")
    for name, value in report.items():
        assert name.startswith(timed) or run.scores[name] == value or name == "models", name
    first, second = ((tmp_path / name / "recipe.yaml").read_text() for name in ("function", "command"))
    assert load_yaml(first) | {"output_dir": ""} == load_yaml(second) | {"output_dir": ""}
    weights = run.student.state_dict()
    for key, value in hf_segkd.load_model(str(tmp_path / "command"))[0].state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.fixture(scope="module")
def run(own_teacher):
    return hf_segkd.FinishedRun.open(own_teacher)


def test_a_run_predicts_files_pictures_arrays_and_lists(run, photos):
    """What one does first with a student: look at a photo of one's own."""
    path = photos / "images" / "val" / "val_8.png"
    picture = Image.open(path).convert("RGB")
    from_file, from_picture, from_array = run.predict([path, picture, np.array(picture)])
    assert from_file.shape == (64, 80) and np.array_equal(from_file, from_picture)
    assert np.array_equal(from_file, from_array) and not run.student.training


def test_a_run_is_exported(run, tmp_path):
    """The ONNX file is the reason for distilling, on many devices."""
    pytest.importorskip("onnxruntime")
    rows = run.export(tmp_path / "onnx", size=[64, 96])
    assert (tmp_path / "onnx" / "model_fp32.onnx").is_file() and rows[1]["equal_pixels"] > 0.999


def test_a_run_is_pushed_as_the_command_pushes_it(run, monkeypatch):
    """A second way of uploading would get its own faults."""
    from hf_segkd.commands import push

    monkeypatch.setattr(push, "main", lambda argv: argv)
    assert run.push("me/student", private=True, branch="v2") == [
        *(run.folder, "me/student", "--private", "--branch", "v2")
    ]


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    """Its scores would be missing when they are asked for."""
    with pytest.raises(ValueError, match="is not the folder of a finished run"):
        hf_segkd.FinishedRun.open(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student": "segfomer-b0"}, "Did you mean 'segformer-b0'"),
        ({"learning_rat": 1.0}, "Did you mean 'learning_rate'"),
        ({"teacher": "nowhere"}, "No model found at 'nowhere'"),
        ({"optim": "sgd"}, "optim sgd: no rule gives its learning rate"),
        ({"losses": {"task": np.float32(1)}}, "plain values"),
    ],
)
def test_the_function_raises_where_the_command_leaves(options, message, photos, tmp_path):
    """A notebook must not lose its kernel to a misspelled option."""
    with pytest.raises(ValueError, match=message):
        hf_segkd.distill(**{"student": "espnet-c", "data": photos, "output_dir": tmp_path / "run", **options})


def test_what_is_given_is_not_derived():
    """A rule that overrules a flag would be worse than none."""
    dataset = Photos(8, (64, 80))
    everything = choices({}, dataset)
    assert set(everything) == {
        *("losses", "crop_size", "per_device_train_batch_size", "optim", "weight_decay", "learning_rate", "max_steps")
    }
    assert choices(everything, dataset) == {}
    assert "max_steps" not in choices({"num_train_epochs": 2}, dataset)
    assert set(choices({"optim": "sgd", "learning_rate": 0.1}, dataset)) == set(everything) - {
        *("optim", "weight_decay", "learning_rate")
    }


def test_rules_of_the_page(photos):
    """Numbers of docs/your_own_data.md: eight images of 64x80 pixels."""
    found = choices({}, open_dataset("folder", str(photos)))
    assert found["crop_size"] == [64, 64] and found["per_device_train_batch_size"] == 8
    assert found["max_steps"] == 1000 and [*found["losses"]] == ["task"]
    many = Photos(2000, (600, 200))
    assert choices({}, many)["crop_size"] == [512, 192] and choices({}, many)["max_steps"] == 20000
    given = {"per_device_train_batch_size": 20, "teacher": "somewhere"}
    assert choices(given, many)["max_steps"] == 10000 and "kd" in choices(given, many)["losses"]


@pytest.mark.parametrize(
    "student, rate",
    [
        ("espnet-c", 1e-3),
        ({"model_type": "pspnet"}, 1e-3),
        ("segformer-b0", 2e-4),
        ({"name": "espnet", "backbone_weights": "x"}, 2e-4),
        ("nvidia/segformer-b0-finetuned-ade-512-512", 2e-4),
    ],
)
def test_learning_rate_depends_on_where_the_student_starts(student, rate):
    """Trained weights are forgotten at the rate that random ones need."""
    assert choices({}, Photos(8, (64, 80)), student)["learning_rate"] == rate


def test_crop_follows_images_of_bands_too():
    """Pillow cannot open them: they got the largest crop, and a reason that was not true."""
    dataset = Photos(8, (1, 1))
    dataset.content = io.BytesIO()
    np.save(dataset.content, np.zeros((100, 130, 4), np.uint16))
    assert choices({}, dataset)["crop_size"] == [96, 128]


def test_two_processes_share_the_batch():
    """The learning rate was chosen for the images of a step, whoever computes them."""

    class TwoProcesses:
        world_size, should_log = 2, False

    found = derive_options({}, "espnet", Photos(8, (64, 80)), TwoProcesses())
    assert found["per_device_train_batch_size"] == 4


def test_data_is_a_folder_a_stored_dataset_a_name_or_an_id(photos, tmp_path, monkeypatch):
    """Nobody should have to know which of the readers his folder needs."""
    open_dataset("folder", str(photos)).all_splits().save_to_disk(tmp_path / "disk")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    (tmp_path / "parquet" / "data" / "train-0.parquet").touch()
    assert find_dataset(str(photos)) == ("folder", str(photos))
    assert find_dataset(str(tmp_path / "disk")) == (str(tmp_path / "disk"), None)
    assert find_dataset(str(tmp_path / "parquet")) == (str(tmp_path / "parquet"), None)
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    (tmp_path / "pictures" / "train" / "metadata.jsonl").touch()  # an `imagefolder` of `datasets`
    assert find_dataset(str(tmp_path / "pictures")) == (str(tmp_path / "pictures"), None)
    assert find_dataset("camvid") == ("camvid", None) and find_dataset("user/name") == ("user/name", None)
    with pytest.raises(ValueError, match="There is no folder 'camvit'. Did you mean 'camvid'?"):
        find_dataset("camvit")


@pytest.mark.parametrize("given", [[], ["--data", "a", "--dataset", "b"]])
def test_data_and_dataset_are_one_or_the_other(given, tmp_path):
    """Of two answers one would be ignored."""
    assert "--dataset NAME, one of the two" in refusal([*given, "--student", "espnet", "--output_dir", str(tmp_path)])


def test_photos_without_masks_join(tmp_path):
    """Ten photos with masks and two without, as people have them; one validates."""
    root = write_photos(tmp_path / "photos")
    (root / "labels.txt").write_text("\n".join(NAMES))
    found = choices({}, open_dataset("folder", str(root)))
    assert found["crop_size"] == [64, 64] and json.dumps(found)

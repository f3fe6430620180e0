"""Training images that are streamed: who reads what, what a resumed run sees, and what is refused."""

import json
import re
import shutil
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from dataset_builders import open_dataset
from helpers.commands import refusal
from helpers.hub_runs import run
from helpers.hub_storage import Repository, Stored
from helpers.local_hub import LocalHub
from helpers.own_photos import COLUMNS, NAMES, table
from hf_segkd.commands import distill
from hf_segkd.data import TrainTransform

FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--use_cpu", "--save_total_limit", "9"]
FAST += ["--student.model_type", "espnet", "--student.use_decoder", "false", "--student.hidden_sizes", "[4, 10, 10]"]
FAST += ["--student.depths", "[1, 1]", "--eval_steps", "3", "--save_steps", "3", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Eight rows to train on in four files, four to validate on."""
    folder = tmp_path_factory.mktemp("stored")
    rows = table(12).add_column("image_id", [f"row{index}" for index in range(12)])
    for part in range(4):
        rows.select(range(2 * part, 2 * part + 2)).to_parquet(str(folder / f"train-{part:05d}-of-00004.parquet"))
    rows.select(range(8, 12)).to_parquet(str(folder / "validation-00000-of-00001.parquet"))
    return str(folder)


def command(stored, *more):
    flags = ["--image_column", "photo", "--label_column", "mask", "--labels", *NAMES, "--streaming"]
    return ["baseline", "--dataset", stored, *flags, *FAST, "--max_steps", "6", *map(str, more)]


def streams(stored, tmp_path, processes):
    options = {"labels": NAMES, "cache_dir": str(tmp_path), **COLUMNS}
    dataset = open_dataset(stored, streaming=True, **options)
    how = {"seed": 1, "shuffle_buffer": 3, "processes": processes}
    return [dataset.stream(TrainTransform((16, 16)), process=process, **how) for process in range(processes)]


def rows_read(stream, count, workers, monkeypatch):
    """Names of the first rows that a process reads."""
    monkeypatch.setattr(type(stream), "_item", lambda self, row, state: row["image_id"])
    loader = DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=list)
    return list(islice(chain.from_iterable(loader), count))


def test_a_folder_with_the_columns_of_prepare_is_streamed(tmp_path):
    """`hf-segkd prepare` calls them image and annotation; streamed rows refused to rename a column to its own name."""
    rows = table(4).rename_columns({"photo": "image", "mask": "annotation"})
    (tmp_path / "stored").mkdir()
    for split in ("train", "validation"):
        rows.to_parquet(str(tmp_path / "stored" / f"{split}-00000-of-00001.parquet"))
    dataset = open_dataset(str(tmp_path / "stored"), streaming=True, labels=NAMES, cache_dir=str(tmp_path / "cache"))
    row = next(iter(dataset.stream(TrainTransform((16, 16)), process=0, processes=1, seed=1, shuffle_buffer=3)))
    assert row["labels"].shape == (16, 16)


@pytest.mark.parametrize(
    "processes, workers, share", [(1, 0, 8), (2, 0, 4), pytest.param(2, 2, 4, marks=pytest.mark.slow)]
)
def test_processes_and_workers_share_a_pass_without_overlap(stored, tmp_path, monkeypatch, processes, workers, share):
    """With the same rows in every process, two devices would learn half as much as they seem to."""
    seen = [rows_read(stream, share, workers, monkeypatch) for stream in streams(stored, tmp_path, processes)]
    assert sorted(chain.from_iterable(seen)) == [f"row{index}" for index in range(8)]


@pytest.mark.slow
def test_files_that_processes_cannot_share_are_read_by_all_row_by_row(stored, tmp_path, monkeypatch):
    """Four files for three processes: each keeps the rows that are its own."""
    first, second, third = streams(stored, tmp_path, 3)
    seen = [rows_read(first, 3, 0, monkeypatch), rows_read(second, 3, 0, monkeypatch)]
    seen.append(rows_read(third, 2, 0, monkeypatch))
    assert sorted(chain.from_iterable(seen)) == [f"row{index}" for index in range(8)]


@pytest.mark.slow
def test_a_pass_after_the_last_row_is_shuffled_and_augmented_anew(stored, tmp_path, monkeypatch):
    """A stream that ended would end the run; one that repeated itself would show few crops."""
    stream = streams(stored, tmp_path, 1)[0]
    crops = [item["pixel_values"] for item in islice(stream, 16)]
    assert not any(torch.equal(first, again) for first in crops[:8] for again in crops[8:])
    names = rows_read(stream, 16, 0, monkeypatch)
    assert sorted(names[:8]) == sorted(names[8:]) and names[:8] != names[8:]


def test_resumed_run_sees_the_same_crops_and_ends_with_the_same_bits(stored, tmp_path, capsys):
    """Rows that were seen twice, or never, after a resume would be noticed by nobody."""
    report = distill.main(command(stored, "--keep_checkpoints", "--output_dir", tmp_path / "whole"))
    assert report["training_images"] == {"dataset": None, "unlabeled": 0} and report["trained_on"]["images"] == 12
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    shutil.copy2(tmp_path / "whole" / "recipe.yaml", tmp_path / "resumed")
    distill.main(command(stored, "--keep_checkpoints", "--output_dir", tmp_path / "resumed", "--resume"))
    whole, resumed = (
        load_file(tmp_path / name / "checkpoint-6" / "model.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    logs = [json.loads((tmp_path / name / "training_log.json").read_text()) for name in ("whole", "resumed")]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == 6 and losses[0] == losses[1]
    changed = command(stored, "--output_dir", tmp_path / "resumed", "--resume", "--shuffle_buffer", 5)
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-6")
    (tmp_path / "resumed" / "model.safetensors").unlink()
    assert "shuffle_buffer: was 1000, now 5" in refusal(changed)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_steps", "-1"], "Give --max_steps"),
        (["--teacher_cache", "cache"], "filled image by image"),
        (["--unlabeled", "photos"], "Rows without a mask are unlabeled"),
        (["--losses.task.class_weights", "enet"], "counts the pixels of all training masks"),
        (["--bands", "red", "green", "blue"], "mean and deviation"),
        (["--cache_dir", "decoded"], "fill the disk"),
        (["--check_data", "full"], "cannot be checked"),
        (["--shuffle_buffer", "0"], "at least 1"),
        (["--dataloader_num_workers", "5"], "Give at most 4"),
        (["--dataset", "camvid"], "made from raw files.*hf-segkd prepare camvid"),
    ],
)
def test_what_needs_all_images_before_the_first_step_is_refused(stored, tmp_path, flags, message):
    """Each of them would read the whole stream first, or fail after the models were loaded."""
    assert re.search(message, refusal(command(stored, "--output_dir", tmp_path / "run", *flags)))


def test_a_stream_without_a_validation_split_is_refused(stored, tmp_path_factory):
    """None can be drawn, and a run that validated on training images would look good."""
    folder = tmp_path_factory.mktemp("alone")  # datasets reads splits out of names of folders too
    shutil.copy2(f"{stored}/train-00000-of-00004.parquet", folder / "train.parquet")
    dataset = open_dataset(str(folder), labels=NAMES, streaming=True, cache_dir=str(folder / "cache"), **COLUMNS)
    with pytest.raises(ValueError, match="needs a train and a validation split, and .* has train"):
        str(dataset.splits)


STREAM = """
import json, sys
from itertools import islice
from dataset_builders import open_dataset
from hf_segkd.data import TrainTransform
dataset = open_dataset("alice/stored", streaming=True, labels=sys.argv[1:4], image_column="photo", label_column="mask")
stream = dataset.stream(TrainTransform((16, 16)), seed=0, shuffle_buffer=2)
crops = [item["pixel_values"].shape[1:] for item in islice(stream, 10)]
print(json.dumps({"crops": len(crops), "files": stream.files, "rows": len(dataset.split("validation"))}))
"""


@pytest.mark.slow
def test_training_images_of_the_hub_are_streamed_and_not_downloaded(stored, tmp_path):
    """Whoever streams has no room for the training files; a client that fetched them whole would fill the disk."""
    hub = LocalHub()
    files = {f"data/{path.name}": Stored(path.read_bytes(), lfs=True) for path in Path(stored).glob("*.parquet")}
    hub.repositories["datasets/alice/stored"] = Repository(private=False)
    hub.repositories["datasets/alice/stored"].commit("main", files)
    try:
        done = run(["-c", STREAM, *NAMES], hub.environment(tmp_path / "home"))
    finally:
        hub.stop()
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == {"crops": 10, "files": 4, "rows": 4}
    kept = {path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()}
    whole = [name for name, file in files.items() if file.content in kept]
    assert whole == ["data/validation-00000-of-00001.parquet"]

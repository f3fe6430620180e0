"""Stored datasets of which a part is missing, and folders that must appear whole: noticed, by name."""

import io
import subprocess
import sys
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_builders import open_dataset
from dataset_builders.prepare import prepare
from dataset_builders.writing import new_folder
from helpers.odd_data import photo, stripes, write_pairs, write_parquet
from helpers.own_photos import NAMES
from helpers.paths import ROOT
from hf_segkd.training.checks import check_data


def stored(root, tmp_path, **options):
    return open_dataset(str(root), cache_dir=str(tmp_path / "cache"), **{"labels": NAMES, **options})


def refusal(root, tmp_path) -> str:
    with pytest.raises(ValueError) as refused:
        stored(root, tmp_path).split("train")
    return str(refused.value)


@pytest.mark.parametrize(
    ("written", "lacking"),
    [
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
        ("data/train-00001-of-00002-0123abcd.parquet", "data/train-00000-of-00002-*.parquet"),
        ("default/train/0001.parquet", "default/train/0000.parquet"),
    ],
)
def test_a_missing_part_is_named_however_parts_are_named(written, lacking, tmp_path):
    """An interrupted copy trains on the rest; the Hub has named parts in three ways."""
    root = write_parquet(tmp_path / "data")
    (root / written).parent.mkdir(parents=True)
    (root / "train-00000-of-00001.parquet").rename(root / written)
    assert f"lacks 1 of 2 parts: {lacking}" in refusal(root, tmp_path)


@pytest.mark.parametrize("size", [0, 1000])
def test_a_part_that_is_cut_off_is_named(size, tmp_path):
    """A download that stopped ended in a traceback of pyarrow's, without the file's name."""
    root = write_parquet(tmp_path / "data")
    part = root / "train-00000-of-00001.parquet"
    part.write_bytes(part.read_bytes()[:size])
    assert "1 parts that are cut off: train-00000-of-00001.parquet" in refusal(root, tmp_path)


def test_a_missing_shard_of_a_saved_dataset_is_named(tmp_path):
    """`save_to_disk` writes shards too."""
    rows = datasets.Dataset.from_dict({"image": [photo(0)] * 4, "annotation": [Image.fromarray(stripes(0))] * 4})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "data"), num_shards={"train": 2})
    (tmp_path / "data" / "train" / "data-00001-of-00002.arrow").unlink()
    assert "train/data-00001-of-00002.arrow" in refusal(tmp_path / "data", tmp_path)


def write_zip(root, lacking: str = ""):
    """Pictures, masks and the table of their names in one archive, as `datasets` reads them, but for one member."""
    root.mkdir()
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for index in range(6):
            for name, picture in ((f"photo{index}", photo(index)), (f"mask{index}", Image.fromarray(stripes(index)))):
                content = io.BytesIO()
                picture.save(content, "PNG")
                if name != lacking:
                    archive.writestr(f"{name}.png", content.getvalue())
        lines = [f"photo{index}.png,mask{index}.png" for index in range(6)]
        archive.writestr("metadata.csv", "\n".join(["file_name,annotation_file_name", *lines]))
    return root


def test_pictures_in_an_archive_are_checked_and_read(tmp_path):
    """The check opened `zip://a.png::train.zip` as a path and refused every picture."""
    dataset = stored(write_zip(tmp_path / "data"), tmp_path)
    assert check_data(dataset) == []
    rows = [row for split in dataset.splits for row in dataset.split(split)]
    assert sorted(tuple(np.array(row["annotation"])[0]) for row in rows) == sorted(
        tuple(stripes(index)[0]) for index in range(6)
    )


@pytest.mark.parametrize("member", ["photo2", "mask3"])
def test_a_missing_member_of_an_archive_is_named(member, tmp_path):
    """`datasets` lists what the table names, and fails in the middle of the first epoch."""
    assert f"names 12 files and lacks 1: train.zip/{member}.png" in refusal(
        write_zip(tmp_path / "a", member), tmp_path
    )


def test_an_archive_that_is_cut_off_is_named(tmp_path):
    """The list of members is at its end."""
    path = write_zip(tmp_path / "data") / "train.zip"
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut off: train.zip" in refusal(tmp_path / "data", tmp_path)


# ---- case 12: full disk --------------------------------------------------------------------------------------------


def test_nothing_stays_of_a_folder_that_could_not_be_written(tmp_path):
    """Half an export looks like a whole one to whoever finds it."""
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_written_over(tmp_path):
    """kill -9 leaves the hidden folder; the next attempt must neither fail nor keep its files."""
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished" / "old").write_text("x")
    with new_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_an_export_to_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    """It was a traceback, and a Parquet file that was cut off stayed behind."""
    root = write_pairs(tmp_path / "data")
    dataset = open_dataset("folder", str(root), labels=NAMES, cache_dir=str(tmp_path / "cache"))
    dataset.all_splits()
    limit = 20_000  # bytes of a file; the operating system answers as it does on a full disk
    code = (
        "import signal, resource; from dataset_builders import open_dataset; "
        "from dataset_builders.prepare import prepare; "
        f"dataset = open_dataset('folder', {str(root)!r}, labels={NAMES!r}, cache_dir={str(tmp_path / 'cache')!r}); "
        "dataset.all_splits(); signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        f"prepare(dataset, {str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "Nothing was left there. Free some space" in done.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]


def test_a_cache_on_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """The rows are prepared in the cache of `datasets` first, whose own error is a page long."""
    full = OSError(28, "No space left on device")

    def refuse(*arguments, **options):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from full

    monkeypatch.setattr("datasets.DatasetBuilder.download_and_prepare", refuse)
    dataset = open_dataset("folder", str(write_pairs(tmp_path / "data")), labels=NAMES)
    with pytest.raises(ValueError, match="Cannot prepare 'folder': the disk is full.*HF_DATASETS_CACHE"):
        prepare(dataset)


# ---- augmented copies ----------------------------------------------------------------------------------------------


def write_copies(root, splits: dict[str, range]):
    """Three augmented copies of each picture, in a Parquet file for each split; no file names, but ids."""
    root.mkdir()
    for split, numbers in splits.items():
        names = [f"{number}_jpg.rf.{number}{copy}ab" for number in numbers for copy in range(3)]
        pictures = [photo(100 * len(split) + index) for index in range(len(names))]
        masks = [Image.fromarray(stripes(index)) for index in range(len(names))]
        rows = datasets.Dataset.from_dict({"image": pictures, "annotation": masks, "image_id": names})
        rows.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def test_augmented_copies_in_a_stored_dataset_stay_on_one_side(tmp_path):
    """`train_test_split` puts a turned copy of a training image among those that choose the best step."""
    dataset = stored(write_copies(tmp_path / "data", {"train": range(6)}), tmp_path, validation_fraction=0.4)
    origins = {
        split: {name.split(".rf.")[0] for name in dataset.split(split).select_columns("image_id")["image_id"]}
        for split in dataset.splits
    }
    assert origins["train"] and origins["validation"] and not origins["train"] & origins["validation"]
    assert sum(len(dataset.split(split)) for split in dataset.splits) == 18


def test_copies_of_one_picture_alone_cannot_be_split(tmp_path):
    """Whatever was drawn would be seen in training."""
    with pytest.raises(ValueError, match="All 3 rows are copies of '0_jpg'"):
        stored(write_copies(tmp_path / "data", {"train": range(1)}), tmp_path).split("train")


def test_augmented_copies_in_two_splits_are_warned_about(tmp_path, caplog):
    """Their bytes and their names differ: no other comparison finds them."""
    root = write_copies(tmp_path / "data", {"train": range(4), "validation": range(3, 5)})
    assert check_data(stored(root, tmp_path)) == []
    found = [line for line in caplog.text.splitlines() if line.startswith("augmented copy  ")]
    assert len(found) == 3 and all("3_jpg.rf." in line for line in found)
    assert "same name  " not in caplog.text

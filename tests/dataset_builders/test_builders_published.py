"""What holds for every builder of a published dataset, on small trees in the official layout."""

import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest

from dataset_builders import builder_class, open_dataset, prepare
from helpers.raw_trees import COUNTS, IDS, SIZE, TREES, ade20k, mask, write, write_archives


@pytest.fixture(params=TREES)
def name(request):
    return request.param


@pytest.fixture
def root(tmp_path, name):
    return write(tmp_path / "data", TREES[name]())


def rows_of(split: datasets.Dataset) -> list:
    return [(row["image_id"], np.array(row["image"]).tolist(), np.array(row["annotation"]).tolist()) for row in split]


def test_official_tree_gives_counts_train_ids_and_ignored_pixels(name, root, tmp_path):
    """One id off by one trains every class as its neighbor."""
    splits = open_dataset(name, str(root), cache_dir=str(tmp_path / "cache")).all_splits()
    assert {split: len(rows) for split, rows in splits.items()} == COUNTS[name]
    row = splits["train"][0]
    annotation = np.array(row["annotation"])
    assert annotation.flat[: len(IDS[name])].tolist() == IDS[name] and annotation.dtype == np.uint8
    assert row["image"].mode == "RGB" and row["image"].size == SIZE and row["annotation"].mode == "L"
    assert splits["train"].column_names == ["image", "annotation", "image_id"]


def test_official_archives_give_the_rows_of_their_folders(name, root, tmp_path):
    """Unpacking 60 GB first should not be needed, and must change nothing."""
    zipped = write_archives(tmp_path / "zipped", name, TREES[name]())
    before = sorted(zipped.rglob("*"))
    a, b = (
        open_dataset(name, str(folder), cache_dir=str(tmp_path / "cache")).all_splits() for folder in (root, zipped)
    )
    assert a.keys() == b.keys() and all(rows_of(a[split]) == rows_of(b[split]) for split in a)
    assert sorted(zipped.rglob("*")) == before, "something was extracted"


def test_parquet_export_reloads_equal(name, root, tmp_path, monkeypatch, capsys):
    """An export that holds paths instead of pictures is found out on another machine."""
    monkeypatch.setattr(prepare, "ROWS_PER_FILE", 1)
    before = {split: rows_of(rows) for split, rows in open_dataset(name, str(root)).all_splits().items()}
    prepare.main(name, "", ["--data_dir", str(root), "--output", str(tmp_path / "out")])
    assert f"train: {COUNTS[name]['train']} images" in capsys.readouterr().out
    for path in sorted(root.rglob("*.*")):
        path.unlink()
    again = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows_of(rows) for split, rows in again.items()} == before
    opened = open_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache")).split("validation")
    assert rows_of(opened) == before["validation"]
    assert open_dataset(str(tmp_path / "out")).spec.labels == open_dataset(name).spec.labels


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_partial_downloads_name_what_is_missing_and_where_to_get_it(name, root, tmp_path, suffix):
    """Half an archive trains on half the data, and the score is blamed on the method."""
    victims = {
        ("cityscapes", "jpg"): "leftImg8bit/train/ulm/ulm_000000_000011_leftImg8bit.png",
        ("cityscapes", "png"): "gtFine/train/ulm/ulm_000000_000011_gtFine_labelIds.png",
        ("voc_aug", "jpg"): "JPEGImages/2007_000001.jpg",
        ("voc_aug", "png"): "SegmentationClassAug/2007_000001.png",
        ("ade20k", "jpg"): "images/training/ADE_train_00000001.jpg",
        ("ade20k", "png"): "annotations/training/ADE_train_00000001.png",
        ("coco_stuff_164k", "jpg"): "train2017/000000000001.jpg",
        ("coco_stuff_164k", "png"): "stuffthingmaps/train2017/000000000001.png",
    }
    (root / victims[name, suffix]).unlink()
    total = 3 if name == "voc_aug" else 2
    with pytest.raises(ValueError, match=rf"^1 of {total} train .*00001.* incomplete\. Get .*http") as error:
        open_dataset(name, str(root), cache_dir=str(tmp_path / "cache")).split("validation")
    assert Path(victims[name, suffix]).stem.split("_gtFine")[0].split("_leftImg")[0] in str(error.value)
    assert not (tmp_path / "cache").exists(), "work began before the download was checked"


def test_missing_parts_are_all_named(name, tmp_path):
    """The first run after a download should say everything that is still to be fetched."""
    write(tmp_path / "data", {"notes.txt": b""})
    with pytest.raises(ValueError) as error:
        open_dataset(name, str(tmp_path / "data")).files()
    for part in builder_class(name).PARTS:
        assert str(part) in str(error.value)
    assert "found notes.txt" in str(error.value) and "http" in str(error.value)
    with pytest.raises(ValueError, match="needs data_dir, the folder that holds .*http"):
        open_dataset(name).files()
    with pytest.raises(ValueError, match="is not a folder"):
        open_dataset(name, str(tmp_path / "nowhere")).files()


def test_folder_one_level_too_high_is_answered_with_the_right_one(name, root):
    """Archives unpack into a folder of their own name."""
    with pytest.raises(ValueError, match=f"Did you mean {root}"):
        open_dataset(name, str(root.parent)).files()


def test_cut_archives_are_named(name, tmp_path):
    """A broken download is a few bytes short and looks complete."""
    root = write_archives(tmp_path / "zipped", name, TREES[name]())
    archive = sorted(root.glob("*.zip"))[0]
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=rf"{archive.name} is not a complete zip archive .* Download it again"):
        open_dataset(name, str(root)).files()


def test_archives_with_names_that_lead_out_are_refused(tmp_path):
    """A foreign archive must not decide which files are read."""
    root = write_archives(tmp_path / "zipped", "ade20k", ade20k())
    with zipfile.ZipFile(root / "ADEChallengeData2016.zip", "a") as opened:
        opened.writestr("../images/ADE_train_00000009.jpg", b"")
    with pytest.raises(ValueError, match=r"unsafe name '\.\./images"):
        open_dataset("ade20k", str(root)).files()


def test_damaged_archive_members_are_named(tmp_path):
    """A flipped bit inside an archive must not end as an unreadable traceback."""
    root = write_archives(tmp_path / "zipped", "ade20k", ade20k())
    content = (root / "ADEChallengeData2016.zip").read_bytes()
    jpeg = ade20k()["images/training/ADE_train_00000000.jpg"]
    place = content.index(jpeg) + 30
    flipped = bytes([content[place] ^ 255])
    (root / "ADEChallengeData2016.zip").write_bytes(content[:place] + flipped + content[place + 1 :])
    with pytest.raises(ValueError, match=r"Cannot read .*ADE_train_00000000\.jpg.*Bad CRC"):
        open_dataset("ade20k", str(root), cache_dir=str(tmp_path / "cache")).split("train")


def test_counts_that_differ_from_the_published_ones_are_reported(name, root, caplog):
    """Scores on another number of images are not the published benchmark."""
    open_dataset(name, str(root)).split("validation")
    assert f"has {builder_class(name).COUNTS['validation']} images, this one has 1" in caplog.text
    assert "train" not in caplog.text


@pytest.mark.parametrize(
    ("name", "path", "raw", "message"),
    [
        ("cityscapes", "gtFine/train/ulm/ulm_000000_000011_gtFine_labelIds.png", 34, "label ids 0 to 33 and 255"),
        ("voc_aug", "SegmentationClassAug/2007_000001.png", 21, "0 to 20 and 255"),
        ("ade20k", "annotations/training/ADE_train_00000001.png", 151, "1 to 150"),
        ("coco_stuff_164k", "stuffthingmaps/train2017/000000000001.png", 182, "0 to 181 and 255"),
    ],
)
def test_raw_values_outside_the_table_are_named(name, tmp_path, path, raw, message):
    """Annotations of another release would fail on the GPU, or train wrong classes."""
    root = write(tmp_path / "data", TREES[name]() | {path: mask(0, raw)})
    with pytest.raises(ValueError, match=rf"{path} holds the values \[{raw}\]; allowed are .*{message}"):
        open_dataset(name, str(root), cache_dir=str(tmp_path / "cache")).split("train")

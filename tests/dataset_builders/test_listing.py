"""Large folders that were listed before: their folders are looked at, and each file when asked."""

import logging
import os
import time

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_builders import built, listing, open_dataset
from helpers.odd_data import photo, stripes, write_pairs
from helpers.own_photos import NAMES, save


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a folder of six pairs that counts as large, and says whether its files were listed anew."""
    monkeypatch.setattr(listing, "LARGE", 5)
    root = write_pairs(tmp_path / "data")
    for path in (root, *root.rglob("*")):
        os.utime(path, (time.time() - 3600,) * 2)

    def open_folder(**options):
        return open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), **{"labels": NAMES, **options})

    open_folder().split("train")
    return root, open_folder


def walks(monkeypatch) -> list[str]:
    """Folders that are walked through from here on."""
    seen = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda place, **options: seen.append(str(place)) or walk(place, **options))
    return seen


def test_an_unchanged_folder_is_not_walked_through_again(opened, monkeypatch, caplog):
    """Listing 100 000 pairs took half a minute at every start."""
    _, open_folder = opened
    before = open_folder(full_check=True)
    expected = before.files(), before.spec.labels, before.unused
    seen = walks(monkeypatch)
    monkeypatch.setattr(listing.RawFile, "fingerprint", None)
    caplog.set_level(logging.INFO)
    dataset = open_folder()
    assert (dataset.files(), dataset.spec.labels, dataset.unused) == expected and seen == []
    assert len(dataset.split("train")) + len(dataset.split("validation")) == 6
    assert "6 images as listed on" in caplog.text and "--full_check" in caplog.text


def add(root):
    save(root / "images" / "6.png", photo(6))
    save(root / "masks" / "6.png", stripes(6))


def rename(root):
    for kind in ("images", "masks"):
        (root / kind / "1.png").rename(root / kind / "7.png")


def into_a_new_folder(root):
    for kind in ("images", "masks"):
        (root / kind / "val").mkdir()
        for index in (1, 3):
            (root / kind / f"{index}.png").rename(root / kind / "val" / f"{index}.png")


def name_a_split(root):
    lists = root / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")


@pytest.mark.parametrize("change", [add, rename, into_a_new_folder, name_a_split])
def test_a_changed_folder_is_listed_anew(opened, monkeypatch, change):
    """What was kept must not hide a file that came, went, moved or got another split."""
    root, open_folder = opened
    before = open_folder().files()
    change(root)
    assert open_folder().files() != before


def test_a_list_of_a_split_that_is_written_over_is_seen(opened):
    """No folder changes its time then."""
    root, open_folder = opened
    name_a_split(root)
    for path in (root, *root.rglob("*")):
        os.utime(path, (time.time() - 3600,) * 2)
    assert len(open_folder().split("validation")) == 2
    assert len(open_folder().split("validation")) == 2
    with open(root / "ImageSets" / "val.txt", "w") as file:
        file.write("4\n")
    assert len(open_folder().split("validation")) == 1


def test_a_mask_that_is_written_over_is_seen_by_the_full_check(opened):
    """The price of a fast start, and the way out; small folders are looked at whole each time."""
    root, open_folder = opened
    changed = np.zeros_like(stripes(0))
    for path in (root / "masks").iterdir():
        with open(path, "wb") as file:  # in place: the folder keeps its time
            Image.fromarray(changed).save(file, "PNG")
    assert np.array(open_folder().split("train")[0]["annotation"]).any()
    assert not np.array(open_folder(full_check=True).split("train")[0]["annotation"]).any()
    assert not np.array(open_folder().split("train")[0]["annotation"]).any()


def test_a_folder_that_is_being_changed_is_not_kept(tmp_path, monkeypatch):
    """A file that comes in the same tick of the clock would never be seen."""
    monkeypatch.setattr(listing, "LARGE", 5)
    root = write_pairs(tmp_path / "data")
    open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), labels=NAMES).split("train")
    assert not (tmp_path / "cache" / "hf_segkd_listings").exists()


def test_small_folders_are_looked_at_whole(tmp_path):
    """There it costs nothing, and misses nothing."""
    root = write_pairs(tmp_path / "data")
    for path in (root, *root.rglob("*")):
        os.utime(path, (time.time() - 3600,) * 2)
    open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), labels=NAMES).split("train")
    assert not (tmp_path / "cache" / "hf_segkd_listings").exists()


def test_many_images_are_prepared_by_all_cores_in_the_same_order(tmp_path, monkeypatch):
    """A split whose order depended on the cores would be another split for every seed."""
    root = write_pairs(tmp_path / "data")
    ids, processes = [], []
    prepare = datasets.DatasetBuilder.download_and_prepare

    def counted(builder, num_proc=None):
        processes.append(num_proc)
        prepare(builder, num_proc=num_proc)

    monkeypatch.setattr(datasets.DatasetBuilder, "download_and_prepare", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for many in (7, 6):
        monkeypatch.setattr(built, "MANY", many)
        dataset = open_dataset("folder", str(root), cache_dir=str(tmp_path / f"cache{many}"), labels=NAMES)
        ids.append([row["image_id"] for row in dataset.split("train")])
    assert processes == [None, 2] and ids[0] == ids[1]

"""Folders as tools and people leave them: read right, or refused with what to do."""

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_builders import open_dataset
from dataset_builders.files import check_heic
from dataset_builders.prepare import prepare
from helpers.folder_checks import check, refusal
from helpers.odd_data import (
    photo,
    stripes,
    write_accents,
    write_beside,
    write_mmseg,
    write_pairs,
    write_parquet,
    write_turned,
    write_voc,
)
from helpers.own_photos import NAMES, save
from hf_segkd.deployment.label_files import find_images


@pytest.fixture
def opened(tmp_path):
    def open_folder(root, **options):
        return open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), **options)

    return open_folder


def assert_stripes(dataset, count: int) -> None:
    """All rows of all splits hold the masks that were written."""
    rows = [row for split in dataset.splits for row in dataset.split(split)]
    assert len(rows) == count
    for row in rows:
        number = int("".join(filter(str.isdigit, row["image_id"].split(".rf.")[0])))
        assert np.array_equal(np.array(row["annotation"]), stripes(number)), row["image_id"]


def sizes(dataset) -> dict[str, int]:
    return {split: len(pairs) for split, pairs in dataset.files().items()}


# ---- layouts and splits --------------------------------------------------------------------------------------------


def test_masks_beside_images_with_their_table_of_classes(tmp_path, opened):
    """Roboflow's layout needs no flag at all, and its held-out images stay held out."""
    dataset = opened(write_beside(tmp_path / "data"))
    assert sizes(dataset) == {"train": 6, "validation": 2, "test": 2} and dataset.spec.labels == tuple(NAMES)
    assert_stripes(dataset, 10)


@pytest.mark.parametrize("patterns", [None, ("*/*.jpg", "*/*_mask.png"), ("{split}/*", "{split}/*_mask")])
def test_patterns_keep_the_splits_of_the_folders(tmp_path, opened, patterns):
    """Pooled and drawn anew, the images that were held out are trained on."""
    options = dict(zip(("images", "masks"), patterns, strict=True)) if patterns else {}
    assert sizes(opened(write_beside(tmp_path / "data"), **options)) == {"train": 6, "validation": 2, "test": 2}


def test_patterns_over_png_photos_do_not_take_masks_for_photos(tmp_path, opened):
    """A mask among the images without a mask would be trained on as a photo."""
    for index in range(4):
        save(tmp_path / "data" / "all" / f"{index}.png", photo(index))
        save(tmp_path / "data" / "all" / f"{index}_mask.png", stripes(index))
    dataset = opened(tmp_path / "data", labels=NAMES, images="all/*.png", masks="all/*_mask.png")
    assert sum(sizes(dataset).values()) == 4


@pytest.mark.parametrize("patterns", [None, ("img_dir/*/*.jpg", "ann_dir/*/*.png")])
def test_mmseg_folders_keep_their_splits(tmp_path, opened, patterns):
    """The layout of mmsegmentation, by itself and by patterns."""
    options = dict(zip(("images", "masks"), patterns, strict=True)) if patterns else {}
    dataset = opened(write_mmseg(tmp_path / "data"), labels=NAMES, **options)
    assert sizes(dataset) == {"train": 7, "validation": 3}
    assert_stripes(dataset, 10)


def test_voc_lists_are_the_splits_and_the_rest_is_counted(tmp_path, opened):
    """VOC holds thousands of photos for detection that are in no list of segmentation."""
    dataset = opened(write_voc(tmp_path / "data"), labels=NAMES)
    assert sizes(dataset) == {"train": 3, "validation": 2}
    assert dataset.unused == ["JPEGImages/a b5.jpg", "JPEGImages/a b6.jpg"]
    assert_stripes(dataset, 5)


def test_a_list_that_names_a_missing_image_is_refused(tmp_path, opened):
    """Half a split would be trained on without a word."""
    root = write_voc(tmp_path / "data")
    (root / "JPEGImages" / "a b1.jpg").unlink()
    (root / "SegmentationClass" / "a b1.png").unlink()
    with pytest.raises(ValueError, match="train.txt names 'a b1'"):
        opened(root, labels=NAMES).files()


def test_a_folder_of_unlabeled_images_joins_the_training_split(tmp_path, opened):
    """What distillation learns from must not be dropped because it lies beside `train`."""
    for index in range(12):
        split = "train" if index < 4 else "val" if index < 6 else "unlabeled"
        save(tmp_path / "data" / "images" / split / f"{index}.jpg", photo(index))
        if index < 6:
            save(tmp_path / "data" / "masks" / split / f"{index}.png", stripes(index))
    dataset = opened(tmp_path / "data", labels=NAMES)
    assert sizes(dataset) == {"train": 10, "validation": 2} and dataset.unused == []


def test_labeled_images_outside_the_splits_are_counted_as_unused(tmp_path, opened):
    """Whoever divides by hand may have left them out on purpose, or forgotten them."""
    for index, split in enumerate(("train", "train", "val", "old")):
        save(tmp_path / "data" / "images" / split / f"{index}.jpg", photo(index))
        save(tmp_path / "data" / "masks" / split / f"{index}.png", stripes(index))
    dataset = opened(tmp_path / "data", labels=NAMES)
    assert sizes(dataset) == {"train": 2, "validation": 1}
    assert dataset.unused == ["images/old/3.jpg", "masks/old/3.png"]


def test_augmented_copies_stay_on_one_side_of_a_drawn_split(tmp_path, opened):
    """A turned copy of a training image in the validation split makes the score too good."""
    for index in range(8):
        for copy in range(3):
            name = f"{index}_jpg.rf.{index}{copy}ab"
            save(tmp_path / "data" / "images" / f"{name}.jpg", photo(3 * index + copy))
            save(tmp_path / "data" / "masks" / f"{name}.png", stripes(index))
    files = opened(tmp_path / "data", labels=NAMES, validation_fraction=0.4).files()
    origins = {split: {image.stem.split(".rf.")[0] for image, _ in pairs} for split, pairs in files.items()}
    assert origins["train"] and origins["validation"] and not origins["train"] & origins["validation"]


def test_names_that_macos_took_apart_match(tmp_path, opened):
    """The two spellings of one name look identical in any message."""
    assert_stripes(opened(write_accents(tmp_path / "data"), labels=NAMES), 4)


def test_thumbnails_of_network_disks_are_no_photos(tmp_path, opened):
    """@eaDir holds files that are called like the photos."""
    root = write_pairs(tmp_path / "data")
    for folder in ("@eaDir", "__MACOSX"):
        (root / "images" / folder).mkdir()
        (root / "images" / folder / "0.png").write_bytes(b"x")
    (root / "images" / "Thumbs.db").write_bytes(b"x")
    assert_stripes(opened(root, labels=NAMES), 6)
    assert check(root) == []


def test_jfif_counts_and_other_suffixes_are_listed(tmp_path, opened):
    """Browsers save photos as .jfif; who has another suffix must read which ones count."""
    for index in range(4):
        save(tmp_path / "data" / "masks" / f"{index}.png", stripes(index))
        (tmp_path / "data" / "images").mkdir(exist_ok=True)
        photo(index).save(tmp_path / "data" / "images" / f"{index}.jfif", format="JPEG", quality=95)
    assert_stripes(opened(tmp_path / "data", labels=NAMES), 4)
    (tmp_path / "other" / "images").mkdir(parents=True)
    (tmp_path / "other" / "images" / "1.xyz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"Suffixes that count: .*\.jfif"):
        opened(tmp_path / "other", labels=NAMES).files()


def write_heic(root) -> None:
    """Four photos as a phone stores them, with their masks."""
    pillow_heif = pytest.importorskip("pillow_heif")
    (root / "images").mkdir(parents=True)
    for index in range(4):
        save(root / "masks" / f"{index}.png", stripes(index))
        pillow_heif.from_pillow(photo(index)).save(root / "images" / f"{index}.heic", quality=90)


def test_photos_of_phones_are_read(tmp_path, opened):
    """With pillow-heif installed they are pictures like others."""
    write_heic(tmp_path / "data")
    assert_stripes(opened(tmp_path / "data", labels=NAMES), 4)
    assert check(tmp_path / "data") == []
    assert list(find_images([tmp_path / "data" / "images"])) == ["0", "1", "2", "3"]


def test_photos_of_phones_are_refused_with_what_to_install(tmp_path, opened, monkeypatch):
    """Left out in silence, their masks would be called superfluous."""
    monkeypatch.setattr("hf_segkd.data.heif.is_readable", lambda: False)
    root = write_pairs(tmp_path / "data")
    check_heic(["images/0.heic", "images/0.png"])  # the same photo, exported twice
    (root / "images" / "7.HEIC").write_bytes(b"x")
    for look in (lambda: opened(root, labels=NAMES).files(), lambda: find_images([root])):
        with pytest.raises(ValueError, match=r"1 photos are HEIC.*images/7.HEIC. pip install 'hf-segkd\[heic\]'"):
            look()


# ---- what is stored in a mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convert", "suffix", "options"),
    [
        (lambda ids: np.stack([ids] * 3, -1), "png", {}),
        (lambda ids: np.dstack([ids, ids, ids, np.full_like(ids, 255)]), "png", {}),
        (lambda ids: ids.astype(np.float32), "tif", {}),
        (lambda ids: ids.astype(np.int64), "npy", {}),
        (lambda ids: ids.astype(np.float32)[..., None], "npy", {}),
        (lambda ids: ids + 1, "png", {"zero_is_unlabeled": True}),
        (lambda ids: ids.astype(np.int32) - 1, "npy", {"label_map": {"-1": 0, "0": 1, "1": 2}}),
        (lambda ids: ids.astype(np.uint16), "png", {"ignore_index": 65535}),
        (lambda ids: ids.astype(np.int32), "npy", {"ignore_index": -100}),
    ],
    ids=["rgb", "rgba", "float", "int64", "channel", "from one", "negative", "16 bit", "ignored -100"],
)
def test_class_ids_are_read_however_they_are_stored(tmp_path, opened, convert, suffix, options):
    """Each is what some tool writes for the same ids, and none is ambiguous."""
    root = write_pairs(tmp_path / "data", convert=convert, suffix=suffix)
    assert_stripes(opened(root, labels=NAMES, **options), 6)
    assert check(root, **options) == []


def test_zero_and_any_value_may_mean_unlabeled(tmp_path, opened):
    """ADE20K counts from 1 and leaves 0 to what nobody labeled."""
    root = write_pairs(tmp_path / "data", convert=lambda ids: np.where(ids == 2, 77, ids))
    options = {"labels": ["crack", "rust"], "zero_is_unlabeled": True, "ignore_index": 77, "label_map": None}
    row = opened(root, **options).split("train")[0]
    found = np.array(row["annotation"])
    assert np.array_equal(found == 0, stripes(int(row["image_id"])) == 1) and set(found.flat) == {0, 255}


def test_fractions_are_no_class_ids(tmp_path):
    """Probabilities cut down to whole numbers would all be background."""
    root = write_pairs(tmp_path / "data", convert=lambda ids: ids.astype(np.float32) / 2, suffix="tif")
    assert "fractions" in refusal(root) and "holds numbers such as 0.5" in refusal(root)


def test_masks_of_0_and_255_are_asked_about_and_answered_by_one_flag(tmp_path, opened):
    """255 is the object in every binary tool, and unlabeled in every benchmark."""
    root = write_pairs(tmp_path / "data", convert=lambda ids: (ids == 1).astype(np.uint8) * 255)
    names = ["background", "crack"]
    assert "Is 255 the object, or unlabeled? Say --value_255 object" in refusal(root, labels=names)
    assert check(root, labels=names, value_255="object") == check(root, labels=names, value_255="unlabeled") == []
    row = opened(root, labels=names, value_255="object").split("train")[0]
    assert np.array_equal(np.array(row["annotation"]), stripes(int(row["image_id"])) == 1)
    with pytest.raises(ValueError, match="value_255 object means two classes"):
        check(root, labels=NAMES, value_255="object")


def test_one_class_is_refused_with_the_background_to_name(tmp_path):
    """With one class every prediction is right and nothing is learned."""
    with pytest.raises(ValueError, match="--labels background crack"):
        check(write_pairs(tmp_path / "data"), labels=["crack"])


def test_pictures_of_one_pixel_are_named(tmp_path, opened):
    """Batch statistics over one pixel end a training somewhere in its middle."""
    root = write_pairs(tmp_path / "data")
    save(root / "images" / "2.png", photo(2).crop((0, 0, 1, 1)))
    save(root / "masks" / "2.png", stripes(2)[:1, :1].copy())
    assert "tiny image" in refusal(root)
    with pytest.raises(ValueError, match="2.png is 1 x 1 pixels"):
        opened(root, labels=NAMES).split("train")


def test_masks_drawn_on_stored_pixels_are_warned_about_and_turned(tmp_path, opened, caplog):
    """Turned by 180 degrees both sizes agree: every label is wrong and nothing fails."""
    root = write_turned(tmp_path / "data")
    assert check(root) == [] and "--turn_masks" in caplog.text
    caplog.clear()
    assert check(root, turn_masks=True) == [] and "turned image" not in caplog.text
    assert_stripes(opened(root, labels=NAMES, turn_masks=True), 4)


# ---- stored datasets -----------------------------------------------------------------------------------------------


def stored(root, tmp_path, **options):
    return open_dataset(str(root), cache_dir=str(tmp_path / "cache"), **options)


def test_names_of_another_column_are_not_those_of_the_masks(tmp_path):
    """A column of scenes gave the student the classes airport, beach and street."""
    root = write_parquet(tmp_path / "data", scene_category=["airport", "beach", "street"])
    assert stored(root, tmp_path).spec.labels == tuple(NAMES)
    (root / "id2label.json").unlink()
    with pytest.raises(ValueError, match="The classes have no names"):
        str(stored(root, tmp_path).spec)


def test_a_gap_in_the_names_is_named(tmp_path):
    """Counted on, every class after the gap would have another's name."""
    root = write_parquet(tmp_path / "data", names={1: "crack", 2: "rust"})
    with pytest.raises(ValueError, match=r"id2label.json numbers the classes \[1, 2\].*0 has no name"):
        str(stored(root, tmp_path).spec)
    assert stored(root, tmp_path, zero_is_unlabeled=True).spec.labels == ("crack", "rust")


def test_a_missing_part_is_named(tmp_path):
    """An interrupted copy trains on the rest."""
    root = write_parquet(tmp_path / "data")
    (root / "train-00000-of-00001.parquet").rename(root / "train-00000-of-00002.parquet")
    with pytest.raises(ValueError, match="lacks 1 of 2 parts: train-00001-of-00002.parquet"):
        stored(root, tmp_path).split("train")


def test_a_missing_split_of_our_own_export_is_noticed(tmp_path, opened):
    """Its validation split would be drawn anew from the images trained on."""
    prepare(opened(write_pairs(tmp_path / "data"), labels=NAMES), str(tmp_path / "out"))
    assert sorted(stored(tmp_path / "out", tmp_path).splits) == ["train", "validation"]
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    next((tmp_path / "out").glob("validation-*.parquet")).unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match=f"was exported with the rows .*'validation': {rows['validation']}"):
        stored(tmp_path / "out", tmp_path).split("train")


def test_columns_of_a_stored_dataset_can_be_read_without_its_masks(tmp_path):
    """`predict --dataset` needs the photos and their names alone."""
    rows = stored(write_parquet(tmp_path / "data"), tmp_path).split("train")
    assert isinstance(rows.select_columns("image")[0]["image"], Image.Image)
    assert list(rows.select_columns("image_id")["image_id"]) == list(rows["image_id"])
    assert isinstance(rows, datasets.Dataset)

"""Folders of images and masks of one's own."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from dataset_builders import open_dataset
from dataset_builders.own_classes import Meaning, own_classes
from helpers.own_photos import NAMES, ids, picture, save, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def load(tmp_path):
    def load_folder(root: Path, split: str = "train", **config) -> datasets.Dataset:
        cache = str(tmp_path / "cache")
        return open_dataset("folder", str(root), cache_dir=cache, **{"labels": NAMES, **config}).split(split)

    return load_folder


def test_folder_pairs_by_name_and_keeps_unlabeled_images_for_training(photos, load, caplog):
    """Unlabeled photos are what distillation can use; validating on them would score nothing."""
    train, validation = load(photos), load(photos, "validation")
    assert sorted([*train["image_id"], *validation["image_id"]]) == sorted(map(str, range(12)))
    bare = [row for row in train if set(np.array(row["annotation"]).flat) == {255}]
    assert sorted(row["image_id"] for row in bare) == ["10", "11"]
    for row in (*train, *validation):
        if row["image_id"] not in ("10", "11"):
            assert np.array_equal(np.array(row["annotation"]), ids(int(row["image_id"])))
    assert "2 of 12 train images have no mask" in caplog.text


def test_split_depends_on_names_and_seed_alone(photos, load):
    """A validation image that moves into the train split when photos are added makes every score too good."""
    chosen = {
        seed: set(load(photos, "validation", validation_fraction=0.3, split_seed=seed)["image_id"]) for seed in (0, 1)
    }
    assert chosen[0] != chosen[1] and chosen[0] and chosen[1]
    assert not chosen[0] & set(load(photos, "train", validation_fraction=0.3)["image_id"])
    for index in range(20, 30):
        save(photos / "images" / f"{index}.jpg", picture(index))
        save(photos / "masks" / f"{index}.png", ids(index))
    again = set(load(photos, "validation", validation_fraction=0.3)["image_id"])
    assert again & set(map(str, range(12))) == chosen[0] and len(again) > len(chosen[0])


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}"])
def test_folder_keeps_splits_that_exist(tmp_path, load, layout):
    """A split by hand, say by building or by day, is better than a random one."""
    for index, split in enumerate(("train", "train", "val", "test")):
        for kind, content, suffix in (("images", picture(index), "jpg"), ("masks", ids(index), "png")):
            save(tmp_path / "data" / layout.format(kind=kind, split=split, name=f"{index}.{suffix}"), content)
    found = {split: load(tmp_path / "data", split)["image_id"] for split in ("train", "validation", "test")}
    assert found == {"train": ["0", "1"], "validation": ["2"], "test": ["3"]}


def test_patterns_pair_by_what_their_stars_stand_for(tmp_path, load):
    """Annotation tools name the files; renaming thousands of them is where pairs get mixed up."""
    for index in range(4):
        save(tmp_path / "data" / f"day{index % 2}" / f"photo_{index}.jpg", picture(index))
        save(tmp_path / "data" / "out" / f"day{index % 2}" / f"photo_{index}_mask.png", ids(index))
    patterns = {"images": "*/photo_*.jpg", "masks": "out/*/photo_*_mask.png"}
    rows = [*load(tmp_path / "data", **patterns), *load(tmp_path / "data", "validation", **patterns)]
    assert sorted(row["image_id"] for row in rows) == [f"photo_{index}" for index in range(4)]
    for row in rows:
        assert np.array_equal(np.array(row["annotation"]), ids(int(row["image_id"][-1])))
    with pytest.raises(ValueError, match="Give both patterns"):
        load(tmp_path / "data", images="*.jpg")


def test_color_masks_are_read_with_a_color_map(photos, load):
    """Most annotation tools export colors; the map's names are the classes when no others are given."""
    palette = np.array([(0, 0, 0), (255, 0, 0), (128, 64, 0)], dtype=np.uint8)
    for index in range(10):
        stem = "site/3" if index == 3 else str(index)
        save(photos / "masks" / f"{stem}.png", palette[np.where(ids(index) == 255, 0, ids(index))])
    colors = {"#000000": "background", "255,0,0": "crack", "(128, 64, 0)": "rust"}
    rows = load(photos, labels=None, label_map=colors)
    row = next(row for row in rows if row["image_id"] == "0" or row["image_id"] == "1")
    expected = ids(int(row["image_id"]))
    expected[0, 0] = 0
    assert np.array_equal(np.array(row["annotation"]), expected)
    assert open_dataset("folder", str(photos), label_map=colors).spec.labels == tuple(NAMES)
    del colors["(128, 64, 0)"]
    with pytest.raises(ValueError, match=r"holds the values \['#804000'\]; .* Add them to the label map"):
        load(photos, labels=None, label_map=colors)
    with pytest.raises(ValueError, match="is a color picture, .* Give a label_map"):
        load(photos)


def test_raw_values_are_mapped_by_name_id_or_to_nothing(photos, load, tmp_path):
    """Masks of other tools start at 1, skip numbers, or use 0 for unlabeled."""
    raw = np.array([9, 70, 300, 0], dtype=np.uint16)
    for index in range(10):
        stem = "site/3" if index == 3 else str(index)
        save(photos / "masks" / f"{stem}.png", raw[np.where(ids(index) == 255, 3, ids(index))].astype(np.uint16))
    (tmp_path / "map.json").write_text(json.dumps({"9": "background", "70": 1, "300": "rust", "0": None}))
    (tmp_path / "map.yaml").write_text("9: background\n70: 1\n300: rust\n0: null\n")
    for name in ("map.json", "map.yaml"):
        row = load(photos, label_map=str(tmp_path / name))[0]
        assert np.array_equal(np.array(row["annotation"]), ids(int(row["image_id"])))
    with pytest.raises(ValueError, match=r"holds the values \[9, 70, 300\]; allowed are 0 to 2 and 255"):
        load(photos, ignore_index=255)


def test_cache_sees_a_changed_label_map(photos, load, tmp_path):
    """The file keeps its name: a cache keyed on options alone would go on with yesterday's classes."""
    found = []
    for last in ("rust", "crack"):
        (tmp_path / "map.json").write_text(json.dumps({"0": "background", "1": "crack", "2": last}))
        found.append(set(np.array(load(photos, label_map=str(tmp_path / "map.json"))[0]["annotation"]).flat))
    assert found == [{0, 1, 2, 255}, {0, 1, 255}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "The classes have no names. Give --labels labels.txt"),
        ({"labels": ["a", "a"]}, "different class names; got 2, repeated: ['a']"),
        ({"labels": "missing.txt"}, "The file 'missing.txt' given as labels does not exist"),
        ({"ignore_index": 0}, "ignore_index 0 is also the id of class 'background'"),
        ({"label_map": {"1": "mould"}}, "sends 1 to 'mould', which is no class name, no id from 0 to 2"),
        ({"label_map": {"1": 3}}, "sends 1 to 3"),
        ({"label_map": {"1": "crack", "#ff0000": "rust"}}, "maps either values or colors"),
        ({"label_map": {"#ff00": "rust"}}, "'#ff00' in the label_map is neither a value nor a color"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1, got 1.0"),
        ({"label_colum": "x"}, "no option 'label_colum'"),
    ],
)
def test_contradicting_options_are_refused(photos, load, options, message):
    """Each of them would train on wrong classes without any error."""
    with pytest.raises(ValueError) as error:
        load(photos, **options)
    assert message in str(error.value)


def test_class_names_come_from_text_json_or_a_list(tmp_path):
    """The same names in every form people have them in."""
    forms = {"labels.txt": "\n".join(NAMES) + "\n\n", "list.json": json.dumps(NAMES)}
    forms["id2label.json"] = json.dumps({"2": "rust", "0": "background", "1": "crack"})
    for file, text in forms.items():
        (tmp_path / file).write_text(text)
        assert own_classes(str(tmp_path / file), Meaning())[0] == tuple(NAMES)
    (tmp_path / "gap.json").write_text('{"0": "a", "2": "b"}')
    with pytest.raises(ValueError, match=r"numbers the classes \[0, 2\]..., expected 0, 1, 2"):
        own_classes(str(tmp_path / "gap.json"), Meaning())


def test_folders_that_do_not_pair_up_are_refused(photos, load, tmp_path):
    """Masks that match no image mean that names differ: everything would silently be unlabeled."""
    save(photos / "masks" / "x_mask.png", ids(0))
    with pytest.raises(ValueError, match=r"1 of 11 masks \(masks/\*\*/\*\) have no image .*: x_mask"):
        load(photos)
    save(tmp_path / "bare" / "images" / "1.png", picture(1))
    with pytest.raises(ValueError, match=r"1 of 1 train images .* have no mask"):
        load(tmp_path / "bare")
    save(tmp_path / "wrong" / "pictures" / "1.png", picture(1))
    with pytest.raises(ValueError, match="holds no images/ .*; found pictures.*docs/your_own_data.md"):
        load(tmp_path / "wrong")
    save(photos / "images" / "4.png", picture(1))
    with pytest.raises(ValueError, match=r"Both .*4\.jpg and .*4\.png match images"):
        (photos / "masks" / "x_mask.png").unlink()
        load(photos)


def test_pictures_to_score_on_need_none_to_train_on(load, tmp_path):
    """Photos set aside to score a model lie in a folder of their own; whoever trains on them is told what there is."""
    for kind, draw in (("images", picture), ("masks", ids)):
        save(tmp_path / kind / "val" / "1.png", draw(1))
    assert len(load(tmp_path, "validation")) == 1
    with pytest.raises(ValueError, match="has no split 'train'. Available: validation"):
        load(tmp_path)
    for kind, draw in (("images", picture), ("masks", ids)):
        save(tmp_path / kind / "train" / "2.png", draw(2))
    assert len(load(tmp_path, "validation")) == 1

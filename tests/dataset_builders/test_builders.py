import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_builders import BUILDERS, DATASETS, open_dataset, street_scenes
from dataset_builders.prepare import main as prepare
from dataset_builders.street_scenes import draw_scene
from helpers.paths import ROOT

SMALL = {"num_train": 3, "num_validation": 2, "num_test": 1, "height": 48, "width": 64}


def write_pair(root: Path, folder: str, stem: str, values=(0, 10, 11, 255), suffixes=(".png", ".png"), size=(6, 4)):
    """One image and annotation of `size` (width, height); the first annotation pixels hold `values`."""
    for name in (folder, f"{folder}annot"):
        (root / name).mkdir(parents=True, exist_ok=True)
    labels = np.zeros(size[::-1], dtype=np.uint8)
    labels.flat[: len(values)] = values
    Image.new("RGB", (6, 4), (len(stem), 20, 30)).save(root / folder / f"{stem}{suffixes[0]}")
    Image.fromarray(labels).save(root / f"{folder}annot" / f"{stem}{suffixes[1]}")


@pytest.fixture
def folder(tmp_path):
    """A small CamVid with two training, one validation and one test image."""
    root = tmp_path / "camvid"
    for name, stem in (("train", "b"), ("train", "a"), ("val", "c"), ("test", "d")):
        write_pair(root, name, stem)
    return root


@pytest.fixture
def load(tmp_path):
    def load_camvid(root: Path, split: str = "train") -> datasets.Dataset:
        return open_dataset("camvid", str(root), cache_dir=str(tmp_path / "cache")).split(split)

    return load_camvid


def test_every_builder_has_a_spec():
    """A builder without label names would train a model without id2label."""
    assert set(BUILDERS) - {"folder"} == set(DATASETS)


def test_camvid_annotations_become_train_ids_with_void_ignored(folder, load):
    """Void kept as class 11 would crash an 11-class loss; 255 must survive as it is."""
    row = load(folder)[0]
    assert np.array(row["annotation"]).flat[:4].tolist() == [0, 10, 255, 255]
    assert (row["image_id"], row["image"].mode, row["image"].size) == ("a", "RGB", (6, 4))


def test_camvid_images_are_not_encoded_again(folder, load):
    """Re-encoding a JPEG loses quality, and copies of all images fill the cache."""
    raw = load(folder).cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw["bytes"] is None and Path(raw["path"]) == folder / "train" / "a.png"


@pytest.mark.parametrize("suffixes", [(".jpg", ".png"), (".BMP", ".tif"), (".jpeg", ".bmp")])
def test_pairs_are_matched_by_stem_whatever_the_suffixes(tmp_path, load, suffixes):
    """Users convert images; the annotation then has another suffix than the image."""
    write_pair(tmp_path / "data", "train", "x", suffixes=suffixes)
    (tmp_path / "data" / "train" / "Thumbs.db").write_bytes(b"junk")
    assert load(tmp_path / "data")["image_id"] == ["x"]


def test_list_files_choose_and_order_the_images(folder, load):
    """Published splits are lists: extra files in the folder must not leak into them."""
    write_pair(folder, "train", "extra")
    lines = [f"/SegNet/CamVid/train/{stem}.png /SegNet/CamVid/trainannot/{stem}.png" for stem in "ba"]
    (folder / "train.txt").write_text("\r\n".join(lines) + "\r\n\r\n")
    assert load(folder)["image_id"] == ["b", "a"]


def test_list_files_find_images_converted_to_another_format(folder, load):
    """The lists name .png files also where the images were converted to .jpg."""
    (folder / "train.txt").write_text("train/x.png trainannot/x.png\n")
    write_pair(folder, "train", "x", suffixes=(".jpg", ".png"))
    assert load(folder)["image_id"] == ["x"]


def test_a_listed_file_that_is_missing_is_named(folder, load):
    """Skipping it would report scores on fewer images than published."""
    (folder / "val.txt").write_text("val/c.png valannot/c.png\nval/gone.png valannot/gone.png\n")
    with pytest.raises(ValueError, match=r"val.gone\.png does not exist, but line 2 of .*val\.txt names it"):
        load(folder)


def test_a_broken_list_line_is_named(folder, load):
    """A list of images without annotations is another format."""
    (folder / "train.txt").write_text("train/a.png\n")
    with pytest.raises(ValueError, match=r"Line 1 of .*train\.txt holds 1 paths"):
        load(folder)


@pytest.mark.parametrize(("lacking", "other"), [("train", "trainannot"), ("trainannot", "train")])
def test_images_and_masks_without_counterpart_are_named(folder, load, lacking, other):
    """Dropping them silently would train on less than the user thinks."""
    (folder / lacking / "a.png").unlink()
    with pytest.raises(ValueError, match=rf"1 file.* of .*{other} have no counterpart .* in .*{lacking}: a\."):
        load(folder)


def test_two_images_of_one_stem_are_refused(folder, load):
    """Which of the two was used would depend on the file system."""
    shutil.copy(folder / "train" / "a.png", folder / "train" / "a.bmp")
    with pytest.raises(ValueError, match=r"both a\.bmp and a\.png"):
        load(folder)


@pytest.mark.parametrize("values", [(12,), (0, 40, 254)])
def test_raw_values_outside_the_classes_are_named(folder, load, values):
    """The 32-class ids would otherwise fail on the GPU, or train on wrong classes."""
    write_pair(folder, "train", "odd", values=values)
    wrong = str([value for value in values if value > 11]).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"trainannot.odd\.png holds the values {wrong}; allowed are 0 to 10, 11"):
        load(folder)


def test_color_masks_unequal_sizes_and_broken_files_are_named(folder, load):
    """Each of these would surface as an unrelated error deep inside training."""
    mask = folder / "trainannot" / "a.png"
    Image.new("RGB", (6, 4), (128, 0, 0)).save(mask)
    with pytest.raises(ValueError, match=r"a\.png is a color picture"):
        load(folder)
    Image.new("L", (4, 6)).save(mask)
    with pytest.raises(ValueError, match=r"a\.png has 4 x 6 pixels, its image 6 x 4"):
        load(folder)
    mask.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"Cannot read the pair .*a\.png"):
        load(folder)


def test_wrong_folder_says_what_was_looked_for_and_found(tmp_path, load):
    """The most common first mistake must be answered in one message, before any work."""
    (tmp_path / "data" / "pictures").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"looked for train/ \+ trainannot/, val/.*; found pictures\."):
        load(tmp_path / "data")
    with pytest.raises(ValueError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs data_dir"):
        open_dataset("camvid").split("train")
    assert not (tmp_path / "cache").exists(), "work began before the folder was checked"


def test_parent_folder_is_answered_with_the_right_one(folder, load):
    """Pointing one level too high is easy after unpacking an archive."""
    with pytest.raises(ValueError, match="Did you mean .*camvid"):
        load(folder.parent)


def test_a_missing_split_matters_only_when_it_is_asked_for(folder, load):
    """Many copies of the data come without test annotations."""
    shutil.rmtree(folder / "test")
    shutil.rmtree(folder / "testannot")
    assert len(load(folder, "train")) == 2
    with pytest.raises(ValueError, match="has no split 'test'.*Available: train, validation"):
        load(folder, "test")


def test_whole_datasets_without_a_split_say_so(folder, tmp_path, caplog):
    """A download that stopped after the training images would be pushed to the Hub as CamVid."""
    for name in ("val", "valannot", "test", "testannot"):
        shutil.rmtree(folder / name)
    splits = open_dataset("camvid", str(folder), cache_dir=str(tmp_path / "cache")).all_splits()
    assert list(splits) == ["train"]
    assert "lacks the validation and test of camvid: prepared without. Get the folder CamVid of" in caplog.text


def test_half_a_split_is_refused(folder, load):
    """A forgotten annotation folder is not an absent split."""
    shutil.rmtree(folder / "valannot")
    with pytest.raises(ValueError, match="lacks the folder 'valannot'"):
        load(folder, "train")


def test_cache_sees_added_and_changed_files(folder, load):
    """A cache keyed on the folder's name alone would serve the old data."""
    assert len(load(folder)) == 2
    write_pair(folder, "train", "new")
    assert len(load(folder)) == 3
    write_pair(folder, "train", "a", values=(7, 7, 7, 7))
    assert np.array(load(folder)[0]["annotation"]).flat[:4].tolist() == [7, 7, 7, 7]


def test_cache_sees_changes_of_the_code_that_rows_depend_on(tmp_path, monkeypatch):
    """Scenes drawn by last month's code would be served under today's numbers."""
    before = open_dataset("synthetic", cache_dir=str(tmp_path), **SMALL).split("train").cache_files[0]["filename"]
    (tmp_path / "changed.py").write_text("other code")
    monkeypatch.setattr(street_scenes, "__file__", str(tmp_path / "changed.py"))
    after = open_dataset("synthetic", cache_dir=str(tmp_path), **SMALL).split("train").cache_files[0]["filename"]
    assert before != after


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("camvids", "train", "Unknown dataset 'camvids'. Did you mean 'camvid'?"),
        ("synthetic", "valid", "has no split 'valid'. Did you mean 'validation'?"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(name, split, message):
    """A typo in a recipe must not read like missing data."""
    with pytest.raises(ValueError) as error:
        open_dataset(name).split(split)
    assert message in str(error.value)


def test_synthetic_splits_have_the_configured_size(tmp_path):
    """Fields of the config must reach the drawing, and enter the cache key."""
    splits = open_dataset("synthetic", cache_dir=str(tmp_path), **SMALL).all_splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "validation": 2, "test": 1}
    row = splits["train"][2]
    image, labels = draw_scene("train", 2, 48, 64, seed=0)
    assert np.array_equal(np.array(row["image"]), image) and np.array_equal(np.array(row["annotation"]), labels)
    assert row["image_id"] == "train_00002"
    wide = open_dataset("synthetic", cache_dir=str(tmp_path), **SMALL | {"width": 80}).split("train[:1]")
    assert wide[0]["image"].size == (80, 48)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"height": 8}, "height .* at least 32, got 8"),
        ({"num_trian": 3}, "no option 'num_trian'. Did you mean 'num_train'"),
    ],
)
def test_bad_synthetic_configuration_is_refused(tmp_path, config, message):
    """A misspelled size in a recipe would silently be the default."""
    with pytest.raises(ValueError, match=message):
        open_dataset("synthetic", cache_dir=str(tmp_path), **config).split("train")


def test_scenes_depend_on_seed_split_and_index_only():
    """Validation scenes that repeat training scenes would make every student look good."""
    image, labels = draw_scene("train", 5, 96, 128, seed=0)
    draw_scene("train", 6, 96, 128, seed=0)
    again = draw_scene("train", 5, 96, 128, seed=0)
    assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    for other in (("validation", 5, 0), ("test", 5, 0), ("train", 4, 0), ("train", 5, 1)):
        assert not np.array_equal(draw_scene(other[0], other[1], 96, 128, other[2])[0], image)


@pytest.mark.parametrize("size", [(96, 128), (32, 32), (65, 97)])
def test_scenes_hold_valid_labels_and_all_classes(size):
    """A class that never appears would be NaN in every table."""
    seen = np.zeros(256, dtype=int)
    for index in range(30):
        image, labels = draw_scene("train", index, *size, seed=0)
        assert image.shape == (*size, 3) and labels.shape == size and image.dtype == labels.dtype == np.uint8
        seen += np.bincount(labels.ravel(), minlength=256)
    assert (seen[: DATASETS["synthetic"].num_labels] > 0).all()
    assert seen[DATASETS["synthetic"].num_labels : 255].sum() == 0
    assert seen[255] < 0.1 * seen.sum()


def test_script_prepares_camvid_and_counts_it(folder, tmp_path, monkeypatch):
    """The saved folder must be readable on its own, and differing counts must be pointed out."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    script = [sys.executable, str(ROOT / "dataset_builders" / "camvid.py"), "--output", "out", "--data_dir"]
    done = subprocess.run([*script, str(folder)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train: 2 images" in done.stdout and "train split of camvid has 367 images, this one has 2" in done.stderr
    shutil.rmtree(folder)  # the export embeds the images
    assert datasets.load_dataset(str(tmp_path / "out"))["train"][1]["image"].size == (6, 4)
    with pytest.raises(SystemExit, match="not empty"):
        prepare("camvid", "", ["--output", str(tmp_path / "out"), "--data_dir", str(folder)])


def test_published_camvid_has_the_published_counts(camvid):
    """Scores are comparable on 367 / 101 / 233 images only."""
    counts = {split: len(pairs) for split, pairs in open_dataset("camvid", str(camvid)).files().items()}
    assert counts == {"train": 367, "validation": 101, "test": 233}


def test_camvid_trainval_trains_on_the_validation_pairs_too(folder, tmp_path):
    """The released ESPNets were fitted to both splits; what continues from them must be able to do the same."""
    pairs = open_dataset("camvid", str(folder), trainval=True).files()
    assert pairs["train"] == open_dataset("camvid", str(folder)).files()["train"] + pairs["validation"]
    rows = open_dataset("camvid", str(folder), cache_dir=str(tmp_path / "cache"), trainval=True).split("train")
    assert len(rows) == len(pairs["train"]) == 3

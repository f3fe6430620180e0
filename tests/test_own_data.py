"""Data of one's own: folders of images and masks, and datasets that `datasets` opens."""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from dataset_builders import dataset_spec, load_split, load_splits
from dataset_builders.own_classes import own_classes
from hf_segkd.config import DistillationConfig
from hf_segkd.recipe import parse

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "scripts" / "recipes"
NAMES = ["background", "crack", "rust"]


def script(name: str):
    """Import a script by path: `scripts/evaluate.py` must not shadow the `evaluate` package."""
    spec = importlib.util.spec_from_file_location(f"own_data_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


distill, evaluate = script("distill"), script("evaluate")


def picture(index: int, size=(40, 32)) -> Image.Image:
    pixels = np.random.default_rng(index).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ids(index: int, size=(40, 32)) -> np.ndarray:
    """Three stripes of classes 0, 1, 2, shifted by `index`, and one pixel without a label."""
    labels = np.broadcast_to((np.arange(size[0]) // 5 + index) % 3, size[::-1]).astype(np.uint8)
    labels[0, 0] = 255
    return labels


def save(path: Path, image: Image.Image | np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


@pytest.fixture
def photos(tmp_path):
    """Ten images with masks, one of them in a subfolder, and two without."""
    for index in range(12):
        stem = f"site/{index}" if index == 3 else f"{index}"
        save(tmp_path / "photos" / "images" / f"{stem}.jpg", picture(index))
        if index < 10:
            save(tmp_path / "photos" / "masks" / f"{stem}.png", ids(index))
    return tmp_path / "photos"


@pytest.fixture
def load(tmp_path):
    def load_folder(root: Path, split: str = "train", **config) -> datasets.Dataset:
        cache = str(tmp_path / "cache")
        return load_split("folder", str(root), split, cache_dir=cache, **{"labels": NAMES, **config})

    return load_folder


def test_folder_pairs_by_name_and_keeps_unlabelled_images_for_training(photos, load, caplog):
    """Unlabelled photos are what distillation can use; validating on them would score nothing."""
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


def test_colour_masks_are_read_with_a_colour_map(photos, load):
    """Most annotation tools export colours; the map's names are the classes when no others are given."""
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
    assert dataset_spec("folder", str(photos), label_map=colors).labels == tuple(NAMES)
    del colors["(128, 64, 0)"]
    with pytest.raises(ValueError, match=r"holds the values \['#804000'\]; .* Add them to the label map"):
        load(photos, labels=None, label_map=colors)
    with pytest.raises(ValueError, match="is a colour picture, .* Give a label_map"):
        load(photos)


def test_raw_values_are_mapped_by_name_id_or_to_nothing(photos, load, tmp_path):
    """Masks of other tools start at 1, skip numbers, or use 0 for unlabelled."""
    raw = np.array([9, 70, 300, 0], dtype=np.uint16)
    for index in range(10):
        stem = "site/3" if index == 3 else str(index)
        save(photos / "masks" / f"{stem}.png", raw[np.where(ids(index) == 255, 3, ids(index))].astype(np.uint16))
    (tmp_path / "map.json").write_text(json.dumps({"9": "background", "70": 1, "300": "rust", "0": None}))
    row = load(photos, label_map=str(tmp_path / "map.json"))[0]
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
        ({"label_map": {"1": "crack", "#ff0000": "rust"}}, "maps either values or colours"),
        ({"label_map": {"#ff00": "rust"}}, "'#ff00' in the label_map is neither a value nor a colour"),
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
        assert own_classes(str(tmp_path / file), None, 255)[0] == tuple(NAMES)
    (tmp_path / "gap.json").write_text('{"0": "a", "2": "b"}')
    with pytest.raises(ValueError, match=r"numbers the classes \[0, 2\]..., expected 0, 1, 2"):
        own_classes(str(tmp_path / "gap.json"), None, 255)


def test_folders_that_do_not_pair_up_are_refused(photos, load, tmp_path):
    """Masks that match no image mean that names differ: everything would silently be unlabelled."""
    save(photos / "masks" / "x_mask.png", ids(0))
    with pytest.raises(ValueError, match=r"1 of 11 train masks \(masks/\*\*/\*\) have no image .*: x_mask"):
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


def table(count: int = 6, **features) -> datasets.Dataset:
    columns = {"photo": datasets.Image(), "mask": datasets.Image(), **features}
    rows = [{"photo": picture(index), "mask": Image.fromarray(ids(index))} for index in range(count)]
    return datasets.Dataset.from_list(
        [row | {name: [0, 1] for name in features} for row in rows], features=datasets.Features(columns)
    )


COLUMNS = {"image_column": "photo", "label_column": "mask"}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_local_datasets_open_with_columns_and_a_split(tmp_path, form):
    """What `datasets` wrote must be usable without a builder."""
    folder = tmp_path / "saved"
    if form == "arrow":
        datasets.DatasetDict({"train": table()}).save_to_disk(str(folder))
    else:
        folder.mkdir()
        table().to_parquet(str(folder / "train-00000-of-00001.parquet"))
    options = {**COLUMNS, "labels": NAMES, "cache_dir": str(tmp_path / "cache")}
    splits = load_splits(str(folder), None, validation_fraction=0.3, **options)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2}
    seen = sorted(tuple(np.array(row["annotation"])[1, :15:5]) for rows in splits.values() for row in rows)
    assert seen == sorted(tuple(ids(index)[1, :15:5]) for index in range(6))
    assert splits["train"].column_names == ["image", "annotation", "image_id"]
    again = load_splits(str(folder), None, validation_fraction=0.3, **options)
    assert [row["image"].tobytes() for row in again["validation"]] == [
        row["image"].tobytes() for row in splits["validation"]
    ]


def test_opened_masks_are_mapped_and_may_be_missing(tmp_path):
    """Rows without a mask are unlabelled images; palette masks are indices also where the column says mode L."""
    palette = Image.fromarray(ids(2))
    palette.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
    masks = [Image.fromarray(ids(0)), None, palette, Image.fromarray(ids(3))]
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    rows = [{"photo": picture(index), "mask": mask} for index, mask in enumerate(masks)]
    rows = datasets.Dataset.from_list(rows, features=features).cast_column("mask", datasets.Image(mode="L"))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    train = load_split(str(tmp_path / "saved"), None, "train", labels=NAMES, **COLUMNS)
    assert set(np.array(train[1]["annotation"]).flat) == {255}
    assert np.array_equal(np.array(train[2]["annotation"]), ids(2))
    mapped = load_split(
        str(tmp_path / "saved"), None, "train", label_map={0: "rest", 1: "damage", 2: "damage"}, **COLUMNS
    )
    assert np.array(mapped[3]["annotation"]).max() == 255 and set(np.array(mapped[3]["annotation"]).flat) == {
        0,
        1,
        255,
    }
    with pytest.raises(ValueError, match=r"'train_000000' holds the values \[2\]; allowed are 0 to 1 and 255"):
        load_split(str(tmp_path / "saved"), None, "train", labels=NAMES[:2], **COLUMNS)[0]


def test_class_names_come_from_features_or_the_file_beside(tmp_path):
    """A dataset that carries its names should not need them again."""
    feature = datasets.List(datasets.ClassLabel(names=NAMES))
    datasets.DatasetDict({"train": table(classes=feature)}).save_to_disk(str(tmp_path / "a"))
    assert dataset_spec(str(tmp_path / "a"), **COLUMNS).labels == tuple(NAMES)
    datasets.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="The classes have no names"):
        dataset_spec(str(tmp_path / "b"), **COLUMNS)
    (tmp_path / "b" / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert dataset_spec(str(tmp_path / "b"), **COLUMNS).labels == tuple(NAMES)


def test_wrong_columns_splits_and_names_are_answered(tmp_path):
    """Hub datasets name their columns as they like."""
    datasets.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"no column 'image' \(image_column\); it has photo, mask"):
        load_split(str(tmp_path / "a"), None, "train", labels=NAMES)
    with pytest.raises(ValueError, match="has no split 'test'.*Available: train, validation"):
        load_split(str(tmp_path / "a"), None, "test", labels=NAMES, **COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Cannot open the dataset '.*empty'"):
        load_split(str(tmp_path / "empty"), None, "train", labels=NAMES)
    with pytest.raises(ValueError, match="Unknown dataset 'foldr'. Did you mean 'folder'"):
        dataset_spec("foldr")


@pytest.mark.parametrize("path", sorted((RECIPES / "datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_recipe_merges_with_a_pair_and_a_method(path, tmp_path):
    """A recipe that parses alone may still name a dataset, or an option of it, that does not exist."""
    others = [str(RECIPES / "pairs" / "espnet_espnet-c.yaml"), str(RECIPES / "methods" / "kd_cwd.yaml")]
    flags = ["--output_dir", str(tmp_path), "--use_cpu"]
    (arguments, config), _ = parse((distill.ScriptArguments, DistillationConfig), [str(path), *others, *flags])
    spec = dataset_spec(arguments.dataset, arguments.data_dir, **distill.data_options(arguments))
    assert arguments.dataset == path.stem == spec.name and len(arguments.crop_size) == 2 and config.max_steps > 0


FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "2", "--eval_steps", "2"]
FAST += ["--save_steps", "2", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]", "--overwrite"]


def test_scripts_train_and_evaluate_on_a_folder_and_on_an_opened_dataset(photos, tmp_path, capsys):
    """The flags must reach the builder from both scripts, and the student must carry the class names."""
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    saved = str(tmp_path / "saved")
    datasets.DatasetDict({"train": table()}).save_to_disk(saved)
    labels = ["--labels", str(tmp_path / "labels.txt")]
    columns = ["--image_column", "photo", "--label_column", "mask", "--validation_fraction", "0.34"]
    for data in (["--dataset", "folder", "--data_dir", str(photos), *labels], ["--dataset", saved, *labels, *columns]):
        report = distill.main([*data, *FAST, "--output_dir", str(tmp_path / "run")])
        assert list(report["per_class_iou"]) == NAMES
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert list(config["id2label"].values()) == NAMES and TINY["model_type"] in config["model_type"]
        argv = [str(tmp_path / "run"), *data, "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
        assert evaluate.main(argv)["per_class_iou"] == report["per_class_iou"]
        again = distill.main(
            [str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "again"), "--overwrite"]
        )
        assert again["per_class_iou"] == report["per_class_iou"]

"""Datasets that `datasets` opens, and the flags of the scripts for all data of one's own."""

import importlib
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from dataset_builders import open_dataset, open_from_arguments
from helpers.own_photos import COLUMNS, NAMES, ids, picture, save, table, write_photos
from helpers.paths import ROOT
from helpers.tiny import TINY
from hf_segkd.loading.any_model import load_model
from hf_segkd.recipe import parse
from hf_segkd.training.config import DistillationConfig

pytestmark = pytest.mark.usefixtures("module_without_figures")

RECIPES = ROOT / "hf_segkd" / "recipes"


def script(name: str):
    """Import a script by path: `scripts/evaluate.py` must not shadow the `evaluate` package."""
    return importlib.import_module(f"hf_segkd.commands.{name}")


distill, evaluate = script("distill"), script("evaluate")


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
    splits = open_dataset(str(folder), validation_fraction=0.3, **options).all_splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2}
    seen = sorted(tuple(np.array(row["annotation"])[1, :15:5]) for rows in splits.values() for row in rows)
    assert seen == sorted(tuple(ids(index)[1, :15:5]) for index in range(6))
    assert splits["train"].column_names == ["image", "annotation", "image_id"]
    again = open_dataset(str(folder), validation_fraction=0.3, **options).all_splits()
    assert [row["image"].tobytes() for row in again["validation"]] == [
        row["image"].tobytes() for row in splits["validation"]
    ]


def test_opened_masks_are_mapped_and_may_be_missing(tmp_path):
    """Rows without a mask are unlabeled images; palette masks are indices also where the column says mode L."""
    palette = Image.fromarray(ids(2))
    palette.putpalette([channel for index in range(256) for channel in (index, 255 - index, 7)])
    masks = [Image.fromarray(ids(0)), None, palette, Image.fromarray(ids(3))]
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    rows = [{"photo": picture(index), "mask": mask} for index, mask in enumerate(masks)]
    rows = datasets.Dataset.from_list(rows, features=features).cast_column("mask", datasets.Image(mode="L"))
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(str(tmp_path / "saved"))
    train = open_dataset(str(tmp_path / "saved"), labels=NAMES, **COLUMNS).split("train")
    assert set(np.array(train[1]["annotation"]).flat) == {255}
    assert np.array_equal(np.array(train[2]["annotation"]), ids(2))
    mapped = open_dataset(str(tmp_path / "saved"), label_map={0: "rest", 1: "damage", 2: "damage"}, **COLUMNS).split(
        "train"
    )
    assert np.array(mapped[3]["annotation"]).max() == 255 and set(np.array(mapped[3]["annotation"]).flat) == {
        0,
        1,
        255,
    }
    with pytest.raises(ValueError, match=r"'train_000000' holds the values \[2\]; allowed are 0 to 1 and 255"):
        open_dataset(str(tmp_path / "saved"), labels=NAMES[:2], **COLUMNS).split("train")[0]


def test_class_names_come_from_features_or_the_file_beside(tmp_path):
    """A dataset that carries its names should not need them again."""
    feature = datasets.List(datasets.List(datasets.ClassLabel(names=NAMES)))
    rows = [{"photo": picture(index), "mask": (ids(index) % 3).tolist()} for index in range(4)]
    rows = datasets.Dataset.from_list(rows, features=datasets.Features({"photo": datasets.Image(), "mask": feature}))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "a"))
    assert open_dataset(str(tmp_path / "a"), **COLUMNS).spec.labels == tuple(NAMES)
    datasets.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="The classes have no names"):
        str(open_dataset(str(tmp_path / "b"), **COLUMNS).spec)
    (tmp_path / "b" / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    assert open_dataset(str(tmp_path / "b"), **COLUMNS).spec.labels == tuple(NAMES)


def test_wrong_columns_splits_and_names_are_answered(tmp_path):
    """Hub datasets name their columns as they like."""
    datasets.DatasetDict({"train": table()}).save_to_disk(str(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"no column 'image' \(image_column\); it has photo, mask"):
        open_dataset(str(tmp_path / "a"), labels=NAMES).split("train")
    with pytest.raises(ValueError, match="has no split 'test'.*Available: train, validation"):
        open_dataset(str(tmp_path / "a"), labels=NAMES, **COLUMNS).split("test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="Cannot open the dataset '.*empty'"):
        open_dataset(str(tmp_path / "empty"), labels=NAMES).split("train")
    with pytest.raises(ValueError, match="Unknown dataset 'foldr'. Did you mean 'folder'"):
        open_dataset("foldr")


@pytest.mark.parametrize("path", sorted((RECIPES / "datasets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_recipe_merges_with_a_pair_and_a_method(path, tmp_path):
    """A recipe that parses alone may still name a dataset, or an option of it, that does not exist."""
    others = [str(RECIPES / "pairs" / "espnet_espnet-c.yaml"), str(RECIPES / "methods" / "kd_cwd.yaml")]
    flags = ["--output_dir", str(tmp_path), "--use_cpu"]
    (arguments, config), _ = parse((distill.ScriptArguments, DistillationConfig), [str(path), *others, *flags])
    spec = open_from_arguments(arguments).spec
    assert path.stem.startswith(arguments.dataset) and arguments.dataset == spec.name  # one file for each schedule
    assert len(arguments.crop_size) == 2 and config.max_steps > 0


FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "2", "--eval_steps", "2"]
FAST += ["--save_steps", "2", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]", "--overwrite"]


def test_scripts_train_and_evaluate_on_a_folder_and_on_an_opened_dataset(tmp_path):
    """The flags must reach the builder from both scripts, and the student must carry the class names."""
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    saved = str(tmp_path / "saved")
    datasets.DatasetDict({"train": table()}).save_to_disk(saved)
    labels = ["--labels", str(tmp_path / "labels.txt")]
    columns = ["--image_column", "photo", "--label_column", "mask", "--validation_fraction", "0.34"]
    for data in (["--dataset", "folder", "--data_dir", str(photos), *labels], ["--dataset", saved, *labels, *columns]):
        report = distill.main([*data, *FAST, "--output_dir", str(tmp_path / "run")])
        assert list(report["per_class_iou"]) == NAMES
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert list(config["id2label"].values()) == NAMES
        argv = [str(tmp_path / "run"), *data, "--output_dir", str(tmp_path / "eval"), "--device", "cpu"]
        assert next(iter(evaluate.main(argv).values()))["per_class_iou"] == report["per_class_iou"]
        again = distill.main(
            [str(tmp_path / "run" / "recipe.yaml"), "--output_dir", str(tmp_path / "again"), "--overwrite"]
        )
        assert again["per_class_iou"] == report["per_class_iou"]


def test_a_fixed_size_that_int8_cannot_be_calibrated_with_is_refused(tmp_path):
    """The images to score fit, so that the fp32 file was written before anybody saw the training images."""
    for part in load_model(TINY, id2label=dict(enumerate(NAMES))):
        part.save_pretrained(tmp_path / "student")
    for split, size in (("train", (40, 32)), ("val", (32, 40))):
        save(tmp_path / "photos" / "images" / split / "0.png", picture(0, size))
        save(tmp_path / "photos" / "masks" / split / "0.png", ids(0, size))
    student, photos = str(tmp_path / "student"), str(tmp_path / "photos")
    argv = [student, "--data", photos, "--labels", *NAMES, "--size", "40", "32"]
    with pytest.raises(SystemExit, match="the first image to calibrate int8 on has 32x40 pixels"):
        script("export").main([*argv, "--precisions", "int8", "--output_dir", str(tmp_path / "onnx")])
    assert not (tmp_path / "onnx").exists()


def test_every_command_takes_photos_by_the_flag_of_distill(tmp_path, capsys, module_without_figures):
    """`--data photos` trained, and `evaluate --data photos` was an unknown option."""
    photos = write_photos(tmp_path / "photos")
    (photos / "labels.txt").write_text("\n".join(NAMES))
    for index in range(4):
        save(tmp_path / "kept" / "images" / "test" / f"{index}.png", picture(index))
        save(tmp_path / "kept" / "masks" / "test" / f"{index}.png", ids(index))
    distill.main(["--data", str(photos), *FAST, "--output_dir", str(tmp_path / "run")])
    student = str(tmp_path / "run")
    by_name = ["--dataset", "folder", "--data_dir", str(photos), "--output_dir", str(tmp_path / "a")]
    by_data = ["--data", str(photos), "--output_dir", str(tmp_path / "b")]
    first, second = (script("evaluate").main([student, *flags, "--no_figures"]) for flags in (by_name, by_data))
    assert first["run"]["per_class_iou"] == second["run"]["per_class_iou"]
    kept = ["--data", str(tmp_path / "kept"), "--labels", *NAMES, "--split", "test"]
    scores = script("evaluate").main([student, *kept, "--output_dir", str(tmp_path / "c"), "--no_figures"])
    assert scores["run"]["images"] == 4
    rows = script("export").main([student, *kept, "--size", "32", "40", "--output_dir", str(tmp_path / "onnx")])
    assert rows[1]["mean_iou"] == pytest.approx(rows[0]["mean_iou"], abs=1e-3)
    with pytest.raises(SystemExit, match="--size 40 32, but the first image to score has 32x40 pixels"):
        script("export").main([student, *kept, "--size", "40", "32", "--output_dir", str(tmp_path / "turned")])
    assert not (tmp_path / "turned").exists()
    script("predict").main([student, *kept, "--output_dir", str(tmp_path / "maps")])
    assert len([*(tmp_path / "maps").glob("*.png")]) == 4
    script("prepare").main([str(photos), "--output", str(tmp_path / "prepared")])
    assert "train" in capsys.readouterr().out and (tmp_path / "prepared" / "overview.png").is_file()
    with pytest.raises(SystemExit, match="There is no folder 'photo'"):
        script("evaluate").main([student, "--data", "photo", "--output_dir", str(tmp_path / "d")])

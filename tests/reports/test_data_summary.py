"""What a person sees of a dataset before training."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset_builders import open_dataset
from helpers.odd_data import photo, stripes, write_pairs, write_parquet, write_voc
from helpers.own_photos import NAMES, save
from hf_segkd.commands import distill, evaluate, predict
from hf_segkd.commands import prepare as prepare_command
from hf_segkd.reports.data_summary import overview, short_text, summarize, summary_text


@pytest.fixture
def opened(tmp_path):
    def open_folder(root, **options):
        return open_dataset("folder", str(root), cache_dir=str(tmp_path / "cache"), **options)

    return open_folder


def test_files_classes_and_pixels_are_counted(tmp_path, opened):
    """Wrong classes or dropped photos are seen in ten seconds, or after a week of training."""
    root = write_voc(tmp_path / "data")
    summary = summarize(opened(root, labels=[*NAMES, "moss"]))
    found = summary.as_dict()
    assert found["splits"]["train"]["images"] == 3 and found["splits"]["validation"]["sizes"] == {"48x40": 2}
    expected = 100 * np.bincount(np.stack([stripes(index) for index in range(3)]).ravel()) / (3 * 48 * 40)
    shares = found["splits"]["train"]["percent_of_pixels"]
    assert [shares[name] for name in NAMES] == pytest.approx(expected) and shares["unlabeled"] == 0
    text = summary_text(summary)
    assert "never in train: moss" in text and "unused: 2 files, such as JPEGImages/a b5.jpg" in text
    assert "48 x 40" in text and "RGB 3" in text and found["classes"][1]["name"] == "crack"


def test_unlabeled_images_are_counted_in_folders_and_in_stored_datasets(tmp_path, opened):
    """Distillation uses them; a baseline does not."""
    root = write_pairs(tmp_path / "data")
    save(root / "images" / "new.png", photo(9))
    assert summarize(opened(root, labels=NAMES)).splits["train"].unlabeled == 1
    assert "(1 unlabeled)" in short_text(summarize(opened(root, labels=NAMES), limit=2))
    stored = open_dataset(str(write_parquet(tmp_path / "rows")), cache_dir=str(tmp_path / "cache"))
    assert {name: split.unlabeled for name, split in summarize(stored).splits.items()} == {"train": 0, "validation": 0}


def test_overview_shows_each_mask_over_its_photo(tmp_path, opened):
    """A mask that is turned, shifted or of another photo is seen and not computed."""
    root = write_pairs(tmp_path / "data", convert=lambda ids: np.full_like(ids, 1))
    for path in (root / "images").iterdir():
        save(path, Image.new("RGB", (48, 40), (100, 100, 100)))
    dataset = opened(root, labels=NAMES)
    shown = set(map(tuple, np.asarray(overview(dataset, per_split=1)).reshape(-1, 3).tolist()))
    blended = tuple(int(0.5 * 100 + 0.5 * channel) for channel in dataset.spec.palette[1])
    assert {(100, 100, 100), blended} <= shown


def test_prepare_shows_what_it_understood(tmp_path, capsys):
    """People look at a table and a picture; machines read JSON; the folder still loads with the picture in it."""
    root = write_pairs(tmp_path / "data")
    (root / "labels.txt").write_text("\n".join(NAMES))
    output = tmp_path / "out"
    prepare_command.main(["folder", "--data_dir", str(root), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "background" in printed and "overview.png" in printed
    assert Image.open(output / "overview.png").width > 500
    assert open_dataset(str(output)).spec.labels == tuple(NAMES)
    prepare_command.main([str(output), "--json", "--output", str(tmp_path / "again")])
    assert json.loads(capsys.readouterr().out)["classes"][2] == {"id": 2, "name": "rust", "color": "#808000"}


FAST = ["--crop_size", "32", "32", "--per_device_train_batch_size", "2", "--max_steps", "1", "--eval_steps", "1"]
FAST += ["--save_steps", "1", "--use_cpu", "--student.model_type", "espnet", "--student.use_decoder", "false"]
FAST += ["--student.hidden_sizes", "[4, 10, 10]", "--student.depths", "[1, 1]"]


@pytest.mark.slow
def test_a_run_begins_with_what_it_understood_and_its_student_predicts_a_stored_dataset(tmp_path, capsys):
    """`predict --dataset STORED` ended in a KeyError; `evaluate` takes the mapping of classes as `distill` does."""
    data = str(write_parquet(tmp_path / "data"))
    distill.main(["--dataset", data, *FAST, "--output_dir", str(tmp_path / "run")])
    assert "Percent of pixels" in capsys.readouterr().out
    run = str(tmp_path / "run")
    written = predict.main([run, "--dataset", data, "--output_dir", str(tmp_path / "p"), "--device", "cpu"])
    assert len(written) == 1 and Image.open(written[0]).size == (48, 40)
    flags = ["--labels", "background", "cracks", "rust", "--teacher_classes", "{cracks: crack}", "--device", "cpu"]
    report = evaluate.main([run, "--dataset", data, "--output_dir", str(tmp_path / "e"), *flags])
    assert list(next(iter(report.values()))["per_class_iou"]) == ["background", "cracks", "rust"]

"""Label maps as files: what people see, what programs read, what test servers accept."""

import json
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_builders import DATASETS
from dataset_builders.cityscapes import LABEL_IDS
from helpers.commands import script
from helpers.tiny import LABELS, TINY
from hf_segkd.deployment.label_files import FORMATS, check_format, find_images, palette_of
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.pretrained import processor_of

predict = script("predict")


def model_folder(folder, dataset):
    """A small random model of a dataset's classes; its prediction varies over the image."""
    torch.manual_seed(0)
    model = load_model({**TINY, "use_decoder": True}, id2label=DATASETS[dataset].id2label)[0]
    with torch.no_grad():  # all classes as likely, so that most of them are predicted somewhere
        model.decode_head.classifier.weight.mul_(3)
    model.save_pretrained(folder)
    processor_of(model).save_pretrained(folder)
    return str(folder)


def photo(path, size=(48, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
    return path


@pytest.fixture(scope="module")
def synthetic_model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model"), "synthetic")


def run(model, *argv, out):
    return predict.main([model, *map(str, argv), "--output_dir", str(out), "--device", "cpu"])


def test_files_folders_and_globs_are_segmented_at_their_own_size(tmp_path, synthetic_model):
    """A label map of another size than its photo cannot be laid over it."""
    photo(tmp_path / "a.png", (48, 32))
    photo(tmp_path / "folder" / "deep" / "b.jpg", (64, 40), seed=1)
    photo(tmp_path / "c_1.png", (40, 40), seed=2)
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    paths = run(synthetic_model, tmp_path / "a.png", tmp_path / "folder", tmp_path / "c_*.png", out=tmp_path / "out")
    assert [path.name for path in paths] == ["a.png", "b.png", "c_1.png"]
    assert [Image.open(path).size for path in paths] == [(48, 32), (64, 40), (40, 40)]


def test_palette_files_hold_class_ids_and_show_the_datasets_colors(tmp_path, synthetic_model):
    """The same file serves programs (indices) and people (colors)."""
    (path,) = run(synthetic_model, photo(tmp_path / "a.png"), out=tmp_path / "out")
    (ids,) = run(synthetic_model, tmp_path / "a.png", "--format", "ids", out=tmp_path / "ids")
    picture = Image.open(path)
    assert picture.mode == "P" and np.array_equal(np.array(picture), np.array(Image.open(ids)))
    labels, colors = np.array(picture), np.array(picture.convert("RGB"))
    assert len(np.unique(labels)) > 1
    for label in np.unique(labels):
        assert np.unique(colors[labels == label], axis=0).tolist() == [list(DATASETS["synthetic"].palette[label])]


def test_overlay_shows_the_photo_through_the_colors(tmp_path, synthetic_model):
    """Half photo, half color."""
    (path,) = run(synthetic_model, photo(tmp_path / "a.png"), "--format", "overlay", out=tmp_path / "out")
    (ids,) = run(synthetic_model, tmp_path / "a.png", "--format", "ids", out=tmp_path / "ids")
    colors = np.array(DATASETS["synthetic"].palette)[np.array(Image.open(ids))]
    expected = (np.array(Image.open(tmp_path / "a.png")).astype(int) + colors) / 2
    assert np.abs(np.array(Image.open(path)) - expected).max() <= 1


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, synthetic_model, monkeypatch):
    """Thousands of test images must not start again from the first."""
    for number in range(3):
        photo(tmp_path / "photos" / f"{number}.png", seed=number)
    run(synthetic_model, tmp_path / "photos" / "0.png", out=tmp_path / "out")
    done = []
    real = Segmenter.predict
    monkeypatch.setattr(Segmenter, "predict", lambda *args: done.append(1) or real(*args))
    assert len(run(synthetic_model, tmp_path / "photos", out=tmp_path / "out")) == 3 and len(done) == 2
    assert not list((tmp_path / "out").glob("*.part"))


def test_unreadable_images_are_named_after_all_others_are_done(tmp_path, synthetic_model):
    """One broken photo among thousands must neither stop the rest nor go unnoticed."""
    photo(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(SystemExit) as stop:
        run(synthetic_model, tmp_path / "photos", out=tmp_path / "out")
    assert "broken" in str(stop.value.code) and (tmp_path / "out" / "good.png").is_file()


def test_photos_held_sideways_are_turned(tmp_path, synthetic_model):
    """Phones store the rotation beside the pixels."""
    picture = Image.open(photo(tmp_path / "a.png", (48, 32)))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    (path,) = run(synthetic_model, tmp_path / "turned.jpg", out=tmp_path / "out")
    assert Image.open(path).size == (32, 48)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["missing"], "No image at"),
        ([], "No images given"),
        (["a/x.png", "b/x.jpg"], "would both be written as x"),
        (["a/x.png", "--format", "cityscapes"], "for models of 19 classes, this one has 10"),
        (["a/x.png", "--dataset", "synthetic"], "image files or a dataset (--data, --dataset), not both"),
    ],
)
def test_wrong_inputs_are_refused_before_predicting(argv, message, tmp_path, synthetic_model, monkeypatch):
    """Found out after an hour, a wrong format costs the hour."""
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a" / "x.png")
    photo(tmp_path / "b" / "x.jpg")
    with pytest.raises(SystemExit) as stop:
        run(synthetic_model, *argv, out="out")
    assert message in str(stop.value.code)


def test_cityscapes_files_are_accepted_and_scored_by_the_official_evaluation(tmp_path, monkeypatch):
    """Train ids instead of label ids, or other file names, give 0 % on the server, where tries are few."""
    names = [f"frankfurt_000000_00000{number}" for number in range(2)]
    for number, name in enumerate(names):
        photo(tmp_path / "leftImg8bit" / "val" / "frankfurt" / f"{name}_leftImg8bit.png", (64, 48), seed=number)
        labels = np.random.default_rng(number).choice([*range(34)], (6, 8)).astype(np.uint8)
        truth = tmp_path / "gtFine" / "val" / "frankfurt" / f"{name}_gtFine_labelIds.png"
        truth.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).resize((64, 48), Image.Resampling.NEAREST).save(truth)
    model = model_folder(tmp_path / "model", "cityscapes")
    out = tmp_path / "out"
    paths = run(model, tmp_path / "leftImg8bit" / "val", "--format", "cityscapes", "--archive", out=out)
    assert [path.name for path in paths] == [f"{name}_leftImg8bit.png" for name in names]
    assert set(zipfile.ZipFile(out / "cityscapes.zip").namelist()) == {path.name for path in paths}

    train_ids = {
        raw: DATASETS["cityscapes"].labels.index(name)
        for raw, name in LABEL_IDS.items()
        if name in DATASETS["cityscapes"].labels
    }
    matrix = 0
    for path, name in zip(paths, names, strict=True):
        truth = np.array(Image.open(tmp_path / "gtFine" / "val" / "frankfurt" / f"{name}_gtFine_labelIds.png"))
        pair = [np.vectorize(lambda x: train_ids.get(x, 255))(x) for x in (np.array(Image.open(path)), truth)]
        matrix = matrix + confusion_matrix(*map(torch.from_numpy, pair), 19)
    ours = scores(matrix)

    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(out))
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    official.args.JSONOutput, official.args.quiet, official.args.exportFile = (
        True,
        True,
        str(tmp_path / "official.json"),
    )
    official.args.evalInstLevelScore = False
    truths = sorted((tmp_path / "gtFine").rglob("*_labelIds.png"))
    predictions = [official.getPrediction(official.args, str(path)) for path in truths]
    official.evaluateImgLists(predictions, [str(path) for path in truths], official.args)
    found = json.loads((tmp_path / "official.json").read_text())
    assert found["averageScoreClasses"] == pytest.approx(ours["mean_iou"], abs=1e-9)
    for index, label in enumerate(DATASETS["cityscapes"].labels):
        assert found["classScores"][label] == pytest.approx(ours["per_category_iou"][index], abs=1e-9, nan_ok=True)


def test_voc_archive_has_the_folders_that_the_server_wants(tmp_path):
    """VOC 2012: results/VOC2012/Segmentation/comp6_test_cls/<image>.png in a tar file."""
    model = model_folder(tmp_path / "model", "voc_aug")
    argv = [photo(tmp_path / "2008_000006.jpg"), "--format", "voc", "--archive"]
    (path,) = run(model, *argv, out=tmp_path / "out")
    member = "results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png"
    assert tarfile.open(tmp_path / "out" / "voc.tar.gz").getnames() == [member] and path.as_posix().endswith(member)
    assert Image.open(path).mode == "P"


def test_ade20k_files_count_from_one(tmp_path):
    """0 is 'other objects' on the server; class 1 is 'wall'."""
    model = model_folder(tmp_path / "model", "ade20k")
    (shifted,) = run(model, photo(tmp_path / "a.png"), "--format", "ade20k", out=tmp_path / "out")
    (plain,) = run(model, tmp_path / "a.png", "--format", "ids", out=tmp_path / "ids")
    assert np.array_equal(np.array(Image.open(shifted)), np.array(Image.open(plain)) + 1)


def test_a_datasets_split_is_predicted_by_image_id(tmp_path, synthetic_model):
    """Its names are those of the dataset, so that predictions can be matched with labels."""
    config = tmp_path / "unused"
    argv = ["--dataset", "synthetic", "--split", "test"]
    options = [
        "--dataset_config",
        json.dumps({"num_train": 1, "num_validation": 1, "num_test": 2, "height": 32, "width": 48}),
    ]
    paths = run(synthetic_model, *argv, *options, out=config)
    assert len(paths) == 2 and all(Image.open(path).size == (48, 32) for path in paths)


def test_unknown_classes_get_distinct_colors():
    """Two classes of one color cannot be told apart in a picture."""
    palette = palette_of({index: f"thing {index}" for index in range(40)})
    assert len(set(palette)) == 40
    assert palette_of(LABELS) == DATASETS["synthetic"].palette


def test_every_format_says_which_models_it_takes():
    """A new format must be reachable and checked."""
    for name, label_format in FORMATS.items():
        assert check_format(name, label_format.num_labels or 7) is label_format


def test_images_of_one_name_in_one_folder_are_found_once(tmp_path):
    """A glob that names the files of a folder which is given too."""
    photo(tmp_path / "a.png")
    assert list(find_images([tmp_path, str(tmp_path / "*.png")])) == ["a"]


def test_a_folder_is_searched_for_every_suffix_that_trains_and_without_thumbnails(tmp_path):
    """Photos that were trained on were "no image" here, and @eaDir held a second one of each name."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jfif", format="JPEG")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "a.jpg").write_bytes(b"x")
    assert list(find_images([tmp_path])) == ["a"]

"""What lies in an output folder already: never an input, never another model's work taken for this one's."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_builders.files import RawFile
from dataset_builders.pair_builder import unique_names
from helpers.commands import script
from helpers.tiny import LABELS, TINY
from hf_segkd.deployment.label_files import find_images
from hf_segkd.evaluation.segmenter import Segmenter
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.fingerprint import fingerprint
from hf_segkd.loading.pretrained import processor_of

predict = script("predict")


def model_folder(folder, seed=0, **changes):
    import torch

    torch.manual_seed(seed)
    model = load_model({**TINY, **changes}, id2label=LABELS)[0]
    model.save_pretrained(folder)
    processor_of(model).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two folders of models that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("models")
    return [model_folder(folder / str(seed), seed) for seed in (0, 1)]


def photo(path, seed=0, size=(48, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*argv):
    return predict.main([*map(str, argv), "--device", "cpu"])


def refusal(*argv) -> str:
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    return str(stop.value.code)


@pytest.fixture
def counted(monkeypatch):
    """Grows by one with each image that a model is run on."""
    done = []
    real = Segmenter.predict
    monkeypatch.setattr(Segmenter, "predict", lambda *args: done.append(1) or real(*args))
    return done


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--archive"], ["--format", "ids", "--overwrite"]])
def test_photos_are_never_replaced_by_their_label_maps(tmp_path, models, flags):
    """`predict photos --output_dir photos --overwrite` destroyed the only copy of somebody's photos."""
    before = photo(tmp_path / "photos" / "a.png").read_bytes()
    message = refusal(models[0], tmp_path / "photos", "--output_dir", tmp_path / "photos", *flags)
    assert "is one of the images to predict" in message
    assert (tmp_path / "photos" / "a.png").read_bytes() == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_photos_are_recognized_under_other_names(tmp_path, models, link):
    """A link, or another spelling of a path, is the same photo."""
    before = photo(tmp_path / "photos" / "a.png").read_bytes()
    (tmp_path / "out").mkdir()
    link(tmp_path / "photos" / "a.png", tmp_path / "out" / "a.png")
    assert "images to predict" in refusal(models[0], tmp_path / "photos", "--output_dir", tmp_path / "out")
    os.symlink(tmp_path / "photos", tmp_path / "same")
    assert "images to predict" in refusal(models[0], tmp_path / "photos", "--output_dir", tmp_path / "same")
    assert (tmp_path / "photos" / "a.png").read_bytes() == before


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_files_that_no_earlier_command_has_predicted_are_kept(tmp_path, models, flags):
    """Masks drawn by hand have the names of their photos too."""
    photo(tmp_path / "photos" / "a.png")
    before = photo(tmp_path / "masks" / "a.png", seed=1).read_bytes()
    message = refusal(models[0], tmp_path / "photos", "--output_dir", tmp_path / "masks", *flags)
    assert "predict has not written it" in message and (tmp_path / "masks" / "a.png").read_bytes() == before


def test_archive_of_others_is_kept(tmp_path, models):
    """`palette.zip` may be the only copy of something else."""
    photo(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "palette.zip").write_bytes(b"mine")
    argv = [models[0], tmp_path / "a.png", "--output_dir", tmp_path / "out", "--archive", "--overwrite"]
    assert "palette.zip" in refusal(*argv) and (tmp_path / "out" / "palette.zip").read_bytes() == b"mine"


def test_predictions_below_the_photos_are_no_photos(tmp_path, models, counted):
    """Else the command that goes on after an interruption would find its own label maps, and two images of a name."""
    for number in range(2):
        photo(tmp_path / f"{number}.png", number)
    run(models[0], tmp_path, "--output_dir", tmp_path / "out")
    assert len(run(models[0], tmp_path, "--output_dir", tmp_path / "out")) == 2 and len(counted) == 2


@pytest.mark.parametrize("archive", [[], ["--archive"]])
@pytest.mark.parametrize(
    "change, named",
    [
        (["model"], "model: "),
        (["--format", "ids"], "format: palette, now ids"),
        (["--flip"], "protocol: whole image"),
        (["--dtype", "bfloat16"], "dtype: float32, now bfloat16"),
    ],
)
def test_label_maps_made_with_something_else_are_not_taken_for_done(tmp_path, models, change, named, archive, counted):
    """Half of an archive from one model and half from another is scored as one."""
    image = photo(tmp_path / "a.png")
    out = tmp_path / "out"
    run(models[0], image, "--output_dir", out)
    argv = [models[1] if change == ["model"] else models[0], image, "--output_dir", out, *archive]
    flags = [] if change == ["model"] else change
    assert named in refusal(*argv, *flags) and len(counted) == 1
    run(*argv, *flags, "--overwrite")
    assert len(counted) > 1
    assert json.loads((out / "predictions.json").read_text())["files"].keys() == {"a.png"}


def test_overwrite_with_another_model_removes_all_label_maps_of_the_first(tmp_path, models):
    """Those that are not asked for again would stay behind unmarked; also when the command is stopped at once."""
    first, second = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1)
    out = tmp_path / "out"
    run(models[0], first, second, "--output_dir", out, "--archive")
    run(models[1], first, "--output_dir", out, "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "predictions.json"]


def test_another_photo_of_the_same_name_is_predicted(tmp_path, models, counted):
    """`a/x.png` was taken for done because `b/x.png` had been."""
    first, second = photo(tmp_path / "a" / "x.png"), photo(tmp_path / "b" / "x.png", 1)
    (path,) = run(models[0], first, "--output_dir", tmp_path / "out")
    before = path.read_bytes()
    run(models[0], second, "--output_dir", tmp_path / "out")
    assert len(counted) == 2 and path.read_bytes() != before


@pytest.mark.parametrize("size", [0, 60])
def test_label_map_that_was_cut_short_is_made_again(tmp_path, models, size, counted):
    """A power cut leaves files of no bytes, which counted as done."""
    image = photo(tmp_path / "a.png")
    (path,) = run(models[0], image, "--output_dir", tmp_path / "out")
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    run(models[0], image, "--output_dir", tmp_path / "out", "--archive")
    assert path.read_bytes() == whole and len(counted) == 2
    assert zipfile.ZipFile(tmp_path / "out" / "palette.zip").read("a.png") == whole


def test_moved_model_is_the_same_model(tmp_path, models, counted):
    """A path is no fingerprint: the same work would be done again, or refused."""
    image = photo(tmp_path / "a.png")
    run(models[0], image, "--output_dir", tmp_path / "out")
    moved = shutil.copytree(models[0], tmp_path / "moved")
    run(moved, image, "--output_dir", tmp_path / "out")
    assert len(counted) == 1


def test_fingerprint_changes_with_weights_processor_and_classes(models):
    """Whatever it misses is a mixture that nobody notices."""
    model, processor = load_model(models[0])
    found = [fingerprint(model, processor), fingerprint(*load_model(models[0]))]
    assert found[0] == found[1]
    model.decode_head.classifier.weight.data.view(-1)[0] += 1e-3
    found.append(fingerprint(model, processor))
    processor.image_mean = [0.0, 0.0, 0.0]
    found.append(fingerprint(model, processor))
    model.config.id2label = {**LABELS, 0: "another"}
    found.append(fingerprint(model, processor))
    assert len(set(found)) == 4


def test_damaged_manifest_is_refused(tmp_path, models):
    """What it cannot read must not be taken for an empty folder; nor may it name files elsewhere."""
    image = photo(tmp_path / "a.png")
    for content in ("{", "[]", '{"made_with": {}, "archives": [], "files": {"../a.png": ""}}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "predictions.json").write_text(content)
        assert "is damaged" in refusal(models[0], image, "--output_dir", tmp_path / "out", "--overwrite")
    assert image.is_file()


def test_images_of_one_name_in_several_folders_keep_their_own_label_maps(tmp_path, models):
    """8 images of `--dataset folder` became 4 files: their names were those of the files without the folders."""
    for number in range(8):
        name = f"{'ab'[number // 4]}/{number % 4}.png"
        photo(tmp_path / "images" / "train" / name, number)
        (tmp_path / "masks" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((32, 48), dtype=np.uint8)).save(tmp_path / "masks" / "train" / name)
    for kind in ("images", "masks"):
        shutil.copytree(tmp_path / kind / "train" / "a", tmp_path / kind / "val")
    options = ["--dataset", "folder", "--data_dir", tmp_path, "--labels", "sky", "road", "--split", "train"]
    paths = run(models[0], *options, "--output_dir", tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in paths]
    assert sorted(names) == [f"{folder}/{number}.png" for folder in "ab" for number in range(4)]
    assert len({path.read_bytes() for path in paths}) == 8


def test_names_of_images_are_as_long_as_they_must_be():
    """Test servers want the plain name where it is enough."""
    files = [RawFile(Path(path)) for path in ("x/a/0.png", "x/b/0.jpg", "x/b/1.png")]
    assert unique_names(files) == ["a/0", "b/0", "1"]
    archived = [RawFile(Path("d.zip"), name) for name in ("a/0.png", "b/c/0.png", "b/d/0.png")]
    assert unique_names(archived) == ["a/0", "c/0", "d/0"]


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "", "a\nb", "..", "a\\b"])
def test_name_from_a_dataset_cannot_lead_out_of_the_folder(name):
    """Whoever publishes a dataset would choose the files that are written."""
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        predict.name_of(name)
    assert predict.name_of("city/scene.0001_leftImg8bit.png") == "city/scene.0001_leftImg8bit"


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path):
    """6 images became 566, through one link to the folder above."""
    for number in range(6):
        photo(tmp_path / "images" / "deep" / f"{number}.png", number)
    os.symlink(tmp_path / "images", tmp_path / "images" / "deep" / "loop")
    os.symlink(tmp_path, tmp_path / "images" / "up")
    photo(tmp_path / "elsewhere" / "linked.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "linked")
    assert len(find_images([tmp_path / "images"])) == 7
    assert len(find_images([str(tmp_path / "images" / "**" / "?.png")])) == 6


def test_huge_picture_is_named_and_passed_over(tmp_path, models, capsys):
    """30000 x 30000 pixels ended the command for all others, with a traceback."""
    for number in range(2):
        photo(tmp_path / "photos" / f"{number}.png", number)
    Image.new("1", (30000, 30000)).save(tmp_path / "photos" / "1_huge.png")
    message = refusal(models[0], tmp_path / "photos", "--output_dir", tmp_path / "out")
    assert message.startswith("error: left out") and "1_huge: Image size (900000000 pixels)" in message
    assert "2 label maps written" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png", "1.png"]


def test_picture_that_the_memory_cannot_hold_is_named_and_passed_over(tmp_path, models, monkeypatch):
    """Pillow takes up to 178 million pixels; a model may not."""
    photo(tmp_path / "0.png")
    photo(tmp_path / "1.png", size=(64, 32))
    real = Segmenter.predict

    def allocate(self, images, size):
        if size[1] == 64:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return real(self, images, size)

    monkeypatch.setattr(Segmenter, "predict", allocate)
    message = refusal(models[0], tmp_path / "0.png", tmp_path / "1.png", "--output_dir", tmp_path / "out")
    assert "1: DefaultCPUAllocator: not enough memory" in message and (tmp_path / "out" / "0.png").is_file()

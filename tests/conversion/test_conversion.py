"""Conversion of original checkpoints: the released files, every refusal, and the script."""

import os
import pickle
import runpy
import subprocess
import sys

import pytest
import torch

from dataset_builders import DATASETS
from helpers import golden_models
from helpers.paths import ROOT, SHARED
from hf_segkd.conversion import convert, load_original
from hf_segkd.conversion.espnet import config
from hf_segkd.loading.any_model import load_model

CHECKPOINTS = SHARED / "checkpoints"
RELEASED = {
    "Cityscapes_ESPNet_C_Ours_60.pth": 349193,
    "Cityscapes_ESPNet_Ours_64.pth": 363462,
    "ESP_SD+KD+CITY_65.1.pth": 353437,
    "ESP_base_57.8.pth": 353437,
    "ESP_kd+city+63.2.pth": 353437,
    "ESP_kd+sd+61.4.pth": 353437,
    "ESP_kd_59.8.pth": 353437,
    "esp-c_BASE56.7.pth": 347145,
    "esp-c_KD+CITY+SD_64.1.pth": 347145,
    "esp-c_KD58.7.pth": 347145,
    "esp-c_OURS60.3.pth": 347145,
    "esp-c_kd+city_62.8.pth": 347145,
}


@pytest.fixture
def original():
    """State dict of an ESPNet with 11 classes, in original names."""
    return golden_models.original_state_dict(golden_models.read("skd19-espnet-p2q8-11", golden_models.OWN))


def write(folder, content):
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def run_script(folder, *arguments):
    """Runs it from another folder than the repository."""
    command = [sys.executable, str(ROOT / "scripts" / "convert.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoint_converts_completely(name):
    """A tensor left behind would keep its random start, and the published mIoU would be lost without an error."""
    if not (CHECKPOINTS / name).is_file():
        pytest.skip(f"no released checkpoint {name} beside the repository")
    state_dict = load_original(CHECKPOINTS / name)
    model = convert(state_dict)
    assert model.num_parameters() == RELEASED[name]
    assert model.config.use_decoder == ("C_Ours" not in name and "esp-c" not in name)
    assert model.config.num_labels == (19 if "Cityscapes" in name else 11)
    assert fingerprints(model.state_dict()) == fingerprints(state_dict)


def fingerprints(state_dict):
    return sorted((tuple(value.shape), value.double().sum().item()) for value in state_dict.values())


def test_prefix_and_outer_dict_are_taken_off(original, tmp_path):
    """Trainers save wrapped models, and the model among other things."""
    wrapped = {f"module.{key}": value for key, value in original.items()}
    loaded = load_original(write(tmp_path, {"epoch": 3, "state_dict": wrapped}))
    assert list(loaded) == list(original)
    assert all(torch.equal(loaded[key], value) for key, value in original.items())


def test_name_with_the_prefix_and_without_is_refused(original, tmp_path):
    """One of the two tensors would win, and nobody would know which."""
    both = original | {"module.br.weight": original["br.weight"] + 1}
    with pytest.raises(ValueError, match="has br.weight with the prefix 'module.' and without"):
        load_original(write(tmp_path, both))


def test_imagenet_classifier_is_left_out(original):
    """Some trainers save it beside the network that never used it."""
    extra = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
    assert convert(original | extra).state_dict().keys() == convert(original).state_dict().keys()


def test_batch_counters_of_old_files_start_at_zero(original):
    """Files of torch 0.4 have none; a strict load would refuse them."""
    old = {key: value for key, value in original.items() if not key.endswith("num_batches_tracked")}
    model = convert(old)
    assert len(old) < len(original) and model.encoder.stem.normalization.num_batches_tracked == 0


def test_config_is_read_from_the_shapes():
    """File names lie about classes and widths."""
    shapes = {"level1.conv.weight": 8, "level2_0.bn.weight": 20, "level3_0.bn.weight": 30, "classifier.conv.weight": 7}
    state_dict = {key: torch.zeros(channels) for key, channels in shapes.items()}
    state_dict |= {f"level2.{index}.bn.bn.weight": torch.zeros(20) for index in range(3)}
    state_dict |= {f"level3.{index}.bn.bn.weight": torch.zeros(30) for index in range(12)}
    read = config(state_dict)
    assert (read.hidden_sizes, read.depths, read.num_labels, read.use_decoder) == ((8, 20, 30), (3, 12), 7, False)


def test_classes_get_their_names_and_must_be_as_many(original):
    """A teacher of another dataset would distill its classes into wrong ones."""
    model = convert(original, DATASETS["camvid"].id2label)
    assert model.config.id2label[0] == "Sky" and model.config.label2id["Bicyclist"] == 10
    with pytest.raises(ValueError, match="checkpoint has 11 classes, the dataset 2"):
        convert(original, {0: "a", 1: "b"})


def test_missing_and_unexpected_keys_are_named(original):
    """A partial load leaves random weights, and says so in a log line only."""
    other = {key: value for key, value in original.items() if key not in ("br.weight", "level2.1.act.weight")}
    other["level4.conv.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"Missing \(our names\): decode_head.auxiliary_norm.weight. .*level4.conv"):
        convert(other)
    with pytest.raises(ValueError, match="looks like ESPNet but lacks level1.conv.weight"):
        convert({key: value for key, value in original.items() if key != "level1.conv.weight"})


def test_shapes_that_do_not_fit_are_named(original):
    """One layer of another network among the right names."""
    original["conv.conv.weight"] = torch.zeros(11, 22, 3, 3)
    with pytest.raises(ValueError, match=r"decode_head.fuse.convolution.weight \(11, 22, 3, 3\) instead of"):
        convert(original)


def test_values_that_are_not_finite_are_refused(original):
    """A model of a diverged run would be published, and distilled from."""
    original["level1.bn.bias"][3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite values in level1.bn.bias"):
        convert(original)


def test_foreign_checkpoint_is_told_from_a_broken_one():
    """The user learns which checkpoints can be read."""
    with pytest.raises(ValueError, match="first keys are layer1.0.conv1.weight, fc.bias. Known families: ESPNet"):
        convert({"layer1.0.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})


def test_file_that_is_absent_or_cut_short_is_refused(original, tmp_path):
    """Both happen with every download, and torch's messages speak of zip archives and opcodes."""
    with pytest.raises(ValueError, match="No checkpoint at '.*absent.pth'"):
        load_original(tmp_path / "absent.pth")
    for legacy in (False, True):
        path = tmp_path / "cut.pth"
        torch.save(original, path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        for length in (0, 30, 3000, len(content) // 2):
            path.write_bytes(content[:length])
            with pytest.raises(ValueError, match="damaged or no PyTorch checkpoint"):
                load_original(path)


def test_file_that_needs_code_is_refused_without_running_it(tmp_path):
    """Opening an untrusted pickle runs what it says."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = write(tmp_path, {"state_dict": Payload()})
    with pytest.raises(ValueError, match=r"need code to open \((posix|nt).mkdir\), which is refused"):
        load_original(path)
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(ValueError, match="refused|damaged or no PyTorch checkpoint"):
        load_original(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, expected a state dict"),
        ({}, "holds a dict, expected a state dict"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "its entry 'epoch' is a int"),
        ({3: torch.zeros(1)}, "no state dict of names with tensors: its entry 3 is a Tensor"),
    ],
)
def test_file_without_a_state_dict_is_refused(content, message, tmp_path):
    """A training checkpoint with another layout."""
    with pytest.raises(ValueError, match=message):
        load_original(write(tmp_path, content))


@pytest.mark.slow
def test_script_writes_a_folder_that_loads(original, tmp_path):
    """The command of the README, from any folder, gives model and processor."""
    write(tmp_path, original)
    done = run_script(tmp_path, "checkpoint.pth", "model", "--dataset", "camvid")
    assert done.returncode == 0, done.stderr
    assert "ESPNet" in done.stdout and "353,437" in done.stdout
    model, processor = load_model(str(tmp_path / "model"))
    assert model.config.id2label == DATASETS["camvid"].id2label and processor.do_flip_channel_order


def test_script_does_not_write_over_other_files(tmp_path, monkeypatch):
    """A wrong folder name must not cost a trained model."""
    (tmp_path / "notes.txt").touch()
    monkeypatch.setattr(sys, "argv", ["convert.py", "checkpoint.pth", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not empty. Name another folder, or pass --overwrite."):
        runpy.run_path(str(ROOT / "scripts" / "convert.py"), run_name="__main__")


def test_script_says_in_one_line_what_is_wrong_and_writes_nothing(tmp_path, monkeypatch):
    """A traceback hides the message, and half a folder looks like a model."""
    case = golden_models.read("skd19-espnet_c-p2q8-19", golden_models.OWN)
    write(tmp_path, golden_models.original_state_dict(case))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert.py", "checkpoint.pth", "model", "--dataset", "camvid"])
    with pytest.raises(SystemExit, match="^error: The checkpoint has 19 classes, the dataset 11."):
        runpy.run_path(str(ROOT / "scripts" / "convert.py"), run_name="__main__")
    assert not (tmp_path / "model").exists()

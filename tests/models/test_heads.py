"""DeepLabV3, PSPNet, UperNet: sizes, variants of the originals, any backbone, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_segkd.loading.any_model import load_model
from hf_segkd.models import SegmentationOutput
from hf_segkd.models.deeplabv3 import DeepLabV3Config
from hf_segkd.models.pspnet import PSPNetConfig
from hf_segkd.models.upernet import UperNetConfig

LABELS = {index: f"class_{index}" for index in range(5)}
RESNET = {"model_type": "segkd_resnet", "stem_width": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 16]}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
FOREIGN = {
    "resnet": {"model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 16], "embedding_size": 8},
    "swin": SWIN | {"image_size": 64},
}
HEADS = ("deeplabv3", "pspnet", "upernet")
# Parameters, of which auxiliary, with 19 classes.
PUBLISHED = {
    "v2 DeepLabV3-R101": ({"model_type": "deeplabv3", "backbone": "resnet101"}, 79_084_262, 2_364_691),
    "v2 DeepLabV3-R18": ({"model_type": "deeplabv3", "backbone": "resnet18"}, 22_762_918, 148_819),
    "v2 UperNet-lite-R18": ({"model_type": "upernet", "backbone": "resnet18"}, 16_569_638, 148_819),
    "v2 UperNet-R18": ({"model_type": "upernet", "hidden_size": 512}, 41_085_350, 148_819),
    "v2 PSP-R18": ({"model_type": "pspnet", "backbone": "resnet18"}, 12_919_334, 148_819),
    "v2 PSP-R101": ({"model_type": "pspnet", "backbone": "resnet101"}, 58_629_606, 2_364_691),
    "v2 R18 vanilla": ({"model_type": "deeplabv3", "backbone": "resnet18_vanilla"}, 22_614_438, 148_819),
    "v2 R50 vanilla": ({"model_type": "deeplabv3", "backbone": "resnet50_vanilla"}, 59_968_358, 2_364_691),
    "v1 DeepLabV3-R101": (
        {"model_type": "deeplabv3", "backbone": "resnet101", "hidden_size": 256},
        61_118_950,
        2_364_691,
    ),
    "v1 DeepLabV3-R18": ({"model_type": "deeplabv3", "hidden_size": 128}, 13_607_974, 148_819),
    "v1 PSP-R101": ({"model_type": "pspnet", "backbone": "resnet101", "hidden_size": 512}, 68_072_166, 2_364_691),
    "SKD PSPNet-R18": (
        {"model_type": "pspnet", "pool_hidden_size": 128, "auxiliary_hidden_size": 128, "auxiliary_conv_bias": True},
        13_068_262,
        297_747,
    ),
    "SKD PSPNet-R101": (
        {
            "model_type": "pspnet",
            "backbone": "resnet101",
            "hidden_size": 512,
            "pool_hidden_size": 512,
            "auxiliary_hidden_size": 512,
            "auxiliary_conv_bias": True,
        },
        70_437_350,
        4_729_875,
    ),
}


def tiny(model_type, **fields):
    torch.manual_seed(0)
    spec = {"model_type": model_type, "backbone": RESNET, "hidden_size": 8} | fields
    return load_model(spec, id2label=LABELS)[0]


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_network_has_the_published_number_of_parameters(name):
    """One convolution too wide or biased, and the checkpoints do not fit."""
    spec, parameters, auxiliary = PUBLISHED[name]
    with torch.device("meta"):
        model = load_model(spec, id2label={index: str(index) for index in range(19)})[0]
    assert model.num_parameters() == parameters
    assert sum(parameter.numel() for parameter in model.auxiliary_head.parameters()) == auxiliary


@pytest.mark.parametrize("head", HEADS)
def test_outputs_are_at_stride_8_and_named(head):
    """Losses read them by name; the auxiliary head reads the last map but one."""
    output = tiny(head).eval()(images(65, 97), output_hidden_states=True)
    assert isinstance(output, SegmentationOutput)
    assert output.logits.shape == output.aux_logits.shape == (2, 5, 9, 13)
    assert output.features.shape == (2, 8, 9, 13)
    maps = [tuple(state.shape[1:]) for state in output.hidden_states]
    assert maps == [(8, 17, 25), (8, 9, 13), (12, 9, 13), (16, 9, 13)]


@pytest.mark.parametrize("head", HEADS)
def test_classifier_reads_the_features(head):
    """Distilled features that do not determine the logits would be another layer than the papers'."""
    model = tiny(head, classifier_dropout=0.5).train()
    output = model(images(33, 40))
    torch.testing.assert_close(model.decode_head.classifier(output.features), output.logits)
    assert (output.features == 0).float().mean() > 0.6  # a half by ReLU, and half of the rest by dropout


@pytest.mark.parametrize("head", HEADS)
def test_loss_adds_the_auxiliary_one_with_its_weight(head):
    """Without it the student differs from the published baseline; at full weight as well."""
    labels = torch.randint(5, (2, 33, 40), generator=torch.Generator().manual_seed(2))
    labels[:, :9] = 255
    output = tiny(head).eval()(images(33, 40), labels=labels)

    def cross_entropy(logits):
        logits = F.interpolate(logits, size=(33, 40), mode="bilinear", align_corners=True)
        return F.cross_entropy(logits, labels, ignore_index=255)

    torch.testing.assert_close(output.loss, cross_entropy(output.logits) + 0.4 * cross_entropy(output.aux_logits))


@pytest.mark.parametrize("head", HEADS)
def test_auxiliary_loss_reaches_the_backbone_up_to_the_map_it_reads(head):
    """It is there for the backbone: a head that only trains itself costs time and helps nobody."""
    model = tiny(head)
    model(images(33, 40)).aux_logits.square().mean().backward()
    reached = {name for name, parameter in model.backbone.named_parameters() if parameter.grad is not None}
    stages = {name.split(".")[2] for name in reached if name.startswith("encoder.stages.")}
    assert stages == {"0", "1", "2"} and any(name.startswith("embedder.") for name in reached)
    assert all(parameter.grad is None for parameter in model.decode_head.parameters())


def test_auxiliary_head_can_be_left_out():
    """A teacher does not need one, and the mobile backbones have none."""
    model = tiny("deeplabv3", use_auxiliary_head=False)
    output = model(images(32, 32), labels=torch.zeros(2, 32, 32, dtype=torch.long))
    assert output.aux_logits is None and output.loss > 0
    assert not any(name.startswith("auxiliary_head") for name, _ in model.named_parameters())


def test_dropout_drops_values_or_channels():
    """CIRKD drops single values, Structured KD whole channels: the distilled features differ."""
    for spatial, kind in ((False, nn.Dropout), (True, nn.Dropout2d)):
        rates = [
            (type(module), module.p)
            for module in tiny("deeplabv3", spatial_dropout=spatial).modules()
            if isinstance(module, nn.Dropout | nn.Dropout2d)
        ]
        assert rates == [(kind, 0.5), (kind, 0.1), (kind, 0.1)]


def test_activations_follow_the_slope_in_the_heads_only():
    """Structured KD's heads are leaky, its backbone is not."""
    model = tiny("pspnet", activation_slope=0.01)
    slopes = [module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.01] * 6 and not any(isinstance(module, nn.LeakyReLU) for module in model.backbone.modules())
    assert not any(isinstance(module, nn.LeakyReLU) for module in tiny("pspnet").modules())


def test_pspnet_joins_the_input_before_or_after_its_averages():
    """The same shapes either way: a checkpoint read in the wrong order loads and fails."""
    x = images(9, 7)[:, :1].expand(-1, 16, -1, -1)
    first, last = (tiny("pspnet", input_first=flag).decode_head.psp.eval() for flag in (True, False))
    assert torch.equal(first(x)[:, :16], x) and torch.equal(last(x)[:, -16:], x)
    torch.testing.assert_close(first(x)[:, 16:], last(x)[:, :-16])


def test_deeplabv3_sees_the_mean_of_the_whole_map():
    """The image-level branch is a broadcast: every position gets the same value."""
    pyramid = tiny("deeplabv3").decode_head.aspp.eval()
    seen = []
    pyramid.project.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pyramid(torch.randn(1, 16, 5, 6))
    mean = seen[0][:, -8:]
    assert torch.equal(mean, mean[:, :, :1, :1].expand_as(mean)) and seen[0].shape == (1, 40, 5, 6)


def test_defaults_are_those_of_the_current_cirkd():
    """A student's width decides its published mIoU."""
    assert DeepLabV3Config().hidden_size == DeepLabV3Config(backbone="resnet101").hidden_size == 512
    assert (PSPNetConfig().hidden_size, PSPNetConfig(backbone="resnet101").hidden_size) == (128, 256)
    assert PSPNetConfig(backbone="resnet34_vanilla").hidden_size == 128
    assert (UperNetConfig().hidden_size, UperNetConfig().pool_hidden_size) == (128, 512)
    assert all(config().use_auxiliary_head for config in (DeepLabV3Config, PSPNetConfig, UperNetConfig))


def test_head_convolutions_start_from_torchs_default():
    """The default of transformers, a deviation of 0.02, is eight times as much for the widest of them."""
    torch.manual_seed(0)
    model = load_model({"model_type": "deeplabv3", "hidden_size": 128}, id2label=LABELS)[0]
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.03)


@pytest.mark.parametrize("backbone", FOREIGN)
@pytest.mark.parametrize("head", HEADS)
def test_any_backbone_of_transformers_trains_under_the_heads(head, backbone, tmp_path):
    """The promise of AutoBackbone: no dilated ResNet of ours is needed."""
    model = tiny(head, backbone=FOREIGN[backbone]).train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(images(128, 96), labels=torch.randint(5, (2, 128, 96)), output_hidden_states=True)
    output.loss.backward()
    optimizer.step()
    assert len(output.hidden_states) == 4 and output.aux_logits.shape[-2:] == output.hidden_states[2].shape[-2:]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert all(any(name.startswith(part) for name in changed) for part in ("backbone", "decode_head", "auxiliary"))
    model.eval().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))[0]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images(128, 96)).logits, model(images(128, 96)).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet19"}, "Unknown backbone 'resnet19'"),
        ({"backbone": RESNET | {"depht": 3}}, "DilatedResNetConfig has no field depht. Did you mean 'depths'"),
        ({"out_features": ["stage4"]}, "DeepLabV3Config has no field out_features"),
        ({"backbone_config": RESNET}, "two names of one field"),
        ({"backbone": RESNET | {"out_features": ["stage4"]}}, "reads the last map but one, the backbone returns 1"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout is a rate and must be in \[0, 1\)"),
        ({"dilations": []}, "dilations must be rates of at least 1"),
    ],
)
def test_impossible_model_is_refused(fields, message):
    """Recipes are written by hand."""
    with pytest.raises(ValueError, match=message):
        tiny("deeplabv3", **fields)


@pytest.mark.parametrize("config_class", [PSPNetConfig, UperNetConfig])
def test_impossible_pool_size_is_refused(config_class):
    """An empty pyramid builds, and is no pyramid."""
    with pytest.raises(ValueError, match="pool_sizes must be numbers of cells"):
        config_class(pool_sizes=(0, 1))

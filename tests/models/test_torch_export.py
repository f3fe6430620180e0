"""`torch.export` with free batch, height and width: what the tools for devices start from."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from hf_segkd.loading.any_model import load_model
from hf_segkd.models import BACKBONES, NETWORKS

SLOW = pytest.mark.slow
LABELS = {index: f"class_{index}" for index in range(5)}
HEADS = ("deeplabv3", "pspnet", "upernet")
# Pixels; below, ESPNetv2's pyramids and SegFormer's attention are other programs.
SMALLEST = 64
EXAMPLE = (65, 97)
SIZES = [(64, 96), (67, 70), (97, 65), (72, 131)]
OTHERS = {
    "espnet": {"model_type": "espnet", "depths": [1, 1], "hidden_sizes": [5, 5, 5]},
    "espnet-c": {"model_type": "espnet", "depths": [1, 1], "hidden_sizes": [5, 5, 5], "use_decoder": False},
    "espnetv2": {"model_type": "espnetv2", "width": 0.5, "depths": [1, 1]},
    "segformer": {
        "model_type": "segformer",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 8, 8, 8],
        "num_attention_heads": [1, 1, 1, 1],
        "decoder_hidden_size": 8,
    },
}


# The others, which have no small form, are among the slow ones below.
SMALL_BACKBONES = {
    "resnet": BACKBONES["resnet18"] | {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8]},
    "mobilevit": {
        "model_type": "segkd_mobilevit",
        "hidden_sizes": [8] * 5,
        "transformer_sizes": [8] * 3,
        "depths": [1, 1, 1],
        "expand_ratio": 1,
    },
}


class Logits(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


def images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def check_any_size(fields: dict) -> None:
    """Export once, from odd sizes, and compare with the model at others."""
    torch.manual_seed(0)
    model = Logits(load_model(fields, id2label=LABELS)[0]).eval()
    axes = {0: Dim("batch"), 2: Dim("height", min=SMALLEST), 3: Dim("width", min=SMALLEST)}
    program = torch.export.export(model, (images(2, *EXAMPLE),), dynamic_shapes=(axes,)).module()
    for size in SIZES:
        with torch.no_grad():
            expected, found = model(images(1, *size)), program(images(1, *size))
        # Float32 sums in another order: some kernels are chosen by shape.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_every_network_is_exported_below():
    """A new one must not escape."""
    assert set(NETWORKS) == {fields["model_type"] for fields in OTHERS.values()} - {"segformer"} | set(HEADS)


@pytest.mark.parametrize("name", ["espnet", *(pytest.param(name, marks=SLOW) for name in list(OTHERS)[1:])])
def test_networks_without_backbone_export_for_any_size(name):
    """One comparison of two sizes that the exporter cannot prove, and the network reaches no device."""
    check_any_size(OTHERS[name])


@pytest.mark.parametrize(
    "head", ["pspnet", pytest.param("deeplabv3", marks=SLOW), pytest.param("upernet", marks=SLOW)]
)
@pytest.mark.parametrize("name", ["resnet", pytest.param("mobilevit", marks=SLOW)])
def test_heads_on_backbones_export_for_any_size(name, head):
    """As above, for grids of cells, patches of two by two pixels and maps that are joined."""
    check_any_size({"model_type": head, "backbone": SMALL_BACKBONES[name], "hidden_size": 8})


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_published_sizes_export_for_any_size(head, backbone):
    """Every pair as it is trained: what only a deeper or wider network does is found here."""
    check_any_size({"model_type": head, "backbone": backbone})

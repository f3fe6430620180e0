"""Files of a loss (the page's), a backbone and a dataset that nobody has added yet: what an extension consists of."""

import re

from helpers.paths import ROOT

_PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
LOSS = re.search(r"```python\n(.*?class LogitMSELoss.*?)```", _PAGE, flags=re.DOTALL)[1]
LOSS_RECIPE = re.search(r"```yaml\n(# Mean squared.*?)```", _PAGE, flags=re.DOTALL)[1]

BACKBONE = '''"""Four convolutions."""

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from .mobile_backbone import ConvNormAct, MobileBackbone, MobileBackboneConfig
from .presets import BACKBONES

CHANNELS = (8, 8, 16, 16, 24)


class ToyConfig(MobileBackboneConfig):
    """Configuration of [`ToyBackbone`]."""

    model_type = "toy_backbone"

    @property
    def stage_channels(self) -> list[int]:
        return list(CHANNELS)


class ToyBackbone(MobileBackbone):
    """A stem and four stages, at stride 8."""

    config: ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.conv_stem = ConvNormAct(3, CHANNELS[0], 3, stride=2)
        pairs = zip(CHANNELS[:-1], CHANNELS[1:], (2, 2, 1, 1), strict=True)
        self.layer = nn.ModuleList(ConvNormAct(a, b, 3, stride=stride) for a, b, stride in pairs)
        self.post_init()

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        maps = [self.conv_stem(pixel_values)]
        for layer in self.layer:
            maps.append(layer(maps[-1]))
        return maps


AutoConfig.register(ToyConfig.model_type, ToyConfig, exist_ok=True)
AutoBackbone.register(ToyConfig, ToyBackbone, exist_ok=True)
BACKBONES["toy"] = {"model_type": "toy_backbone"}
'''

DATASET = '''"""Leaves on soil, two classes."""

from dataset_builders.files import Part
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DatasetSpec

SPEC = DatasetSpec(
    name="leaves",
    labels=("soil", "leaf"),
    palette=((90, 60, 30), (40, 160, 40)),
    license="CC0",
    link="https://example.org/leaves",
)


class Leaves(PairBuilder):
    """Reads `train/NAME.png` with `train/NAME_mask.png`, and `val` likewise."""

    SPEC = SPEC
    TITLE = "Leaves"
    PAGE = "Get it from https://example.org/leaves."
    PARTS = (Part(("train",)), Part(("val",)))
    LAYOUT = {
        "train": (r"train/([^/_]+)\\.png", r"train/([^/]+)_mask\\.png"),
        "validation": (r"val/([^/_]+)\\.png", r"val/([^/]+)_mask\\.png"),
    }

    @classmethod
    def label_map(cls, config) -> LabelMap:
        return LabelMap({0: 0, 1: 1, 255: 255}, "0, 1 and 255", "Download it again.")
'''

# File of the addition, its text; file that gets one line, the line before which it goes, the line.
ADDITIONS = {
    "loss": (
        *("hf_segkd/losses/logit_mse.py", LOSS),
        "hf_segkd/losses/__init__.py",
        *('    "kd": "kd:KDLoss",\n', '    "logit_mse": "logit_mse:LogitMSELoss",\n'),
    ),
    "backbone": (
        *("hf_segkd/models/toy_backbone.py", BACKBONE),
        "hf_segkd/models/backbones.py",
        *("from .presets import BACKBONES\n", "from .toy_backbone import ToyBackbone\n"),
    ),
    "dataset": (
        *("dataset_builders/leaves.py", DATASET),
        "dataset_builders/builders.py",
        *(
            '    "synthetic": "dataset_builders.synthetic:Synthetic",\n',
            '    "leaves": "dataset_builders.leaves:Leaves",\n',
        ),
    ),
}
RECIPES = {
    "hf_segkd/recipes/methods/logit_mse.yaml": LOSS_RECIPE,
    "hf_segkd/recipes/datasets/leaves.yaml": "# Leaves, a toy dataset.\ndataset: leaves\ncrop_size: [32, 32]\n",
}

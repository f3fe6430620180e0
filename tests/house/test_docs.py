"""Pages that a command writes are what the command writes."""

import re

import make_models
import pytest

from helpers.paths import ROOT
from hf_segkd.losses import LOSSES

DOCS = ROOT / "docs"
# Parameters and GMACs of the original networks at 512x1024, counted by their specification's author.
ORIGINALS = {
    "CIRKDv2 DeepLabV3-ResNet101": (79_084_262, 658.7),
    "CIRKDv2 DeepLabV3-ResNet18": (22_762_918, 202.7),
    "UperNet-ResNet18, lite": (16_569_638, 158.0),
    "UperNet-ResNet18": (41_085_350, 413.7),
    "PSPNet-ResNet18": (12_919_334, 122.1),
    "CIRKDv2 PSPNet-ResNet101": (58_629_606, 465.4),
    "DeepLabV3-MobileNetV3-S": (3_298_739, 22.6),
    "DeepLabV3-MobileNetV3-L": (6_785_990, 42.4),
    "PSPNet-MobileNetV3-S": (2_589_747, 14.7),
    "PSPNet-MobileNetV3-L": (6_126_918, 30.5),
    "DeepLabV3-MobileViT-XXS": (2_372_483, 44.1),
    "PSPNet-MobileViT-XXS": (1_794_051, 38.9),
    "DeepLabV3-MobileViT-XS": (3_591_875, 68.3),
    "DeepLabV3-MobileViT-S": (7_546_931, 123.8),
    "DeepLabV3-MobileNetV2 (ssseg)": (3_233_171, 26.6),
    "DeepLabV3-ResNet18, plain stem": (22_614_438, 187.8),
    "DeepLabV3-ResNet50, plain stem": (59_968_358, 489.4),
    "CIRKD / CSKD DeepLabV3-ResNet101": (61_118_950, 515.8),
    "CIRKD / CSKD DeepLabV3-ResNet18": (13_607_974, 129.4),
    "CIRKD / CSKD PSPNet-ResNet101": (68_072_166, 542.8),
    "DeepLabV3-MobileNetV2": (3_233_171, 26.6),
    "PSPNet-MobileNetV2": (2_654_739, 21.4),
    # Parameters of the published files and of the heads above; operations are this library's own count.
    "DeepLabV3-EfficientNet-Lite0": (4_380_307, 36.0),
    "DeepLabV3-EfficientNet-Lite1": (5_144_979, 42.3),
    "DeepLabV3-EfficientNet-Lite2": (5_898_195, 48.4),
    "PSPNet-EfficientNet-Lite0": (3_801_875, 30.7),
    "Structured KD / CWD PSPNet-ResNet18": (13_068_262, 125.8),
    "Structured KD / CWD PSPNet-ResNet101": (70_437_350, 574.9),
    "SegFormer-B0": (3_719_027, 17.8),
    "SegFormer-B4": (64_007_635, 204.8),
    "ESPNet": (363_462, 4.7),
    "ESPNet-C": (349_193, 3.5),
    "ESPNetv2-0.5": (80_230, 0.59625),
    "ESPNetv2-1.0": (233_786, 1.08528),
    "ESPNetv2-1.5": (468_010, 1.71326),
    "ESPNetv2-2.0": (788_762, 2.69774),
}


@pytest.mark.parametrize("row", make_models.ROWS, ids=lambda row: row.name)
def test_network_has_the_size_and_the_cost_of_the_original(row):
    """A missing layer or another width shows here before a long training does; a table written by hand ages."""
    found, macs = make_models.costs(row)
    parameters, gmacs = ORIGINALS[row.name]
    assert found == parameters
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.02)
    assert make_models.line(row, found, macs) in (DOCS / "models.md").read_text()


def test_table_of_networks_has_a_row_for_each():
    """A network that is left out of the table is not compared with its original."""
    text = (DOCS / "models.md").read_text()
    assert len(re.findall(r"^\| ", text, flags=re.MULTILINE)) == len(make_models.ROWS) + 1
    assert set(ORIGINALS) == {row.name for row in make_models.ROWS}


def test_table_of_methods_names_every_loss():
    """A new method without a line is a method nobody finds; written by the command, not by hand."""
    text = (DOCS / "methods.md").read_text()
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert list(lines) == list(LOSSES)
    for name, method in LOSSES.items():
        assert method.paper in lines[name] and f"| {method.time_growth} | {method.memory_growth} |" in lines[name]

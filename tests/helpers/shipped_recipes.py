"""The shipped recipes, and the rows of the page that uses them."""

from functools import cache
from pathlib import Path

import make_recipes

from helpers.commands import distill
from helpers.paths import ROOT
from hf_segkd.recipe import load_yaml, parse
from hf_segkd.training.config import DistillationConfig

KINDS = ("datasets", "pairs", "methods")
# Classes of the datasets that the originals report.
CLASSES = {"ade20k": 150, "camvid": 11, "cityscapes": 19, "coco_stuff_164k": 182, "synthetic": 10, "voc_aug": 21}
NAMES = {kind: sorted(path.stem for path in (ROOT / "hf_segkd/recipes" / kind).glob("*.yaml")) for kind in KINDS}


@cache
def recipe(kind: str, name: str) -> dict:
    return load_yaml(path(kind, name).read_text())


def path(kind: str, name: str) -> Path:
    return ROOT / "hf_segkd/recipes" / kind / f"{name}.yaml"


def network(pair: str) -> dict:
    """Fields of a pair's student; its images are no part of the network."""
    return {key: value for key, value in recipe("pairs", pair)["student"].items() if key != "processor"}


ROWS = [table | row for table in make_recipes.published() for row in table["rows"]]
RUNS = [row for row in ROWS if "no_recipe" not in row]


def read(row: dict, repaired: bool = False) -> tuple:
    """What `distill` makes of a row's command, or of its repaired one: its arguments, config, merged recipe."""
    arguments = make_recipes.arguments(row, repaired)
    names, flags = arguments[:3], arguments[3:]
    files = [str(path(kind, name)) for kind, name in zip(KINDS, names, strict=True)]
    argv = [*files, "--output_dir", "runs/x", "--use_cpu", *flags]
    (script, config), merged = parse((distill.ScriptArguments, DistillationConfig), argv)
    return script, config, merged

"""Every command of a published row builds, and the page of recipes is what its sources say."""

from functools import cache

import make_recipes
import pytest
import torch

from helpers.shipped_recipes import CLASSES, KINDS, NAMES, ROWS, RUNS, network, read, recipe
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import LossSetup, build_losses
from hf_segkd.losses.draws import SeededDraws
from hf_segkd.recipe import load_yaml

SKD_PSPNET = network("skd-pspnet-r101_skd-pspnet-r18")
RESNET101 = {"depths": [3, 4, 23, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}
# By the first half of a pair's name; a teacher of the Hub is known to the Hub alone.
TEACHERS = {
    "deeplabv3-r101": {"model_type": "deeplabv3", "backbone": "resnet101"},
    "deeplabv3-r101-v1": {"model_type": "deeplabv3", "backbone": "resnet101", "hidden_size": 256},
    "pspnet-r101": {"model_type": "pspnet", "backbone": "resnet101"},
    "skd-pspnet-r101": {
        **SKD_PSPNET,
        **{"hidden_size": 512, "pool_hidden_size": 512, "auxiliary_hidden_size": 512},
        "backbone": {**SKD_PSPNET["backbone"], **RESNET101},
    },
    "segformer-b4": {
        **{"model_type": "segformer", "decoder_hidden_size": 768},
        **{"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3]},
    },
    "espnet": {"model_type": "espnet"},
}


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("deeplabv3-r101", 79_084_262),
        ("deeplabv3-r101-v1", 61_118_950),
        ("pspnet-r101", 58_629_606),
        ("skd-pspnet-r101", 70_437_350),
        ("segformer-b4", 64_007_635),
    ],
)
def test_teachers_of_these_tests_are_the_published_ones(name, parameters):
    """The shapes below would otherwise be those of teachers that nobody has."""
    with torch.device("meta"):
        teacher = load_model(TEACHERS[name], id2label={i: str(i) for i in range(19)})[0]
    assert sum(parameter.numel() for parameter in teacher.parameters()) == parameters


@cache
def shapes(model: str, num_labels: int, crop: tuple[int, int]) -> dict[str, torch.Size]:
    """Shapes of everything that the model of a config, given as text, returns for a crop."""
    with torch.device("meta"):
        model = load_model(load_yaml(model), {i: str(i) for i in range(num_labels)})[0]
    return output_shapes(model, crop)


@pytest.fixture
def empty_queues(monkeypatch):
    """On the meta device there is nothing to draw, and 182 classes of it take a second."""
    monkeypatch.setattr(SeededDraws, "unit_rows", lambda self, shape, dtype: torch.empty(shape))


@pytest.mark.parametrize("row", RUNS, ids=lambda row: " ".join(make_recipes.arguments(row)))
def test_command_of_a_published_row_builds_its_losses(row, empty_queues):
    """A flag that is gone, or a map too small for a loss, would be found by whoever wants to reproduce the row."""
    script, config, merged = read(row)
    assert merged["student"].items() >= recipe("pairs", row["pair"])["student"].items() or row["name"] == "Teachers"
    fields = {key: value for key, value in script.student.items() if key != "processor"}
    teacher = TEACHERS.get(row["pair"].split("_")[0], {"model_type": "espnet"})
    num_labels, crop = CLASSES[script.dataset], tuple(script.crop_size)
    student, teacher = (shapes(str(model), num_labels, crop) for model in (fields, teacher))
    with torch.device("meta"):
        modules, _ = build_losses(config.losses, LossSetup(student, num_labels=num_labels, teacher=teacher))
    assert list(modules) == list(config.losses)


def test_every_recipe_of_the_originals_leads_to_a_published_row():
    """A recipe that no row uses is one whose numbers nobody compares."""
    used = {kind: {make_recipes.arguments(row)[index] for row in RUNS} for index, kind in enumerate(KINDS)}
    missing = {kind: [name for name in NAMES[kind] if name not in used[kind]] for kind in KINDS}
    assert missing == {
        "datasets": ["synthetic"],
        "pairs": ["synthetic", "synthetic_teacher"],
        # Without a published row on our page; those of CIRKD are halves of it, few_labels is our own.
        "methods": ("cankd cirkd_memory cirkd_minibatch cosine dice few_labels gkd lovasz pkd".split()),
    }


def test_page_of_recipes_is_up_to_date():
    """`python docs/make_recipes.py` writes it; a number changed in one place only would be believed in the other."""
    assert make_recipes.render(make_recipes.PAGE.read_text(encoding="utf-8")) == make_recipes.PAGE.read_text(
        encoding="utf-8"
    )


def test_cited_numbers_have_a_source_and_measured_ones_a_cell_of_the_results():
    """Numbers from memory, and ours in the column of theirs, are what the page exists to prevent."""
    assert all(table["source"] and table["teacher"] for table in make_recipes.published())
    assert all(float(number) > 0 for row in ROWS for number in row.get("published", {}).values())
    for row in ROWS:
        cited, ours = make_recipes.row_cells(row)[4:6]
        assert ours == "" or ("ours" in row and ours.endswith("(results.md)"))
        assert (cited == "–") == ("published" not in row)
    with pytest.raises(ValueError, match="has no row 'mIoU' with a column 'nobody'"):
        make_recipes.measured(section="Quickstart: synthetic street scenes", row="mIoU", column="nobody")

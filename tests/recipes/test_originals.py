"""Every published row trains what the original's script trains, and the repaired one differs by its quirk alone."""

import subprocess
import sys

import make_recipes
import pytest

from helpers import originals
from helpers.paths import ROOT
from helpers.shipped_recipes import RUNS, read

PUBLISHED = [row for row in RUNS if row["name"] not in originals.WITHOUT_SCRIPT]


def name_of(row):
    return " ".join([row["name"], *make_recipes.arguments(row)])


@pytest.mark.parametrize("row", PUBLISHED, ids=name_of)
def test_a_published_row_has_every_number_of_its_original(row):
    """Half the steps, another end of the learning rate or the wrong images per process is another experiment."""
    script, config, merged = read(row)
    expected = originals.schedule(row["name"], row["student"], row["method"], script.dataset)
    found = {
        "dataset": script.dataset,
        "crop": script.crop_size,
        "scales": script.scale_range,
        "flip": script.flip,
        "interpolation": script.interpolation,
        "optimizer": config.optim,
        "learning_rate": config.learning_rate,
        "end": config.lr_scheduler_kwargs["lr_end"],
        "power": config.lr_scheduler_kwargs["power"],
        "weight_decay": config.weight_decay,
        "clip": config.max_grad_norm,
        "warmup": config.warmup_steps,
        "images": config.total_batch_size,
        "processes": row["processes"],
        "steps": config.max_steps,
        "every": config.eval_steps,
        "from": config.eval_delay,
        "best": config.load_best_model_at_end,
        "processor": merged["student"]["processor"],
        "align_corners": merged["student"].get("align_corners", merged["student"]["model_type"] != "segformer"),
    }
    assert found == expected
    assert config.per_device_train_batch_size * row["processes"] == expected["images"]
    assert config.gradient_accumulation_steps == 1 and config.lr_scheduler_type == "polynomial"
    assert config.optim != "sgd" or config.optim_args == "momentum=0.9"


@pytest.mark.parametrize("row", PUBLISHED, ids=name_of)
def test_a_published_row_has_the_weights_layers_and_quirks_of_its_original(row):
    """A weight ten times off trains, and the method looks bad."""
    _, config, _ = read(row)
    assert config.losses == originals.losses(row["name"], row["student"], row["method"])


def test_the_table_of_originals_names_no_row_that_is_gone():
    """An entry that no row reads holds nothing."""
    keys = {(row["name"], row["student"], row["method"]) for row in PUBLISHED}
    typed = {
        (table, *key[:2])
        for values in (originals.ROWS, originals.ROW_LOSSES)
        for table, rows in values.items()
        for key in rows
    }
    assert typed <= keys and set(originals.SCHEDULES) == {row["name"] for row in PUBLISHED}


@pytest.mark.parametrize("row", [row for row in PUBLISHED if "quirk" in row], ids=name_of)
def test_a_repaired_row_lacks_the_quirk_and_nothing_else(row):
    """What we recommend could otherwise drift from what it is compared with."""
    published, repaired = make_recipes.arguments(row), make_recipes.arguments(row, repaired=True)
    quirk = row["quirk"].split()
    assert published == repaired + quirk and len(quirk) == 2
    _, ours, _ = read(row, repaired=True)
    loss, option = quirk[0].removeprefix("--losses.").split(".")
    _, theirs, _ = read(row)
    assert option not in ours.losses[loss]
    assert theirs.losses[loss] == ours.losses[loss] | {option: quirk[1]}


def test_every_row_says_what_differs_and_where_its_values_are_from():
    """`exact` is a claim: without the script's place nobody could check it."""
    for row in PUBLISHED:
        assert make_recipes.script_link(row) or "no script" in make_recipes.differs_in(row), name_of(row)
    for row in RUNS:
        assert row["name"] not in originals.WITHOUT_SCRIPT or make_recipes.differs_in(row)


def test_the_page_is_what_its_script_writes():
    """`python docs/make_recipes.py --check` is what a reader would run."""
    command = [sys.executable, str(ROOT / "docs" / "make_recipes.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr

"""Every shipped method through `scripts/distill.py` on synthetic scenes: it trains, logs its terms and resumes."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from helpers.commands import RECIPE, distill, recipe
from helpers.paths import ROOT
from helpers.tiny import TINY
from hf_segkd.losses import LOSSES

pytestmark = pytest.mark.usefixtures("module_without_figures")

METHODS = sorted((ROOT / "hf_segkd" / "recipes" / "methods").glob("*.yaml"))
STEPS, SHORT = 4, 2
# A discriminator reads logits of at least 64x64, which ESPNet's decoder gives for a crop of that size.
LARGE_LOGITS = {
    "student": {**TINY, "use_decoder": True},
    "crop_size": [64, 64],
    "dataset_config": {"num_train": 8, "num_validation": 2, "num_test": 2, "height": 64, "width": 96},
    "per_device_train_batch_size": 2,
}


def losses_of(method) -> dict[str, str]:
    """Name in the logs -> method, of a recipe."""
    losses = yaml.safe_load(method.read_text())["losses"]
    return {name: options.get("type", name) for name, options in losses.items()}


def smallest() -> list:
    """For each loss the recipe with the fewest that has it; the other recipes put the same losses together anew."""
    recipes = {method: set(losses_of(method).values()) for method in METHODS}
    fewest = {
        name: min((method for method in METHODS if name in recipes[method]), key=lambda x: len(recipes[x]))
        for name in sorted(set().union(*recipes.values()))
    }
    return sorted(set(fewest.values()))


def steps_of(method) -> int:
    return STEPS if method in smallest() else SHORT


def unlabeled_images(folder: Path) -> str:
    """A folder of noise."""
    folder.mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 64, 80, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module", params=METHODS, ids=lambda path: path.stem)
def run(request, teacher, tmp_path_factory):
    """A finished run: the method's recipe, the arguments without output folder, and the folder."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    large = any(LOSSES[name].min_side > RECIPE["crop_size"][0] for name in losses_of(request.param).values())
    # CSKD compares at least 3 images.
    changes = {"per_device_train_batch_size": 4, **(LARGE_LOGITS if large else {})}
    steps = steps_of(request.param)
    changes |= {"max_steps": steps, "eval_steps": steps // 2, "save_steps": steps // 2, "keep_checkpoints": True}
    argv = [recipe(folder, **changes), str(request.param), "--teacher", teacher]
    if request.param.stem == "few_labels":
        argv += ["--unlabeled", unlabeled_images(folder / "unlabeled")]
    distill.main([*argv, "--output_dir", str(folder / "run")])
    return request.param, argv, folder / "run"


def test_method_trains_and_logs_finite_terms(run):
    """A recipe that only parses may still name a layer that the pair does not have, or divide by an empty batch."""
    method, _, folder = run
    steps = [entry for entry in json.loads((folder / "training_log.json").read_text()) if "loss" in entry]
    assert len(steps) == steps_of(method)
    for name in losses_of(method):
        terms = {key for key in steps[0] if key == f"loss_{name}" or key.startswith(f"loss_{name}_")}
        assert terms and all(math.isfinite(step[term]) for step in steps for term in terms), name
    assert all(math.isfinite(step["loss"]) for step in steps)


@pytest.mark.parametrize("run", smallest(), ids=lambda path: path.stem, indirect=True)
def test_interrupted_run_resumes_to_the_same_bits(run, tmp_path):
    """A queue, generator, momentum or data position that is not restored makes the second half another run."""
    _, argv, whole = run
    middle = f"checkpoint-{STEPS // 2}"
    # All that a machine taken away after the first half leaves behind.
    shutil.copytree(whole / middle, tmp_path / "run" / middle)
    distill.main([*argv, "--output_dir", str(tmp_path / "run"), "--resume"])
    found, expected = weights(tmp_path / "run"), weights(whole)
    assert f"checkpoint-{STEPS}/model.safetensors" in expected
    for file, tensors in expected.items():
        assert tensors.keys() == found[file].keys()
        assert all(torch.equal(x, found[file][key]) for key, x in tensors.items()), file


def weights(folder) -> dict[str, dict[str, torch.Tensor]]:
    """Students, projectors and queues of a run and its checkpoints, by file."""
    return {path.relative_to(folder).as_posix(): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", LOSSES)
def test_method_is_in_a_shipped_recipe(name):
    """Without one, nothing above has trained it."""
    assert any(name in losses_of(method).values() for method in METHODS)

"""What `--data` without further flags trains with: each rule and its numbers stand here, and in docs/your_own_data.md.

A rule applies to an option that neither a recipe nor a flag has given. What it chose is logged and becomes part of the
run's recipe.
"""

from __future__ import annotations

import logging
import math
import statistics
from typing import Any, NamedTuple

from transformers import TrainingArguments

from dataset_builders.opened import OpenedDataset
from hf_segkd.data.pixels import size_and_turn
from hf_segkd.data.raw import Unreadable
from hf_segkd.data.sampling import evenly_spread
from hf_segkd.loading.students import resolve_student
from hf_segkd.models import SHORT_NAMES
from hf_segkd.recipe import RECIPES, load_yaml

logger = logging.getLogger(__name__)

METHOD = "kd_cwd"  # of a run with a teacher; compares logits alone, which every teacher has
LOOKED_AT = 32  # training images whose size is read
CROP_STEP, SMALLEST_CROP, LARGEST_CROP = 32, 64, 512  # pixels
BATCH = 8  # images in one step of all processes
NEW_RATE = 1e-3  # of our own networks with random weights
TRAINED_RATE = 2e-4  # of what goes on from trained weights, and of transformers' networks
PASSES = 100  # over the training images
FEWEST_STEPS, MOST_STEPS = 1000, 20_000


class Choice(NamedTuple):
    """A value, and why it was taken."""

    value: Any
    reason: str


def derive_options(
    recipe: dict[str, Any], student: Any, dataset: OpenedDataset, config: TrainingArguments
) -> dict[str, Any]:
    """Options of a run that were not given, from its data and its student.

    Args:
        recipe (`dict`): What recipes and flags say; only its keys and those values are read that rules depend on.
        student (`str` or `dict`): As [`~hf_segkd.loading.students.load_student`] takes it.
        dataset ([`~dataset_builders.opened.OpenedDataset`]): What is trained on.
        config (`TrainingArguments`): Knows how many processes train together, and which of them writes logs.

    Returns:
        `dict[str, Any]`: Value of each option that a rule applies to. All are logged.

    Raises:
        ValueError: An unknown student, a dataset that cannot be opened, or an optimizer without a learning rate.
    """
    processes = config.world_size
    images, height, width = _images(dataset)
    chosen = _losses(recipe)
    chosen |= _crop(height, width)
    chosen |= _batch(images, processes)
    chosen |= _optimizer(recipe, student)
    per_device = recipe.get("per_device_train_batch_size", chosen["per_device_train_batch_size"].value)
    batch = per_device * processes * recipe.get("gradient_accumulation_steps", 1)
    if "num_train_epochs" not in recipe:
        chosen |= _steps(images, batch)
    chosen = {name: choice for name, choice in chosen.items() if name not in recipe}
    width_of_names = max(map(len, chosen), default=0)
    lines = [f"  {name:<{width_of_names}}  {_shown(choice)}" for name, choice in chosen.items()]
    if lines and config.should_log:
        logger.info("Not given, hence derived from data and student:\n%s", "\n".join(lines))
    return {name: choice.value for name, choice in chosen.items()}


def _images(dataset: OpenedDataset) -> tuple[int, int, int]:
    """Number of training images, and their median height and width in pixels."""
    split = dataset.spec.train_split
    raw = dataset.raw_splits().get(split)
    if raw is None:  # drawn datasets have no files
        rows = dataset.split(split)
        sizes = [rows[index]["image"].size[::-1] for index in evenly_spread(len(rows), LOOKED_AT)]
        return len(rows), *map(int, map(statistics.median, zip(*sizes, strict=True)))
    sizes = []
    for index in evenly_spread(len(raw), LOOKED_AT):
        try:
            size, _ = size_and_turn(raw.read_image(index))
        except (OSError, ValueError, Unreadable):
            continue  # the check of the data names such files
        sizes.append(size)
    if not sizes:
        return len(raw), LARGEST_CROP, LARGEST_CROP
    return len(raw), *map(int, map(statistics.median, zip(*sizes, strict=True)))


def _losses(recipe: dict[str, Any]) -> dict[str, Choice]:
    method = METHOD if recipe.get("teacher") else "baseline"
    losses = load_yaml((RECIPES / "methods" / f"{method}.yaml").read_text(encoding="utf-8"))["losses"]
    return {"losses": Choice(losses, f"method {method}, as {'a' if recipe.get('teacher') else 'no'} teacher is given")}


def _crop(height: int, width: int) -> dict[str, Choice]:
    crop = [max(SMALLEST_CROP, min(LARGEST_CROP, side) // CROP_STEP * CROP_STEP) for side in (height, width)]
    reason = (
        f"the median training image is {height}x{width}; {SMALLEST_CROP} to {LARGEST_CROP}, multiples of {CROP_STEP}"
    )
    return {"crop_size": Choice(crop, reason)}


def _batch(images: int, processes: int) -> dict[str, Choice]:
    # At least two: a batch norm after global pooling sees one value per image.
    batch = max(2, min(BATCH, images) // processes)
    reason = f"{BATCH} images in one step of all processes, of {images} training images"
    return {"per_device_train_batch_size": Choice(batch, reason)}


def _optimizer(recipe: dict[str, Any], student: Any) -> dict[str, Choice]:
    optim = recipe.get("optim", "adamw_torch")
    if not optim.startswith("adam"):
        if "learning_rate" not in recipe:
            raise ValueError(f"optim {optim}: no rule gives its learning rate. Give --learning_rate too.")
        return {}
    fields = resolve_student(student)
    new = isinstance(fields, dict) and "backbone_weights" not in fields
    own = new and fields.get("model_type") in {*SHORT_NAMES, *SHORT_NAMES.values()}
    why = "new network of ours" if own else "network of transformers" if new else "starts from trained weights"
    return {
        "optim": Choice(optim, "AdamW"),
        "weight_decay": Choice(0.01, "AdamW's usual one"),
        "learning_rate": Choice(NEW_RATE if own else TRAINED_RATE, f"the student is a {why}" if new else f"it {why}"),
    }


def _steps(images: int, batch: int) -> dict[str, Choice]:
    steps = max(FEWEST_STEPS, min(MOST_STEPS, math.ceil(PASSES * images / batch)))
    reason = f"{PASSES} passes over {images} training images, {batch} a step; {FEWEST_STEPS} to {MOST_STEPS} steps"
    return {"max_steps": Choice(steps, reason)}


def _shown(choice: Choice) -> str:
    value = choice.value
    shown = (
        ", ".join(value)
        if isinstance(value, dict)
        else " ".join(map(str, value))
        if isinstance(value, list)
        else value
    )
    return f"{shown}  ({choice.reason})"

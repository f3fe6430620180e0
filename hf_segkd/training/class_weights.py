"""Class weights of the task loss, computed from the training split by a published formula."""

from __future__ import annotations

import logging

import datasets
import numpy as np

from dataset_builders.opened import OpenedDataset
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.parallel import in_threads
from hf_segkd.data.raw import RawSplit, Unreadable, decode_mask, read
from hf_segkd.values import check_choice

logger = logging.getLogger(__name__)
FORMULAS = ("inverse_frequency", "median_frequency", "enet")


def class_weights(formula: str, pixels: np.ndarray, beside: np.ndarray | None = None) -> list[float]:
    """What a pixel of each class counts in the task loss.

    With n_c the labeled pixels of class c, N their sum and p_c = n_c / N:

    * `"inverse_frequency"`: N / (K · n_c). Every class then counts alike in the sum, and the mean weight of a pixel
      is 1; scikit-learn calls it balanced.
    * `"median_frequency"`: median(f) / f_c, f_c = n_c / (labeled pixels of the images that show c). Eigen and Fergus,
      ICCV 2015, https://huggingface.co/papers/1411.4734.
    * `"enet"`: 1 / ln(1.02 + p_c), between 1.4 and 50. Paszke et al., ENet, 2016,
      https://huggingface.co/papers/1606.02147.

    Args:
        formula (`str`): One of the three.
        pixels (`np.ndarray` of shape `(K,)`): n_c.
        beside (`np.ndarray` of shape `(K,)`, *optional*): Labeled pixels of the images that show each class; for
            `"median_frequency"` only.

    Returns:
        `list[float]`: K weights with six significant digits.

    Raises:
        ValueError: If the formula is unknown, nothing is labeled, or a class without a pixel would get an infinite
            weight.
    """
    check_choice("class_weights", formula, FORMULAS)
    pixels = np.asarray(pixels, dtype=np.float64)
    absent = np.flatnonzero(pixels == 0).tolist()
    if not pixels.any():
        raise ValueError("class_weights: not one pixel of the training split is labeled.")
    if absent and formula != "enet":
        raise ValueError(
            f"class_weights: classes {absent} have no pixel in the training split, so that their weight by "
            f"'{formula}' would be infinite. Use 'enet', give numbers, or leave these classes out."
        )
    if formula == "inverse_frequency":
        weights = pixels.sum() / (len(pixels) * pixels)
    elif formula == "median_frequency":
        frequency = pixels / np.asarray(beside, dtype=np.float64)
        weights = np.median(frequency) / frequency
    else:
        weights = 1 / np.log(1.02 + pixels / pixels.sum())
    return [float(f"{weight:.6g}") for weight in weights]


def count_pixels(dataset: OpenedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Labeled pixels (K,) of each class in the training split, and of the images that show it; every mask is read.

    Args:
        dataset ([`~dataset_builders.opened.OpenedDataset`]): From [`~dataset_builders.open_dataset`].
    """
    spec = dataset.spec
    split = spec.train_split
    raw = dataset.raw_splits().get(split)
    if raw is None:
        read_ids = _DrawnIds(dataset.split(split))
        count = len(read_ids.rows)
    else:
        read_ids = _RawIds(raw, dataset.label_map)
        count = len(raw)
    pixels = np.zeros(spec.num_labels, dtype=np.int64)
    beside = np.zeros(spec.num_labels, dtype=np.int64)
    for counts in in_threads(read_ids, range(count), "counting classes"):
        counts = counts[: spec.num_labels]
        pixels += counts
        beside += np.where(counts > 0, counts.sum(), 0)
    return pixels, beside


def has_formula(losses: dict[str, dict]) -> bool:
    """Whether `class_weights` of a loss is a formula, of which the training masks make numbers."""
    return any(_formula(options) is not None for options in losses.values())


def resolve_class_weights(losses: dict[str, dict], dataset: OpenedDataset) -> dict[str, dict]:
    """The losses of a recipe, with numbers in place of the formulas of `class_weights`; they are logged.

    Raises:
        ValueError: As [`class_weights`].
    """
    resolved = dict(losses)
    counts = None
    for name, options in losses.items():
        formula = _formula(options)
        if formula is None:
            continue
        check_choice("class_weights", formula, FORMULAS)
        counts = counts or count_pixels(dataset)
        weights = class_weights(formula, *counts)
        named = zip(dataset.spec.labels, weights, strict=True)
        logger.info("Class weights (%s): %s", formula, ", ".join(f"{label} {x:.4g}" for label, x in named))
        resolved[name] = options | {"class_weights": weights}
    return resolved


def _formula(options: dict | None) -> str | None:
    """The name that `class_weights` of a loss gives instead of numbers."""
    weights = options.get("class_weights") if isinstance(options, dict) else None
    return weights if isinstance(weights, str) else None


class _RawIds:
    """Pixels (256,) of each train id in a stored mask; zeros for one that cannot be read, which the check names."""

    def __init__(self, split: RawSplit, label_map: LabelMap):
        self.split = split
        self.label_map = label_map

    def __call__(self, index: int) -> np.ndarray:
        try:
            content = read(self.split.read_mask, index)
            if content is None:
                return np.zeros(256, dtype=np.int64)
            mask = decode_mask(content) if isinstance(content, bytes) else content
        except Unreadable:
            return np.zeros(256, dtype=np.int64)
        ids = self.label_map(mask, self.split.names(index)[1])
        return np.bincount(ids.ravel(), minlength=256)


class _DrawnIds:
    """The same of rows that are drawn."""

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows.select_columns("annotation")

    def __call__(self, index: int) -> np.ndarray:
        return np.bincount(np.asarray(self.rows[index]["annotation"]).ravel(), minlength=256)

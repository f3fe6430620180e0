"""Figures of an evaluation, drawn with matplotlib: an extra, so it is imported only here and when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

MATPLOTLIB = "Figures need matplotlib. Install it with: pip install hf-segkd[figures]"


def plot_class_bars(reports: dict[str, dict], path: str | Path) -> None:
    """Draw the IoU of each class as horizontal bars, one colour per model.

    Args:
        reports (`dict[str, dict]`): Model name -> what its `metrics.json` holds; the same classes in all.
        path (`str` or `Path`): File to write; its suffix chooses the format.

    Raises:
        ImportError: Without matplotlib.
    """
    labels = list(next(iter(reports.values()))["per_class_iou"])
    height = 0.8 / len(reports)
    figure = new_figure((7, 1.2 + len(labels) * max(0.28, 0.14 * len(reports))))
    axes = figure.subplots()
    for number, (name, report) in enumerate(reports.items()):
        values = [100 * (report["per_class_iou"][label] or 0) for label in labels]
        title = f"{name}: mIoU {100 * report['mean_iou']:.2f} %"
        places = np.arange(len(labels)) + (number - (len(reports) - 1) / 2) * height
        bars = axes.barh(places, values, height, label=title)
        present = [report["per_class_iou"][label] is not None for label in labels]
        axes.bar_label(
            bars, [f"{x:.1f}" if here else "absent" for x, here in zip(values, present, strict=True)], padding=2
        )
    axes.set(xlabel="IoU (%)", xlim=(0, 109), yticks=range(len(labels)), yticklabels=labels)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper left", frameon=False)
    figure.savefig(path, dpi=120)


def plot_confusion(matrix: Tensor, labels: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix: of each reference class, the share of pixels predicted as each class, in percent.

    Args:
        matrix (`torch.Tensor` of shape `(K, K)`): Pixels, rows = reference, columns = prediction.
        labels (`Sequence[str]`): The K class names.
        path (`str` or `Path`): File to write; its suffix chooses the format.

    Raises:
        ImportError: Without matplotlib.
    """
    shares = 100 * matrix.double() / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    side = max(5.0, 0.42 * len(labels) + 2)
    figure = new_figure((side, side))
    axes = figure.subplots()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="labelled", xticks=range(len(labels)), yticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=90)
    axes.set_yticklabels(labels)
    if len(labels) <= 30:  # beyond, numbers would be smaller than the eye can read
        for row, column in zip(*np.nonzero(shares.numpy().round() >= 1), strict=True):
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(picture, ax=axes, label="share of the labelled class (%)", shrink=0.8)
    figure.savefig(path, dpi=120)


def new_figure(size: tuple[float, float]):
    """An empty matplotlib figure of `size` inches, width first.

    Raises:
        ImportError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MATPLOTLIB) from error
    return Figure(figsize=size, layout="constrained")

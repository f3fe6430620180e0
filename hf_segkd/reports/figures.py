"""Figures of an evaluation, drawn with matplotlib: an extra, so it is imported only here and when needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_segkd.data import DatasetSpec

DPI = 120
MOST_CLASSES = (
    30  # of a confusion matrix; smaller numbers would be unreadable, and the picture stays below 1900 pixels
)
MOST_BARS = 60
MATPLOTLIB = "Figures need matplotlib. Install it with: pip install hf-segkd[figures]"


def plot_class_bars(reports: dict[str, dict], path: str | Path) -> None:
    """Draw the IoU of each class as horizontal bars, one color per model.

    Of more than [`MOST_BARS`] classes, those with the lowest and the highest IoU of the first model are drawn, half
    of the bars for each; the title says so.

    Args:
        reports (`dict[str, dict]`): Model name -> what its `metrics.json` holds; the same classes in all.
        path (`str` or `Path`): File to write; its suffix chooses the format.

    Raises:
        ImportError: Without matplotlib.
    """
    first = next(iter(reports.values()))["per_class_iou"]
    labels = _lowest_and_highest(first)
    height = 0.8 / len(reports)
    figure = new_figure((10, 1.2 + len(labels) * max(0.28, 0.16 * len(reports))))  # as wide as the curves
    axes = figure.subplots()
    for number, (name, report) in enumerate(reports.items()):
        values = [100 * (report["per_class_iou"][label] or 0) for label in labels]
        mean = report["mean_iou"]
        title = f"{_plain(name)}: mIoU " + ("-" if mean is None else f"{100 * mean:.2f} %")
        places = np.arange(len(labels)) + (number - (len(reports) - 1) / 2) * height
        bars = axes.barh(places, values, height, label=title)
        present = [report["per_class_iou"][label] is not None for label in labels]
        texts = [f"{x:.1f}" if here else "absent" for x, here in zip(values, present, strict=True)]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
    axes.set(xlabel="IoU (%)", xlim=(0, 109), yticks=range(len(labels)), yticklabels=[*map(_plain, labels)])
    if len(labels) < len(first):
        axes.set_title(f"the lowest and the highest {len(labels) // 2} of {len(first)} classes", fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper left", frameon=False)
    figure.savefig(path, dpi=DPI)


def plot_confusion(matrix: Tensor, labels: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix: of each reference class, the share of pixels predicted as each class, in percent.

    Of more than [`MOST_CLASSES`] classes, those that take part in the most wrong pixels are drawn, see
    [`most_confused`]; the title says so.

    Args:
        matrix (`torch.Tensor` of shape `(K, K)`): Pixels, rows = reference, columns = prediction.
        labels (`Sequence[str]`): The K class names.
        path (`str` or `Path`): File to write; its suffix chooses the format.

    Raises:
        ImportError: Without matplotlib.
    """
    classes = len(labels)
    matrix, labels = most_confused(matrix, labels)
    shares = 100 * matrix.double() / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    side = max(5.0, 0.42 * len(labels) + 2)
    figure = new_figure((side, side))
    axes = figure.subplots()
    picture = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="labeled", xticks=range(len(labels)), yticks=range(len(labels)))
    if classes > MOST_CLASSES:
        axes.set_title(f"the {MOST_CLASSES} of {classes} classes with the most wrong pixels", fontsize=9)
    axes.set_xticklabels([*map(_plain, labels)], rotation=90)
    axes.set_yticklabels([*map(_plain, labels)])
    for row, column in zip(*np.nonzero(shares.numpy().round() >= 1), strict=True):
        color = "white" if shares[row, column] > 55 else "black"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(picture, ax=axes, label="share of the labeled class (%)", shrink=0.8)
    figure.savefig(path, dpi=DPI)


def most_confused(matrix: Tensor, labels: Sequence[str], limit: int = MOST_CLASSES) -> tuple[Tensor, list[str]]:
    """A confusion matrix of the classes that take part in the most wrong pixels, all others made one.

    A wrong pixel counts for the class that it has and for the class that was predicted. The classes kept stay in
    their order; the last row and column are the sums over all others.

    Args:
        matrix (`torch.Tensor` of shape `(K, K)`): Pixels, rows = reference, columns = prediction.
        labels (`Sequence[str]`): The K class names.
        limit (`int`, *optional*, defaults to `30`): How many classes are kept; with as many or fewer, all are.

    Returns:
        `tuple[torch.Tensor, list[str]]`: Pixels and names, of at most `limit + 1` rows.
    """
    if len(labels) <= limit:
        return matrix, list(labels)
    wrong = matrix.sum(dim=0) + matrix.sum(dim=1) - 2 * matrix.diagonal()
    kept = wrong.argsort(descending=True, stable=True)[:limit].sort().values.tolist()
    group = torch.full((len(labels),), limit)
    group[kept] = torch.arange(limit)
    merged = torch.zeros(limit + 1, limit + 1, dtype=matrix.dtype)
    merged.index_put_((group[:, None].expand_as(matrix), group.expand_as(matrix)), matrix, accumulate=True)
    return merged, [*(labels[index] for index in kept), f"{len(labels) - limit} others"]


def _lowest_and_highest(iou: dict[str, float | None]) -> list[str]:
    """The classes to draw, in their order; absent ones only where all are drawn."""
    if len(iou) <= MOST_BARS:
        return list(iou)
    order = sorted((label for label in iou if iou[label] is not None), key=iou.get)
    half = MOST_BARS // 2
    chosen = {*order[:half], *order[-half:]}
    return [label for label in iou if label in chosen]


def plot_curves(history: dict[str, list[dict]], path: str | Path) -> None:
    """Draw mIoU and training loss against the step, one line per run.

    Args:
        history (`dict[str, list[dict]]`): Run name to `trainer.state.log_history`; entries with `step` and
            `eval_mean_iou` or `loss` are drawn.
        path (`str` or `Path`): File to write; its suffix chooses the format.

    Raises:
        `ImportError`: Without matplotlib.
        `ValueError`: If no entry can be drawn.
    """
    panels = (("eval_mean_iou", "mIoU on the validation split (%)", 100), ("loss", "training loss", 1))
    if not any("step" in entry and key in entry for log in history.values() for entry in log for key, _, _ in panels):
        raise ValueError(
            f"Nothing to draw in the runs {list(history)}: no entry has 'step' with 'eval_mean_iou' or 'loss'. "
            "Pass trainer.state.log_history, and evaluate or log at least once."
        )
    figure = new_figure((10, 4))
    for axes, (key, name, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for run, log in history.items():
            points = [(entry["step"], scale * entry[key]) for entry in log if "step" in entry and key in entry]
            if points:
                axes.plot(*zip(*points, strict=True), label=_plain(run), marker="o", markersize=3)
        axes.set(xlabel="training step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=150)


def plot_embeddings(maps: dict[str, tuple[np.ndarray, Tensor]], spec: DatasetSpec, path: str | Path) -> None:
    """Draw one panel per model, a dot per pixel in the color of its class, the legend below.

    Args:
        maps (`dict[str, tuple[np.ndarray, Tensor]]`): Model name -> places (P, 2) and class ids (P,).
        spec (`DatasetSpec`): Names and colors.
        path (`str` or `Path`): File to write; its suffix chooses the format.
    """
    present = sorted({int(label) for _, classes in maps.values() for label in classes.unique()})
    columns = 6
    figure = new_figure((5 * len(maps), 5 + 0.25 * -(-len(present) // columns)))
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, (places, classes)) in zip(panels, maps.items(), strict=True):
        for label in present:
            chosen = (classes == label).numpy()
            color = [channel / 255 for channel in spec.palette[label]]
            options = {"color": [color], "edgecolors": "gray", "linewidths": 0.2, "label": _plain(spec.labels[label])}
            axes.scatter(places[chosen, 0], places[chosen, 1], s=12, **options)
        axes.set(title=_plain(name), xticks=[], yticks=[])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, markerscale=2)
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


def _plain(name: str) -> str:
    """A name as it is: between two dollar signs matplotlib would read a formula, or fail to."""
    return name.replace("$", r"\$")

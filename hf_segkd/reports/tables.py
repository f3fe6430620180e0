"""Scores as text: tables for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hf_segkd.evaluation.comparison import Difference
from hf_segkd.reports.markdown import plain, printable


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table: a header line, a rule and one line per row, without a newline at the end.

    Cells are text: what would be Markdown or HTML in them is shown as it is. With `numbers`, all columns but the first
    are aligned to the right.
    """
    header, *body = (f"| {' | '.join(map(plain, cells))} |" for cells in (head, *rows))
    rule = "|---" + ("|---:" if numbers else "|---") * (len(head) - 1) + "|"
    return "\n".join([header, rule, *body])


def table(report: dict) -> str:
    """Per-class IoU, Dice and accuracy in percent, the means below, as text for a terminal."""
    width = max(len("mean (present classes)"), *(len(label) for label in report["per_class_iou"]))
    lines = [f"{'class':<{width}}   IoU %  Dice %   acc %"]
    for label, iou in report["per_class_iou"].items():
        others = report["per_class_dice"][label], report["per_class_accuracy"][label]
        lines.append("  ".join([f"{printable(label):<{width}}", *map(percent, (iou, *others))]))
    lines.append("-" * len(lines[0]))
    means = report["mean_iou"], report["mean_dice"], report["mean_accuracy"]
    lines.append("  ".join([f"{'mean (present classes)':<{width}}", *map(percent, means)]))
    lines.append(f"{'pixel accuracy':<{width}}                  {percent(report['overall_accuracy'])}")
    if "boundary_iou" in report:
        lines.append(f"{'boundary IoU':<{width}}  {percent(report['boundary_iou'])}")
    return "\n".join(lines)


def aligned_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal: names to the left, numbers to the right, a rule under the header."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        name, *numbers = cells
        padded = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        return "  ".join([name.ljust(widths[0]), *padded]).rstrip()

    return "\n".join([line(head), "-" * len(line(head)), *map(line, rows)])


def results_table(reports: dict[str, dict]) -> str:
    """IoU of each class and the means in percent, one column for each model, as text for a terminal."""
    first = next(iter(reports.values()))
    rows = []
    for label in first["per_class_iou"]:
        rows.append([label, *(percent(report["per_class_iou"][label]).strip() for report in reports.values())])
    names = {
        "mean_iou": "mean IoU",
        "mean_dice": "mean Dice",
        "mean_accuracy": "mean accuracy",
        "overall_accuracy": "pixel accuracy",
    }
    names["boundary_iou"] = "boundary IoU"
    for key, name in names.items():
        rows.append([name, *(percent(report[key]).strip() for report in reports.values())])
    note = f"percent; {first['images']} images, {first['split']}, {first['protocol']}"
    return f"{aligned_table(['IoU', *reports], rows)}\n{note}"


def summary_table(reports: dict[str, dict]) -> str:
    """Means of several models, one line each, as Markdown; below it on what and how they were scored."""
    keys = ("mean_iou", "mean_dice", "mean_accuracy", "overall_accuracy", "boundary_iou")
    head = ("model", "mIoU %", "mean Dice %", "mean accuracy %", "pixel accuracy %", "boundary IoU %")
    rows = [[name, *(percent(report[key]).strip() for key in keys)] for name, report in reports.items()]
    report = next(iter(reports.values()))
    return "\n".join(
        [markdown_table(head, rows), "", f"{report['images']} images, {report['split']}, {report['protocol']}.", ""]
    )


def comparison_table(difference: Difference, labels: Sequence[str], first: str, second: str) -> str:
    """Per-class IoU of `first` minus that of `second` in points, with intervals, as text for a terminal."""
    width = max(len("mean IoU"), *(len(label) for label in labels))
    header = f"{'class':<{width}}   difference   {100 * difference.level:g} % interval"
    rows = [*zip(map(printable, labels), difference.per_class_iou, strict=True), ("mean IoU", difference.mean_iou)]
    lines = [
        f"{name:<{width}}   {100 * x:+10.2f}   {100 * low:+.2f} to {100 * high:+.2f}" for name, (x, low, high) in rows
    ]
    lines.insert(-1, "-" * len(header))
    note = f"{first} minus {second}, IoU points; {difference.samples} paired resamples of {difference.images} images"
    return "\n".join([note, header, *lines])


def percent(value: float | None) -> str:
    """A fraction in percent with two decimals, six characters wide; `--` where there was nothing to score."""
    return "    --" if value is None or math.isnan(value) else f"{100 * value:6.2f}"

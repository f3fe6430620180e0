"""Tables of many runs: all methods on the same seeds, what they gain over the baseline and what they cost."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_segkd.evaluation.comparison import paired_gain
from hf_segkd.loading.permissions import follow_umask
from hf_segkd.reports.figures import new_figure
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.resume import differences, without_location

RESULTS, COUNTS = "results.json", "counts.safetensors"
SHARED = ("dataset", "split", "images", "protocol", "steps", "hardware")


@dataclass(frozen=True)
class MethodResult:
    """One method of a benchmark; mIoU as fractions.

    Args:
        method (`str`): Name of its recipe.
        mean_iou (`dict[int, float]`): mIoU of each seed on the reported split.
        gain (`tuple[float, float, float]`, *optional*): Mean paired gain over the baseline and its interval, from the
            seeds that both finished; `None` for the baseline, and without such a seed.
        seconds_per_step (`float`): Median over the seeds, evaluation excluded.
        peak_memory_mib (`float`): Largest over the seeds.
        loss_parameters (`int`): Trainable parameters beside the student's: projectors, discriminators.
        facts (`dict`): What the table's note tells: dataset, split, images, protocol, steps, hardware.
    """

    method: str
    mean_iou: dict[int, float]
    gain: tuple[float, float, float] | None
    seconds_per_step: float
    peak_memory_mib: float
    loss_parameters: int
    facts: dict[str, Any]


def changed_keys(earlier: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """Names of the settings in which two merged recipes differ, except those that a resumed run may change too."""
    # A teacher of the Hub is pinned in the recipe that a run keeps, whatever the command said.
    recipe = {key: value for key, value in earlier.items() if key == "teacher_revision"} | recipe
    return sorted(differences(without_location(earlier), without_location(recipe), {}))


def write_results(runs: list[dict], counts: list[Tensor], baseline: str, folder: Path) -> None:
    """Write what a table is made of: `results.json`, and `counts.safetensors` with the counts of every image.

    Args:
        runs (`list[dict]`): `method`, `seed`, `mean_iou`, `seconds_per_step`, ... of each finished run.
        counts (`list[torch.Tensor]` of shape `(N, 2, K)`): Intersections and unions of each run's images, pixels.
        baseline (`str`): The method that the others are compared with.
        folder (`Path`): Where to write.

    Raises:
        ValueError: If no run has finished.
    """
    if not runs:
        raise ValueError("No run has finished: there is nothing to tabulate. The logs beside the runs say why.")
    tensors = {f"{run['method']}/{run['seed']}": x.int() for run, x in zip(runs, counts, strict=True)}
    save_file(tensors, folder / COUNTS)
    follow_umask(folder)
    write_json({"baseline": baseline, "runs": runs}, folder / RESULTS)


def read_results(folder: Path) -> list[MethodResult]:
    """Read a folder of [`write_results`]: one result per method, the baseline first.

    Raises:
        ValueError: If a file is missing, the baseline has no finished run, or runs were scored on different images.
    """
    for name in (RESULTS, COUNTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}. Give the output folder of a benchmark.")
    content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    counts, baseline = load_file(folder / COUNTS), content["baseline"]
    runs: dict[str, dict[int, dict]] = {baseline: {}}
    for run in content["runs"]:
        runs.setdefault(run["method"], {})[run["seed"]] = run
    if not runs[baseline]:
        raise ValueError(f"The baseline {baseline!r} has no finished run in {folder}: nothing to compare with.")
    if len({x.shape for x in counts.values()}) > 1:
        raise ValueError(f"The runs in {folder} were scored on different images. Use one --output_dir per split.")
    return [_result(method, runs[method], runs[baseline], counts) for method in runs]


def _result(method: str, runs: dict[int, dict], base: dict[int, dict], counts: dict[str, Tensor]) -> MethodResult:
    shared = sorted(runs.keys() & base.keys()) if runs is not base else []
    name = next(iter(base.values()))["method"]
    both = ([torch.stack([counts[f"{x}/{seed}"] for seed in shared]) for x in (method, name)]) if shared else []
    first = next(iter(runs.values()))
    return MethodResult(
        method,
        {seed: runs[seed]["mean_iou"] for seed in sorted(runs)},
        paired_gain(*both) if both else None,
        statistics.median(run["seconds_per_step"] for run in runs.values()),
        max(run["peak_memory_mib"] for run in runs.values()),
        first["loss_parameters"],
        {key: first[key] for key in SHARED},
    )


def results_table(results: list[MethodResult]) -> str:
    """Markdown: mIoU and gain in points, then what a step costs; below it on what and how it was measured."""
    head = ("method", "mIoU %", "seeds", "gain [95 % interval]", "s/step", "ratio", "peak MiB", "extra parameters")
    rows = []
    for result in results:
        cells = (
            result.method,
            _mean([*result.mean_iou.values()]),
            ", ".join(map(str, result.mean_iou)),
            "–" if result.gain is None else _interval(result.gain),
            f"{result.seconds_per_step:.2f}",
            f"{result.seconds_per_step / results[0].seconds_per_step:.2f}",
            f"{result.peak_memory_mib:.0f}",
            f"{result.loss_parameters:,}",
        )
        rows.append(cells)
    facts = results[0].facts
    note = (
        f"{facts['dataset']}, {facts['split']} split: {facts['images']} images, {facts['protocol']}; "
        f"{facts['steps']} steps a run. Mean ± standard deviation over the seeds; gain over {results[0].method} with "
        f"the same seeds, resampled over seeds and images. {facts['hardware']}."
    )
    return "\n".join([markdown_table(head, rows), "", note, ""])


def plot_gains(results: list[MethodResult], path: str | Path) -> None:
    """Draw each method's gain, with its interval, against the time of a step relative to the baseline's.

    Raises:
        ImportError: Without matplotlib.
    """
    base, others = results[0], [result for result in results if result.gain is not None]
    figure = new_figure((7, 4.5))
    axes = figure.subplots()
    axes.axhline(0, color="gray", linewidth=1)
    for result in others:
        ratio = result.seconds_per_step / base.seconds_per_step
        gain, low, high = (100 * x for x in result.gain)
        axes.errorbar([ratio], [gain], [[gain - low], [high - gain]], fmt="o", capsize=3)
        axes.annotate(result.method, (ratio, gain), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set(xlabel=f"time of a step / that of {base.method}", ylabel=f"gain in mIoU over {base.method} (points)")
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _mean(values: list[float]) -> str:
    text = f"{100 * statistics.mean(values):.2f}"
    return f"{text} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else text


def _interval(gain: tuple[float, float, float]) -> str:
    value, low, high = (100 * x for x in gain)
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"

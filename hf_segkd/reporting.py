"""What a run leaves behind: metrics.json, a per-class table and figures."""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
import transformers
from PIL import Image
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from hf_segkd import __version__
from hf_segkd.comparison import Difference
from hf_segkd.data import DatasetSpec
from hf_segkd.evaluation import Evaluation, predictions
from hf_segkd.figures import plot_class_bars, plot_confusion
from hf_segkd.model_card import write_model_card
from hf_segkd.recipe import dump
from hf_segkd.trainer import DistillationTrainer
from hf_segkd.visualization import colorize, plot_curves, side_by_side


def metrics_report(scores: dict, labels: tuple[str, ...], **facts) -> dict:
    """Turn scores into what `metrics.json` holds.

    Args:
        scores (`dict`): From [`~hf_segkd.evaluation.evaluate_model`]; fractions.
        labels (`tuple[str, ...]`): Class names in order.
        **facts: Anything that makes the numbers reproducible: dataset, split, protocol, seed, ...

    Returns:
        `dict`: JSON-ready; a class without pixels is `None`.
    """
    report = {key: _number(value) for key, value in scores.items() if not key.startswith("per_category_")}
    for key, values in scores.items():
        if key.startswith("per_category_"):
            named = zip(labels, values, strict=True)
            report[key.replace("category", "class")] = {label: _number(value) for label, value in named}
    versions = {
        "hf_segkd": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {**report, **facts, "versions": versions}


def plain_logs() -> None:
    """Show what the library reports, and no progress bars in a log file, where they are carriage returns."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_segkd").setLevel(logging.INFO)
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def write_json(content: dict, path: str | Path) -> None:
    """Write `content` as indented JSON, making the folder when needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2)
    # One line for each row of numbers: a confusion matrix of 150 classes is 150 lines, not 22 500.
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda row: " ".join(row[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")


def table(report: dict) -> str:
    """Per-class IoU and accuracy in percent, the means below, as text for a terminal."""
    width = max(len("mean (present classes)"), *(len(label) for label in report["per_class_iou"]))
    lines = [f"{'class':<{width}}   IoU %   acc %"]
    for label, iou in report["per_class_iou"].items():
        lines.append(f"{label:<{width}}  {_percent(iou)}  {_percent(report['per_class_accuracy'][label])}")
    lines.append("-" * len(lines[0]))
    lines.append(
        f"{'mean (present classes)':<{width}}  {_percent(report['mean_iou'])}  {_percent(report['mean_accuracy'])}"
    )
    lines.append(f"{'pixel accuracy':<{width}}          {_percent(report['overall_accuracy'])}")
    if "boundary_iou" in report:
        lines.append(f"{'boundary IoU':<{width}}  {_percent(report['boundary_iou'])}")
    return "\n".join(lines)


def summary_table(reports: dict[str, dict]) -> str:
    """Means of several models, one line each, as Markdown; below it on what and how they were scored."""
    keys = ("mean_iou", "mean_accuracy", "overall_accuracy", "boundary_iou")
    lines = ["| model | mIoU % | mean accuracy % | pixel accuracy % | boundary IoU % |", "|---|---|---|---|---|"]
    for name, report in reports.items():
        lines.append(f"| {name} | " + " | ".join(_percent(report[key]).strip() for key in keys) + " |")
    report = next(iter(reports.values()))
    return "\n".join([*lines, "", f"{report['images']} images, {report['split']}, {report['protocol']}.", ""])


def comparison_table(difference: Difference, labels: Sequence[str], first: str, second: str) -> str:
    """Per-class IoU of `first` minus that of `second` in points, with intervals, as text for a terminal."""
    width = max(len("mean IoU"), *(len(label) for label in labels))
    header = f"{'class':<{width}}   difference   {100 * difference.level:g} % interval"
    rows = [*zip(labels, difference.per_class_iou, strict=True), ("mean IoU", difference.mean_iou)]
    lines = [
        f"{name:<{width}}   {100 * x:+10.2f}   {100 * low:+.2f} to {100 * high:+.2f}" for name, (x, low, high) in rows
    ]
    lines.insert(-1, "-" * len(header))
    note = f"{first} minus {second}, IoU points; {difference.samples} paired resamples of {difference.images} images"
    return "\n".join([note, header, *lines])


def training_cost(log_history: list[dict], runtime: float, first_step: int, last_step: int) -> dict:
    """Seconds per training step (evaluation excluded) and the peak memory of this process, in MiB.

    Args:
        log_history (`list[dict]`): Of the trainer's state; `eval_runtime` of evaluations after `first_step` counts.
        runtime (`float`): Seconds that training took from `first_step` to `last_step`, evaluations included.
        first_step, last_step (`int`): Steps done before and after; a resumed run does not start at 0.

    On a GPU the peak is what PyTorch allocated there; on a CPU it is the process's largest resident size, which
    includes Python and the libraries.
    """
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in log_history if entry["step"] > first_step)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    seconds = (runtime - evaluating) / max(last_step - first_step, 1)
    return {"seconds_per_step": round(seconds, 4), "peak_memory_mib": round(peak)}


def prediction_figure(
    models: dict[str, tuple[PreTrainedModel, object]],
    dataset: Dataset,
    spec: DatasetSpec,
    device="cpu",
    indices: Sequence[int] | None = None,
) -> Image.Image:
    """Images, labels and predictions side by side, with the classes' colours below.

    Args:
        models (`dict[str, tuple[PreTrainedModel, processor]]`): Column title -> model and its image processor.
        dataset (`torch.utils.data.Dataset`): As for [`~hf_segkd.evaluation.predictions`].
        spec (`DatasetSpec`): Palette, labels and ignore index.
        device (`str`, *optional*, defaults to `"cpu"`): Where the models run.
        indices (`Sequence[int]`, *optional*): Which images; four, evenly spread over the dataset, by default.
    """
    if indices is None:
        count = min(4, len(dataset))
        indices = [round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)]
    chosen = Subset(dataset, indices)
    rows: list[dict[str, Image.Image]] = [{} for _ in chosen]
    for title, (model, processor) in models.items():
        for row, (image, labels, predicted) in zip(
            rows, predictions(model, processor, chosen, device=device), strict=True
        ):
            row.setdefault("image", Image.fromarray(image.permute(1, 2, 0).numpy()))
            row.setdefault("label", colorize(labels.cpu().numpy(), spec.palette))
            row[title] = colorize(predicted.cpu().numpy(), spec.palette)
    return side_by_side(rows, spec.labels, spec.palette)


def evaluation_figures(
    models: dict, evaluation: Evaluation, dataset: Dataset, spec: DatasetSpec, folder: Path, device
):
    """Draw the best and the worst images of one model (by mean IoU in the image) and, with matplotlib, class scores.

    Args are those of [`prediction_figure`], one model; `evaluation` is what was counted with it on `dataset`.
    """
    (name,) = models
    order = evaluation.image_iou().nan_to_num(nan=0.5).argsort().tolist()
    folder = folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for title, indices in (("worst", order[:3]), ("best", order[::-1][:3])):
        prediction_figure(models, dataset, spec, device, indices).save(folder / f"{title}.png")
    report = metrics_report(evaluation.scores(), spec.labels)
    try:
        plot_class_bars({name: report}, folder / "classes.png")
        plot_confusion(evaluation.matrix, spec.labels, folder / "confusion.png")
    except ImportError as error:
        print(f"classes.png and confusion.png were not drawn: {error}")


def model_names(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model, its folder's or repository's, mapped to where it is; longer where two would clash.

    Raises:
        ValueError: If there is no model.
    """
    if not models:
        raise ValueError("No model given. Name a folder or Hub id, or two with --compare.")
    models = list(dict.fromkeys(models))
    short = [Path(model).name or model for model in models]
    clash = len(set(short)) < len(short)
    return {
        model.strip("/.").replace("/", "_") if clash else name: model
        for name, model in zip(short, models, strict=True)
    }


def begin_run(output_dir: str, recipe: dict, overwrite: bool = False) -> None:
    """Write the merged recipe, after removing what an earlier run left if it is to be replaced."""
    folder = Path(output_dir)
    if overwrite:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (folder / "metrics.json").unlink(missing_ok=True)
    # Neither the token nor where a run is uploaded is part of what others would repeat.
    left_out = ("resume", "overwrite", "push_to_hub", "hub_")
    dump({key: value for key, value in recipe.items() if not key.startswith(left_out)}, folder / "recipe.yaml")


def finish_run(trainer: DistillationTrainer, spec: DatasetSpec, report: dict) -> None:
    """Turn the output folder into the final one: student, processor, `metrics.json`, log, figures and model card."""
    folder = Path(trainer.args.output_dir)
    write_figures(trainer, spec, folder / "figures")
    write_class_figure(report, folder / "figures" / "classes.png")
    write_json(trainer.state.log_history, folder / "training_log.json")
    write_json(report, folder / "metrics.json")
    trainer.finish()  # late: it removes the checkpoints, from which all before can be made again
    write_model_card(folder, trainer.hub_model_id, trainer.args.hub_revision)


def write_figures(trainer: DistillationTrainer, spec: DatasetSpec, folder: Path) -> None:
    """Write `predictions.png` and, where matplotlib is installed, `curves.png` for a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {"student": (trainer.student, trainer.processing_class)}
    if trainer.teacher is not None:
        models = {"teacher": (trainer.teacher, trainer.teacher_processing_class), **models}
    try:
        figure = prediction_figure(models, trainer.eval_dataset, spec, trainer.args.device)
    except ValueError as error:  # from a teacher that reads images of one size or shape only
        print(f"predictions.png is drawn without the teacher: {error}")
        models = {"student": models["student"]}
        figure = prediction_figure(models, trainer.eval_dataset, spec, trainer.args.device)
    figure.save(folder / "predictions.png")
    write_curves({"student": trainer.state.log_history}, folder / "curves.png")
    sample = Image.fromarray(trainer.eval_dataset[0]["pixel_values"].permute(1, 2, 0).numpy())
    sample.thumbnail((512, 512))  # for the card's snippets, not for study
    sample.save(folder / "sample.png")


def write_class_figure(report: dict, path: Path) -> None:
    """Plot the IoU of each class, the teacher's beside the student's; without matplotlib, say how to get it."""
    scored = {name: model for name, model in report["models"].items() if "per_class_iou" in model}
    try:
        plot_class_bars({**scored, "student": report}, path)
    except ImportError as error:
        print(f"{path.name} was not drawn: {error}")


def write_curves(history: dict[str, list[dict]], path: Path) -> None:
    """Plot the mIoU and training loss of one or several runs; without matplotlib, say how to get it."""
    try:
        plot_curves(history, path)
    except ImportError as error:
        print(f"{path.name} was not drawn: {error}")


def _number(value) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(value: float | None) -> str:
    return "    --" if value is None or math.isnan(value) else f"{100 * value:6.2f}"

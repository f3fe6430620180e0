"""The folder of a run: what is written when it begins, and when it has finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from hf_segkd.data import DatasetSpec
from hf_segkd.evaluation.scoring import Evaluation
from hf_segkd.evaluation.segmenter import BaseSegmenter, Segmenter
from hf_segkd.recipe import dump
from hf_segkd.reports.figures import plot_class_bars, plot_confusion, plot_curves
from hf_segkd.reports.files import write_json
from hf_segkd.reports.metrics_report import metrics_report
from hf_segkd.reports.model_card import write_model_card
from hf_segkd.reports.prediction_figure import prediction_figure
from hf_segkd.training.trainer import DistillationTrainer


def evaluation_figures(
    name: str, segmenter: BaseSegmenter, evaluation: Evaluation, dataset: Dataset, spec: DatasetSpec, folder: Path
) -> None:
    """Draw the best and the worst images of one model (by mean IoU in the image) and, with matplotlib, class scores.

    Args:
        name (`str`): Title of its column.
        segmenter, dataset, spec: As for [`~hf_segkd.reports.prediction_figure.prediction_figure`].
        evaluation ([`~hf_segkd.evaluation.scoring.Evaluation`]): What was counted with it on `dataset`.
        folder (`Path`): Gets the folder `figures`.
    """
    order = evaluation.image_iou().nan_to_num(nan=0.5).argsort().tolist()
    folder = folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for title, indices in (("worst", order[:3]), ("best", order[::-1][:3])):
        prediction_figure({name: segmenter}, dataset, spec, indices).save(folder / f"{title}.png")
    report = metrics_report(evaluation.scores(), spec.labels)
    try:
        plot_class_bars({name: report}, folder / "classes.png")
        plot_confusion(evaluation.matrix, spec.labels, folder / "confusion.png")
    except ImportError as error:
        print(f"classes.png and confusion.png were not drawn: {error}")


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
    device = trainer.args.device
    segmenters = {"student": Segmenter(trainer.student, trainer.processing_class, device=device)}
    if trainer.teacher is not None:
        teacher = Segmenter(trainer.teacher, trainer.teacher_processing_class, device=device)
        segmenters = {"teacher": teacher, **segmenters}
    try:
        figure = prediction_figure(segmenters, trainer.eval_dataset, spec)
    except ValueError as error:  # from a teacher that reads images of one size or shape only
        print(f"predictions.png is drawn without the teacher: {error}")
        figure = prediction_figure({"student": segmenters["student"]}, trainer.eval_dataset, spec)
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

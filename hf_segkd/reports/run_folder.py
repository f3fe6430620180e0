"""The folder of a run: what is written when it begins, and when it has finished."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from torch.utils.data import Dataset

from hf_segkd.console import TrainingFault
from hf_segkd.data import DatasetSpec
from hf_segkd.evaluation.scoring import Evaluation
from hf_segkd.evaluation.segmenter import BaseSegmenter, Segmenter
from hf_segkd.recipe import dump, load_yaml
from hf_segkd.reports.figures import plot_class_bars, plot_confusion, plot_curves
from hf_segkd.reports.files import write_json
from hf_segkd.reports.metrics_report import metrics_report
from hf_segkd.reports.model_card import write_model_card
from hf_segkd.reports.prediction_figure import prediction_figure
from hf_segkd.training.checkpoints import remove_checkpoints, write_failure
from hf_segkd.training.finished_run import METRICS_FILE
from hf_segkd.training.resume import EARLIER_RECIPE, RECIPE_FILE, differences, without_location
from hf_segkd.training.trainer import DistillationTrainer

SAMPLE_SIDE = 512  # pixels, of the card's sample


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
    except Exception as error:  # the scores must not depend on what matplotlib thinks of a name
        print(f"classes.png and confusion.png were not drawn: {error}")


def begin_run(output_dir: str, recipe: dict, overwrite: bool = False, resumed_at: int = 0) -> None:
    """Write the merged recipe, after removing what an earlier run left if it is to be replaced.

    Scores of an earlier run go in any case: as long as this one has not ended, the folder holds no finished run.
    A run that is resumed at step `resumed_at` with another recipe keeps the earlier one, as `recipe_until_STEP.yaml`.
    """
    folder = Path(output_dir)
    if overwrite:
        remove_run(folder)
    (folder / METRICS_FILE).unlink(missing_ok=True)
    file = folder / RECIPE_FILE
    recipe = without_location(recipe)
    if resumed_at and file.is_file() and differences(load_yaml(file.read_text(encoding="utf-8")), recipe, {}):
        shutil.copy2(file, folder / EARLIER_RECIPE.format(resumed_at))
    temporary = folder / f".{RECIPE_FILE}"
    dump(recipe, temporary)
    temporary.replace(file)


def remove_run(folder: Path) -> None:
    """Remove what a run leaves, its scores first: a stopped `--overwrite` must not leave them to the next recipe."""
    for name in (METRICS_FILE, "README.md", "training_log.json"):
        (folder / name).unlink(missing_ok=True)
    for pattern in ("model*.safetensors", "model.safetensors.index.json", "recipe_until_*.yaml"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / "figures", ignore_errors=True)
    remove_checkpoints(folder)


def finish_run(trainer: DistillationTrainer, spec: DatasetSpec, report: dict, recipe: dict) -> None:
    """Turn the output folder into the final one.

    First student, processor, recipe, log and, last and in one step, `metrics.json`: from then on the run is finished.
    Figures and model card are drawn from them, and each may fail alone. The checkpoints are removed at the end.

    Raises:
        TrainingFault: If student or metrics cannot be written; the checkpoints are kept.
    """
    folder = Path(trainer.args.output_dir)
    try:
        trainer.save_student()
        if not (folder / RECIPE_FILE).is_file():  # the folder was deleted during the run
            dump(without_location(recipe), folder / RECIPE_FILE)
        write_json(trainer.state.log_history, folder / "training_log.json")
        write_json(report, folder / METRICS_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise TrainingFault(
            f"Training is done, but the final folder {str(folder)!r} cannot be written: {reason}. The checkpoints are "
            "kept. Mend it and run the same command with --resume: nothing is trained again."
        ) from error
    with optional("figures/predictions.png", "hf-segkd evaluate draws predictions of a finished student"):
        write_figures(trainer, spec, folder / "figures")
    draw(folder, trainer.hub_model_id, trainer.args.hub_revision)
    trainer.clean_up()


def draw(folder: str | Path, repo_id: str | None = None, branch: str | None = None) -> None:
    """Draw the class figure, the curves and the model card of a finished run, from its files alone."""
    folder = Path(folder)
    report = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    (folder / "figures").mkdir(exist_ok=True)
    again = f"To draw it again: python -m hf_segkd.reports.run_folder {shlex.quote(str(folder))}"
    with optional("figures/classes.png", again):
        write_class_figure(report, folder / "figures" / "classes.png")
    with optional("figures/curves.png", again):
        log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
        file = folder / "figures" / "curves.png"
        if len({entry["step"] for entry in log if "eval_mean_iou" in entry}) > 1:  # one point is no curve
            write_curves({"student": log}, file)
        else:
            file.unlink(missing_ok=True)
    with optional("README.md", again):
        write_model_card(folder, repo_id, branch)


@contextmanager
def optional(what: str, again: str) -> Iterator[None]:
    """Let one picture or text fail alone: the message says why, and how to get it again."""
    try:
        yield
    except Exception as error:  # whatever matplotlib, Pillow or a template raise: the run itself is saved
        reason = " ".join(str(error).split())
        print(f"{what}: not drawn ({type(error).__name__}: {reason[:300]}). Student and metrics are saved. {again}")


def write_figures(trainer: DistillationTrainer, spec: DatasetSpec, folder: Path) -> None:
    """Write `predictions.png` and `sample.png`, or `sample.npy` of bands, a small image for the card's snippets."""
    folder.mkdir(parents=True, exist_ok=True)
    device = trainer.args.device
    segmenters = {"student": Segmenter(trainer.student, trainer.processing_class, device=device)}
    if trainer.teacher is not None:
        bands = segmenters["student"].bands
        teacher = Segmenter(trainer.teacher, trainer.teacher_processing_class, device=device, bands=bands)
        segmenters = {"teacher": teacher, **segmenters}
    try:
        figure = prediction_figure(segmenters, trainer.eval_dataset, spec)
    except ValueError as error:  # from a teacher that reads images of one size or shape only
        print(f"predictions.png is drawn without the teacher: {error}")
        figure = prediction_figure({"student": segmenters["student"]}, trainer.eval_dataset, spec)
    figure.save(folder / "predictions.png")
    bands = segmenters["student"].bands
    pixels = trainer.eval_dataset[0]["pixel_values"].permute(1, 2, 0).numpy()
    if bands is not None:
        np.save(folder / "sample.npy", pixels[:SAMPLE_SIDE, :SAMPLE_SIDE].astype(bands.dtype))
        return
    sample = Image.fromarray(pixels)
    sample.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE))  # for the card's snippets, not for study
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


if __name__ == "__main__":
    for finished in sys.argv[1:]:
        draw(finished)

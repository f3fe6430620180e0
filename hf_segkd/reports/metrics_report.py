"""Contents of `metrics.json`: scores, recipe, costs and hardware."""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from hf_segkd import __version__
from hf_segkd.data import DatasetSpec
from hf_segkd.evaluation.profiling import count_macs, hardware_name, peak_memory_mib, thread_count
from hf_segkd.evaluation.scoring import evaluate
from hf_segkd.evaluation.segmenter import WHOLE, Segmenter
from hf_segkd.hub import pin_revision
from hf_segkd.models import Bands
from hf_segkd.training.trainer import DistillationTrainer


def metrics_report(scores: dict, labels: tuple[str, ...], **facts) -> dict:
    """Turn scores into what `metrics.json` holds.

    Args:
        scores (`dict`): From [`~hf_segkd.evaluation.scoring.evaluate`]; fractions.
        labels (`tuple[str, ...]`): Class names in order.
        **facts: Anything that makes the numbers reproducible: dataset, split, protocol, seed, ...

    Returns:
        `dict`: JSON-ready; a class without pixels is `None`, and so is a mean over none.
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
    peak = peak_memory_mib("cuda" if torch.cuda.is_available() else "cpu")
    if last_step <= first_step:  # resumed after the last step: nothing was trained that could be timed
        return {"seconds_per_step": None, "peak_memory_mib": round(peak)}
    seconds = (runtime - evaluating) / (last_step - first_step)
    return {"seconds_per_step": round(seconds, 4), "peak_memory_mib": round(peak)}


def run_facts(trainer: DistillationTrainer, spec: DatasetSpec, size: Sequence[int]) -> dict:
    """Facts for `metrics.json`. The teacher is evaluated on the student's images, so all processes must call it.

    Args:
        trainer (`DistillationTrainer`): After training.
        spec (`DatasetSpec`): Class names, in order.
        size (`Sequence[int]`): Height and width, pixels, of the image whose operations are counted: the crop's.

    Returns:
        `dict`: What was evaluated and how; seed; steps done and asked for, images and labeled pixels trained on;
        `models` (parameters and MACs of the student; of the teacher also scores, fractions); `hub`, the ids there of
        dataset and the student's start, where they have one; `loss_parameters`, those trained beside the student's;
        `hardware`, `processes`; `commit` of the code, `None` where it is not known.
    """
    size = tuple(size)
    hardware = hardware_name(trainer.args.device)
    if trainer.args.device.type == "cpu":
        hardware += f", {thread_count(torch.get_num_threads())}"
    losses = trainer.accelerator.unwrap_model(trainer.model).losses
    models = {"student": model_costs(trainer.student, size)}
    if trainer.teacher is not None:
        models["teacher"] = model_costs(trainer.teacher, size) | _teacher_scores(trainer, spec)
    stored = trainer.has_teacher and trainer.teacher is None
    return {
        "dataset": spec.name,
        "split": spec.eval_split,
        "images": len(trainer.eval_dataset),
        "protocol": str(WHOLE),
        "seed": trainer.args.seed,
        "best_step": trainer.state.best_global_step,
        "steps": trainer.state.global_step,
        "steps_asked": trainer.state.max_steps,
        "training_images": trainer.image_counts(),
        "trained_on": trainer.work.gather(),
        "models": models,
        **({"stored_teacher": True} if stored else {}),
        "hub": {"dataset": spec.hub_id, "student": hub_id(trainer.student)},
        "loss_parameters": sum(x.numel() for x in losses.parameters()),
        "macs_size": list(size),
        "hardware": hardware,
        "processes": trainer.args.world_size,
        "commit": source_commit(),
    }


def hub_id(model: PreTrainedModel) -> str | None:
    """Where on the Hub a model was loaded from; `None` for folders, files and new models."""
    place = model.name_or_path
    return place if place and not Path(place).exists() and pin_revision(place) else None


def model_costs(model: PreTrainedModel, size: tuple[int, int]) -> dict:
    """Parameters, and multiply-accumulate operations of one image of `size`, where PyTorch can count them."""
    costs = {"parameters": model.num_parameters()}
    try:
        return {**costs, "macs": count_macs(model, size)}
    except RuntimeError as error:  # from a foreign teacher's own operations, which do not run without content
        print(f"The operations of {type(model).__name__} are not counted: {error}")
        return costs


def _teacher_scores(trainer: DistillationTrainer, spec: DatasetSpec) -> dict:
    how = {"device": trainer.args.device, "bands": Bands.of(trainer.processing_class)}
    segmenter = Segmenter(trainer.teacher, trainer.teacher_processing_class, **how)
    try:
        evaluation = evaluate(
            segmenter,
            trainer.eval_dataset,
            spec.num_labels,
            spec.ignore_index,
            trainer.args.dataloader_num_workers,
            title="evaluating the teacher",
        )
    except ValueError as error:  # from a teacher that reads images of one size only
        print(f"The teacher is not scored on the student's images: {error}")
        return {}
    report = metrics_report(evaluation.scores(), spec.labels)
    keys = ("mean_iou", "mean_dice", "overall_accuracy", "per_class_iou", "per_class_dice")
    return {key: report[key] for key in keys}


def source_commit() -> str | None:
    """Commit of the checkout that this package runs from, `None` for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def _number(value) -> float | None:
    return None if math.isnan(value) else float(value)

"""The metadata of a model card: what the Hub's filters, leaderboards and widget read."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from hf_segkd.models import SHORT_NAMES

METRICS = {
    "mean_iou": "Mean IoU",
    "mean_dice": "Mean Dice",
    "mean_accuracy": "Mean accuracy",
    "overall_accuracy": "Pixel accuracy",
}
# Of these, what has a page on the Hub; accuracy is that of pixels.
HUB_METRICS = ["mean_iou", "accuracy"]
SAMPLE = "figures/sample.png"


def card_data(
    folder: Path,
    title: str,
    config: dict,
    license: str | None,
    report: dict | None = None,
    teachers: list[str] | None = None,
) -> ModelCardData:
    """Metadata of a model; what is not known is left out, above all the license.

    Args:
        folder (`Path`): The model's folder: a picture in it becomes the widget's example.
        title (`str`): Name of the model.
        config (`dict`): Its `config.json`.
        license (`str`, *optional*): Of the weights, as the Hub writes it.
        report (`dict`, *optional*): Its `metrics.json`, where it was trained here.
        teachers (`list[str]`, *optional*): Ids of those of its teachers that are on the Hub; `None` without a teacher.
    """
    short_names = {model_type: name for name, model_type in SHORT_NAMES.items()}
    tags = ["hf_segkd", "semantic-segmentation", short_names.get(config["model_type"], config["model_type"])]
    options = {"library_name": "transformers", "pipeline_tag": "image-segmentation", "license": license}
    if (folder / SAMPLE).is_file():
        options["widget"] = [{"src": SAMPLE, "example_title": "An image of the validation split"}]
    if report is None:
        return ModelCardData(tags=tags, **options)
    if teachers is not None:
        tags.append("knowledge-distillation")
    hub = report.get("hub", {})
    if hub.get("student"):
        options |= {"base_model": hub["student"], "base_model_relation": "finetune"}
    if hub.get("dataset"):
        options["datasets"] = [hub["dataset"]]
    # The Hub knows no such relation of models: the teacher has a key of its own, and its link in the text.
    return ModelCardData(
        model_name=title,
        eval_results=_results(report),
        metrics=HUB_METRICS,
        tags=tags,
        teacher_model=teachers or None,
        **options,
    )


def _results(report: dict) -> list[EvalResult]:
    common = {
        "task_type": "image-segmentation",
        "task_name": "Semantic segmentation",
        "dataset_type": report.get("hub", {}).get("dataset") or report["dataset"],
        "dataset_name": report["dataset"],
        "dataset_split": report["split"],
        "metric_args": {"protocol": report["protocol"]},
    }
    return [
        EvalResult(**common, metric_type=key, metric_name=name, metric_value=round(report[key], 6))
        for key, name in METRICS.items()
        if report.get(key) is not None
    ]

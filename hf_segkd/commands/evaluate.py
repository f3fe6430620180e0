"""Evaluate segmentation models: per-class table, `metrics.json`, figures; of two models, how sure the difference is.

    python scripts/evaluate.py FOLDER_OR_HUB_ID --dataset camvid --data_dir CamVid --split test --output_dir OUT
    python scripts/evaluate.py --compare STUDENT BASELINE --dataset camvid --data_dir CamVid --output_dir OUT

Several models are evaluated one after the other into `OUT/<name>`. With `torchrun` or `accelerate launch` the images
are shared among the processes; each is counted once.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

import dataset_builders
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.data import DatasetSpec, EvalTransform, SegmentationDataset
from hf_segkd.evaluation.arguments import add_protocol_arguments, add_running_arguments, read_protocol
from hf_segkd.evaluation.comparison import paired_bootstrap
from hf_segkd.evaluation.scoring import Evaluation, evaluate_model
from hf_segkd.loading.any_model import load_with_processor
from hf_segkd.loading.class_map import map_classes
from hf_segkd.reports.files import model_names, write_json
from hf_segkd.reports.metrics_report import metrics_report
from hf_segkd.reports.pictures import prediction_figure
from hf_segkd.reports.run_folder import evaluation_figures
from hf_segkd.reports.tables import comparison_table, summary_table, table


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Evaluate as the command line says and return what each model's `metrics.json` holds."""
    arguments = parser().parse_args(argv)
    plain_logs()
    with readable_errors():
        state = PartialState(cpu=arguments.device == "cpu")
        device = arguments.device if arguments.device == "cpu" else state.device
        options = dataset_builders.data_options(arguments)
        spec = dataset_builders.dataset_spec(arguments.dataset, arguments.data_dir, **options)
        protocol = read_protocol(arguments)
        names = model_names([*arguments.models, *(arguments.compare or ())])
        how = (arguments.dtype, arguments.trust_remote_code)
        models = {name: load(model, spec, *how) for name, model in names.items()}
        split = arguments.split or spec.eval_split
        rows = dataset_builders.load_split(arguments.dataset, arguments.data_dir, split, **options)
        dataset = SegmentationDataset(rows, EvalTransform(spec.ignore_index), spec.num_labels)
        output_dir = Path(arguments.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)

    reports, evaluations = {}, {}
    for name, (model, processor) in models.items():
        running = torch.compile(model) if arguments.compile else model
        where = (device, arguments.num_workers, spec.num_labels)
        evaluation = evaluate_model(running, processor, dataset, protocol, spec.ignore_index, *where)
        facts = {"model": names[name], "dataset": spec.name, "split": split, "images": len(dataset)}
        facts |= {"protocol": str(protocol), "dtype": arguments.dtype, "confusion_matrix": evaluation.matrix.tolist()}
        reports[name], evaluations[name] = metrics_report(evaluation.scores(), spec.labels, **facts), evaluation
        if state.is_main_process:
            folder = output_dir / name if len(models) > 1 else output_dir
            write_json(reports[name], folder / "metrics.json")
            evaluation_figures({name: (model, processor)}, evaluation, dataset, spec, folder, device)
            print(f"{table(reports[name])}\n{name}: {summary(reports[name])}\n")
    if state.is_main_process and len(models) > 1:
        (output_dir / "summary.md").write_text(summary_table(reports), encoding="utf-8")
        print(summary_table(reports))
        prediction_figure(models, dataset, spec, device).save(output_dir / "predictions.png")
    if state.is_main_process and arguments.compare:
        compare(list(model_names(arguments.compare)), evaluations, spec.labels, output_dir)
    state.wait_for_everyone()
    return reports


def load(model: str, spec: DatasetSpec, dtype: str, trust_remote_code: bool = False) -> tuple:
    """A model in the wanted precision, its classes brought into the dataset's order, and its image processor."""
    loaded, processor = load_with_processor(model, trust_remote_code=trust_remote_code)
    return map_classes(loaded, spec.labels).to(getattr(torch, dtype)), processor


def compare(names: list[str], evaluations: dict[str, Evaluation], labels: tuple[str, ...], folder: Path) -> None:
    """Print and write how the second model's IoU differs from the first's."""
    first, second = names
    difference = paired_bootstrap(evaluations[first].per_image, evaluations[second].per_image)
    per_class = dict(zip(labels, difference.per_class_iou.tolist(), strict=True))
    report = dataclasses.asdict(difference) | {"per_class_iou": per_class, "first": first, "second": second}
    write_json(report, folder / "comparison.json")
    print(comparison_table(difference, labels, first, second))


def summary(report: dict) -> str:
    return (
        f"mIoU {100 * report['mean_iou']:.2f} %, pixel accuracy {100 * report['overall_accuracy']:.2f} % "
        f"({report['images']} images, {report['split']}, {report['protocol']})"
    )


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    form = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(dataset_builders.DataArguments, description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("models", nargs="*", help="folders, Hub ids or original checkpoints (.pth)")
    add("--compare", nargs=2, metavar=("A", "B"), help="two models whose difference is tested on these images")
    add("--dataset", required=True, help=", ".join(dataset_builders.BUILDERS) + "; or a folder or Hub id")
    add("--data_dir", help="folder of the raw dataset")
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output_dir", required=True, help="folder for metrics.json and figures")
    add_protocol_arguments(parser)
    add_running_arguments(parser)
    return parser

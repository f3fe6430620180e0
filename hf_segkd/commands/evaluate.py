"""Evaluate segmentation models: per-class table, `metrics.json`, figures; of two models, how sure the difference is.

    hf-segkd evaluate MODEL --data photos --output_dir OUT
    hf-segkd evaluate MODEL --dataset camvid --data_dir CamVid --split test --output_dir OUT
    hf-segkd evaluate --compare STUDENT BASELINE --dataset camvid --data_dir CamVid --output_dir OUT
    hf-segkd evaluate --teacher A B --teacher_flip --dataset camvid --data_dir CamVid --output_dir OUT

MODEL is a folder, a Hub id or an original checkpoint (.pth). Several models are evaluated one after the other into
`OUT/<name>`; those of `--teacher` are averaged and scored as one, just as they teach in `distill`. With `torchrun` or
`accelerate launch scripts/evaluate.py` the images are shared among the processes; each is counted once.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_builders import DataArguments, open_from_arguments
from dataset_builders.arguments import find_data
from hf_segkd.commands.flags import CommandParser, add_dataset, add_fields
from hf_segkd.console import plain_logs, readable_errors
from hf_segkd.evaluation.settings import InferenceProtocol, RunningArguments, TeacherArguments
from hf_segkd.reports.files import check_no_run, model_names, write_json

if TYPE_CHECKING:
    from dataset_builders.opened import OpenedDataset
    from hf_segkd.evaluation.teacher import TeacherDescription


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Evaluate as the command line says and return what each model's `metrics.json` holds."""
    arguments = parser().parse_args(argv)
    plain_logs()
    from accelerate import PartialState

    from hf_segkd.evaluation.scoring import evaluate
    from hf_segkd.evaluation.teacher import TeacherDescription
    from hf_segkd.reports.metrics_report import metrics_report
    from hf_segkd.reports.prediction_figure import prediction_figure
    from hf_segkd.reports.run_folder import evaluation_figures
    from hf_segkd.reports.tables import table

    with readable_errors():
        state = PartialState(cpu=arguments.device == "cpu")
        device = "cpu" if arguments.device == "cpu" else state.device
        find_data(arguments)
        dataset = open_from_arguments(arguments)
        spec, split = dataset.spec, arguments.split or dataset.spec.eval_split
        protocol = InferenceProtocol.from_arguments(arguments)
        models = [*arguments.models, *(arguments.compare or ())]
        names = {} if arguments.teacher and not models else model_names(models)
        output_dir = Path(arguments.output_dir)
        check_no_run(output_dir, *(output_dir / name for name in (*names, "teacher")))
        segmenters = {name: load(model, dataset, protocol, device, arguments) for name, model in names.items()}
        if description := TeacherDescription.from_arguments(arguments):
            names |= {"teacher": str(description)}
            segmenters["teacher"] = load(description, dataset, protocol, device, arguments)
        images = dataset.evaluation_set(split)
        if arguments.compare and len(images) < 2:
            raise ValueError(f"--compare needs at least two images to resample, the {split} split has {len(images)}.")
        output_dir.mkdir(parents=True, exist_ok=True)

    reports, evaluations = {}, {}
    for name, segmenter in segmenters.items():
        how = {"num_workers": arguments.num_workers, "title": f"evaluating {name}"}
        evaluation = evaluate(segmenter, images, spec.num_labels, spec.ignore_index, **how)
        facts = {"model": names[name], "dataset": spec.name, "split": split, "images": len(images)}
        facts |= {"protocol": str(protocol), "dtype": arguments.dtype, "confusion_matrix": evaluation.matrix.tolist()}
        reports[name] = metrics_report(evaluation.scores(), spec.labels, **facts)
        evaluations[name] = evaluation
        if state.is_main_process:
            folder = output_dir / name if len(segmenters) > 1 else output_dir
            write_json(reports[name], folder / "metrics.json")
            if not arguments.no_figures:
                evaluation_figures(name, segmenter, evaluation, images, spec, folder)
            text = f"{name}: {summary(reports[name])}"
            print(text if len(segmenters) > 1 else f"{table(reports[name])}\n{text}", flush=True)
    if state.is_main_process and len(segmenters) > 1:
        write_summary(reports, output_dir)
        if not arguments.no_figures:
            prediction_figure(segmenters, images, spec).save(output_dir / "predictions.png")
    if state.is_main_process and arguments.compare:
        compare(list(model_names(arguments.compare)), evaluations, spec.labels, output_dir)
    state.wait_for_everyone()
    return reports


def load(
    model: str | TeacherDescription,
    dataset: OpenedDataset,
    protocol: InferenceProtocol,
    device,
    arguments: argparse.Namespace,
):
    """The segmenter of a model in the wanted precision, its classes brought into the dataset's order."""
    import torch

    from hf_segkd.evaluation.segmenter import Segmenter
    from hf_segkd.evaluation.teacher import TeacherDescription
    from hf_segkd.evaluation.teacher_member import TeacherMember
    from hf_segkd.loading.bands import check_reads
    from hf_segkd.recipe import mapping_or_text

    if isinstance(model, str):
        classes = mapping_or_text(arguments.teacher_classes) if arguments.teacher_classes else None
        model = TeacherDescription((TeacherMember(model, classes=classes),))
    loaded, processor = model.load(dataset.spec.labels, trust_remote_code=arguments.trust_remote_code)
    loaded = loaded.to(getattr(torch, arguments.dtype))
    check_reads(processor, dataset.bands)
    running = torch.compile(loaded) if arguments.compile else loaded
    return Segmenter(running, processor, protocol, device, dataset.bands)


def write_summary(reports: dict[str, dict], folder: Path) -> None:
    """Print and write all models' scores in one table."""
    from hf_segkd.reports.tables import results_table, summary_table

    (folder / "summary.md").write_text(summary_table(reports), encoding="utf-8")
    print(f"\n{results_table(reports)}")


def compare(names: list[str], evaluations: dict, labels: tuple[str, ...], folder: Path) -> None:
    """Print and write how the second model's IoU differs from the first's."""
    from hf_segkd.evaluation.comparison import paired_bootstrap
    from hf_segkd.reports.tables import comparison_table

    first, second = names
    difference = paired_bootstrap(evaluations[first].per_image, evaluations[second].per_image)
    per_class = dict(zip(labels, difference.per_class_iou.tolist(), strict=True))
    report = dataclasses.asdict(difference) | {"per_class_iou": per_class, "first": first, "second": second}
    write_json(report, folder / "comparison.json")
    print(f"\n{comparison_table(difference, labels, first, second)}")


def summary(report: dict) -> str:
    from hf_segkd.reports.tables import percent

    return (
        f"mIoU {percent(report['mean_iou']).strip()} %, "
        f"pixel accuracy {percent(report['overall_accuracy']).strip()} % "
        f"({report['images']} images, {report['split']}, {report['protocol']})"
    )


def parser() -> argparse.ArgumentParser:
    """Command line of this command."""
    parser = CommandParser("evaluate", __doc__)
    add = parser.add_argument
    add("models", nargs="*", help="folders, Hub ids or original checkpoints (.pth)")
    add("--compare", nargs=2, metavar=("A", "B"), help="two models whose difference is tested on these images")
    add_dataset(parser, "images to score", required=True)
    add("--split", help="train, validation or test (default: the dataset's validation split)")
    add("--output_dir", required=True, help="folder for metrics.json and figures")
    add("--no_figures", action="store_true", help="draw nothing: the scores alone, for many classes or runs")
    add_fields(parser, DataArguments, "data")
    add_fields(parser, InferenceProtocol, "protocol")
    add_fields(parser, TeacherArguments, "teacher, a model or several as one")
    add_fields(parser, RunningArguments, "running")
    return parser

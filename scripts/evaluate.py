"""Evaluate a segmentation model: per-class table, `metrics.json`, and a figure of a few images.

python scripts/evaluate.py FOLDER_OR_HUB_ID --dataset camvid --data_dir CamVid --split test --output_dir OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import dataset_builders
from hf_segkd.checks import check_classes
from hf_segkd.data import DATASETS, EvalTransform, SegmentationDataset
from hf_segkd.errors import readable_errors
from hf_segkd.evaluation import PROTOCOL, evaluate_model
from hf_segkd.models import load_processor, load_segmenter
from hf_segkd.reporting import metrics_report, plain_logs, prediction_figure, table, write_json


def main(argv: list[str] | None = None) -> dict:
    """Evaluate as the command line says and return what `metrics.json` holds."""
    arguments = parser().parse_args(argv)
    plain_logs()
    with readable_errors():
        spec = DATASETS[arguments.dataset]
        model = load_segmenter(arguments.model)
        processor = load_processor(arguments.model)
        check_classes(model, spec.labels, "model")
        split = arguments.split or spec.eval_split
        rows = dataset_builders.load_split(arguments.dataset, arguments.data_dir, split)
        dataset = SegmentationDataset(rows, EvalTransform(spec.ignore_index), spec.num_labels)
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
        teacher = load_segmenter(arguments.teacher) if arguments.teacher else None
        if teacher is not None:
            check_classes(teacher, spec.labels, "teacher")

    scores = evaluate_model(model, processor, dataset, spec.ignore_index, arguments.device, arguments.num_workers)
    report = metrics_report(
        scores,
        spec.labels,
        model=arguments.model,
        dataset=spec.name,
        split=split,
        images=len(dataset),
        protocol=PROTOCOL,
    )
    write_json(report, Path(arguments.output_dir) / "metrics.json")
    models = {"student" if teacher is not None else "prediction": (model, processor)}
    if teacher is not None:
        models = {"teacher": (teacher, load_processor(arguments.teacher)), **models}
    figure = prediction_figure(models, dataset, spec, arguments.device)
    figure.save(Path(arguments.output_dir) / "predictions.png")
    print(
        f"{table(report)}\nmIoU {100 * report['mean_iou']:.2f} % ({len(dataset)} images, {split}, whole, single scale)"
    )
    return report


def parser() -> argparse.ArgumentParser:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id")
    parser.add_argument("--dataset", required=True, choices=sorted(DATASETS))
    parser.add_argument("--data_dir", help="folder of the raw dataset")
    parser.add_argument("--split", help="train, validation or test (default: the dataset's validation split)")
    parser.add_argument("--output_dir", required=True, help="folder for metrics.json and predictions.png")
    parser.add_argument("--teacher", help="folder or Hub id, shown beside the model in the figure")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    return parser


if __name__ == "__main__":
    main()

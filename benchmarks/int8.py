"""What int8 costs in mIoU: PyTorch, onnxruntime's static quantization and OpenVINO's by NNCF on the same images.

    OMP_NUM_THREADS=1 python -m benchmarks.int8 runs/espnet-c runs/espnet --dataset camvid --data_dir CamVid

Each model is written as `hf-segkd export` does, quantized on 32 training images, and scored on the validation split,
whole image. Writes benchmarks/results/int8.json and int8.md.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.latency import quantize_openvino
from benchmarks.measuring import hardware
from dataset_builders import open_dataset
from hf_segkd.deployment.graphs import ImageToLabels
from hf_segkd.deployment.onnx_export import export_onnx, quantize_static
from hf_segkd.deployment.onnx_segmenter import channels_last, images_of
from hf_segkd.deployment.runtimes import open_runtime
from hf_segkd.evaluation.confusion import confusion_matrix, scores
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports.files import write_json
from hf_segkd.reports.tables import markdown_table

CALIBRATION_IMAGES = 32
FORMS = ("PyTorch fp32", "onnxruntime int8", "openvino int8")
# From images (1, H, W, 3) to class ids (1, H, W).
Run = Callable[[np.ndarray], np.ndarray]


def forms_of(model, processor, images: list[np.ndarray], forms: list[str], folder: Path) -> dict[str, Run]:
    """The forms asked for, ready to run."""
    graph = ImageToLabels(model, processor).eval()

    def in_torch(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return graph(torch.from_numpy(image)).numpy()

    # OpenVINO compiles for one size, which all images of these datasets have.
    fp32 = export_onnx(model, processor, folder / "fp32.onnx", size=images[0].shape[:2])
    threads = torch.get_num_threads()

    def made(form: str) -> Run:
        if form == "PyTorch fp32":
            return in_torch
        if form == "onnxruntime int8":
            return open_runtime(quantize_static(fp32, folder / "int8.onnx", images), "onnxruntime", threads)
        quantize_openvino(fp32, folder / "int8.xml", images)
        return open_runtime(folder / "int8.xml", "openvino", threads)

    return {form: made(form) for form in forms}


def mean_iou(runs: dict[str, Run], scored, num_labels: int, ignore_index: int) -> dict[str, float]:
    """mIoU of each form, a fraction, on all images of a split."""
    matrices = {form: torch.zeros(num_labels, num_labels, dtype=torch.int64) for form in runs}
    for item in scored:
        image = channels_last(item["pixel_values"])[None]
        for form, run in runs.items():
            predicted = torch.from_numpy(np.array(run(image)))[0].long()
            matrices[form] += confusion_matrix(predicted, item["labels"], num_labels, ignore_index)
    return {form: scores(matrix)["mean_iou"] for form, matrix in matrices.items()}


def table(rows: list[dict]) -> str:
    """Markdown: mIoU in percent, and in parentheses the difference to the first form."""
    cells = []
    for row in rows:
        first = next(iter(row["mean_iou"].values()))
        values = [f"{100 * value:.2f} ({100 * (value - first):+.2f})" for value in row["mean_iou"].values()]
        cells.append([row["model"], *values])
    return markdown_table(["model", *rows[0]["mean_iou"]], cells)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders, Hub ids or original checkpoints (.pth)")
    parser.add_argument("--dataset", default="camvid", help="what is scored, and int8 calibrated on")
    parser.add_argument("--data_dir", help="folder of the raw dataset")
    parser.add_argument("--split", default="validation", help="split that is scored (default: validation)")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, help="differences refer to the first")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/int8"), help="file without ending")
    return parser


def main() -> None:
    args = parser().parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    dataset = open_dataset(args.dataset, args.data_dir)
    scored = dataset.evaluation_set(args.split)
    images = images_of(dataset.evaluation_set(dataset.spec.train_split), CALIBRATION_IMAGES)
    note = f"{args.dataset} {args.split}, {len(scored)} images, whole image, mIoU in percent; {CALIBRATION_IMAGES} "
    note += f"calibration images of {dataset.spec.train_split}; {hardware(torch.get_num_threads())}"
    rows: list[dict] = []
    for name in args.models:
        model, processor = load_model(name)
        with tempfile.TemporaryDirectory() as folder:
            runs = forms_of(model, processor, images, args.forms, Path(folder))
            found = mean_iou(runs, scored, model.config.num_labels, dataset.spec.ignore_index)
        rows.append({"model": Path(name).name, "mean_iou": found})
        print(table(rows).splitlines()[-1], flush=True)
        write_json({"conditions": note, "rows": rows}, args.output.with_suffix(".json"))
        args.output.with_suffix(".md").write_text(f"{table(rows)}\n\n{note}\n", encoding="utf-8")


if __name__ == "__main__":
    main()

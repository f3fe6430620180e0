"""Scoring label maps: our streamed confusion matrix beside the collect-then-compute way of `evaluate`'s Hub metric.

    python benchmarks/evaluation.py --maps 500 --output_dir OUT

Both score the same maps, each in a process of its own; memory is by how much scoring raised the process's largest
resident size. The Hub's metric is written here afresh: `Image()` features, one histogram per class, mean without NaN.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import datasets
import evaluate
import numpy as np
import torch

from hf_segkd.evaluation.confusion import confusion_matrix, scores

CLASSES, IGNORE = 19, 255


class CollectedMeanIoU(evaluate.Metric):
    """The Hub metric's way: every map is written to a table, all are read back at the end."""

    def _info(self):
        """Features as on the Hub."""
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        """One histogram of intersections, predictions and references for each map."""
        totals = np.zeros((3, CLASSES))
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = np.array(prediction), np.array(reference)
            prediction, reference = prediction[reference != IGNORE], reference[reference != IGNORE]
            for row, values in enumerate((prediction[prediction == reference], prediction, reference)):
                totals[row] += np.histogram(values, bins=CLASSES, range=(0, CLASSES - 1))[0]
        return {"mean_iou": float(np.nanmean(totals[0] / (totals[1] + totals[2] - totals[0])))}


def label_maps(index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A reference of rectangles with an ignored frame, and a prediction with its contours moved."""
    generator = np.random.default_rng(index)
    blocks = generator.integers(0, CLASSES, (16, 32), dtype=np.uint8)
    reference = np.kron(blocks, np.ones((size[0] // 16, size[1] // 32), dtype=np.uint8))
    prediction = np.roll(reference, 5, axis=1)
    reference[: size[0] // 20] = IGNORE
    return prediction, reference


def ours(maps: int, size: tuple[int, int]) -> tuple[float, float]:
    """Seconds of scoring and the mean IoU."""
    seconds, matrix = 0.0, torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    for index in range(maps):
        prediction, reference = (torch.from_numpy(x) for x in label_maps(index, size))
        start = time.perf_counter()
        matrix += confusion_matrix(prediction, reference, CLASSES, IGNORE)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    result = scores(matrix)["mean_iou"]
    return seconds + time.perf_counter() - start, result


def collected(maps: int, size: tuple[int, int]) -> tuple[float, float]:
    """The same for the Hub metric's way."""
    metric, seconds = CollectedMeanIoU(), 0.0
    for index in range(maps):
        prediction, reference = label_maps(index, size)
        start = time.perf_counter()
        metric.add_batch(predictions=[prediction], references=[reference])
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    result = metric.compute()["mean_iou"]
    return seconds + time.perf_counter() - start, result


def measure(way, maps: int, size: tuple[int, int]) -> dict[str, float]:
    """Time, memory and result of one way, after a first small run that pays for what is loaded once."""
    torch.set_num_threads(1)
    way(2, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, mean_iou = way(maps, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "mib": (peak - before) / 2**10, "mean_iou": mean_iou}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=500)
    parser.add_argument("--size", type=int, nargs=2, default=[1024, 2048], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--output_dir", help="folder for evaluation.json")
    arguments = parser.parse_args(argv)
    results = {}
    for name, way in (("ours", ours), ("collected", collected)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(measure, (way, arguments.maps, tuple(arguments.size)))
    if abs(results["ours"]["mean_iou"] - results["collected"]["mean_iou"]) > 1e-9:
        raise SystemExit(f"The two ways disagree: {results}")
    ratios = {key: results["ours"][key] / results["collected"][key] for key in ("seconds", "mib")}
    print(f"ours / collected: time {ratios['seconds']:.4f}, memory {ratios['mib']:.4f}")
    print(json.dumps(results, indent=2))
    if arguments.output_dir:
        path = Path(arguments.output_dir) / "evaluation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"arguments": vars(arguments), "ratios": ratios, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

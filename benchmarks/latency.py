"""Students in PyTorch, onnxruntime and OpenVINO, float and int8, side by side on one machine.

    OMP_NUM_THREADS=1 python -m benchmarks.latency --sizes 360x480 512x1024 --rounds 7

Each round runs every form once, so that what else the machine does slows all of them alike; ratios are medians over
the rounds. With one thread the processor's time is taken, in which waiting for other processes does not count; with
more threads the time of the clock. All forms go from the bytes of one image to class ids. Weights are random; int8 is
calibrated on drawn scenes: neither changes the time.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import hardware
from dataset_builders.street_scenes import draw_scene
from hf_segkd.deployment.graphs import ImageToLabels
from hf_segkd.deployment.onnx_export import export_onnx, quantize_static
from hf_segkd.deployment.runtimes import open_runtime
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports.tables import markdown_table

STUDENTS = {
    "ESPNet-C": {"model_type": "espnet", "use_decoder": False},
    "PSPNet-MobileNetV3-S": {"model_type": "pspnet", "backbone": "mobilenetv3_small"},
    "SegFormer-B0": {"model_type": "segformer"},
}
FORMS = ("eager", "compiled", "onnxruntime", "onnxruntime int8", "openvino", "openvino int8")
CALIBRATION_IMAGES = 4
Run = Callable[[np.ndarray], object]


def quantize_openvino(source: Path, target: Path, images: list[np.ndarray]) -> None:
    """Write an fp32 ONNX file as OpenVINO's int8, by NNCF, calibrated on images (H, W, 3)."""
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    calibration = nncf.Dataset([image[None] for image in images])
    # Ranges of maps from their least to their largest value: those after PReLU are not symmetric around 0.
    preset = nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(model, calibration, preset=preset, subset_size=len(images))
    openvino.save_model(quantized, target, compress_to_fp16=False)


def forms_of(fields: dict, size: tuple[int, int], forms: list[str], threads: int, folder: Path) -> dict[str, Run]:
    """The forms asked for, ready to run."""
    torch.manual_seed(0)
    model, processor = load_model(fields, {index: f"class_{index}" for index in range(19)})
    graph = ImageToLabels(model, processor).eval()
    fp32 = export_onnx(model, processor, folder / "fp32.onnx", size=size)
    images = [draw_scene("train", index, *size, seed=0)[0] for index in range(CALIBRATION_IMAGES)]

    def in_torch(module) -> Run:
        def run(images: np.ndarray):
            with torch.inference_mode():
                return module(torch.from_numpy(images))

        return run

    def made(form: str) -> Run:
        if form == "eager":
            return in_torch(graph)
        if form == "compiled":
            return in_torch(torch.compile(graph))
        if form == "onnxruntime int8":
            return open_runtime(quantize_static(fp32, folder / "int8.onnx", images), "onnxruntime", threads)
        if form == "openvino int8":
            quantize_openvino(fp32, folder / "int8.xml", images)
            return open_runtime(folder / "int8.xml", "openvino", threads)
        return open_runtime(fp32, form, threads)

    return {form: made(form) for form in forms}


def rounds_of(runs: dict[str, Run], image: np.ndarray, rounds: int, threads: int) -> dict[str, list[float]]:
    """Milliseconds of each form in each round, the forms by turns, after two rounds that do not count."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {form: [] for form in runs}
    for _ in range(rounds + 2):
        for form, run in runs.items():
            start = clock()
            run(image[None])
            times[form].append(1000 * (clock() - start))
    return {form: values[2:] for form, values in times.items()}


def summary(case: dict) -> dict[str, tuple[float, float]]:
    """Median milliseconds of each form, and the median over the rounds of its ratio to the first form."""
    first, *_ = case["ms"].values()
    found = {}
    for form, values in case["ms"].items():
        ratios = [value / reference for value, reference in zip(values, first, strict=True)]
        found[form] = statistics.median(values), statistics.median(ratios)
    return found


def table(cases: list[dict]) -> str:
    """Markdown: milliseconds, and in parentheses the ratio to the first form."""
    forms = [form for form in FORMS if any(form in case["ms"] for case in cases)]
    rows = []
    for case in cases:
        found = summary(case)
        cells = [f"{found[form][0]:.0f} ({found[form][1]:.2f})" if form in found else "not run" for form in forms]
        rows.append([case["student"], case["size"], str(case["threads"]), *cells])
    return markdown_table(["student", "size", "threads", *forms], rows)


def write(output: Path, cases: list[dict], note: str) -> None:
    """All cases so far as `output`.json and their table as `output`.md."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps({"conditions": note, "cases": cases}, indent=1) + "\n")
    output.with_suffix(".md").write_text(f"{table(cases)}\n\n{note}\n")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS, help="what is measured")
    parser.add_argument("--sizes", nargs="+", default=["360x480", "512x1024"], help="HEIGHTxWIDTH, pixels")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, help="the first is what ratios refer to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/latency"), help="file without ending")
    return parser


def main() -> None:
    args = parser().parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(args.threads)
    clock = "processor's time" if args.threads == 1 else "time of the clock"
    note = f"{hardware(args.threads)}; medians of {args.rounds} interleaved rounds, {clock}"
    note += f"; {args.note}" if args.note else ""
    cases: list[dict] = []
    for name in args.students:
        for size in args.sizes:
            height, width = map(int, size.split("x"))
            image = draw_scene("test", 0, height, width, seed=0)[0]
            with tempfile.TemporaryDirectory() as folder:
                runs = forms_of(STUDENTS[name], (height, width), args.forms, args.threads, Path(folder))
                times = rounds_of(runs, image, args.rounds, args.threads)
            cases.append({"student": name, "size": size, "threads": args.threads, "ms": times})
            print(table(cases[-1:]).splitlines()[-1], flush=True)
            write(args.output, cases, note)


if __name__ == "__main__":
    main()

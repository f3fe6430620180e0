"""Everything that only a GPU can tell, in one run: every method's step, the teacher's forms, the fused relations.

    python -m benchmarks.gpu --output runs/benchmarks/gpu          # 8 crops of 512×1024
    python -m benchmarks.gpu --device cpu --batch 3 --crop 64 128  # a rehearsal

writes gpu.json and gpu.md. A step is the teacher's forward (DeepLabV3 on ResNet-101), the student's (DeepLabV3 on
ResNet-18), losses, backward and SGD, under bfloat16 autocast, with what the trainer does for the teacher: bfloat16
weights, channels last, batch norms folded. The tests that need a GPU are run by

    python -m pytest tests/test_similarity_cuda.py tests/test_folding.py
"""

import argparse
import json
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.benchmark import timer
from transformers import PreTrainedModel

from benchmarks.cases import CASES, forward_backward
from benchmarks.measuring import hardware, peak_bytes
from benchmarks.step import RECIPES, TEACHER, build
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.frozen import folded_batch_norms
from hf_segkd.models import SegmentationOutput
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.distiller import Distiller

RELATIONS = ("CIRKD mini-batch 512/512", "CIRKD mini-batch 128/256", "CIRKD memory 512/512", "SKD pair-wise 512/512")
WARMUP, PASSES = 3, 10


class Meter:
    """Milliseconds and peak memory of a call on one device."""

    def __init__(self, device: str, passes: int):
        self.device, self.passes = device, passes

    def measure(self, function: Callable[[], object]) -> dict[str, float]:
        """Median time after the warm-up; the peak is what lies above the state before."""
        for _ in range(WARMUP if self.device == "cuda" else 1):
            function()
        times = []
        for _ in range(self.passes):
            start = timer()  # waits for the GPU
            function()
            times.append(1000 * (timer() - start))
        return {"ms": statistics.median(times), "mib": self._peak(function) / 2**20}

    def _peak(self, function: Callable[[], object]) -> int:
        if self.device == "cpu":
            return peak_bytes(function)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before


def moved(value, device: str):
    """Tensors of a batch or an output on another device; a leaf that wants a gradient stays a leaf."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    return type(value)(**{name: moved(x, device) for name, x in value.items()})


def teacher_forms(teacher: PreTrainedModel, images: torch.Tensor, meter: Meter) -> dict[str, dict]:
    """The teacher's forward, one improvement after the other."""
    found, size = {}, tuple(images.shape[-2:])

    def run(name: str, model: Callable, images: torch.Tensor) -> None:
        with torch.no_grad():
            found[name] = meter.measure(lambda: model(pixel_values=images, output_hidden_states=True))

    run("float32", teacher, images)
    teacher, images = teacher.to(torch.bfloat16), images.to(torch.bfloat16)
    run("bfloat16", teacher, images)
    teacher.to(memory_format=torch.channels_last)
    run("bfloat16, channels last", teacher, images)
    with folded_batch_norms(teacher, size):
        run("bfloat16, channels last, folded", teacher, images)
        run("bfloat16, channels last, folded, compiled", torch.compile(teacher), images)
    return found


def step(distiller: Distiller, teacher: PreTrainedModel, inputs: dict, optimizer: torch.optim.Optimizer) -> None:
    """One training step, with the teacher's forward where a loss wants it."""
    with torch.autocast(inputs["labels"].device.type, torch.bfloat16):
        if any(loss.needs_teacher for loss in distiller.losses.values()):
            with torch.no_grad():
                images = inputs["pixel_values"].to(teacher.dtype)
                inputs["teacher"] = SegmentationOutput(**teacher(pixel_values=images))
        loss = distiller(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def steps(methods: list[str], teacher: PreTrainedModel, meter: Meter, batch: int, crop: tuple[int, int]) -> dict:
    """Each method's step, the teacher's forward in it where the method has one."""
    found = {}
    for method in methods:
        try:
            distiller, inputs = build(method, "ours", "step", batch, crop)
        except ValueError as error:  # from a loss that needs larger maps, or another pair of networks
            found[method] = {"refused": str(error)}
            continue
        distiller, inputs = distiller.to(meter.device), moved(inputs, meter.device)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
        found[method] = meter.measure(partial(step, distiller, teacher, inputs, optimizer))
        print(method, found[method], flush=True)
    return found


def relations(meter: Meter, batch: int, crop: tuple[int, int]) -> dict[str, dict]:
    """The losses that relate pixels beside their dense forms, tf32 products in both where the GPU has them."""
    found = {}
    for name in RELATIONS:
        case = replace(CASES[name], batch=batch, crop=crop)
        loss, (student, teacher, labels) = case.build()
        loss = loss.to(meter.device)
        inputs = moved(student, meter.device), moved(teacher, meter.device), labels.to(meter.device)
        found[name] = {
            form: meter.measure(partial(forward_backward, case, form, loss, inputs)) for form in ("dense", "ours")
        }
        print(name, found[name], flush=True)
    return found


def table(report: dict) -> str:
    """Markdown, ratios first."""
    base = report["steps"]["baseline"]["ms"]
    steps, relations = [], []
    for name, x in report["steps"].items():
        cells = [f"{x['ms'] / base:.2f}", f"{x['ms']:.1f}", f"{x['mib']:.0f}"] if "ms" in x else [x["refused"], "", ""]
        steps.append([name, *cells])
    teacher = [[name, f"{x['ms']:.1f}", f"{x['mib']:.0f}"] for name, x in report["teacher"].items()]
    for name, x in report["relations"].items():
        ratios = [f"{x['dense'][unit] / x['ours'][unit]:.1f}" for unit in ("ms", "mib")]
        relations.append([name, *ratios, f"{x['dense']['ms']:.1f}", f"{x['ours']['ms']:.1f}"])
    tables = (
        markdown_table(["method", "step / plain training", "ms", "peak MiB"], steps),
        markdown_table(["teacher's forward", "ms", "peak MiB"], teacher),
        markdown_table(["loss", "dense / ours, time", "memory", "ms dense", "ms ours"], relations),
    )
    return "\n\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--only", nargs="+", help="recipes of hf_segkd/recipes/methods; all by default")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/gpu"), help="path without suffix")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No CUDA GPU here. --device cpu --batch 3 --crop 64 128 rehearses the run.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    crop, meter = tuple(args.crop), Meter(args.device, args.passes)
    teacher = load_model(TEACHER)[0].eval().requires_grad_(False).to(args.device)
    images = torch.randn(args.batch, 3, *crop, device=args.device)
    report = {"hardware": hardware(torch.get_num_threads()), "batch": args.batch, "crop": crop}
    if args.device == "cuda":
        report["hardware"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {report['hardware']}"
    report["teacher"] = teacher_forms(teacher, images, meter)
    methods = args.only or sorted(file.stem for file in RECIPES.glob("*.yaml"))
    with folded_batch_norms(teacher, crop) if args.device == "cuda" else nullcontext():
        report["steps"] = steps(sorted({"baseline", *methods}), teacher, meter, args.batch, crop)
    report["relations"] = relations(meter, args.batch, crop)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(f"{table(report)}\n\n{report['hardware']}\n")
    print(table(report))


if __name__ == "__main__":
    main()

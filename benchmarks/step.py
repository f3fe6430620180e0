"""A whole training step of a method beside the same step with the originals' formulations of its losses.

    python -m benchmarks.step --output runs/benchmarks/step

DeepLabV3 on ResNet-18 as the student, the outputs of a DeepLabV3 on ResNet-101 given, 2 crops of 512×1024, the losses
and weights of `hf_segkd/recipes/methods/`, SGD; writes step.json and step.md (an hour, 8 GB). `--only baseline kd`
takes other recipes of that folder. Measured are the whole step and the losses alone, forward and backward to the
student's outputs; each in a process of its own, the two forms by turns. Time and memory are counted as in
`benchmarks/losses.py`.
"""

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cases import CASES
from benchmarks.measuring import compare, measure, write
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.native import output_shapes
from hf_segkd.losses import LOSSES, LossSetup, build_losses
from hf_segkd.models import SegmentationOutput
from hf_segkd.recipe import load_yaml
from hf_segkd.reports.tables import markdown_table
from hf_segkd.training.distiller import Distiller

RECIPES = Path(__file__).resolve().parents[1] / "hf_segkd" / "recipes" / "methods"
STUDENT = {"model_type": "deeplabv3", "backbone": "resnet18", "num_labels": 19}
TEACHER = {"model_type": "deeplabv3", "backbone": "resnet101", "num_labels": 19}
DENSE = {case.loss: case.dense for case in CASES.values() if case.loss in LOSSES.values()}
PARTS = ("step", "losses")
LIMIT = 90.0  # seconds; a process stops repeating beyond it


class Plain(nn.Module):
    """A loss of the library, computed as the originals compute it."""

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor):
        if type(self.loss) not in DENSE:  # It computes as its formula reads.
            return self.loss(student, teacher, labels)
        return DENSE[type(self.loss)](self.loss, student, teacher, labels)


class Given(nn.Module):
    """A student whose outputs are there already: what is left of the step are the losses."""

    def __init__(self, shapes: dict[str, torch.Size], batch: int):
        super().__init__()
        self.maps = nn.ParameterDict({name: torch.randn(batch, *shape[1:]) for name, shape in shapes.items()})

    def forward(self, pixel_values: Tensor, output_hidden_states: bool) -> SegmentationOutput:
        return SegmentationOutput(**self.maps)


def build(
    method: str,
    form: str,
    part: str,
    batch: int = 2,
    crop: tuple[int, int] = (512, 1024),
    student: dict = STUDENT,
    teacher: dict = TEACHER,
) -> tuple[Distiller, dict]:
    """Student and losses of a recipe, and a batch for them; always the same weights, images and labels."""
    torch.manual_seed(0)
    student = load_model(student)[0]
    shapes = [_maps(model, crop) for model in (student, load_model(teacher)[0])]
    labels = torch.randint(0, student.config.num_labels, (batch, *crop))
    labels[:, : crop[0] // 8] = 255
    given = {name: torch.randn(batch, *shape[1:]) for name, shape in shapes[1].items()}
    inputs = {"pixel_values": torch.randn(batch, 3, *crop), "labels": labels, "teacher": SegmentationOutput(**given)}
    specs = load_yaml((RECIPES / f"{method}.yaml").read_text())["losses"]
    losses, weights = build_losses(specs, LossSetup(shapes[0], student.config.num_labels, shapes[1]))
    if form == "dense":
        losses = nn.ModuleDict({name: Plain(loss) for name, loss in losses.items()})
    student = student.train() if part == "step" else Given(shapes[0], batch)
    return Distiller(student, losses, weights), inputs


def _maps(model: nn.Module, crop: tuple[int, int]) -> dict[str, torch.Size]:
    # On tensors without content: a real forward of the teacher at this size takes half a minute.
    with torch.no_grad():
        shapes = output_shapes(copy.deepcopy(model).to("meta"), crop)
    return {name: shape for name, shape in shapes.items() if "." not in name}


def step(distiller: Distiller, optimizer: torch.optim.Optimizer, inputs: dict) -> None:
    """Forward, backward, update."""
    distiller(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def shares(function: Callable[[], object], count: int = 8) -> str:
    """Markdown: the operations that take the processor's time in a second call, and their shares of it."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = []
    for event in events[:count]:
        seconds = event.self_cpu_time_total / 1e6
        share = f"{100 * event.self_cpu_time_total / total:.0f} %"
        rows.append([event.key, share, f"{seconds:.2f}", str(event.count)])
    rows.append(["all", "", f"{total / 1e6:.2f}", ""])
    return markdown_table(["operation", "share", "seconds", "calls"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["baseline", "cirkd", "cirkdv2"], help="recipes to measure")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="processes per recipe, part and form")
    parser.add_argument("--passes", type=int, default=2, help="timed passes per process, after a first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/step"), help="path without suffix")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD:PART", "FORM"), help="one, printed as JSON")
    parser.add_argument("--profile", nargs=2, metavar=("METHOD:PART", "FORM"), help="one, by operation")
    args = parser.parse_args()
    if which := args.measure or args.profile:
        torch.set_num_threads(args.threads)
        method, part = which[0].split(":")
        distiller, inputs = build(method, which[1], part)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
        run = partial(step, distiller, optimizer, inputs)
        print(json.dumps(measure(run, args.passes, LIMIT)) if args.measure else shares(run))
        return
    names = [f"{method}:{part}" for part in args.parts for method in args.only]
    options = [f"--threads={args.threads}", f"--passes={args.passes}"]
    write(args.output, compare("benchmarks.step", names, options, args.rounds), args.threads)


if __name__ == "__main__":
    main()

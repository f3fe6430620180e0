"""How fast a student trains on a CPU: forms of the same step, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_step --student espnet-c --batch 8 --size 176 240 --rounds 5

Each round times every form once, so that a machine that drifts slows all of them. Seconds are the processor's; the
ratio is that of the medians. `loss moved` is how far the loss after `--steps` steps lies from the float32 one's.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn

from benchmarks.measuring import cpu_seconds, hardware
from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.student_names import STUDENTS, student_fields
from hf_segkd.reports.tables import markdown_table

# Form -> flags of `hf-segkd distill` that it stands for.
FORMS = {
    "float32": set(),
    "float32, compiled": {"torch_compile"},
    "channels last": {"channels_last"},
    "channels last, compiled": {"channels_last", "torch_compile"},
    "bf16": {"bf16"},
    "bf16, channels last": {"bf16", "channels_last"},
    "bf16, channels last, compiled": {"bf16", "channels_last", "torch_compile"},
}
CLASSES = 11


class Step:
    """One student, its optimizer and one batch of noise, in one of the forms."""

    def __init__(self, student: str, flags: set[str], batch: int, size: tuple[int, int]):
        torch.manual_seed(0)
        self.model = load_model(student_fields(student), {index: str(index) for index in range(CLASSES)})[0].train()
        self.images = torch.randn(batch, 3, *size)
        self.labels = torch.randint(0, CLASSES, (batch, *size))
        if "channels_last" in flags:
            self.model.to(memory_format=torch.channels_last)
        self.bf16 = "bf16" in flags
        self.forward: nn.Module = torch.compile(self.model) if "torch_compile" in flags else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.loss = 0.0

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.forward(pixel_values=self.images).logits
        logits = nn.functional.interpolate(logits.float(), size=self.labels.shape[-2:], mode="bilinear")
        loss = nn.functional.cross_entropy(logits, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    steps = {}
    for form in arguments.forms:
        steps[form] = Step(arguments.student, FORMS[form], arguments.batch, tuple(arguments.size))
        for _ in range(arguments.steps):  # the first ones compile
            steps[form]()
    losses = {form: step.loss for form, step in steps.items()}
    seconds: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(arguments.rounds):
        for form, step in steps.items():
            seconds[form].append(cpu_seconds(step))
    print(table(seconds, losses))
    height, width = arguments.size
    print(f"\n{arguments.student}, {arguments.batch} x {height}x{width}; {hardware(torch.get_num_threads())}.")


def table(seconds: dict[str, list[float]], losses: dict[str, float]) -> str:
    """Markdown; the first form is the one that the others are compared with."""
    first = next(iter(seconds))
    rows = []
    for form, values in seconds.items():
        middle = statistics.median(values)
        ratio = statistics.median(seconds[first]) / middle
        rows.append([form, f"{middle:.3f}", f"{ratio:.2f}", f"{abs(losses[form] - losses[first]):.1e}"])
    return markdown_table(["form", "s/step", f"times as fast as {first}", "loss moved"], rows)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "benchmarks.cpu_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--student", choices=STUDENTS, default="espnet-c", metavar="NAME", help="name of a student (default: espnet-c)"
    )
    add("--batch", type=int, default=8, help="crops in a step (default: 8)")
    add("--size", type=int, nargs=2, default=[176, 240], metavar=("HEIGHT", "WIDTH"), help="of a crop, pixels")
    add("--rounds", type=int, default=5, help="timed steps of each form (default: 5)")
    add("--steps", type=int, default=3, help="steps of each form before (default: 3)")
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="forms to time (default: all)")
    return parser


if __name__ == "__main__":
    main()

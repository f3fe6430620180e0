"""Where the time of a run goes, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, TrainerCallback


class StepClock:
    """Where the time between two log entries goes, evaluation and saving left out.

    On a GPU the parts that run there are measured between events in its own queue, and nobody waits for them before
    the log entry, for which Trainer waits anyway. Gradients and optimizer are what is left of 1.

    Args:
        device (`torch.device`): Where teacher and student run.
    """

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.start, self.images, self.spans = time.perf_counter(), 0, {}

    @contextmanager
    def span(self, name: str, on_host: bool = False) -> Iterator[None]:
        """Time the block under `name`; `on_host` if the host does the work or waits."""
        begin = self.mark(on_host)
        yield
        self.add(name, begin, self.mark(on_host))

    def mark(self, on_host: bool = False) -> float | torch.cuda.Event:
        """Now, on the host or in the GPU's queue."""
        if on_host or not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, begin, end) -> None:
        """Count what lies between two marks as `name`."""
        self.spans.setdefault(name, []).append((begin, end))

    def report(self) -> dict[str, float]:
        """`images_per_second` and the shares of `time_data`, `time_teacher`, ...; starts anew."""
        spans = {name: sum(_seconds(*pair) for pair in pairs) for name, pairs in self.spans.items()}
        total = time.perf_counter() - self.start - spans.pop("pause", 0.0)
        if "student" in spans:
            spans["losses"] = spans.pop("model") - spans["student"]
        report = {"images_per_second": self.images / total}
        report |= {f"time_{name}": seconds / total for name, seconds in spans.items()}
        self.restart()
        return report


def _seconds(begin, end) -> float:
    if isinstance(begin, float):
        return end - begin
    end.synchronize()
    return begin.elapsed_time(end) / 1000


class TimeStudent(TrainerCallback):
    """Times the student's forward and the losses separately; impossible in a compiled step."""

    def __init__(self, student: PreTrainedModel, clock: StepClock):
        self.student, self.clock, self.hooks = student, clock, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.restart()
        if not args.torch_compile:
            before = self.student.register_forward_pre_hook(self._begin)
            self.hooks = [before, self.student.register_forward_hook(self._end)]

    def _begin(self, student, inputs):
        self.begin = self.clock.mark()

    def _end(self, student, inputs, output):
        if student.training:
            self.clock.add("student", self.begin, self.clock.mark())

    def on_train_end(self, args, state, control, **kwargs):
        for hook in self.hooks:
            hook.remove()

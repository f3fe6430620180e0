"""The losses that are measured, each with its plain formulation and the sizes to measure it at."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import dense, dense_attention, dense_cirkd
from hf_segkd.losses import LOSSES, LossSetup
from hf_segkd.losses.cirkdv2 import ChannelRelations, ContextBlock
from hf_segkd.losses.functional.similarity import bank_kl, unit_vectors
from hf_segkd.models import SegmentationOutput

STRIDE = 8


class MemoryBank(nn.Module):
    """The relation terms of CIRKD's memory: pixels against 4104 pixel keys and 1026 region keys, no queue update."""

    def __init__(self, setup: LossSetup, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature
        channels = setup.teacher["features"][1]
        for name, keys in (("pixels", 4104), ("regions", 1026)):
            self.register_buffer(name, F.normalize(torch.randn(keys, channels), dim=1))

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        maps = (x.features.flatten(2).transpose(1, 2).flatten(0, 1) for x in (student, teacher))
        students, teachers = (unit_vectors(x) for x in maps)
        weights = students.new_full((len(students),), 1 / len(students))
        return sum(bank_kl(students, teachers, keys, weights, self.temperature) for keys in self.buffers())


class QueueUpdate(LOSSES["cirkd_memory"]):
    """The update of CIRKD's queues alone: no gradient, its effect is in the buffers."""

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        pixels = teacher.features.flatten(2).transpose(1, 2)
        self._enqueue(*self.choose(pixels, self._labels_of(labels, teacher.features.shape[-2:])))
        return pixels.new_zeros(())


class Context(ContextBlock):
    """CIRKDv2's non-local block, its output weighted by the teacher's map so that it has a gradient."""

    def __init__(self, setup: LossSetup):
        super().__init__(setup.student["features"][1])

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> Tensor:
        return (super().forward(student.features) * teacher.features).mean()


class Channels(ChannelRelations):
    """CIRKDv2's three terms between channels."""

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        return super().forward(student.features, teacher.features)


@dataclass(frozen=True)
class Case:
    """A loss, its plain formulation, and the sizes to measure it at.

    Args:
        loss (`type[nn.Module]`): Built from a `LossSetup` and `options`.
        dense (`Callable`): Takes the loss, student, teacher and labels; same value, gradient and change of state.
        channels (`dict[str, tuple[int, int]]`): Channels of student and teacher, by output field.
        num_labels, batch (`int`), crop (`tuple[int, int]`, pixels): Maps are of 1/8 of the crop.
    """

    loss: type[nn.Module]
    dense: Callable
    channels: dict[str, tuple[int, int]]
    num_labels: int = 19
    options: dict = field(default_factory=dict)
    batch: int = 2
    crop: tuple[int, int] = (512, 1024)

    def build(self, batch: int | None = None, crop: tuple[int, int] | None = None) -> tuple[nn.Module, tuple]:
        """The loss and random inputs for it, always the same: student with gradient, teacher, labels."""
        torch.manual_seed(0)
        batch, crop = batch or self.batch, crop or self.crop
        size = tuple(side // STRIDE for side in crop)
        student, teacher = (
            {name: torch.randn(batch, count[side], *size) for name, count in self.channels.items()} for side in (0, 1)
        )
        labels = torch.randint(0, self.num_labels, (batch, *crop))
        labels[:, : crop[0] // 8] = 255
        shapes = [{name: x.shape for name, x in maps.items()} for maps in (student, teacher)]
        loss = self.loss(LossSetup(shapes[0], self.num_labels, shapes[1]), **self.options)
        student = {name: x.requires_grad_() for name, x in student.items()}
        return loss, (SegmentationOutput(**student), SegmentationOutput(**teacher), labels)

    def value(self, form: str, loss: nn.Module, inputs: tuple) -> Tensor:
        """Sum of the terms by the `"ours"` or the `"dense"` form."""
        value = loss(*inputs) if form == "ours" else self.dense(loss, *inputs)
        return sum(value.values()) if isinstance(value, dict) else value

    def gradients(self, value: Tensor, loss: nn.Module, inputs: tuple) -> tuple[Tensor | None, ...]:
        """Of the student's maps, then of the loss's parameters."""
        wanted = [*(inputs[0][name] for name in self.channels), *loss.parameters()]
        return torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else ()


def forward_backward(case: Case, form: str, loss: nn.Module, inputs: tuple) -> None:
    """One pass of the `"ours"` or the `"dense"` form; the gradient is thrown away with the graph."""
    case.gradients(case.value(form, loss, inputs), loss, inputs)


def _features(student: int = 512, teacher: int = 512) -> dict[str, tuple[int, int]]:
    return {"features": (student, teacher)}


def _cirkd_cases() -> dict[str, Case]:
    minibatch, memory = LOSSES["cirkd_minibatch"], LOSSES["cirkd_memory"]
    return {
        "CIRKD mini-batch 512/512": Case(minibatch, dense_cirkd.minibatch, _features()),
        "CIRKD mini-batch 128/256": Case(minibatch, dense_cirkd.minibatch, _features(128, 256)),
        "CIRKD memory 512/512": Case(memory, dense_cirkd.memory, _features()),
        "CIRKD memory, its bank": Case(MemoryBank, dense_cirkd.memory_bank, _features()),
        "CIRKD memory, its queue": Case(QueueUpdate, dense_cirkd.queue_update, _features()),
        "CIRKDv2 512/512": Case(LOSSES["cirkdv2"], dense_cirkd.cirkdv2, _features()),
        "CIRKDv2, its context block": Case(Context, dense_attention.context, _features()),
        "CIRKDv2, its channel terms": Case(Channels, dense_cirkd.channel_relations, _features()),
    }


def _feature_cases() -> dict[str, Case]:
    pairwise, ifvd, cskd = LOSSES["skd_pairwise"], LOSSES["ifvd"], LOSSES["cskd"]
    three = {"aux_logits": (19, 19), **_features(), "logits": (19, 19)}
    square = {"batch": 4, "crop": (512, 512)}
    refined = {"loss": cskd, "dense": dense_attention.cskd, "channels": _features(256, 256), **square}
    return {
        "SKD pair-wise 512/512": Case(pairwise, dense.skd_pairwise, _features()),
        "SKD pair-wise 128/256": Case(pairwise, dense.skd_pairwise, _features(128, 256)),
        "IFVD 512/512, K=19": Case(ifvd, dense.ifvd, _features()),
        "IFVD 512/512, K=150, batch 1": Case(ifvd, dense.ifvd, _features(), 150, batch=1),
        "CWD features 512/512": Case(LOSSES["cwd"], dense.cwd, _features()),
        "CWD features 128/512": Case(LOSSES["cwd"], dense.cwd, _features(128, 512)),
        "AT 512/512": Case(LOSSES["at"], dense.at, _features()),
        "FitNet 512/512": Case(LOSSES["fitnet"], dense.fitnet, _features()),
        "FitNet 128/256": Case(LOSSES["fitnet"], dense.fitnet, _features(128, 256)),
        "DSD": Case(LOSSES["dsd"], dense.dsd, three),
        "CSKD CAM 256/256": Case(**refined, options={"terms": ["cam"]}),
        "CSKD PAM, whole map": Case(**refined, options={"terms": ["pam"], "grid": 1}),
        "CSKD PAM, 5x5 patches": Case(**refined, options={"terms": ["pam"]}),
        "CSKD PAM, 5x5, resampled": Case(**refined, options={"terms": ["pam"], "pam_projection": "resample"}),
        "CSKD CAM and PAM, learned, MSE": Case(**refined, options={"comparison": "mse", "pam_projection": "learned"}),
        "MGD 128/256": Case(LOSSES["mgd"], dense.mgd, _features(128, 256)),
        "Af-DCD 128/256": Case(LOSSES["af_dcd"], dense.af_dcd, _features(128, 256)),
        "Af-DCD 128/256, no pooling": Case(
            LOSSES["af_dcd"], dense.af_dcd, _features(128, 256), options={"pooling": 1}
        ),
    }


def _logit_cases() -> dict[str, Case]:
    cases = {}
    adversarial = LOSSES["adversarial"], dense_attention.adversarial
    for classes in (19, 150):
        sizes = {"logits": (classes, classes)}, classes
        cases |= {
            f"task with upsampling, K={classes}": Case(LOSSES["task"], dense.task, *sizes),
            f"KD, K={classes}": Case(LOSSES["kd"], dense.kd, *sizes),
            f"CWD logits, K={classes}": Case(LOSSES["cwd"], dense.cwd, *sizes, {"layer": "logits"}),
            f"DIST, K={classes}": Case(LOSSES["dist"], dense.dist, *sizes),
            f"BPKD, K={classes}": Case(LOSSES["bpkd"], dense.bpkd, *sizes),
        }
    logits = {"logits": (19, 19)}
    cases["adversarial, hinge"] = Case(*adversarial, logits)
    cases["adversarial, WGAN-GP"] = Case(*adversarial, logits, options={"objective": "wgan-gp"})
    return cases


def _larger(cases: dict[str, Case]) -> dict[str, Case]:
    """Those whose plain formulation still fits into 8 GB, at four times the images."""
    names = ("SKD pair-wise 512/512", "IFVD 512/512, K=19", "AT 512/512", "FitNet 512/512", "CWD features 512/512")
    names += ("DSD", "CIRKD memory, its queue", "CIRKDv2, its channel terms", "task with upsampling, K=19", "KD, K=19")
    return {f"{name}, batch 8": replace(cases[name], batch=8) for name in names}


CASES = _cirkd_cases() | _feature_cases() | _logit_cases()
CASES |= _larger(CASES)

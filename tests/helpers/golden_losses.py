"""How each method of the golden loss vectors is called in this library."""

import torch
from safetensors.torch import load_file

from helpers import golden_features, golden_folder
from hf_segkd.losses import LossSetup
from hf_segkd.losses.at import ATLoss
from hf_segkd.losses.cwd import CWDLoss
from hf_segkd.losses.kd import KDLoss
from hf_segkd.losses.task import TaskLoss
from hf_segkd.models import SegmentationOutput


def setup(student: torch.Tensor, teacher: torch.Tensor | None, layer: str, ignore_index: int = 255) -> LossSetup:
    teacher_shapes = {} if teacher is None else {layer: teacher.shape}
    return LossSetup(
        {layer: student.shape}, num_labels=student.shape[1], teacher=teacher_shapes, ignore_index=ignore_index
    )


def task(tensors, hparams):
    logits, aux = tensors["in.logits_s"], tensors.get("in.aux_s")
    loss = TaskLoss(setup(logits, None, "logits", hparams["ignore_index"]))
    return loss, loss(SegmentationOutput(logits=logits, aux_logits=aux), None, tensors["in.labels"])


def kd(reduction):
    def call(tensors, hparams):
        student, teacher = tensors["in.logits_s"], tensors["in.logits_t"]
        upsample = 8 if hparams.get("upsample", False) else 1
        loss = KDLoss(setup(student, teacher, "logits"), hparams.get("temperature", 1.0), reduction, upsample)
        return loss, loss(SegmentationOutput(logits=student), SegmentationOutput(logits=teacher), None)

    return call


def cwd(denominator):
    def call(tensors, hparams):
        student, teacher = tensors["in.s"], tensors["in.t"]
        options = {"norm": hparams.get("norm_type", "channel"), "divergence": hparams.get("divergence", "kl")}
        # The original overwrites the temperature with 1 for squared differences.
        temperature = hparams["temperature"] if options["divergence"] == "kl" else 1.0
        loss = CWDLoss(setup(student, teacher, "features"), temperature, denominator=denominator, **options)
        weight = tensors.get("in.align.weight", tensors.get("param.conv.weight"))
        if weight is not None:
            loss.projector.weight = torch.nn.Parameter(weight.detach().clone())
        return loss, loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)

    return call


def at(tensors, hparams):
    student, teacher = tensors["in.feat_s"], tensors["in.feat_t"]
    loss = ATLoss(setup(student, teacher, "features"))
    return loss, loss(SegmentationOutput(features=student), SegmentationOutput(features=teacher), None)


METHODS = {
    "task_ce": task,
    "task_dsn": task,
    "kd_kl": kd("pixel"),
    "kd_kl_elementmean": kd("element"),
    "kd_ce_sum_over_hw": kd("cross_entropy_sum"),
    "cwd_cirkd": cwd("student"),
    "cwd_torchdistiller": cwd("teacher"),
    "cwd_teacher_channels": cwd("teacher"),
    "at": at,
    **golden_features.METHODS,
}
# Where a golden tensor lives in our module.
PARAMETERS = {"in.align.weight": "projector.weight", **golden_features.PARAMETERS}


# CWD's comparisons with the logarithm of a raw value, which are NaN in the originals and not offered.
MEANINGLESS = {("none", "kl"), ("none", "mse"), ("channel_mean", "kl")}


def offered(case: dict) -> bool:
    """Whether the library has this variant."""
    return tuple(case["hparams"].get(key) for key in ("norm_type", "divergence")) not in MEANINGLESS


def objective(outputs: dict[str, torch.Tensor], tensors, hparams) -> torch.Tensor:
    """The scalar that the stored gradients belong to."""
    if "in.cotangent" in tensors:
        return (outputs["y"] * tensors["in.cotangent"]).sum()
    weights = hparams["w"] if len(outputs) > 1 else [1.0]
    return sum(weight * value for weight, value in zip(weights, outputs.values(), strict=True))


def cases(methods) -> list[dict]:
    """Those of `methods` that the library has."""
    return [case for case in golden_folder.loss_cases() if case["method"] in methods and offered(case)]


def load(case: dict) -> dict[str, torch.Tensor]:
    """The case's tensors; those with a golden gradient are leaves that require one."""
    tensors = load_file(golden_folder.LOSSES / case["file"])
    for key in list(tensors):
        if f"grad.{key}" in tensors:
            tensors[key].requires_grad_()
    return tensors


def assert_reproduced(case: dict, tensors: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Every recorded output, gradient and state is there, within the manifest's tolerance."""
    expected = {key for key in tensors if key.startswith(("out.", "grad.", "after."))}
    assert expected and expected <= found.keys(), expected - found.keys()
    for key in expected:
        reference, x = tensors[key], found[key].detach()
        assert x.shape == reference.shape, key
        size = max(reference.abs().max().item(), 1e-6)
        noise = case.get("float32_relative_noise_vs_float64", {}).get(key, 0.0)
        tolerance = 1e-10 * size + 1e-14 if case["dtype"] == "float64" else max(1e-4, 20 * noise) * size
        assert (x - reference).abs().max().item() <= tolerance, key

"""How the golden cases of feature and logit methods are called in this library."""

import torch

from hf_segkd.losses import LossSetup
from hf_segkd.losses.cskd import CSKDLoss, channel_attention, position_attention
from hf_segkd.losses.dist import DISTLoss
from hf_segkd.losses.dsd import DSDLoss
from hf_segkd.losses.fitnet import FitNetLoss
from hf_segkd.losses.ifvd import IFVDLoss
from hf_segkd.losses.skd import PairwiseLoss
from hf_segkd.models import SegmentationOutput


def setup(student: SegmentationOutput, teacher: SegmentationOutput, num_labels: int = 1, **options) -> LossSetup:
    shapes = [{name: x.shape for name, x in output.items()} for output in (student, teacher)]
    return LossSetup(shapes[0], num_labels=num_labels, teacher=shapes[1], **options)


def maps(tensors, field="features", key="feat"):
    return tuple(SegmentationOutput(**{field: tensors[f"in.{key}_{side}"]}) for side in "st")


def set_weight(projector, tensor):
    projector.weight = torch.nn.Parameter(tensor.detach().clone())


def fitnet(tensors, hparams):
    student, teacher = maps(tensors)
    loss = FitNetLoss(setup(student, teacher))
    set_weight(loss.projector, tensors["param.conv.weight"])
    return loss, loss(student, teacher, None)


def dist(tensors, hparams):
    student, teacher = maps(tensors, "logits", "logits")
    loss = DISTLoss(setup(student, teacher), hparams["beta"], hparams["gamma"])
    return loss, loss(student, teacher, None)


def ifvd(tensors, hparams):
    student, teacher = maps(tensors)
    loss = IFVDLoss(setup(student, teacher, hparams["classes"], ignore_index=hparams["ignore_index"]))
    return loss, loss(student, teacher, tensors["in.labels"])


def pairwise(tensors, hparams):
    student, teacher = maps(tensors)
    loss = PairwiseLoss(setup(student, teacher), pooling=hparams.get("scale", "max2"))
    return loss, loss(student, teacher, None)


def dsd(tensors, hparams):
    """Lists of maps, the logits last; a student entry tied to another one is the original's mobile list."""
    names = ["aux_logits", "features", "logits"][-len(hparams["Cs"]) :]
    tied = {int(entry): source for entry, source in hparams.get("tie_s", {}).items()}
    student = {name: tensors[f"in.s{tied.get(index, index)}"] for index, name in enumerate(names)}
    for entry, source in tied.items():
        assert (names[entry], names[source]) == ("logits", "aux_logits"), "only auxiliary logits have a stand-in"
        del student[names[source]]
    student = SegmentationOutput(**student)
    teacher = SegmentationOutput(**{name: tensors[f"in.t{index}"] for index, name in enumerate(names)})
    loss = DSDLoss(setup(student, teacher), missing="original" if tied else "drop")
    return loss, loss(student, teacher, None)


def projections(tensors, prefix):
    """The convolutions of position attention as our stacked matrix, or one matrix per patch."""
    rows = []
    for name in ("query", "key", "value"):
        weight, bias = tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"]
        rows.append(torch.cat([weight.flatten(-3), bias.unsqueeze(-1)], dim=-1))
    return torch.cat(rows, dim=-2)


def cskd_module(tensors, hparams):
    """One attention module: its output is compared whole, and its gradients under the stored cotangent."""
    x, gamma, temperature = tensors["in.x"], tensors["param.gamma"], hparams["sa_temperature"]
    if hparams["module"] == "CAM":
        y = channel_attention(x, gamma, temperature)
    else:
        y = position_attention(x, projections(tensors, "param"), gamma, temperature)
    return torch.nn.Module(), {"y": y}


def cskd_loss(tensors, hparams):
    student, teacher = maps(tensors)
    mode, comparison = hparams["mode"].rsplit("_", 1)
    terms = [term for term in ("cam", "pam") if term.upper() in mode]
    loss = CSKDLoss(
        setup(student, teacher),
        terms=terms,
        grid=5 if "grid" in mode else 1,
        comparison=comparison.lower(),
        temperature=hparams["sa_temperature"],
        pam_projection="resample",
    )
    for term in terms:
        loss.gammas[term] = torch.nn.Parameter(tensors[f"param.gamma_{term}"].detach().clone())
    if comparison == "MSE":
        set_weight(loss.projector, tensors["param.align.weight"])
    if "pam" in terms:
        drawn = {whose: iter(projections(tensors, f"param.pam_{whose[0]}")) for whose in ("student", "teacher")}
        loss.projection = lambda whose, x: next(drawn[whose])
    value = loss(student, teacher, None)
    return loss, value if len(value) > 1 else value[terms[0]]


METHODS = {
    "fitnet": fitnet,
    "dist": dist,
    "ifvd": ifvd,
    "skd_pairwise_maxpool2": pairwise,
    "skd_pairwise_scale": pairwise,
    "dsd": dsd,
    "cskd_module": cskd_module,
    "cskd_loss": cskd_loss,
}
PARAMETERS = {
    "param.conv.weight": "projector.weight",
    "param.align.weight": "projector.weight",
    "param.gamma_cam": "gammas.cam",
    "param.gamma_pam": "gammas.pam",
}

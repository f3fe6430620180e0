"""How the golden vectors of PKD, CanKD and GKD (Generalizable, CVPR 2026) are run."""

import json

import torch
from safetensors.torch import load_file

from helpers.golden_folder import FOLDER
from hf_segkd.losses import LossSetup
from hf_segkd.losses.cankd import CanKDLoss
from hf_segkd.losses.gkd import GKDLoss, GKDTokenTerms, TokenRemix, mask_patches
from hf_segkd.losses.pkd import PKDLoss
from hf_segkd.models import SegmentationOutput

LOSSES_2 = FOLDER / "losses_2"
MANIFEST = LOSSES_2 / "manifest.json"
STATISTICS = {"pkd": "batch", "in_only": "image", "layer_norm_only": "layer"}
AFFINITIES = {"embedded_gaussian", "gaussian", "concatenation"}
ATTENTION = {"att.theta": "query", "att.phi.0": "key", "att.phi": "key", "g.0": "value", "g": "value"}
ATTENTION |= {"att.concatination.0": "pair", "W.0": "output", "W.1": "norm", "W": "output"}
REMIX = {"proj_q": "query", "proj_v": "value"}
HEADS = {"token_head": "token", "fea_head": "feature", "patch_head": "patch"}


def cases() -> list[dict]:
    """All cases of the manifest; a folder without them has none."""
    return json.loads(MANIFEST.read_text())["cases"] if MANIFEST.is_file() else []


def load(case: dict) -> dict[str, torch.Tensor]:
    tensors = load_file(LOSSES_2 / case["file"])
    for key in list(tensors):
        if f"grad.{key}" in tensors:
            tensors[key].requires_grad_()
    return tensors


def own_name(key: str) -> str:
    """Name in our modules of a parameter or buffer of the original."""
    key = key.removeprefix("param.").removeprefix("buf.").removeprefix("after.")
    if key.startswith("connector."):
        return key.replace("connector", "projector")
    for original, own in HEADS.items():
        key = key.replace(f"{original}.", f"{own}.")
    for original, own in REMIX.items():
        key = key.replace(f"{original}.", f"{own}.")
    if "non_local_att." in key:
        key = key.split("non_local_att.")[1]
        module, last = key.rsplit(".", 1)
        key = f"attention.{ATTENTION[module]}.{last}"
    return key


def filled(module, tensors):
    """Give our module the parameters and buffers of the original; those that it does without are left out."""
    module.to(next(x.dtype for x in tensors.values() if x.is_floating_point()))
    given = {own_name(key): x.detach() for key, x in tensors.items() if key.startswith(("param.", "buf."))}
    state = module.state_dict()
    for name in state:
        state[name] = given[name].reshape(state[name].shape)
    module.load_state_dict(state)
    return module


def pairs(tensors):
    """Maps of student and teacher, level by level."""
    keys = sorted(key for key in tensors if key.startswith("in.feat_s"))
    return [(tensors[key], tensors[key.replace("feat_s", "feat_t")]) for key in keys]


def setup(student, teacher):
    return LossSetup({"features": student.shape}, num_labels=2, teacher={"features": teacher.shape})


def outputs(student, teacher):
    return SegmentationOutput(features=student), SegmentationOutput(features=teacher), None


def normalized(method):
    def run(tensors, hparams):
        levels = []
        for student, teacher in pairs(tensors):
            resize = "student" if hparams.get("resize_student", True) else "teacher"
            loss = PKDLoss(setup(student, teacher), statistics=STATISTICS[method], resize=resize)
            levels.append(filled(loss, tensors)(*outputs(student, teacher)))
        # Of the three, PKD alone has the factor of one half in the original.
        factor = 1 if method == "pkd" else 2
        return loss, {"loss": factor * hparams["loss_weight"] * sum(levels)}

    return run


def cankd(tensors, hparams):
    variant = hparams["variant"]
    options = {"affinity": variant} if variant in AFFINITIES else {}
    options |= {"sub_sample": hparams["sub_sample"], "batch_norm": hparams["bn_layer"]}
    options |= {"inter_channels": hparams["inter_channels"]}
    options |= {"skip": variant != "no_skip", "instance_norm": variant != "no_instance_norm"}
    levels = pairs(tensors)
    loss = filled(CanKDLoss(setup(*levels[0]), **options), tensors)
    values = [loss.compare(loss.projector(student), teacher) for student, teacher in levels]
    return loss, {"loss": hparams["loss_weight"] * sum(values) / len(values)}


def gkd(tensors, hparams):
    loss = filled(GKDTokenTerms(hparams["dim_s"], hparams["dim_t"]), tensors)
    student = [tensors[f"in.student_{name}"] for name in ("cls", "patches", "patches_masked")]
    teacher = [tensors[f"in.teacher_{name}"] for name in ("cls", "patches")]
    terms = loss(*student, *teacher)
    names = {"token_loss": "token", "fea_loss": "feature", "patch_loss": "patch"}
    # The original logs the terms with their weights.
    found = {name: hparams[f"lambda_{name.removesuffix('_loss')}"] * terms[own] for name, own in names.items()}
    return loss, found | {"loss": sum(found.values())}


def gkd_qsd(tensors, hparams):
    loss = filled(TokenRemix(hparams["dim_s"], hparams["dim_t"], hparams["num_heads"]), tensors)
    mixed = loss(tensors["in.patch_s"], tensors["in.patch_t"])
    return loss, {"y": mixed, "loss": torch.nn.functional.mse_loss(mixed, tensors["in.patch_t"])}


def gkd_maps(tensors, hparams):
    student, teacher = tensors["in.feat_s"], tensors["in.feat_t"]
    loss = GKDLoss(setup(student, teacher), num_heads=hparams["num_heads"])
    filled(loss.remix, tensors)
    return loss.remix, {"loss": loss(*outputs(student, teacher))}


def gkd_mask_tokens(tensors, hparams):
    """The embedding around the masking is that of the recorded encoder."""
    weight, bias = (tensors[f"param.patch_embed.proj.{name}"] for name in ("weight", "bias"))
    patches = torch.nn.functional.conv2d(tensors["in.image"], weight, bias, stride=hparams["patch"])
    patches = mask_patches(patches.flatten(2).mT, tensors["in.masks"].bool(), tensors["param.mask_token"])
    first = tensors["param.cls_token"].expand(len(patches), -1, -1)
    y = torch.cat([first, patches], dim=1) + tensors["param.pos_embed"]
    return torch.nn.Module(), {"y": y}


METHODS = {method: normalized(method) for method in STATISTICS}
METHODS |= {"cankd": cankd, "gkd": gkd, "gkd_qsd": gkd_qsd, "gkd_maps": gkd_maps}
METHODS |= {"gkd_mask_tokens": gkd_mask_tokens}

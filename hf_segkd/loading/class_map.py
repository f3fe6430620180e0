"""A teacher's classes in the student's order, matched by name."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_segkd.models import SegmentationOutput
from hf_segkd.models.espnetv2 import ESPNetv2Config
from hf_segkd.recipe import load_yaml
from hf_segkd.values import did_you_mean

logger = logging.getLogger(__name__)
SHOWN = 12  # classes, or names of one, in the line that says what was matched
# Logit of a class that a teacher does not know: its probability is 0, in half precision too, and maps stay finite when
# they are resized or averaged.
UNKNOWN = -1e4
ALL_OTHERS = "*"  # key of teacher_classes: all classes of the teacher that belong to no other


class ClassMap(nn.Module):
    """Read one model's class scores as another set of classes.

    A class made of several gets the sum of their probabilities, which is the logsumexp of their logits; classes that
    belong to none are left out, so that a softmax is the distribution given that the pixel is one of those kept. A
    class made of none has probability 0.

    Args:
        groups (`Sequence[Sequence[int]]`): For each class wanted, the channels that it is made of.

    Returns:
        `SegmentationOutput`: With `logits` and `aux_logits` of shape `(B, len(groups), h, w)`, all else as it was.
    """

    def __init__(self, groups: Sequence[Sequence[int]]):
        super().__init__()
        self.sizes = [len(group) for group in groups]
        channels = torch.tensor([channel for group in groups for channel in group], dtype=torch.int64)
        self.register_buffer("channels", channels, persistent=False)

    def forward(self, output: SegmentationOutput) -> SegmentationOutput:
        mapped = {name: self.select(output[name]) for name in ("logits", "aux_logits") if name in output}
        return dataclasses.replace(output, **mapped)

    def select(self, logits: Tensor) -> Tensor:
        """Class scores (B, K', h, w) from those of the other classes, (B, K, h, w)."""
        logits = logits.index_select(1, self.channels)
        if set(self.sizes) == {1}:
            return logits
        unknown = torch.full_like(logits[:, :1], UNKNOWN)
        parts = logits.split(self.sizes, dim=1)
        return torch.cat([part.logsumexp(dim=1, keepdim=True) if part.shape[1] else unknown for part in parts], dim=1)


def map_classes(
    teacher: PreTrainedModel, labels: Sequence[str], mapping: Mapping[str, str | Sequence[str]] | str | None = None
) -> PreTrainedModel:
    """Make a teacher's logits those of the student's classes, in the student's order.

    Names are compared without case, spaces, underscores and hyphens, and where none is equal, by singular and plural.
    The teacher may have more classes, in any order. Where its config holds only placeholder names (`LABEL_0`), as many
    classes count as the same ones. What was matched by more than equal names is logged.

    Args:
        teacher (`PreTrainedModel`): Returns [`~hf_segkd.models.SegmentationOutput`]; gets a forward hook, which is
            replaced when this is called again, and keeps its config.
        labels (`Sequence[str]`): The student's class names.
        mapping (`Mapping[str, str | Sequence[str]]` or `str`, *optional*): Student's name -> the teacher's name or
            names, where they differ: `{"SignSymbol": ["traffic sign", "traffic light"]}`. Probabilities of several are
            summed. `{"*": "background"}` makes all of the teacher's classes that belong to no other part of the
            student's class `background`. `{"rust": None}` says that no class of the teacher is rust: it is learned
            from labels alone, see [`shared_classes`]. Or a YAML or JSON file that holds the mapping.

    Returns:
        `PreTrainedModel`: The same teacher.

    Raises:
        ValueError: A class without a counterpart (both lists are shown), one teacher class used twice, a name in
            `mapping` that neither has, or fewer than two classes that both know.
    """
    names = class_names(teacher.config)
    groups = match_classes(names, labels, mapping or {})
    if vars(teacher).get("_class_groups") == (groups, list(labels)):
        return teacher
    teacher._class_groups = groups, list(labels)
    if matches := shown_matches(names, labels, groups):
        logger.info("Classes of the teacher -> of the dataset: %s", matches)
    if "_class_hook" in vars(teacher):
        teacher._class_hook.remove()
    if groups != [[index] for index in range(len(names))]:
        teacher._class_map = ClassMap(groups).to(teacher.device)
        teacher._class_hook = teacher.register_forward_hook(_apply_class_map)
    return teacher


def shared_classes(
    labels: Sequence[str], mapping: Mapping[str, str | Sequence[str] | None] | str | None
) -> list[int] | None:
    """Indices of the classes that the teacher knows; `None` if it knows all.

    The others are learned from labels alone: losses that compare with the teacher see the class scores of both models
    restricted to the shared classes M, so that their softmax is renormalized over these, `p_k / Σ_{j in M} p_j` for
    both. What the student gives to the other classes is neither rewarded nor punished. Features are compared as they
    are, and losses on labels see all classes.

    Args:
        labels (`Sequence[str]`): The student's class names.
        mapping (`Mapping` or `str`, *optional*): As for [`map_classes`].
    """
    given = dict(read_mapping(mapping or {}))
    alone = {_known(label, labels, "dataset") for label, names in given.items() if names is None}
    return [index for index, label in enumerate(labels) if normal(label) not in alone] if alone else None


def shown_matches(names: Sequence[str], labels: Sequence[str], groups: Sequence[Sequence[int]]) -> str:
    """Matches between classes whose names differ; empty if none does."""
    lines = []
    for label, group in zip(labels, groups, strict=True):
        members = [names[index] for index in group]
        if members == [label]:
            continue
        text = ", ".join(members[:SHOWN]) + (f" and {len(members) - SHOWN} more" if len(members) > SHOWN else "")
        lines.append(f"{text} -> {label}" if members else f"none -> {label} (from labels alone)")
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def match_classes(
    names: Sequence[str], labels: Sequence[str], mapping: Mapping[str, str | Sequence[str]] | str
) -> list[list[int]]:
    """Find for each of `labels` the positions in `names` of the classes it is made of; see [`map_classes`].

    There are none for a class that is to be learned from labels alone.
    """
    mapping = dict(read_mapping(mapping))
    alone = {_known(label, labels, "dataset") for label, given in mapping.items() if given is None}
    mapping = {label: given for label, given in mapping.items() if given is not None}
    rest = mapping.pop(ALL_OTHERS, None)
    if rest is None and not mapping and len(names) == len(labels) and (placeholders(names) or placeholders(labels)):
        return [[index] for index in range(len(names))]
    wanted = {normal(label): [] if placeholders(names) else _equal(label, names) for label in labels}
    for label, given in mapping.items():
        given = [given] if isinstance(given, str) else given
        wanted[_known(label, labels, "dataset")] = [_known(name, names, "teacher") for name in given]
    wanted |= {label: [] for label in alone}
    groups = [[index for index, name in enumerate(names) if normal(name) in wanted[normal(label)]] for label in labels]
    if rest is not None:
        taken = {index for group in groups for index in group}
        place = [*map(normal, labels)].index(_known(rest, labels, "dataset"))
        groups[place] = sorted({*groups[place], *range(len(names))} - (taken - {*groups[place]}))
    missing = [label for label, group in zip(labels, groups, strict=True) if not group and normal(label) not in alone]
    used = Counter(index for group in groups for index in group)
    twice = [names[index] for index, count in used.items() if count > 1]
    if missing or twice:
        raise _mismatch(names, labels, missing, twice)
    if alone and len(labels) - len(alone) < 2:
        raise ValueError(
            f"teacher_classes: of {', '.join(labels)} the teacher would know {len(labels) - len(alone)}. It must know "
            "two at least, to tell them apart; train without a teacher, or take another one."
        )
    return groups


def read_mapping(mapping: Mapping[str, str | Sequence[str]] | str) -> Mapping[str, str | Sequence[str]]:
    """The mapping, read if it is the name of a file, with a name or names for each class."""
    if isinstance(mapping, str) and Path(mapping).suffix.lower() in (".yaml", ".yml", ".json"):
        if not Path(mapping).is_file():
            raise ValueError(f"The file '{mapping}' given as teacher_classes does not exist.")
        mapping = load_yaml(Path(mapping).read_text(encoding="utf-8-sig"))
    if not isinstance(mapping, Mapping):
        raise ValueError(
            f"teacher_classes must be a mapping of names in a recipe, or a .yaml or .json file, got {mapping!r}."
        )
    for label, given in mapping.items():
        if isinstance(given, str) or (given is None and label != ALL_OTHERS):
            continue
        several = isinstance(given, Sequence) and label != ALL_OTHERS
        if several and given and all(isinstance(name, str) for name in given):
            continue
        raise ValueError(
            f"teacher_classes: '{label}' is given as {given!r}, expected a class of the teacher or a list of them. "
            "null to learn it from labels alone. Leave the line out to match by name; "
            f"{{'{ALL_OTHERS}': background}} makes all of the teacher's other classes the dataset's background."
        )
    return mapping


def _equal(label: str, names: Sequence[str]) -> list[str]:
    """The normal name that is equal to a label's, else the only one that differs by being singular or plural."""
    wanted = normal(label)
    known = {normal(name) for name in names}
    if wanted in known:
        return [wanted]
    close = [name for name in known if wanted in _singulars(name) or name in _singulars(wanted)]
    return close if len(close) == 1 else []


def counterpart(label: str, names: Sequence[str]) -> int | None:
    """Position in `names` of the class that `label` names, by the rule of [`map_classes`]; `None` without one."""
    found = _equal(label, names)
    return [*map(normal, names)].index(found[0]) if found else None


def _singulars(name: str) -> set[str]:
    """What a normal name may be the plural of."""
    endings = (("ies", "y"), ("es", ""), ("s", ""))
    return {name.removesuffix(ending) + new for ending, new in endings if name.endswith(ending) and len(name) > 3}


def keep_classes(model: PreTrainedModel, id2label: Mapping[int, str]) -> None:
    """Cut an ESPNetv2's classifier down to the classes of a dataset, where it has these and others.

    The released Cityscapes files score a twentieth class, background, that no pixel was ever labeled with. Any other
    model, and one that lacks a class, is left as it is.

    Args:
        model (`PreTrainedModel`): Changed in place, its config too.
        id2label (`Mapping[int, str]`): The classes to keep, in the order wanted.
    """
    names = [normal(name) for name in class_names(model.config)]
    kept = [normal(id2label[index]) for index in sorted(id2label)]
    if model.config.model_type != ESPNetv2Config.model_type or not set(kept) < set(names):
        return
    rows = [names.index(name) for name in kept]
    classifier = model.decode_head.classifier
    weights = {name: value[rows] for name, value in classifier.state_dict().items()}
    model.decode_head.classifier = nn.Conv2d(classifier.in_channels, len(rows), kernel_size=1)
    model.decode_head.classifier.load_state_dict(weights)
    model.config.id2label = dict(id2label)
    model.config.label2id = {name: index for index, name in id2label.items()}


def class_names(config: PreTrainedConfig) -> list[str]:
    """Class names of a model in the order of its logits."""
    return [config.id2label[index] for index in sorted(config.id2label)]


def placeholders(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers makes up for a number of classes."""
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def normal(name: str) -> str:
    """A name as it is compared: case, spaces, underscores and hyphens do not count."""
    return name.lower().replace(" ", "").replace("_", "").replace("-", "")


def _apply_class_map(teacher: nn.Module, inputs: tuple, output: SegmentationOutput) -> SegmentationOutput:
    return teacher._class_map(output)


def _known(name: str, names: Sequence[str], whose: str) -> str:
    if normal(name) not in map(normal, names):
        hint = did_you_mean(name, names, cutoff=0.0)
        raise ValueError(f"teacher_classes: the {whose} has no class '{name}'.{hint}")
    return normal(name)


def _mismatch(names: Sequence[str], labels: Sequence[str], missing: list[str], twice: list[str]) -> ValueError:
    reasons = [f"No counterpart for: {', '.join(missing)}."] if missing else []
    reasons += [f"Meant for more than one class: {', '.join(twice)}."] if twice else []
    return ValueError(
        f"The teacher's classes disagree with the dataset's. {' '.join(reasons)}\n"
        f"  teacher ({len(names)}): {', '.join(names)}\n  dataset ({len(labels)}): {', '.join(labels)}\n"
        "Use a teacher trained on the same classes, or say in teacher_classes which of its classes each one is made "
        "of: {name in the dataset: name in the teacher, or a list of names}. A class that the teacher does not know "
        "is learned from labels alone with {name: null}."
    )

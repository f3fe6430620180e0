"""A student for the classes of a dataset: a new one by name or config, or a trained one whose classes may differ."""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from hf_segkd.loading.any_model import load_model
from hf_segkd.loading.class_map import class_names, counterpart, normal, placeholders
from hf_segkd.loading.native import expose_features
from hf_segkd.loading.student_names import STUDENTS, student_fields
from hf_segkd.recipe import load_yaml
from hf_segkd.values import did_you_mean

logger = logging.getLogger(__name__)


def load_student(
    spec: str | dict[str, Any], id2label: dict[int, str], **hub_kwargs: Any
) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load or make the student of a run, with the classes of its dataset.

    Args:
        spec (`str` or `dict`): A name of [`~hf_segkd.loading.student_names.STUDENTS`], a new model with random
            weights; `{"name": "segformer-b0", "backbone_weights": ...}`, the same with other fields; or anything that
            [`~hf_segkd.loading.any_model.load_model`] takes. A file or folder goes before a name.
        id2label (`dict[int, str]`): Class names. A trained student with others gets these: see [`give_classes`].
        hub_kwargs: As for `load_model`.

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`: As `load_model`.

    Raises:
        ValueError: An unknown name (with the closest), or as `load_model`.
    """
    spec = resolve_student(spec)
    if isinstance(spec, dict):
        return load_model(spec, id2label)
    model, processor = load_model(spec, **hub_kwargs)
    return give_classes(model, id2label, spec), processor


def resolve_student(spec: str | dict[str, Any]) -> str | dict[str, Any]:
    """Replace the name of a new student by its fields; anything else is returned as it is.

    Raises:
        ValueError: A word that is neither a name, a file or folder, nor a Hub id.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        spec = load_yaml(spec)
    if isinstance(spec, dict) and "prompts" in spec:
        raise ValueError("A model with prompts is a teacher, or what hf-segkd label uses; it cannot be the student.")
    if isinstance(spec, dict):
        fields = {key: value for key, value in spec.items() if key != "name"}
        return _named(spec["name"]) | fields if "name" in spec else spec
    looks_like_place = Path(spec).exists() or "/" in spec or "\\" in spec or Path(spec).suffix in (".pth", ".pt")
    return spec if looks_like_place else _named(spec)


def _named(name: Any) -> dict[str, Any]:
    fields = student_fields(str(name))
    if fields is None:
        raise ValueError(
            f"Unknown student {name!r}.{did_you_mean(str(name).lower(), STUDENTS)} It must be one of the names that "
            "`hf-segkd recipes` lists under students, a folder, a .pth file, a Hub id such as OWNER/NAME, or a new "
            "model, '{model_type: espnet, ...}'."
        )
    return fields


def give_classes(model: PreTrainedModel, id2label: dict[int, str], source: str = "") -> PreTrainedModel:
    """Adapt a trained model to other classes and keep all weights that do not depend on the classes.

    A tensor whose axis counts classes keeps the rows of those classes that both have, matched by name as
    [`~hf_segkd.loading.class_map.map_classes`] does; other rows are new. Tensors that depend on the number of classes
    in another way are new. All others are kept. What was done is logged in one line.

    Args:
        model (`PreTrainedModel`): Any segmentation model. Names like `LABEL_0` say nothing: where the number of
            classes is equal too, they count as the same classes.
        id2label (`dict[int, str]`): The classes wanted.
        source (`str`, *optional*): Where the model came from, for the line.

    Returns:
        `PreTrainedModel`: The same model if its classes are the same ones in the same order, with the wanted
        spelling; else a new model on the CPU.
    """
    names = class_names(model.config)
    labels = [id2label[index] for index in sorted(id2label)]
    rows = matching_rows(names, labels)
    if rows == [*range(len(names))]:
        _set_classes(model.config, id2label)
        return model
    config = copy.deepcopy(model.config)
    _set_classes(config, id2label)
    new = expose_features(type(model)(config).eval())
    axes = class_axes(model)
    weights = {}
    fresh = []
    trained = model.state_dict()
    for key, value in new.state_dict().items():
        weights[key] = _with_rows(trained[key], value, axes.get(key), rows)
        if weights[key] is value and not axes.get(key):
            fresh.append(key.rsplit(".", 1)[0])
    new.load_state_dict(weights)
    _report(source or type(model).__name__, labels, rows, fresh)
    return new


def matching_rows(names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """For each of `labels` the position of the same class in `names`, `None` where it has none."""
    same_count = len(names) == len(labels)
    if same_count and (placeholders(names) or placeholders(labels) or [*map(normal, names)] == [*map(normal, labels)]):
        return [*range(len(names))]
    if placeholders(names):
        return [None] * len(labels)
    return [counterpart(label, names) for label in labels]


def class_axes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Which axes of a model's tensors count its classes, found by comparing it with the same model of one class more.

    Returns:
        `dict[str, tuple[int, ...]]`: Names of all tensors whose shape depends on the number of classes; no axes where
        one of them depends on it in another way, as of maps that are joined.
    """
    count = model.config.num_labels
    config = copy.deepcopy(model.config)
    _set_classes(config, {index: f"LABEL_{index}" for index in range(count + 1)})
    with torch.device("meta"):
        larger = type(model)(config).state_dict()
    axes = {}
    for key, value in model.state_dict().items():
        pairs = [*zip(value.shape, larger[key].shape, strict=True)]
        changed = tuple(axis for axis, (before, after) in enumerate(pairs) if before != after)
        if changed:
            counting = all(pairs[axis] == (count, count + 1) for axis in changed)
            axes[key] = changed if counting else ()
    return axes


def _with_rows(trained: Tensor, new: Tensor, axes: tuple[int, ...] | None, rows: list[int | None]) -> Tensor:
    """The trained tensor for other classes; `new` itself where nothing of it can be kept."""
    shared = [axis for axis in range(new.ndim) if axis not in (axes or ())]
    if axes == () or any(trained.shape[axis] != new.shape[axis] for axis in shared):
        return new
    if axes is None:
        return trained
    kept = [(index, row) for index, row in enumerate(rows) if row is not None]
    if not kept:
        return new
    result = new.clone()
    for places in itertools.product(kept, repeat=len(axes)):
        to = [slice(None)] * new.ndim
        source = [slice(None)] * new.ndim
        for axis, (index, row) in zip(axes, places, strict=True):
            to[axis] = index
            source[axis] = row
        result[tuple(to)] = trained[tuple(source)]
    return result


def _report(source: str, labels: list[str], rows: list[int | None], modules: list[str]) -> None:
    kept = [label for label, row in zip(labels, rows, strict=True) if row is not None]
    new = [label for label, row in zip(labels, rows, strict=True) if row is None]
    parts = [f"Student from {source}: other classes, its weights are kept except the classifier"]
    if kept:
        parts.append(f"rows of {len(kept)} of {len(labels)} classes are taken by name ({_short(kept)})")
    if new:
        parts.append(f"{len(new)} start anew ({_short(new)})")
    if modules:
        parts.append(f"also new, because they depend on the number of classes: {_short([*dict.fromkeys(modules)])}")
    logger.info("%s.", "; ".join(parts))


def _short(items: list[str], limit: int = 6) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _set_classes(config: PreTrainedConfig, id2label: dict[int, str]) -> None:
    config.id2label = dict(id2label)
    config.label2id = {name: index for index, name in id2label.items()}

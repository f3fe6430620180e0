"""All losses by name. A new method takes its own file and one line here."""

import inspect
import zlib
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import get_type_hints

from torch import nn

from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.losses.schedule import WeightSchedule, read_schedule
from hf_segkd.values import check_value, did_you_mean

# Name in a recipe -> file and class.
METHODS = {
    "task": "task:TaskLoss",
    "kd": "kd:KDLoss",
    "cwd": "cwd:CWDLoss",
    "at": "at:ATLoss",
    "dist": "dist:DISTLoss",
    "fitnet": "fitnet:FitNetLoss",
    "ifvd": "ifvd:IFVDLoss",
    "skd_pairwise": "skd:PairwiseLoss",
    "dsd": "dsd:DSDLoss",
    "cskd": "cskd:CSKDLoss",
    "adversarial": "adversarial:AdversarialLoss",
    "cirkd_minibatch": "cirkd:CIRKDMiniBatchLoss",
    "cirkd_memory": "cirkd:CIRKDMemoryLoss",
    "cirkdv2": "cirkdv2:CIRKDv2Loss",
    "mgd": "mgd:MGDLoss",
    "af_dcd": "af_dcd:AfDCDLoss",
    "bpkd": "bpkd:BPKDLoss",
    "pkd": "pkd:PKDLoss",
    "cankd": "cankd:CanKDLoss",
    "gkd": "gkd:GKDLoss",
    "cosine": "cosine:CosineLoss",
    "dice": "dice:DiceLoss",
    "lovasz": "lovasz:LovaszLoss",
}
LOSSES: dict[str, type[DistillationLoss]] = {}
for _name, _place in METHODS.items():
    _file, _class_name = _place.split(":")
    LOSSES[_name] = getattr(import_module(f"hf_segkd.losses.{_file}"), _class_name)

__all__ = [
    "DistillationLoss",
    "LOSSES",
    "LossSetup",
    "METHODS",
    "WeightSchedule",
    "build_losses",
    "build_schedules",
    "check_logits_only",
    "check_losses",
    "get_layer",
    "resize_like",
]

Weight = float | dict[str, float]
COMMON_OPTIONS = ("type", "weight", "schedule")


def check_losses(specs: dict[str, dict]) -> None:
    """Check names, options and weights of a recipe's `losses` without building anything.

    Args:
        specs (`dict[str, dict]`): Name in the logs -> options. The name is the method unless the options hold a
            `type`; `weight` is a number, or one number per term: `{"cwd_logits": {"type": "cwd", "weight": 3.0}}`;
            `schedule` changes the weight over time, see [`WeightSchedule`]: `{"warmup": 0.1, "decay": 0.2}`.

    Raises:
        ValueError: On an unknown method or option (with the closest match), an option of another type than the
            constructor's annotation, or a weight that is not a finite number.
    """
    if not specs:
        raise ValueError("The recipe has no losses. Give at least `losses: {task: {}}`.")
    for name, options in specs.items():
        if not isinstance(options, dict):
            raise ValueError(f"losses.{name} must be a mapping of options, got {options!r}. Write `{name}: {{}}`.")
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"losses.{name}: a loss name may hold letters, digits and underscores only.")
        method = options.get("type", name)
        if not isinstance(method, str) or method not in LOSSES:
            raise ValueError(
                f"Unknown loss {method!r}.{did_you_mean(method, LOSSES)} Known losses: {', '.join(LOSSES)}."
            )
        if not issubclass(LOSSES[method], DistillationLoss):
            raise ValueError(
                f"The loss {method!r} is a {LOSSES[method].__name__}, which is no subclass of DistillationLoss: "
                "docs/contributing.md shows one."
            )
        known = [*list(inspect.signature(LOSSES[method]).parameters)[1:], *COMMON_OPTIONS]
        hints = get_type_hints(LOSSES[method].__init__)
        for option, value in options.items():
            if option not in known:
                raise ValueError(
                    f"Unknown option losses.{name}.{option}.{did_you_mean(option, known)} "
                    f"Options of {method}: {', '.join(known)}."
                )
            if option not in COMMON_OPTIONS:
                check_value(f"losses.{name}.{option}", value, hints[option])
        _check_weight(name, options.get("weight", 1.0))
        read_schedule(name, options.get("schedule", {}))


def check_logits_only(specs: dict[str, dict], reason: str) -> None:
    """Refuse losses that ask the teacher for more than its logits.

    Args:
        specs (`dict[str, dict]`): As [`check_losses`] describes, and checked by it.
        reason (`str`): Why the teacher has no more, as the beginning of a sentence.

    Raises:
        ValueError: Names the losses, what they ask for, and the losses of one map that could read logits.
    """
    asking = {}
    for name, options in specs.items():
        fields = LOSSES[options.get("type", name)].teacher_fields(options)
        if more := [field for field in fields if field != "logits"]:
            asking[name] = " and ".join(more)
    if asking:
        listed = ", ".join(f"{name} ({fields})" for name, fields in asking.items())
        able = ", ".join(name for name, loss in LOSSES.items() if loss.teacher_fields({}) == ("logits",))
        raise ValueError(
            f"{reason}, but these losses ask for more: {listed}. Take losses on logits ({able}, or "
            "{type: cwd, layer: logits}), or one teacher without views and without a cache."
        )


def build_losses(
    specs: dict[str, dict], setup: LossSetup, shared: Sequence[int] | None = None
) -> tuple[nn.ModuleDict, dict[str, Weight]]:
    """Build the losses of a recipe.

    Args:
        specs (`dict[str, dict]`): As [`check_losses`] describes; every option except `type`, `weight` and
            `schedule` goes to the loss's constructor.
        setup (`LossSetup`): Shapes of both models' outputs, classes, ignore index, seed of the run. Each loss has a
            seed of its own that follows from the run's and its name, so that two of one method do not draw alike.
        shared (`Sequence[int]`, *optional*): The classes that the teacher knows, by default all; losses that need it
            see the class scores of these alone.

    Returns:
        `tuple[nn.ModuleDict, dict[str, float | dict[str, float]]]`: Modules by name, and their weights (default 1).

    Raises:
        ValueError: On unknown names or options, or when a loss refuses the setup.
    """
    check_losses(specs)
    modules, weights = nn.ModuleDict(), {}
    with_teacher = setup if shared is None else setup.with_classes(len(shared))
    for name, options in specs.items():
        arguments = {key: value for key, value in options.items() if key not in COMMON_OPTIONS}
        seed = zlib.crc32(f"{setup.seed}/{name}".encode())
        method = LOSSES[options.get("type", name)]
        seen = with_teacher if method.needs_teacher else setup
        modules[name] = method(replace(seen, seed=seed), **arguments)
        weights[name] = options.get("weight", 1.0)
    return modules, weights


def build_schedules(specs: dict[str, dict]) -> dict[str, WeightSchedule]:
    """The schedules of those losses of a recipe that have one, by name."""
    return {name: read_schedule(name, options["schedule"]) for name, options in specs.items() if "schedule" in options}


def _check_weight(name: str, weight: Weight) -> None:
    values = weight if isinstance(weight, dict) else {"": weight}
    for term, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            where = f"losses.{name}.weight" + (f".{term}" if term else "")
            raise ValueError(f"{where} must be a finite number, got {value!r}.")

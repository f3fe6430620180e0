"""All losses by name. A new method is one file, one import and one entry here."""

import inspect
from typing import get_type_hints

from torch import nn

from hf_segkd.losses.adversarial import AdversarialLoss
from hf_segkd.losses.af_dcd import AfDCDLoss
from hf_segkd.losses.at import ATLoss
from hf_segkd.losses.base import DistillationLoss, LossSetup, get_layer, resize_like
from hf_segkd.losses.bpkd import BPKDLoss
from hf_segkd.losses.cankd import CanKDLoss
from hf_segkd.losses.cirkd import CIRKDMemoryLoss, CIRKDMiniBatchLoss
from hf_segkd.losses.cirkdv2 import CIRKDv2Loss
from hf_segkd.losses.cskd import CSKDLoss
from hf_segkd.losses.cwd import CWDLoss
from hf_segkd.losses.dist import DISTLoss
from hf_segkd.losses.dsd import DSDLoss
from hf_segkd.losses.fitnet import FitNetLoss
from hf_segkd.losses.gkd import GKDLoss
from hf_segkd.losses.ifvd import IFVDLoss
from hf_segkd.losses.kd import KDLoss
from hf_segkd.losses.mgd import MGDLoss
from hf_segkd.losses.pkd import PKDLoss
from hf_segkd.losses.schedule import WeightSchedule, read_schedule
from hf_segkd.losses.skd import PairwiseLoss
from hf_segkd.losses.task import TaskLoss
from hf_segkd.values import check_value, did_you_mean

LOSSES: dict[str, type[DistillationLoss]] = {
    "task": TaskLoss,
    "kd": KDLoss,
    "cwd": CWDLoss,
    "at": ATLoss,
    "dist": DISTLoss,
    "fitnet": FitNetLoss,
    "ifvd": IFVDLoss,
    "skd_pairwise": PairwiseLoss,
    "dsd": DSDLoss,
    "cskd": CSKDLoss,
    "adversarial": AdversarialLoss,
    "cirkd_minibatch": CIRKDMiniBatchLoss,
    "cirkd_memory": CIRKDMemoryLoss,
    "cirkdv2": CIRKDv2Loss,
    "mgd": MGDLoss,
    "af_dcd": AfDCDLoss,
    "bpkd": BPKDLoss,
    "pkd": PKDLoss,
    "cankd": CanKDLoss,
    "gkd": GKDLoss,
}

__all__ = [
    "LOSSES",
    "ATLoss",
    "AfDCDLoss",
    "BPKDLoss",
    "AdversarialLoss",
    "CIRKDMemoryLoss",
    "CIRKDMiniBatchLoss",
    "CIRKDv2Loss",
    "CSKDLoss",
    "CWDLoss",
    "CanKDLoss",
    "DISTLoss",
    "DSDLoss",
    "DistillationLoss",
    "FitNetLoss",
    "GKDLoss",
    "IFVDLoss",
    "KDLoss",
    "LossSetup",
    "MGDLoss",
    "PKDLoss",
    "PairwiseLoss",
    "TaskLoss",
    "WeightSchedule",
    "build_losses",
    "build_schedules",
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


def build_losses(specs: dict[str, dict], setup: LossSetup) -> tuple[nn.ModuleDict, dict[str, Weight]]:
    """Build the losses of a recipe.

    Args:
        specs (`dict[str, dict]`): As [`check_losses`] describes; every option except `type`, `weight` and
            `schedule` goes to the loss's constructor.
        setup (`LossSetup`): Shapes of both models' outputs, classes, ignore index.

    Returns:
        `tuple[nn.ModuleDict, dict[str, float | dict[str, float]]]`: Modules by name, and their weights (default 1).

    Raises:
        ValueError: On unknown names or options, or when a loss refuses the setup.
    """
    check_losses(specs)
    modules, weights = nn.ModuleDict(), {}
    for name, options in specs.items():
        arguments = {key: value for key, value in options.items() if key not in COMMON_OPTIONS}
        modules[name] = LOSSES[options.get("type", name)](setup, **arguments)
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

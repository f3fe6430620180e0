"""Schedules for the weight of a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class WeightSchedule:
    """Linear warm-up from 0 and linear decay to 0 of a loss's weight; constant between them.

    Args:
        warmup (`float`, *optional*, defaults to `0.0`): Fraction of the training steps, from the first, in which the
            weight rises from 0; in [0, 1].
        decay (`float`, *optional*, defaults to `0.0`): Fraction of the training steps, up to the last, in which it
            falls to 0; in [0, 1]. `decay: 1.0` falls from the first step on.

    Raises:
        ValueError: If a fraction lies outside [0, 1] or the two together exceed 1.
    """

    warmup: float = 0.0
    decay: float = 0.0

    def __post_init__(self):
        for name, value in (("warmup", self.warmup), ("decay", self.decay)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a fraction of the training steps between 0 and 1, got {value!r}.")
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup and decay overlap: {self.warmup} and {self.decay} of the training steps are more than all."
            )

    def factor(self, progress: Tensor) -> Tensor | float:
        """What the weight is multiplied with when `progress` (a scalar in [0, 1]) of the training steps is done."""
        factor = 1.0
        if self.warmup:
            factor = factor * (progress / self.warmup).clamp(max=1)
        if self.decay:
            factor = factor * ((1 - progress) / self.decay).clamp(min=0, max=1)
        return factor


def read_schedule(name: str, options: Any) -> WeightSchedule:
    """Make the schedule that a recipe gives under `losses.<name>.schedule`, e.g. `{warmup: 0.1}`.

    Raises:
        ValueError: If `options` is no mapping, has an unknown key or a wrong fraction; the message names the loss.
    """
    if not isinstance(options, dict) or set(options) - {"warmup", "decay"}:
        raise ValueError(f"losses.{name}.schedule must be a mapping with warmup and decay, got {options!r}.")
    try:
        return WeightSchedule(**options)
    except ValueError as error:
        raise ValueError(f"losses.{name}.schedule: {error}") from None

"""Moving average of the student's weights, and statistics that processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

STATISTICS = ("running_mean", "running_var")


class WeightAverage(TrainerCallback):
    """Exponential moving average of a model's weights and of its batch norm statistics.

    After each step, `average = decay · average + (1 - decay) · weights`, from the initial weights on; counters are
    copied. The average remembers about `1 / (1 - decay)` steps: choose it well below the length of the run.

    Args:
        model (`nn.Module`): Trained by somebody else.
        decay (`float`): Between 0 and 1, both excluded. 0.999 is common for 40 000 iterations.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.restart()

    def restart(self) -> None:
        """Begin again with the model's present weights."""
        self.values = {key: value.clone() for key, value in self.model.state_dict().items()}

    def on_step_end(self, args, state, control, **kwargs):
        weights = self.model.state_dict()
        floats = [key for key, value in weights.items() if value.is_floating_point()]
        # One launch for all: a lerp for each tensor would cost a small student more than its optimizer.
        torch._foreach_lerp_([self.values[key] for key in floats], [weights[key] for key in floats], 1 - self.decay)
        for key in weights.keys() - set(floats):
            self.values[key].copy_(weights[key])

    def apply(self) -> None:
        """Make the average the model's weights."""
        self.model.load_state_dict(self.values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average as its weights for a while."""
        weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.model.load_state_dict(weights)


def statistics(state: dict[str, Tensor]) -> list[Tensor]:
    """The running means and variances of all batch norms in a state dict."""
    return [value for key, value in state.items() if key.rsplit(".", 1)[-1] in STATISTICS]

"""Gradient checkpointing that leaves batch norm statistics as plain training does."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.modeling_layers import GradientCheckpointingLayer


class CheckpointedLayer(GradientCheckpointingLayer):
    """Layer that can be run again in the backward pass instead of keeping its activations.

    The second run would count every batch twice in the running statistics of its batch norms, so they are held still
    while it lasts. Works with reentrant and non-reentrant checkpoints.
    """

    # transformers assigns the checkpoint function under this name, and calls what it reads there.
    @property
    def _gradient_checkpointing_func(self) -> Callable[..., Any]:
        return self._run_checkpointed

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable[..., Any]) -> None:
        self._checkpoint = function

    def _run_checkpointed(self, forward: Callable[..., Any], *args: Tensor) -> Any:
        return self._checkpoint(_CountedOnce(self, forward), *args)


class _CountedOnce:
    """A layer's forward whose repetitions do not touch the running statistics."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]):
        self.norms = [module for module in layer.modules() if isinstance(module, _BatchNorm)]
        self.forward = forward
        self.repeated = False

    def __call__(self, *args: Tensor) -> Any:
        if not self.repeated:
            self.repeated = True
            return self.forward(*args)
        # Not track_running_stats: the checkpoint would find fewer tensors saved than in the first run.
        states = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            return self.forward(*args)
        finally:
            for norm, state in zip(self.norms, states, strict=True):
                norm.momentum, norm.num_batches_tracked = state

"""Several optimizers behind the interface of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from hf_segkd.losses import DistillationLoss


class ChainedOptimizer(torch.optim.Optimizer):
    """Several torch optimizers stepped, zeroed, saved, loaded and scheduled as one.

    A learning-rate schedule sees the parameter groups of all and scales each by the same factor; what it reads from
    `defaults` is the first's. Weight decay, momentum and betas stay each one's own.

    Args:
        optimizers (`list[torch.optim.Optimizer]`): At least one, without shared parameters. The first is the recipe's.

    Raises:
        ValueError: If the list is empty, or two of them hold the same parameter, which would be stepped twice.

    What holds in training: gradient clipping (`max_grad_norm`) takes one norm over all parameters, so a large gradient
    of one side shrinks the other's. In fp16 one scaler looks at all gradients: an overflow on either side skips the
    step of both. Under gradient accumulation all of them step, and are zeroed, together.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        # Not super().__init__: it would keep parameter groups of its own, apart from those that are stepped.
        if not optimizers:
            raise ValueError("ChainedOptimizer needs at least one optimizer, got none.")
        self.optimizers = list(optimizers)
        parameters = [id(parameter) for group in self.param_groups for parameter in group["params"]]
        if len(set(parameters)) < len(parameters):
            raise ValueError("Two of the chained optimizers hold the same parameter. Give it to one of them only.")

    @property
    def defaults(self) -> dict:
        return self.optimizers[0].defaults

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, dict]:
        return {parameter: state for optimizer in self.optimizers for parameter, state in optimizer.state.items()}

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = self.optimizers[0].step(closure)
        for optimizer in self.optimizers[1:]:
            optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict) -> None:
        self.optimizers[0].add_param_group(param_group)

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)


def loss_optimizers(losses: Mapping[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
    """Optimizers of the losses that play against the student, by the loss's name; plain modules have none."""
    made = {name: loss.optimizer() for name, loss in losses.items() if isinstance(loss, DistillationLoss)}
    return {name: optimizer for name, optimizer in made.items() if optimizer is not None}


def clip_own_gradients(optimizer: torch.optim.Optimizer, losses: Mapping[str, nn.Module]) -> None:
    """Before each step of `optimizer`, clip the gradients of each loss's own parameters to its `max_grad_norm`.

    Under gradient accumulation this is once per step; in fp16 the gradients are unscaled by then.
    """
    clipped = [loss for loss in losses.values() if isinstance(loss, DistillationLoss) and loss.max_grad_norm]

    def clip(*_) -> None:
        for loss in clipped:
            nn.utils.clip_grad_norm_(loss.parameters(), loss.max_grad_norm)

    if clipped:
        optimizer.register_step_pre_hook(clip)


def chain(first: torch.optim.Optimizer, others: Iterable[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Take the parameters of `others` out of `first` and chain them; without others, `first` as it is."""
    others = list(others)
    if not others:
        return first
    taken = {id(parameter) for other in others for group in other.param_groups for parameter in group["params"]}
    for group in first.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
    return ChainedOptimizer([first, *others])

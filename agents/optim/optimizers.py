"""Optimizers with warm-up, decay, clipping, and a guard against non-finite updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from agents.config.dataclasses_json import check_bounds
from agents.config.schedules import cosine_decay, warm_up
from agents.optim.ranks import Ranks
from htm_env.checks import check_choice

METHODS = ("adam", "soap")
WIDEST = 64
"""The longest side of a weight that SOAP turns: at the default sizes those of embeddings, and none
of a hidden layer, whose bases would cost more than they save."""

HIGHEST_RATE = 1e6
"""The highest learning rate that is accepted."""
AVERAGES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "momentum_buffer")
"""What optimizers keep in the shape of a parameter, where they keep it."""
MATRICES = ("GG", "Q")
"""What SOAP keeps of each side of a parameter."""


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and the schedule of its learning rate."""

    method: str = "adam"
    """adam (Kingma & Ba 2015), or soap (Vyas et al. 2024): Adam in the eigenbases of a weight's
    gradients, on its sides of at most 64."""
    learning_rate: float = 3e-3
    """At its highest."""
    warm_up_updates: int = 100
    """Updates in which the learning rate rises from 0."""
    final_share: float = 0.01
    """Share of the learning rate that the cosine decay leaves at the end of the budget."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    weight_decay: float = 0.0
    """L2 penalty: adam's is part of the gradient, soap's beside it."""

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_bounds(
            self,
            learning_rate=(0, HIGHEST_RATE),
            warm_up_updates=0,
            final_share=(0, 1),
            clip_norm=0,
            weight_decay=0,
        )


def optimizer_of(
    config: OptimizerConfig,
) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """The class that a configuration names, and its arguments beside the learning rate."""
    if config.method == "adam":
        return torch.optim.Adam, {"weight_decay": config.weight_decay, "fused": True}
    return soap, {"weight_decay": config.weight_decay, "max_precondition_dim": WIDEST}


def soap(parameters: Iterable[Any], **arguments: Any) -> torch.optim.Optimizer:
    """The library's SOAP (Vyas et al. 2024), continuing bit for bit from a state that was saved.

    A decomposition gives its matrices column by column, a file row by row, and products of the two
    are rounded differently; so everything is kept as a file gives it back.
    """
    from pytorch_optimizer import SOAP  # takes a second, which not every command should wait for

    optimizer = SOAP(parameters, **arguments)
    optimizer.register_step_post_hook(make_contiguous)
    return optimizer


def make_contiguous(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Keep every tensor of an optimizer's state row by row."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = value.contiguous()
            elif isinstance(value, list):
                state[name] = [
                    each.contiguous() if isinstance(each, Tensor) else each for each in value
                ]


def check_finite(value: Any, what: str) -> None:
    """Raise ``ValueError``, which calls it ``what``, where a number in a saved state, however deep,
    is not finite."""
    if isinstance(value, dict):
        for name, item in value.items():
            check_finite(item, f"{name!r} of {what}" if isinstance(name, str) else what)
    elif isinstance(value, list | tuple):
        for item in value:
            check_finite(item, what)
    elif isinstance(value, Tensor | float) and not torch.as_tensor(value).isfinite().all():
        raise ValueError(f"{what} is not finite")


def _as_saved(option: Any) -> Any:
    return list(option) if isinstance(option, tuple) else option


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from a ``state_dict``, which stays as it is.

    Raises ``ValueError`` for one of other parameters, and what :func:`check_optimizer` raises.
    """
    check_optimizer(optimizer, state)
    # An optimizer changes its averages in place, and would change the state that it was given.
    optimizer.load_state_dict(copy.deepcopy(state))


def check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Raise ``ValueError`` for a ``state_dict`` with other options than the optimizer's, for
    averages of another shape or type than their parameter's, and for numbers that are not finite.
    """
    check_finite(state["state"], "the state of an optimizer")
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, kept in state["state"].items():
        _check_averages(parameters[index], kept)
    for own, given in zip(optimizer.param_groups, state["param_groups"], strict=True):
        check_finite(given["lr"], "the learning rate of an optimizer")
        if not 0 <= given["lr"] <= HIGHEST_RATE:
            raise ValueError(f"the learning rate of an optimizer is {given['lr']}")
        for name in sorted((optimizer.defaults.keys() & own.keys() & given.keys()) - {"lr"}):
            if _as_saved(own[name]) != _as_saved(given[name]):
                raise ValueError(f"{name} of an optimizer is {given[name]}; expected {own[name]}")


def _check_averages(parameter: Tensor, kept: dict[str, Any]) -> None:
    """Raise ``ValueError`` where what an optimizer keeps of a parameter does not have its type, or
    not its shape; SOAP's lists have a square matrix for a side, or nothing."""
    expected = [(name, kept[name], parameter.shape) for name in AVERAGES if name in kept]
    for name in MATRICES:
        for side, matrix in zip(parameter.shape, kept.get(name, []), strict=False):
            if isinstance(matrix, Tensor):
                expected.append((name, matrix, torch.Size((side, side))))
    for name, value, shape in expected:
        if (value.shape, value.dtype) != (shape, parameter.dtype):
            raise ValueError(
                f"{name} of an optimizer is {value.dtype} {tuple(value.shape)}; expected "
                f"{parameter.dtype} {tuple(shape)}"
            )


class NonFiniteGuard:
    """Counts updates skipped because a loss or a gradient was not finite.

    Raises ``FloatingPointError`` after ``patience`` of them in a row.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience, self.skipped, self.in_a_row = patience, 0, 0

    def allows(self, name: str, *values: Tensor) -> bool:
        """True <--> every value is finite; a skipped update is counted."""
        if all(math.isfinite(float(value.detach())) for value in values):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.patience:
            raise FloatingPointError(
                f"the loss or gradient of the {name} was not finite in {self.in_a_row} updates in "
                "a row; try a lower learning rate or gradient clipping"
            )
        return False

    def state(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


class ScheduledOptimizer:
    """One part's optimizer: clips its gradients and follows its schedule."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> None:
        self.parameters, self.config = list(parameters), config
        optimizer_class, arguments = optimizer_of(config)
        self.optimizer = optimizer_class(self.parameters, lr=config.learning_rate, **arguments)
        self.updates = 0

    def clip(self) -> Tensor:
        """Clip the gradients in place; returns their norm before."""
        return nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)

    def step(self, progress: float) -> None:
        """One update at this share of the budget."""
        scale = warm_up(self.updates, self.config.warm_up_updates)
        scale *= cosine_decay(progress, self.config.final_share)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * scale
        self.optimizer.step()
        self.updates += 1

    def zero(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        return {"optimizer": copy.deepcopy(self.optimizer.state_dict()), "updates": self.updates}

    def restore(self, state: dict[str, Any]) -> None:
        restore_optimizer(self.optimizer, state["optimizer"])
        self.updates = state["updates"]


@runtime_checkable
class PolicyOptimizer(Protocol):
    """The optimizer of a policy, as the components that train it use it."""

    def zero(self) -> None:
        """Forget the gradients."""

    def step(self, losses: dict[str, Tensor], progress: float) -> dict[str, float]:
        """One update along the gradients of these losses; returns scalars by their tags."""


class GuardedOptimizer:
    """A scheduled optimizer that skips updates whose losses or gradients are not finite.

    Args:
        name: what is optimised, for messages and the tag of the gradient's norm.
        parameters, config: see :class:`ScheduledOptimizer`.
        prefix: of the losses' tags.
        ranks: the processes over which a step averages; this one alone if None.
    """

    def __init__(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        config: OptimizerConfig,
        prefix: str = "loss/",
        ranks: Ranks | None = None,
    ) -> None:
        self.name, self.prefix = name, prefix
        self.ranks = Ranks() if ranks is None else ranks
        self.scheduled, self.guard = ScheduledOptimizer(parameters, config), NonFiniteGuard()

    def zero(self) -> None:
        self.scheduled.zero()

    def step(self, losses: dict[str, Tensor], progress: float) -> dict[str, float]:
        """One update along the gradients of these losses; returns losses and the gradient's norm.

        ``FloatingPointError`` where they stay non-finite.
        """
        losses = self.ranks.average(self.scheduled.parameters, losses)
        norm = self.scheduled.clip()
        if self.guard.allows(self.name, norm, *losses.values()):
            self.scheduled.step(progress)
        scalars = {f"{self.prefix}{name}": float(loss.detach()) for name, loss in losses.items()}
        return {**scalars, f"gradient_norm/{self.name}": float(norm)}

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.scheduled.state(), "guard": self.guard.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.scheduled.restore(state["optimizer"])
        self.guard.restore(state["guard"])

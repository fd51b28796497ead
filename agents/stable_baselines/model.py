"""Models of any class of Stable-Baselines3's interface: made, and saved as tensors and numbers."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Mapping
from operator import attrgetter
from types import ModuleType
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.config.errors import did_you_mean
from agents.config.plug_ins import named_object
from agents.optim.optimizers import check_finite, check_optimizer
from agents.ppo.make import minibatch
from agents.ppo.policies import MaskableMergeActorCriticPolicy, MergeActorCriticPolicy
from agents.ppo.vector_env import HTMVecEnv
from agents.stable_baselines.config import StableBaselinesConfig

FORMS = {
    MaskableActorCriticPolicy: MaskableMergeActorCriticPolicy,
    ActorCriticPolicy: MergeActorCriticPolicy,
}
"""This project's policy in the place of a library's."""
BUFFER_SIZE = 50_000
"""Stored steps: a library's million would hold embeddings of an autoencoder long gone."""
OF_THE_RUN = {
    "self": "from Python",
    "policy": "by the option policy",
    "env": "from the run",
    "device": "by the option device of the run",
}
"""Arguments of a class that are not for ``kwargs``, and where they come from."""
FREE = {"verbose", "seed"}
"""Arguments that need not be those of a saved model, and stay as they are."""
TARGET_UPDATE = 1_000
"""Steps between copies to a target network."""


def make_model(
    config: StableBaselinesConfig, env: HTMVecEnv, device: torch.device
) -> BaseAlgorithm:
    """The untrained model of a configuration, which logs to nowhere.

    Arguments that are not given are the class's own, but for the discount (0.8), rollouts of one
    longest episode, as many gradient steps as there are copies, :data:`BUFFER_SIZE` and
    :data:`TARGET_UPDATE`.

    Raises ``ValueError`` for what is no such class, and for what the class refuses.
    """
    kind = named_object(config.model, "algorithm")
    if not _is_algorithm(kind):
        raise ValueError(
            f"the algorithm {config.model!r} is {kind!r}{_like(kind)}; expected a class of "
            "agents.Learner or of Stable-Baselines3's interface"
        )
    usual = {
        "gamma": 0.8,
        "gradient_steps": config.n_envs,
        "buffer_size": BUFFER_SIZE,
        "target_update_interval": TARGET_UPDATE,
    }
    known = inspect.signature(kind.__init__).parameters
    _check_arguments(config, known)
    if issubclass(kind, OnPolicyAlgorithm):
        usual["n_steps"] = longest_episode(env)
        if "batch_size" in known:  # near the class's own, in equal parts
            steps = config.kwargs.get("n_steps", usual["n_steps"]) * config.n_envs
            usual["batch_size"] = minibatch(steps, known["batch_size"].default)
    given = {name: value for name, value in usual.items() if name in known} | config.kwargs
    policy = _policy(kind, config)
    try:
        model = kind(policy, env, device=device, **given)
    except (AssertionError, TypeError, ValueError) as error:  # as these libraries refuse arguments
        raise ValueError(f"{config.model} cannot be made: {error}") from error
    model.set_logger(Logger(None, []))
    return model


def longest_episode(env: HTMVecEnv) -> int:
    """Merges of the largest sample."""
    return int(env.observation_space["active"].shape[0]) - 1  # type: ignore[index]


def _is_algorithm(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseAlgorithm)


def _like(kind: Any) -> str:
    """The class that was meant by a module beside it, as ``sb3:DQN`` by ``sb3:dqn``."""
    if not isinstance(kind, ModuleType):
        return ""
    package, _, name = kind.__name__.rpartition(".")
    beside = vars(sys.modules[package]) if package else {}
    return did_you_mean(name, (n for n, value in beside.items() if _is_algorithm(value)))


def _check_arguments(config: StableBaselinesConfig, known: Mapping[str, inspect.Parameter]) -> None:
    """Raise ``ValueError`` for an argument that the run gives, or that the class does not have."""
    own = [name for name in known if name not in OF_THE_RUN and not name.startswith("_")]
    for name in config.kwargs:
        if name in OF_THE_RUN:
            raise ValueError(f"{config.model} gets {name} {OF_THE_RUN[name]}, not as kwargs.{name}")
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        if name not in known and not takes_any:
            raise ValueError(
                f"{config.model} has no argument {name!r}{did_you_mean(name, own)}; choose from "
                f"{', '.join(own)}"
            )


def _policy(kind: type[BaseAlgorithm], config: StableBaselinesConfig) -> Any:
    """The policy of that name, or this project's own where it fits the class."""
    aliases, name = kind.policy_aliases, config.policy
    fitting = [alias for alias in aliases if alias.startswith("MultiInput")]
    if not fitting:
        raise ValueError(
            f"{config.model} takes no Dict observations, as those of this environment are"
        )
    if name is not None:
        if name not in fitting:
            raise ValueError(f"{kind.__name__} has no policy {name!r}; choose from {fitting}")
        return name
    found = aliases[fitting[0]]
    if fitting[0] == "MultiInputPolicy":
        for theirs, own in FORMS.items():
            if issubclass(found, theirs):
                return own
    return fitting[0]


# ---------------------------------------------------------------- state


def model_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Weights, optimizers and counters, and the stored steps of a model that replays."""
    state: dict[str, Any]
    state = {"parameters": copy.deepcopy(model.get_parameters()), "numbers": _numbers(model)}
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        state["buffer"] = {name: value[: buffer.size()] for name, value in _arrays(buffer).items()}
        state["buffer"] = {name: torch.tensor(value) for name, value in state["buffer"].items()}
        state["place"] = [buffer.pos, buffer.full]
    return state


def restore_model(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Continue from what :func:`model_state` gave.

    Raises ``ValueError`` where a number is not finite or was given otherwise, for what the model
    does not have, and for other stored steps than it can hold; the model is as it was then.
    """
    own, given = _numbers(model), _arguments(type(model))
    if unknown := state["numbers"].keys() - own.keys():
        raise ValueError(f"the model has no number {min(unknown)!r}")
    for name, value in state["numbers"].items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} of the model is {value!r}; expected a number")
        if name.removeprefix("_") in given and value != own[name]:
            raise ValueError(f"{name} of the model is {value!r}; expected {own[name]!r}")
        if type(own[name]) is int and name not in given and (value < 0 or value % 1):
            raise ValueError(f"{name} of the model is {value!r}; expected a count")
    for name in model.get_parameters():
        check_finite(state["parameters"][name], f"the {name}")
        part = attrgetter(name)(model)
        if isinstance(part, torch.optim.Optimizer):
            check_optimizer(part, state["parameters"][name])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        _check_steps(buffer, state["place"], state["buffer"])
    model.set_parameters(copy.deepcopy(state["parameters"]), device=model.device)
    for name, value in state["numbers"].items():
        if name not in given | FREE:
            setattr(model, name, value)
    if buffer is not None:
        buffer.pos, buffer.full = state["place"]
        for name, array in _arrays(buffer).items():
            array[: buffer.size()] = state["buffer"][name].cpu().numpy()


def _arguments(kind: type[BaseAlgorithm]) -> set[str]:
    """What a class and those that it is made of take as arguments, but for the :data:`FREE`."""
    makers = (each.__init__ for each in kind.__mro__ if "__init__" in vars(each))  # type: ignore[misc]
    return {name for maker in makers for name in inspect.signature(maker).parameters} - FREE


def _check_steps(buffer: Any, place: list[Any], steps: dict[str, torch.Tensor]) -> None:
    position, full = place
    if type(position) is not int or type(full) is not bool:
        raise ValueError(f"the place in the stored steps is {place}; expected a number and a bool")
    size = buffer.buffer_size if full else position
    if not 0 <= position < buffer.buffer_size:
        raise ValueError(f"the stored steps are at {position} of {buffer.buffer_size}")
    check_finite(steps, "the stored steps")
    for name, array in _arrays(buffer).items():
        shape = (size, *array.shape[1:])
        if name not in steps or steps[name].shape != shape:
            raise ValueError(f"{name!r} of the stored steps is not there or not of shape {shape}")


def _numbers(model: BaseAlgorithm) -> dict[str, int | float]:
    """Counters and arguments that are plain numbers, by attribute."""
    return {name: value for name, value in vars(model).items() if type(value) in (int, float)}


def _arrays(buffer: Any) -> dict[str, np.ndarray]:
    """The columns of a replay buffer by name, one row a step."""
    found = {}
    for name, value in vars(buffer).items():
        columns = value if isinstance(value, dict) else {"": value}
        for key, column in columns.items():
            if isinstance(column, np.ndarray) and column.shape[:1] == (buffer.buffer_size,):
                found[f"{name}/{key}"] = column
    return found

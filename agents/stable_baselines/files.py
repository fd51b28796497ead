"""Models of Stable-Baselines3 as safetensors and JSON, instead of the library's pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.optim.autoencoder_trainer import AutoencoderTrainer
from agents.ppo.vector_env import HTMVecEnv, continue_from
from agents.runs.checkpoint import load_state, save_state
from agents.stable_baselines.model import model_state, restore_model
from htm_env.files import check_weights, load_weights, reading

SIZES = ("n_envs", "n_steps", "buffer_size")
"""Numbers that a model's memory is made for."""


def save_model(
    path: str | Path, model: BaseAlgorithm, trainer: AutoencoderTrainer | None = None
) -> None:
    """Write a model, the autoencoder of its environment and that one's trainer to one file.

    All or nothing. In it are weights, optimizers, counters and stored steps, not what the model was
    made with. Raises ``ValueError`` for a model without an :class:`HTMVecEnv`.
    """
    state: dict[str, Any] = {
        "kinds": _kinds(model),
        "model": model_state(model),
        "autoencoder": _environment(model).autoencoder.state_dict(),
        "trainer": None if trainer is None else trainer.state(),
    }
    save_state(path, state)


def load_model(
    path: str | Path, model: BaseAlgorithm, trainer: AutoencoderTrainer | None = None
) -> None:
    """Let a model that was made as the saved one take over what :func:`save_model` wrote.

    So does the autoencoder of its environment, which begins new episodes; nothing in the file is
    executed. Raises ``FileNotFoundError`` where there is none, and ``ValueError`` naming it for one
    that cannot be read, and for a model or a trainer that was made otherwise; all stays as it was.
    """
    state, env = load_state(path), _environment(model)
    with reading(path, "saved model of this kind"):
        if state["kinds"] != _kinds(model):
            raise ValueError(f"it holds {state['kinds']}; expected {_kinds(model)}")
        saved = state["model"]["numbers"]
        for name in SIZES:
            if saved.get(name) != getattr(model, name, None):
                raise ValueError(
                    f"its {name} is {saved.get(name)}; expected {getattr(model, name, None)}"
                )
        if trainer is not None and state["trainer"] is None:
            raise ValueError("it was saved without a trainer of the autoencoder")
        # All of it first, so that what is refused leaves the model as it was.
        check_weights(env.autoencoder, state["autoencoder"])
        check_weights(model.policy, state["model"]["parameters"]["policy"])
        before = None if trainer is None else trainer.state()
        try:
            if trainer is not None:
                trainer.restore(state["trainer"])
            restore_model(model, state["model"])
        except Exception:
            if trainer is not None and before is not None:
                trainer.restore(before)
            raise
        load_weights(env.autoencoder, state["autoencoder"])
    observation = model.env.reset()  # type: ignore[union-attr]
    continue_from(model, observation)  # type: ignore[arg-type]


def _environment(model: BaseAlgorithm) -> HTMVecEnv:
    env = model.env.unwrapped if isinstance(model.env, VecEnv) else None
    if not isinstance(env, HTMVecEnv):
        raise ValueError(f"the model learns in a {type(env).__name__}; expected an HTMVecEnv")
    return env


def _kinds(model: BaseAlgorithm) -> list[str]:
    """The classes of the model and of its policy."""
    return [f"{type(each).__module__}.{type(each).__name__}" for each in (model, model.policy)]

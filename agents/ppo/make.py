"""Models of Stable-Baselines3: ``make_ppo`` on a frozen environment, and that of joint learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecMonitor

from agents.encoders import NO_ENCODER
from agents.networks.context import observed_by
from agents.optim.optimizers import optimizer_of
from agents.ppo.buffers import MaskableRunsRolloutBuffer, RunsRolloutBuffer
from agents.ppo.config import PPOConfig
from agents.ppo.policies import MaskableMergeActorCriticPolicy, MergeActorCriticPolicy
from agents.ppo.vector_env import HTMVecEnv


class Form(NamedTuple):
    """An algorithm of either library, and what goes with it."""

    model: type[PPO] | type[MaskablePPO]
    policy: Any
    buffer: Any


FORMS = {
    False: Form(PPO, MergeActorCriticPolicy, RunsRolloutBuffer),
    True: Form(MaskablePPO, MaskableMergeActorCriticPolicy, MaskableRunsRolloutBuffer),
}
"""By whether it is the maskable one."""


def make_ppo(
    env_id: str,
    *,
    maskable: bool = False,
    n_envs: int = 64,
    seed: int = 0,
    encoder: str = NO_ENCODER,
    env_kwargs: dict[str, Any] | None = None,
    **ppo_kwargs: Any,
) -> PPO | MaskablePPO:
    """A model that is ready to ``learn``, with this project's policy network.

    Args:
        env_id: an environment id, such as ``"HTM-Trees-v0"``.
        maskable: sb3-contrib's ``MaskablePPO`` instead of ``PPO``. Both mask; use
            ``sb3_contrib.common.maskable.evaluation.evaluate_policy`` with the former.
        n_envs: copies of the environment, all in this process; copy ``k`` has seed ``seed + k``, so
            that seeds of independent runs must be ``n_envs`` apart.
        seed: of the environment, the initial weights and, as always in Stable-Baselines3, of the
            global generators.
        encoder: the context encoder before the pair scorer, such as ``"attention"``; the
            environment then shows what it reads.
        env_kwargs: what ``gym.make`` takes. The autoencoder is the pretrained one by default, and
            stays as it is; :class:`agents.ppo.JointTraining` trains another along.
        ppo_kwargs: arguments of the model. The defaults here: rollouts of one longest episode,
            learning rate 1e-3, discount 0.8, and what else :class:`PPOConfig` says.

    Raises ``ValueError`` for an unknown id or encoder, or arguments of the environment that it does
    not take.
    """
    env_kwargs = dict(env_kwargs or {})
    policy_kwargs = {"encoder": encoder, **ppo_kwargs.pop("policy_kwargs", {})}
    needed = observed_by(policy_kwargs["encoder"], policy_kwargs.get("context"))
    env_kwargs["observe"] = tuple(dict.fromkeys((*env_kwargs.get("observe", ()), *needed)))
    copies = HTMVecEnv(env_id, n_envs, **env_kwargs)
    if not copies.autoencoder.decodes:
        policy_kwargs = {"model": copies.autoencoder, **policy_kwargs}
    env = VecMonitor(copies)
    slots = env.observation_space["active"].shape[0]  # type: ignore[index]
    form, steps = FORMS[maskable], ppo_kwargs.get("n_steps", slots - 1)
    kwargs = {
        **model_arguments(replace(PPOConfig(), n_envs=n_envs), form, steps),
        "policy_kwargs": policy_kwargs,
        "learning_rate": 1e-3,  # it stays so: lower than the highest of a schedule
        "device": env_kwargs.get("device", "cpu"),
        **ppo_kwargs,
    }
    return form.model(env=env, seed=seed, **kwargs)


def minibatch(total: int, wanted: int) -> int:
    """The size nearest to ``wanted`` that cuts ``total`` steps into equal minibatches, or into
    about equal ones where none between half and twice of it does."""
    size = -(-total // max(1, round(total / wanted)))
    sizes = range(-(-wanted // 2), 2 * wanted + 1)
    equal = [each for each in sizes if total % each == 0]
    if total % size == 0 or not equal:
        return size
    return min(equal, key=lambda each: abs(each - wanted))


def joint_model(
    config: PPOConfig, env: HTMVecEnv, learning_rate: Callable[[float], float], device: torch.device
) -> PPO | MaskablePPO:
    """The model of a configuration, which logs to nowhere and clips no gradient itself."""
    slots = env.observation_space["active"].shape[0]  # type: ignore[index]
    form = FORMS[config.maskable]
    optimizer_class, optimizer_arguments = optimizer_of(config.policy)
    model = form.model(
        env=env,
        **model_arguments(config, form, config.rollout_episodes * (slots - 1)),
        learning_rate=learning_rate,
        max_grad_norm=math.inf,  # the learner's optimizer clips, and measures
        policy_kwargs={
            "scorer": config.scorer,
            "hidden_dim": config.policy_hidden_dim,
            "encoder": config.encoder,
            "context": config.context,
            "model": None if env.autoencoder.decodes else env.autoencoder,
            "optimizer_class": optimizer_class,
            "optimizer_kwargs": optimizer_arguments,
        },
        device=device,
    )
    model.set_logger(Logger(None, []))
    return model


def model_arguments(config: PPOConfig, form: Form, steps: int) -> dict[str, Any]:
    """Arguments of a model with rollouts of so many steps of each copy."""
    return {
        "policy": form.policy,
        "rollout_buffer_class": form.buffer,
        "n_steps": steps,
        "batch_size": minibatch(steps * config.n_envs, config.batch_size),
        "n_epochs": config.n_epochs,
        "gamma": config.discount,
        "gae_lambda": config.gae_lambda,
        "clip_range": config.clip_range,
        "ent_coef": config.entropy_bonus,
        "vf_coef": config.value_weight,
    }

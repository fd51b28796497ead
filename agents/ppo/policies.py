"""This project's policy network as policies of Stable-Baselines3 and sb3-contrib.

Both forms compute the same: the mask is read from the observation (``active``, or ``candidates``
where it has them), so that no illegal action is drawn even by code without masks.
``MaskablePPO`` hands its own masks over beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int64
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from agents.encoders import NO_ENCODER, ContextConfig
from agents.networks.base import MergePolicy
from agents.networks.context import make_policy, observed_by
from agents.ppo.distribution import MergeDistribution
from agents.ppo.sharing import RecentStates, shared_forward
from htm_env.actions import num_actions
from htm_env.autoencoder import TreeEncoder

Observation = dict[str, Tensor]
Masks = np.ndarray | Tensor | None
KEYS = ("tokens", "active", "leaf_counts")
"""The keys of an observation that every network reads; its encoder may read others too."""
COORDINATES = ("centroids", "leaves")
"""Keys whose last axis is ``T``."""


class _MergeNetwork(BasePolicy):
    """The part that both forms share; a form adds what its algorithm expects of a policy.

    Args:
        observation_space, action_space: those of the environments of this project.
        lr_schedule: the learning rate by the remaining share of training, from 1 to 0.
        scorer, hidden_dim, encoder, context, model: as in
            :func:`agents.networks.context.make_policy`; the observations have to have the keys that
            the encoder reads (:func:`agents.networks.context.observed_by`).
        optimizer_class, optimizer_kwargs: as in Stable-Baselines3.

    Raises ``ValueError`` for other spaces, an unknown scorer or encoder, and for an encoder that
    carries a state or has losses of its own.
    """

    network_arguments: dict[str, Any]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        scorer: str | None = None,
        hidden_dim: int = 128,
        encoder: str = NO_ENCODER,
        context: ContextConfig | None = None,
        model: TreeEncoder | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **form: Any,
    ) -> None:
        self.keys = KEYS + observed_by(encoder, context)
        if "candidates" in getattr(observation_space, "spaces", {}):
            self.keys += ("candidates",)
        _check_spaces(observation_space, action_space, self.keys)
        self.network_arguments = {
            "scorer": scorer,
            "hidden_dim": hidden_dim,
            "encoder": encoder,
            "context": context,
            "model": model,
        }
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **form,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        """Called by the base class: the network takes the place of extractor, MLP and heads."""
        space: Any = self.observation_space
        coordinates = next((space[key].shape[1] for key in COORDINATES if key in self.keys), 0)
        self.network = make_policy(
            embedding_dim=space["tokens"].shape[1],
            coordinates=coordinates,
            **self.network_arguments,
        )
        _check_encoder(self.network)
        self.recent = RecentStates()
        self.action_dist = MergeDistribution(int(self.action_space.n))  # type: ignore[attr-defined]
        self.optimizer = self.optimizer_class(
            self.parameters(),
            lr=lr_schedule(1.0),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def forward(
        self, obs: Observation, deterministic: bool = False, action_masks: Masks = None
    ) -> tuple[Int64[Tensor, "B"], Float[Tensor, "B 1"], Float[Tensor, "B"]]:
        """Actions, state values, and the actions' log-probabilities."""
        distribution, values = self._evaluate(obs, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Observation, actions: Int64[Tensor, "B"], action_masks: Masks = None
    ) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B"], Float[Tensor, "B"]]:
        """State values, the actions' log-probabilities, and entropies in nats."""
        logits, values = shared_forward(self.network, {key: obs[key] for key in self.keys})
        distribution = self._distribution(logits, action_masks)
        return values[:, None], distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Observation, action_masks: Masks = None) -> MergeDistribution:
        return self._evaluate(obs, action_masks)[0]

    def predict_values(self, obs: Observation) -> Float[Tensor, "B 1"]:
        return self.network(obs)[1][:, None]

    def _evaluate(
        self, obs: Observation, action_masks: Masks
    ) -> tuple[MergeDistribution, Float[Tensor, "B 1"]]:
        seen = {key: obs[key] for key in self.keys}
        learns = torch.is_grad_enabled()
        logits, values = self.network(seen) if learns else self.recent(self.network, seen)
        return self._distribution(logits, action_masks), values[:, None]

    def _distribution(self, logits: Float[Tensor, "B A"], action_masks: Masks) -> MergeDistribution:
        distribution = self.action_dist.proba_distribution(logits)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Arguments that ``policy.save`` stores for ``load``."""
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            **self.network_arguments,
        }


class MergeActorCriticPolicy(_MergeNetwork, ActorCriticPolicy):  # type: ignore[misc]
    """For ``stable_baselines3.PPO`` and ``A2C``: ``PPO(MergeActorCriticPolicy, env)``."""


class MaskableMergeActorCriticPolicy(  # type: ignore[misc]
    _MergeNetwork, MaskableActorCriticPolicy
):
    """For ``sb3_contrib.MaskablePPO``."""


def network_of(policy: BasePolicy) -> MergePolicy:
    """The network of a policy of this module; ``ValueError`` for another policy."""
    network = getattr(policy, "network", None)
    if network is None:
        raise ValueError(f"the policy is a {type(policy).__name__}; expected one of this project")
    return network


def _check_encoder(network: MergePolicy) -> None:
    """Raises ``ValueError`` for what PPO, which evaluates single observations, cannot train."""
    if network.carries or network.has_losses:
        what = "carries a state from merge to merge" if network.carries else "has losses of its own"
        raise ValueError(f"the encoder {what}; PPO expects one that does neither")


def _check_spaces(
    observation_space: spaces.Space, action_space: spaces.Space, needed: tuple[str, ...]
) -> None:
    keys = list(observation_space) if isinstance(observation_space, spaces.Dict) else []
    if not set(needed) <= set(keys):
        raise ValueError(
            f"the observation space is {observation_space}; expected a Dict with {list(needed)}"
        )
    space: Any = observation_space
    slots = space["active"].shape[0]
    k = space["candidates"].shape[1] if "candidates" in needed else None
    expected = num_actions(slots, k)
    if not isinstance(action_space, spaces.Discrete) or action_space.n != expected:
        each = "every ordered pair" if k is None else f"each of the {k} candidates"
        raise ValueError(
            f"the action space is {action_space}; expected Discrete({expected}), "
            f"an action for {each} of {slots} slots"
        )

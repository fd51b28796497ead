"""A policy reads where a token lies: centroids by hand, in rollouts and in the environment."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import pytest
import torch

from agents import Reinforce, ReinforceConfig
from agents.networks.scorers import Placed
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.rollouts.rollout import follow
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import make_dataset

SMALL = ReinforceConfig(autoencoder=AutoencoderConfig(hidden_dim=8), policy_hidden_dim=8)


def test_centroids_and_counts_are_those_of_the_leaves():
    autoencoder = HTMAutoencoder(2, 3, 8, generator=torch.Generator().manual_seed(0))
    batch = make_dataset("HTM-v0", dataset=torch.rand(30, 3, 2).numpy()).fixed(4)
    merges = torch.tensor([[1, 2], [3, 0]]).expand(len(batch.tokens), 2, 2)
    placed, plain = (follow(model, batch, merges) for model in (Placed(autoencoder), autoencoder))
    torch.testing.assert_close(placed.nodes[..., :3], plain.nodes)
    tokens = autoencoder.standardise(batch.tokens)
    torch.testing.assert_close(placed.nodes[:, :3, 3:5], tokens)
    torch.testing.assert_close(placed.nodes[:, 3, 3:5], tokens[:, 1:].mean(1))
    torch.testing.assert_close(placed.nodes[:, 4, 3:5], tokens.mean(1))
    counts = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(placed.nodes[..., 5], counts.log2().expand(len(tokens), 5))


def test_an_environment_with_the_agents_autoencoder_has_the_centroids():
    agent = Reinforce("HTM-Crosses-v0", SMALL)
    env = gym.make("HTM-Crosses-v0", autoencoder=agent.autoencoder)
    assert "centroids" in env.observation_space.spaces
    action, _ = agent.predict(env.reset(seed=0)[0])
    env.step(action)
    other = gym.make("HTM-Crosses-v0", autoencoder="untrained", embedding_dim=16)
    assert "centroids" not in other.observation_space.spaces
    with pytest.raises(ValueError, match="make the environment with observe="):
        agent.predict(other.reset(seed=0)[0])
    asked = gym.make(
        "HTM-Crosses-v0", autoencoder="untrained", embedding_dim=16, observe=("centroids",)
    )
    agent.predict(asked.reset(seed=0)[0])


@pytest.mark.parametrize(
    "changes", [{"coordinates": False}, {"encoder": "attention"}, {"candidates": "knn"}]
)
def test_other_policies_read_what_they_did(changes):
    agent = Reinforce("HTM-Crosses-v0", replace(SMALL, **changes))
    assert agent.seen is agent.autoencoder
    env = gym.make("HTM-Crosses-v0", autoencoder=agent.autoencoder)
    assert set(env.observation_space.spaces) == {"tokens", "active", "leaf_counts"}


def test_nothing_moves_where_the_autoencoder_is_frozen():
    agent = Reinforce("HTM-Crosses-v0", SMALL, mode="frozen")
    assert agent.seen is agent.autoencoder and agent.autoencoder.observes == ()

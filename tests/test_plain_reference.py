"""The fast implementation is the plain reference: encodings, reconstructions, scores, gradients."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.fixed import fixed_policy
from agents.networks.scorers import PairPolicy
from agents.rollouts.rollout import rollout
from benchmarks import plain_reference as plain
from benchmarks.plain_environment import PlainEnvironment
from htm_env.autoencoder import HTMAutoencoder, seeded_initialisation
from htm_env.datasets import make_dataset
from htm_env.forest import action_to_pair

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=["residual", "mlp"])
def autoencoder(request) -> HTMAutoencoder:
    generator = torch.Generator().manual_seed(1)
    made = HTMAutoencoder(2, 8, 16, request.param, generator=generator)
    made.set_statistics(torch.tensor([3.0, -1.0]), torch.tensor([20.0, 10.0]))
    return made


@pytest.fixture
def policy() -> PairPolicy:
    with seeded_initialisation(torch.Generator().manual_seed(2)):
        return PairPolicy(8, 16)


@pytest.fixture
def batch():
    dataset = make_dataset("HTM-Trees-v0", split="train", heights=(3,))
    return dataset.sample(5, torch.Generator().manual_seed(3))


def test_encoding_and_reconstruction_are_the_plain_ones(autoencoder, policy, batch):
    merges = fixed_policy("random", autoencoder).plan(batch, torch.Generator().manual_seed(4))
    encoded = plain.encode(autoencoder, policy, autoencoder.standardise(batch.tokens), None, merges)
    ours = autoencoder.encode(batch.tokens, batch.present, merges)
    leaves, *merged = encoded.states
    nodes = torch.cat([leaves, torch.stack(merged, dim=1)], dim=1)
    torch.testing.assert_close(ours.nodes, nodes, **CLOSE)
    where = encoded.pairs[-1][0]
    torch.testing.assert_close(ours.roots, encoded.slots[torch.arange(5), where], **CLOSE)
    plainly = autoencoder.unlifter(plain.decode(autoencoder, encoded))
    decoded = autoencoder.decode(ours.population, merges, batch.present)
    torch.testing.assert_close(autoencoder.standardise(decoded), plainly, **CLOSE)


def test_the_gradient_of_the_reconstruction_is_the_plain_one(autoencoder, policy, batch):
    merges = fixed_policy("random", autoencoder).plan(batch, torch.Generator().manual_seed(4))
    standardised = autoencoder.standardise(batch.tokens)
    encoded = plain.encode(autoencoder, policy, standardised, None, merges)
    ours = autoencoder.encode(batch.tokens, batch.present, merges)
    decoded = autoencoder.decode(ours.population, merges, batch.present)
    outputs = (
        autoencoder.unlifter(plain.decode(autoencoder, encoded)),
        autoencoder.standardise(decoded),
    )
    weights = [*autoencoder.merger.parameters(), *autoencoder.unmerger.parameters()]
    plainly, fast = (
        torch.autograd.grad((output - standardised).square().mean(), weights) for output in outputs
    )
    for one, other in zip(plainly, fast, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_pair_scores_are_the_plain_ones(autoencoder, policy, batch):
    embeddings = autoencoder.lifter(autoencoder.standardise(batch.tokens))
    features = policy.features(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.long))
    table = plain.score_table(policy, embeddings)
    torch.testing.assert_close(policy.scores(features.first, features.second), table, **CLOSE)


def test_log_probabilities_of_given_merges_are_the_plain_ones(autoencoder, policy, batch):
    """Those of a rollout, which keeps its scores from merge to merge in its own way."""
    episodes, terms = rollout(autoencoder, policy, batch, torch.Generator().manual_seed(5))
    standardised = autoencoder.standardise(batch.tokens)
    encoded = plain.encode(autoencoder, policy, standardised, None, episodes.merges)
    torch.testing.assert_close(terms.log_prob, encoded.log_prob.detach(), **CLOSE)


def test_its_own_merges_are_trees_and_it_learns(autoencoder, policy, batch):
    """Every slot but the root's is emptied once, and twenty steps on one batch lower the error."""
    standardised, generator = (
        autoencoder.standardise(batch.tokens),
        torch.Generator().manual_seed(6),
    )
    encoded = plain.encode(autoencoder, policy, standardised, generator)
    emptied = torch.stack([second for _, second in encoded.pairs], dim=1)
    root = encoded.pairs[-1][0][:, None]
    slots = torch.cat([emptied, root], dim=1).sort(dim=1).values
    assert slots.tolist() == [list(range(7))] * 5
    optimizer = torch.optim.Adam([*autoencoder.parameters(), *policy.parameters()], lr=3e-3)
    errors = [
        plain.training_step(autoencoder, policy, optimizer, standardised, generator)
        for _ in range(20)
    ]
    assert errors[-1]["reconstruction"] < errors[0]["reconstruction"]
    assert errors[-1]["classifier"] < errors[0]["classifier"]


@pytest.mark.parametrize("reward", ["incremental", "terminal"])
def test_the_environment_is_the_plain_one(autoencoder, reward):
    """Masks, embeddings and rewards of one episode of random legal merges."""
    data = make_dataset("HTM-Trees-v0", split="train", heights=(3,))
    autoencoder.set_statistics(data.mean, data.std)
    envs = gym.make_vec(
        "htm_env:HTM-Trees-v0",
        num_envs=5,
        autoencoder=autoencoder,
        reward=reward,
        heights=(3,),
        observe=("leaves",),
    )
    observation, info = envs.reset(seed=1)
    plainly = PlainEnvironment(autoencoder, reward)
    leaves = torch.from_numpy(observation["leaves"])
    plainly.reset(leaves * autoencoder.token_std + autoencoder.token_mean)
    drawn = np.random.default_rng(2)
    for _ in range(6):
        masks = info["action_mask"]
        diagonal = torch.eye(7, dtype=torch.bool)
        assert (plainly.action_masks()[:, ~diagonal].numpy() == masks).all()
        actions = (drawn.random(masks.shape) * masks).argmax(1)
        expected = plainly.step(*action_to_pair(torch.from_numpy(actions), 7))
        observation, rewards, ended, _, info = envs.step(actions)
        torch.testing.assert_close(torch.from_numpy(rewards).float(), expected, **CLOSE)
        active = plainly.active.numpy()
        assert (observation["active"] == active).all()
        np.testing.assert_allclose(observation["tokens"][active], plainly.slots[active], atol=1e-5)
    assert plainly.over
    assert ended.all()

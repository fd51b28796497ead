"""Updates in which the autoencoder learns alone, from the greedy trees of the policy."""

from __future__ import annotations

import math

import pytest
import torch
from episodes import RAGGED, generator, random_batch, random_policy

from agents import PPOConfig, PPOLearner, Reinforce, ReinforceConfig, ReplayConfig
from agents.config.dataclasses_json import config_from_dict
from agents.learners.policy_learner import PolicyLearner
from agents.rollouts.rollout import rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.population import final_errors
from htm_env.rewards import EncodedEpisodes
from htm_env.types import TokenBatch

LEARNERS = {"reinforce": (Reinforce, ReinforceConfig), "ppo": (PPOLearner, PPOConfig)}
SIZE = {"reinforce": {"batch_size": 8}, "ppo": {"n_envs": 8, "batch_size": 8}}
both = pytest.mark.parametrize("algo", LEARNERS)


def learner(algo: str, mode: str = "joint", **changes) -> PolicyLearner:
    """Trees of seven tokens, eight a batch."""
    made, config_class = LEARNERS[algo]
    options = {
        "autoencoder": {"hidden_dim": 16},
        "policy_hidden_dim": 16,
        "failure": 0.0,
        "demonstration_share": [[0.0, 0.0]],
        "policy_share": [[0.0, 0.0]],
        **SIZE[algo],
        **changes,
    }
    task = {"env_kwargs": {"heights": (3,)}}
    if mode == "joint":
        task["embedding_dim"] = 4
    return made("HTM-Trees-v0", config_from_dict(config_class, options), mode=mode, **task)


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def same(before: list[torch.Tensor], network: torch.nn.Module) -> list[bool]:
    return [torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True)]


def updates(one: PolicyLearner, number: int) -> None:
    for _ in range(number):
        one.update(0.5)


def fresh(one: PolicyLearner, algo: str) -> TokenBatch:
    """The samples of an update without the policy, which draws its kind before or after them."""
    if algo == "ppo":
        torch.rand((), generator=one.generator)
    batch = one.dataset.sample(8, one.generator)
    if algo == "reinforce":
        torch.rand((), generator=one.generator)
    return batch


@both
def test_the_autoencoder_learns_from_greedy_trees_and_the_policy_does_not(algo):
    one, other = learner(algo), learner(algo)
    policy, autoencoder = weights(one.policy), weights(one.autoencoder)
    for _ in range(2):  # SOAP's first step only measures
        scalars = one.update(0.5)
        batch = fresh(other, algo)
        merges = other.plan(batch, torch.Generator(), greedy=True)
        other.trainer.update_in_parts(batch, merges, 32, 0.5)
    assert all(same(policy, one.policy))
    assert not all(same(autoencoder, one.autoencoder))
    assert all(same(weights(other.autoencoder), one.autoencoder))
    assert one.merges_made == 2 * 8 * 6 and one.updates == 2
    assert 0 < scalars["train/greedy_nmse"] < math.inf
    assert not {"loss/policy", "gradient_norm/policy", "train/return"} & set(scalars)


@both
def test_among_candidates_too(algo):
    one = learner(algo, candidates="knn", k=2)
    before = weights(one.policy)
    assert one.update(0.5)["train/greedy_nmse"] > 0
    assert all(same(before, one.policy))


@both
def test_updates_in_between_do_not_hide_that_learning_has_stopped_being_finite(algo):
    one = learner(algo, policy_share=[[0.0, 0.5]])
    with torch.no_grad():
        next(one.policy.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite in 20 updates"):
        updates(one, 100)


def test_replay_always_trains_the_policy():
    with pytest.raises(ValueError, match="expected 1 throughout"):
        ReplayConfig(policy_share=((0.5, 1.0), (1.0, 0.5)))


@both
def test_failures_are_corrected_in_every_update(algo):
    one = learner(algo, failure=1.0)
    one.search.much_better = math.inf
    before = weights(one.policy)
    assert "loss/failures" in one.update(0.5)
    assert not all(same(before, one.policy))


@both
def test_with_a_frozen_autoencoder_every_update_trains_the_policy(algo):
    one = learner(algo, "frozen")
    before = weights(one.policy)
    assert "loss/policy" in one.update(0.5)
    assert not all(same(before, one.policy))


@both
def test_at_a_share_of_one_every_update_trains_the_policy(algo):
    one = learner(algo, policy_share=[[0.5, 1.0], [0.5, 0.0]])
    assert "loss/policy" in one.update(0.4)
    assert "loss/policy" not in one.update(0.6)


@both
def test_shares_are_probabilities(algo):
    with pytest.raises(ValueError, match="policy_share"):
        learner(algo, policy_share=[[0.0, 1.5]])


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_final_error_is_that_which_the_rewards_leave(most):
    """Of whole trees and of forests: decoded from every node that is active at the end."""
    autoencoder, batch = HTMAutoencoder(3, 5, 16, generator=generator(1)), random_batch(RAGGED)
    std = torch.tensor([0.5, 2.0, 3.0])
    episodes, _ = rollout(
        autoencoder,
        random_policy("pointer"),
        batch,
        generator(3),
        num_merges=(batch.num_tokens - 1).clamp(max=most),
    )
    expected = EncodedEpisodes(autoencoder, batch, episodes.merges, episodes.nodes, std).error
    found = final_errors(autoencoder, batch, episodes.merges, episodes.nodes, std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

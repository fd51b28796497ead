"""Known mergers and rewards in the place of an autoencoder: what merges earn, observe and cost."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.evaluation.evaluate import evaluate
from agents.fixed import fixed_policy
from agents.networks.scorers import make_scorer
from agents.search import tree_search
from htm_env.known import KnownMerger
from htm_env.rewards import EncodedEpisodes, MergeReward, reward_on
from htm_env.simulator import EnvConfig, Simulator

SETS = np.random.default_rng(0).normal(size=(40, 5, 3)).astype(np.float32)


class Sum:
    """Tokens add up."""

    commutative = associative = True

    def __call__(self, first, second):
        return first + second


class Rule:
    """Neither commutative nor associative, whatever it says."""

    def __init__(self, **said):
        vars(self).update(said)

    def __call__(self, first, second):
        return first / 2 - second


class Squares:
    """Minus the square of the merge's first number, ten times that of the root."""

    def of_merges(self, first, second, merged, last):
        return -merged[:, 0].square() * torch.where(last, 10.0, 1.0)


def expected_return(tokens: np.ndarray, merges: np.ndarray) -> float:
    """The plain loop."""
    nodes, total = list(tokens), 0.0
    for step, (first, second) in enumerate(merges):
        nodes.append(nodes[first] + nodes[second])
        total -= nodes[-1][0] ** 2 * (10 if step == len(merges) - 1 else 1)
    return total


def expected_returns(tokens: np.ndarray, merges: np.ndarray) -> list[float]:
    return [expected_return(*episode) for episode in zip(tokens, merges, strict=True)]


def simulator() -> Simulator:
    data = {"dataset": SETS}
    return Simulator(EnvConfig("HTM-v0", merger=Sum(), reward=Squares(), dataset_kwargs=data))


def test_rewards_of_steps_are_those_of_the_plain_loop_and_the_error_is_what_was_paid():
    env = gym.make("htm_env:HTM-v0", dataset=SETS, merger=Sum(), reward=Squares())
    observation, info = env.reset(seed=3)
    tokens = env.unwrapped.population.batch.tokens[0].numpy()
    assert np.allclose(observation["tokens"], tokens, atol=1e-6)  # a token is its own embedding
    assert info["error"] == 0
    merges, total, done = [], 0.0, False
    generator = np.random.default_rng(0)
    while not done:
        action = generator.choice(np.flatnonzero(info["action_mask"]))
        observation, reward, done, _, info = env.step(action)
        total += reward
        assert info["error"] == pytest.approx(-total, abs=1e-4)
    merges = env.unwrapped.population.forest.merges[0].numpy()
    assert total == pytest.approx(expected_return(tokens, merges), rel=1e-5)
    root = observation["tokens"][observation["active"].astype(bool)][0]
    assert np.allclose(root, tokens.sum(0), atol=1e-5)


def test_steps_and_whole_episodes_earn_the_same():
    world = simulator()
    batch = world.dataset.fixed(6)
    merges = fixed_policy("random", world.autoencoder).plan(batch, torch.Generator().manual_seed(0))
    nodes = world.autoencoder.encode(batch.tokens, batch.present, merges).nodes
    episodes = EncodedEpisodes(world.autoencoder, batch, merges, nodes, world.std)
    rewards = world.reward.episode(episodes)
    assert torch.equal(rewards, reward_on(world.dataset, "incremental").episode(episodes))
    assert torch.allclose(rewards, super(MergeReward, world.reward).episode(episodes), atol=1e-5)
    plain = expected_returns(batch.tokens.numpy(), merges.numpy())
    assert rewards.sum(1).tolist() == pytest.approx(plain, rel=1e-4)
    assert episodes.error.tolist() == pytest.approx([-total for total in plain], rel=1e-4)


def test_evaluation_gives_the_return_and_no_error_of_a_reconstruction():
    world = simulator()
    planner = fixed_policy("balanced_sorted", world.autoencoder)
    scores = evaluate(planner, world.autoencoder, world.dataset, 10, sampled=False)
    batch = world.dataset.fixed(10)
    merges = planner.plan(batch, torch.Generator())
    plain = expected_returns(batch.tokens.numpy(), merges.numpy())
    assert scores["return"] == pytest.approx(np.mean(plain), rel=1e-4)
    assert not {"nmse", "sampled_nmse"} & set(scores)


def ones_of_merges(before, after, first, second):
    """One for every merge, of no known cost."""
    return (after.forest.num_merges - before.forest.num_merges).float()


def test_the_return_is_of_the_reward_that_is_given():
    world = Simulator(
        EnvConfig("HTM-v0", merger=Sum(), reward=Squares(), dataset_kwargs={"dataset": SETS})
    )
    planner = fixed_policy("balanced_sorted", world.autoencoder)
    plain = evaluate(planner, world.autoencoder, world.dataset, 10, sampled=False)
    ones = reward_on(world.dataset, ones_of_merges)
    scores = evaluate(planner, world.autoencoder, world.dataset, 10, sampled=False, reward=ones)
    assert scores["return"] == 4  # five tokens, so four merges
    assert scores["cost"] == -plain["return"]
    assert "cost" not in plain


def test_no_search_where_no_cost_is_known():
    data = {"dataset": SETS}
    world = Simulator(EnvConfig("HTM-v0", merger=Sum(), reward=ones_of_merges, dataset_kwargs=data))
    batch, generator = world.dataset.fixed(2), torch.Generator()
    for name in ("greedy", "beam", "beam_2", "exact"):
        with pytest.raises(ValueError, match=f"{name} cannot plan"):
            fixed_policy(name, world.autoencoder).plan(batch, generator)
    with pytest.raises(ValueError, match="no of_merges"):
        tree_search(world.autoencoder, world.std, 10)
    with pytest.raises(ValueError, match="no of_merges"):
        make_scorer("merged", 3, 8, world.autoencoder)
    planner = fixed_policy("random", world.autoencoder)
    scores = evaluate(planner, world.autoencoder, world.dataset, 10, reward=world.reward)
    assert scores["return"] == 4
    assert "cost" not in scores


@pytest.mark.parametrize(
    ("merger", "others", "message"),
    [
        (Sum, {}, "the merger is the class Sum"),
        (3, {}, "the merger is 3"),
        ("sum", {}, "the merger is the name 'sum'"),
        (Sum(), {"reward": None}, "a merger is given without a reward"),
        (lambda one, other: one[:, :1], {}, r"shape \(3, 1\) for pairs of shape \(3, 3\)"),
        (Sum(), {"reward": "incremental"}, "reward incremental .* no cost is known"),
        (Sum(), {"reward": "terminal"}, "reward terminal .* no cost is known"),
        (lambda one, other: one.numpy(), {}, "of type ndarray .* expected a tensor"),
        (lambda one, other: one.double(), {}, "gave torch.float64"),
        (lambda one, other: one / 0, {}, "gave inf"),
        (lambda one: one, {}, r"<lambda> does not take \(first, second\)"),
        (Rule(commutative=True), {}, "Rule says commutative = True"),
        (Rule(associative=True), {}, "Rule says associative = True"),
        (Sum(), {"autoencoder": "untrained"}, "both a merger and an autoencoder"),
        (Sum(), {"embedding_dim": 7}, "embedding_dim is 7, but the known merger's is 3"),
    ],
)
def test_what_is_no_known_merger_is_refused(merger, others, message):
    arguments = {"reward": Squares(), "dataset_kwargs": {"dataset": SETS}} | others
    with pytest.raises(ValueError, match=message):
        Simulator(EnvConfig("HTM-v0", merger=merger, **arguments))


def test_a_merger_without_a_known_reward_costs_nothing_and_decodes_nothing():
    known = KnownMerger(3, Sum())
    with pytest.raises(ValueError, match="nothing can be decoded"):
        known.decode(
            torch.zeros(1, 3), torch.tensor([[[0, 1]]]), torch.ones(1, 2, dtype=torch.bool)
        )

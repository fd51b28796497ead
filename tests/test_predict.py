"""An agent acts in the environment, one episode or many at a time."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import Reinforce, ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env import candidate_pair, pair_to_action
from htm_env.forest import merges_to_actions

HEIGHTS = {"heights": (2, 3)}


@pytest.fixture
def agent() -> Reinforce:
    config = ReinforceConfig(autoencoder=AutoencoderConfig(hidden_dim=16), policy_hidden_dim=16)
    return Reinforce("HTM-Trees-v0", config, env_kwargs=HEIGHTS, embedding_dim=5)


def environment(agent: Reinforce, **kwargs):
    return gym.make("HTM-Trees-v0", autoencoder=agent.autoencoder, **HEIGHTS, **kwargs)


def test_the_best_actions_are_those_of_the_greedy_plan(agent):
    env = environment(agent, split="test")
    batch = agent.task.dataset("test").fixed(8)
    merges = agent.plan(batch, torch.Generator(), greedy=True)
    planned = merges_to_actions(merges, batch.num_tokens)
    for row, key in enumerate(env.unwrapped.fixed_keys(8)):
        observation, info = env.reset(options={"key": int(key)})
        taken = []
        while info["num_active"] > 1:
            action, state = agent.predict(observation, deterministic=True)
            assert state is None
            taken.append(action)
            observation, _, _, _, info = env.step(action)
        assert taken == [action for action in planned[row].tolist() if action >= 0]


def test_sampled_actions_of_a_batch_are_legal(agent):
    envs = gym.make_vec(
        "HTM-Trees-v0",
        num_envs=16,
        autoencoder=agent.autoencoder,
        heights=(3,),
        invalid_action="raise",
    )
    observation, _ = envs.reset(seed=0)
    for _ in range(5):
        actions, _ = agent.predict(observation)
        assert actions.shape == (16,)
        observation, _, _, _, info = envs.step(actions)
    assert (info["num_active"] == 2).all()


def test_a_batch_is_driven_through_many_episodes(agent):
    """With Gymnasium's default autoreset, where an ended copy is still seen for one step."""
    envs = gym.make_vec(
        "HTM-Trees-v0",
        num_envs=8,
        autoencoder=agent.autoencoder,
        heights=(2, 3),
        invalid_action="raise",
    )
    observation, _ = envs.reset(seed=0)
    ends = 0
    for step in range(30):
        actions, _ = agent.predict(observation, None, None, step % 2 == 0)
        observation, _, terminated, truncated, _ = envs.step(actions)
        assert not truncated.any()
        ends += int(terminated.sum())
    assert ends > 8 * 3


NEAR = {"candidates": "knn", "k": 2}


def test_the_best_of_the_candidates_is_taken(agent):
    """One episode at a time or in a batch: of all pairs, the best that is listed."""
    with torch.no_grad():  # a fresh policy likes what is near
        for weight in agent.policy.parameters():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    env = environment(agent, **NEAR)
    other = 0
    for seed in range(8):
        observation, info = env.reset(seed=seed)
        while info["num_active"] > 1:
            everyone = {k: torch.tensor(observation[k])[None] for k in observation}
            del everyone["candidates"]
            with torch.no_grad():
                logits, _ = agent.policy(agent.read(everyone))
            pairs = [
                candidate_pair(int(a), observation["candidates"])
                for a in np.flatnonzero(info["action_mask"])
            ]
            scores = [float(logits[0, pair_to_action(*map(int, pair), 7)]) for pair in pairs]
            best, _ = agent.predict(observation, deterministic=True)
            batch = {key: np.stack([value] * 3) for key, value in observation.items()}
            assert agent.predict(batch, deterministic=True)[0].tolist() == [best] * 3
            chosen = candidate_pair(best, observation["candidates"])
            assert scores[pairs.index(chosen)] == pytest.approx(max(scores), abs=1e-5)
            other += float(logits.max()) > max(scores) + 1e-3
            observation, _, _, _, info = env.step(best)
    assert other > 0  # sometimes the best of all is not listed


def test_a_batch_with_candidates_is_driven_through_many_episodes(agent):
    envs = gym.make_vec(
        "HTM-Trees-v0",
        num_envs=8,
        autoencoder=agent.autoencoder,
        heights=(2, 3),
        invalid_action="raise",
        **NEAR,
    )
    observation, _ = envs.reset(seed=0)
    ends = 0
    for step in range(30):
        actions, _ = agent.predict(observation, None, None, step % 2 == 0)
        observation, _, terminated, truncated, _ = envs.step(actions)
        assert not truncated.any()
        ends += int(terminated.sum())
    assert ends > 8 * 3


@pytest.mark.parametrize("neighbours", ["embeddings", "centroids"])
def test_reconstruct_has_the_candidates_of_the_environment(agent, neighbours):
    env = environment(agent, split="test", neighbours=neighbours, **NEAR)
    batch = agent.task.dataset("test").fixed(6)

    def policy(observation, generator):
        return torch.as_tensor(agent.predict(observation, deterministic=True)[0])

    found = agent.autoencoder.reconstruct(
        batch.tokens, batch.present, policy, candidates=2, neighbours=neighbours
    )
    for row, key in enumerate(env.unwrapped.fixed_keys(6)):
        observation, info = env.reset(options={"key": int(key)})
        while info["num_active"] > 1:
            action, _ = agent.predict(observation, deterministic=True)
            observation, _, _, _, info = env.step(action)
        merges = torch.tensor(env.unwrapped.merge_tree().merges)[None]
        present, n = batch.present[row : row + 1], int(batch.num_tokens[row])
        roots = agent.autoencoder.encode(batch.tokens[row : row + 1], present, merges).roots
        expected = agent.autoencoder.decode(roots, merges, present).detach()
        torch.testing.assert_close(found[row, :n], expected[0, :n], rtol=1e-4, atol=1e-4)


def test_acting_does_not_change_training(agent):
    observation, _ = environment(agent).reset(seed=0)
    before = agent.generator.get_state()
    drawn = {agent.predict(observation)[0] for _ in range(30)}
    assert len(drawn) > 3
    assert torch.equal(agent.generator.get_state(), before)


def test_an_observation_of_another_dimension_is_named(agent):
    observation, _ = gym.make("HTM-Trees-v0", autoencoder="untrained", embedding_dim=7).reset()
    with pytest.raises(ValueError, match="embeddings of 7 numbers; this agent expects 5"):
        agent.predict(observation)


def test_nothing_is_left_to_merge_after_the_end(agent):
    observation, _ = environment(agent).reset(seed=0)
    ended = {**observation, "active": np.eye(7, dtype=np.int8)[0]}
    with pytest.raises(ValueError, match="fewer than two active slots"):
        agent.predict(ended)


def test_actions_are_whole_numbers(agent):
    env = environment(agent)
    env.reset(seed=0)
    with pytest.raises((TypeError, AssertionError)):
        env.step(1.7)
    envs = gym.make_vec("HTM-Trees-v0", num_envs=2, autoencoder=agent.autoencoder, heights=(3,))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="actions are float64; expected integers"):
        envs.step(np.array([1.0, 2.0]))


def test_cloning_reports_the_entropy_of_the_policy(agent):
    scalars = agent.update(0.15)  # the second tenth of the budget clones
    assert "loss/cloning" in scalars
    assert 0.5 < scalars["policy/entropy"] <= 1.0

"""Encoders that go on from the state that the last merge left, against a plain loop over slots."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from conftest import small_autoencoder
from episodes import RAGGED, generator, random_batch, replayed, terms_of
from torch import nn

import htm_env  # noqa: F401  # registers the ids
from agents import make_ppo
from agents.config.dataclasses_json import config_from_dict
from agents.encoders import Context, ContextConfig, ContextEncoder
from agents.encoders.base import masked_mean, without_junk
from agents.encoders.config import GlomConfig, GlomEncoderConfig
from agents.encoders.glom.encoder import GlomEncoder
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.networks.context import ContextPolicy
from agents.networks.scorers import make_scorer
from agents.rollouts.rollout import follow, rollout
from htm_env.candidates import candidate_pair
from htm_env.forest import action_to_pair
from htm_env.observation import observe_population

WIDTH = 6
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Running(ContextEncoder):
    """A state that remembers: what it was, what the token says, and what all others were."""

    carries = True  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, tokens, active, *, state=None, **unused):
        tokens = without_junk(tokens, active)
        state = torch.ones_like(tokens) if state is None else state
        around = masked_mean(state, active)[:, None].expand_as(state)
        state = without_junk(torch.tanh(self.mix(torch.cat([tokens, state, around], 2))), active)
        return Context(state, masked_mean(state, active), state)


def glom() -> GlomEncoder:
    columns = GlomConfig(levels=2, level_width=8, iterations=3)
    return GlomEncoder(WIDTH, GlomEncoderConfig(columns, continued_iterations=2), 3)


every_kind = pytest.mark.parametrize("encoder", [Running, glom])


def carrying_policy(encoder, embedding_dim: int = 5, seed: int = 0) -> ContextPolicy:
    scorer = make_scorer("pointer", embedding_dim + 2 * WIDTH, 12)
    policy = ContextPolicy(embedding_dim, encoder(), scorer, WIDTH)
    drawn = generator(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.normal_(std=0.3, generator=drawn)
    return policy


def by_slots(autoencoder, policy, batch, merges):
    """Log-probabilities and values, one population after the other, its state kept by slot."""
    log_probs, values, state = [], [], None
    rows = torch.arange(len(merges))
    for population, action in replayed(autoencoder, batch, merges):
        output = policy.contextual_scores(observe_population(autoencoder, population), state)
        first, second = action_to_pair(action.clamp(min=0), batch.present.shape[1])
        active = population.forest.active
        legal = active[:, :, None] & active[:, None] & ~torch.eye(active.shape[1]).bool()
        log_prob = output.scores.masked_fill(~legal, -1e9).flatten(1).log_softmax(1)
        taken = log_prob[rows, first * active.shape[1] + second]
        log_probs.append(torch.where(action >= 0, taken, 0.0))
        values.append(torch.where(action >= 0, output.values, 0.0))
        merged = (output.state[rows, first] + output.state[rows, second]) / 2
        state = output.state.index_put((rows, first), merged)
    return torch.stack(log_probs, 1), torch.stack(values, 1)


def gradient(policy) -> list[torch.Tensor]:
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@every_kind
@pytest.mark.parametrize(("partial", "at_a_time"), [(False, 10**6), (True, 10**6), (False, 1)])
def test_rollouts_and_terms_are_those_of_the_loop(autoencoder, encoder, partial, at_a_time):
    policy, batch = carrying_policy(encoder), random_batch(RAGGED, slots=7)
    limit = torch.tensor([3, 1, 2, 0, 2, 4]) if partial else None
    made, terms = rollout(autoencoder, policy, batch, generator(1), num_merges=limit)
    log_probs, values = by_slots(autoencoder, policy, batch, made.merges)
    torch.testing.assert_close(terms.log_prob, log_probs.detach(), **CLOSE)
    seen = terms_of(policy, autoencoder, batch, made, at_a_time)
    torch.testing.assert_close(seen.log_probs.detach(), log_probs.detach(), **CLOSE)
    torch.testing.assert_close(seen.values.detach(), values.detach(), **CLOSE)
    (log_probs.sum() + values.square().sum()).backward()
    expected = gradient(policy)
    policy.zero_grad()
    (seen.log_probs.sum() + seen.values.square().sum()).backward()
    for one, other in zip(gradient(policy), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@every_kind
def test_what_was_before_matters(autoencoder, encoder):
    """The same forest, reached by two sequences, has other probabilities."""
    policy, batch = carrying_policy(encoder), random_batch([5])
    one = torch.tensor([[[0, 1], [2, 3], [5, 6], [7, 4]]])
    other = torch.tensor([[[2, 3], [0, 1], [6, 5], [7, 4]]])  # the same trees after two merges
    last = [
        policy.terms(autoencoder, batch, follow(autoencoder, batch, merges)).log_probs[0, 2]
        for merges in (one, other)
    ]
    assert abs(float((last[0] - last[1]).detach())) > 1e-4


@every_kind
def test_acting_hands_the_state_on(autoencoder, encoder):
    config = config_from_dict(
        ReinforceConfig, {"encoder": "attention", "autoencoder": {"hidden_dim": 8}}
    )
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": [2, 3]}, embedding_dim=5)
    learner.policy = carrying_policy(encoder)
    make = {"heights": [2, 3], "autoencoder": learner.autoencoder, "split": "test"}
    dataset = learner.task.dataset("test")
    planned = learner.plan(dataset.fixed(4), generator(), greedy=True)
    env = gym.make("HTM-Trees-v0", **make)
    for key, merges in zip(dataset.fixed_keys(4).tolist(), planned.tolist(), strict=True):
        observation, _ = env.reset(options={"key": key})
        state, done = None, False
        while not done:
            action, state = learner.predict(observation, state, deterministic=True)
            observation, _, done, _, _ = env.step(action)
        made = env.unwrapped.merge_tree().merges
        assert made.tolist() == [pair for pair in merges if pair[0] >= 0]
    envs = gym.make_vec("HTM-Trees-v0", num_envs=4, **make)
    observation, _ = envs.reset(options={"key": list(range(4))})
    begun, state = learner.predict(observation, None, deterministic=True)
    starts = [True, False, True, False]
    mixed, after = learner.predict(observation, state, starts, deterministic=True)
    goes_on, continued = learner.predict(observation, state, deterministic=True)
    anew, fresh = learner.predict(observation, None, deterministic=True)
    for row, begins in enumerate(starts):
        assert mixed[row] == (anew if begins else goes_on)[row]
        assert torch.equal(after[row], (fresh if begins else continued)[row])
    assert begun.tolist() == anew.tolist()


@every_kind
def test_acting_among_candidates_carries_the_state_of_the_same_merges(encoder):
    """With every other slot listed: the same pairs, the same states, in another numbering."""
    autoencoder, policy = small_autoencoder(2), carrying_policy(encoder)
    options = {"heights": (3,), "autoencoder": autoencoder}
    everyone = gym.make("HTM-Trees-v0", **options)
    near = gym.make("HTM-Trees-v0", **options, candidates="knn", k=6)
    for seed in range(3):
        one, two = everyone.reset(seed=seed)[0], near.reset(seed=seed)[0]
        state, other, done = None, None, False
        while not done:
            action, state = policy.act(one, generator(), True, state)
            chosen, other = policy.act(two, generator(), True, other)
            assert candidate_pair(chosen, two["candidates"]) == action_to_pair(action, 7)
            torch.testing.assert_close(state, other, **CLOSE)
            one, two = everyone.step(action)[0], near.step(chosen)[0]
            done = one["active"].sum() == 1


def test_ppo_refuses_it():
    context = ContextConfig(width=8, glom=GlomEncoderConfig(continued_iterations=2))
    with pytest.raises(ValueError, match="carries a state from merge to merge; PPO expects"):
        make_ppo("HTM-Trees-v0", n_envs=2, policy_kwargs={"encoder": "glom", "context": context})
    context = ContextConfig(width=8, glom=GlomEncoderConfig(denoising_weight=1.0))
    with pytest.raises(ValueError, match="has losses of its own; PPO expects"):
        make_ppo("HTM-Trees-v0", n_envs=2, policy_kwargs={"encoder": "glom", "context": context})

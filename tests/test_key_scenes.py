"""Key scenes need context: half of the first merges are right without, and nearly all with it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from episodes import generator

from agents.encoders import ENCODERS
from agents.learners.reinforce import Reinforce
from benchmarks.key_scenes import (
    REINFORCE,
    first_merge_accuracy,
    observation,
    reinforced,
    right_actions,
    set_cross_entropy,
    supervised,
)
from htm_env.datasets import make_dataset
from htm_env.forest import action_to_pair


def test_right_actions_are_the_pairs_of_the_rule_in_either_order():
    batch = make_dataset("HTM-Keys-v0").fixed(20)
    for right, clades in zip(right_actions(batch), batch.clades, strict=True):
        first, second = action_to_pair(right.nonzero().squeeze(1), 9)
        pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
        assert pairs == {frozenset(clade.nonzero().squeeze(1).tolist()) for clade in clades}
        assert len(first) == 2 * len(pairs) == 8


def test_the_loss_is_that_of_the_whole_set_by_hand():
    """Two of four equally likely actions are right: -log(1/2)."""
    right = torch.tensor([[True, False, True, False]])
    assert set_cross_entropy(torch.zeros(1, 4), right).item() == pytest.approx(math.log(2))
    sure = torch.tensor([[50.0, 0.0, 0.0, 0.0]])
    assert set_cross_entropy(sure, right).item() == pytest.approx(0.0, abs=1e-6)


def test_an_observation_shows_tokens_that_stand_alone():
    data = make_dataset("HTM-Keys-v0")
    batch = data.fixed(2)
    seen = observation(batch, data, ("centroids", "owners"))
    assert torch.equal(seen["tokens"], (batch.tokens - data.mean) / data.std)
    assert torch.equal(seen["centroids"], seen["tokens"])
    assert seen["owners"].tolist() == 2 * [list(range(9))]
    assert seen["leaf_counts"].tolist() == 2 * [[1] * 9]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "low", "high"),
    [("none", 0.4, 0.55)] + [(name, 0.95, 1.0) for name in ENCODERS],
)
def test_first_merges_are_right_with_context_only(encoder, low, high):
    steps = 100 if encoder in ("none", "attention") else 200
    found = supervised(encoder, seed=0, steps=steps, batch_size=64, split="validation")
    assert low <= found["first merges right"] <= high


@pytest.mark.slow
def test_a_reward_for_right_merges_teaches_attention_to_listen_to_the_key():
    config = replace(
        REINFORCE, encoder="attention", trees_per_sample=4, batch_growth=0.0, merges_curriculum=1.0
    )
    learner = Reinforce("HTM-Keys-v0", config, mode="frozen")
    for _ in range(200):
        learner.update(0.1)  # one merge an episode
    batch = learner.task.dataset("validation").fixed(500)
    merges = learner.plan(batch, generator(), greedy=True)
    assert float(first_merge_accuracy(merges, batch.clades)) > 0.9


def test_a_run_of_the_benchmark_repeats_itself():
    first, again = (reinforced("none", 3, 600, "validation") for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0}
    assert 0 <= first["pairs found"] <= 1

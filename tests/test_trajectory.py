"""Stored episodes: what is refused, and how they are padded."""

from __future__ import annotations

import math

import pytest
import torch

from htm_env.types import TokenBatch
from replay import Trajectories, Trajectory

TOKENS = torch.arange(6.0).view(3, 2)


def episode(**changes) -> Trajectory:
    """Three tokens, merged whole."""
    fields: dict = {
        "tokens": TOKENS,
        "merges": torch.tensor([[2, 0], [3, 1]]),
        "behaviour_log_prob": torch.tensor([-1.0, -0.5]),
        "tree_log_prob": -1.25,
        "policy_version": 7,
        "source": "nearest",
    }
    return Trajectory(**{**fields, **changes})


def test_whole_and_partial_forests_are_episodes():
    assert episode().merges.tolist() == [[2, 0], [3, 1]]
    partial = episode(merges=torch.tensor([[2, 0]]), behaviour_log_prob=torch.tensor([0.0]))
    assert math.isnan(Trajectory(TOKENS, partial.merges, partial.behaviour_log_prob).tree_log_prob)


BAD = {
    "one token": (
        {
            "tokens": TOKENS[:1],
            "merges": torch.zeros(0, 2).long(),
            "behaviour_log_prob": torch.zeros(0),
        },
        "this episode has 1 tokens; expected at least 2",
    ),
    "nan token": (
        {"tokens": torch.tensor([[0.0, 1], [2, math.nan], [4, 5]])},
        r"token 1 of this episode is \[2.0, nan\]; expected finite",
    ),
    "infinite log-probability": (
        {"behaviour_log_prob": torch.tensor([-1.0, -math.inf])},
        "merge 1 of this episode has the log-probability -inf; expected finite and at most 0",
    ),
    "nan log-probability": (
        {"behaviour_log_prob": torch.tensor([math.nan, -1.0])},
        "merge 0 of this episode has the log-probability nan",
    ),
    "positive log-probability": (
        {"behaviour_log_prob": torch.tensor([-1.0, 0.25])},
        "merge 1 of this episode has the log-probability 0.25",
    ),
    "positive probability of the tree": (
        {"tree_log_prob": 0.5},
        "the tree of this episode has the log-probability 0.5",
    ),
    "infinite probability of the tree": (
        {"tree_log_prob": -math.inf},
        "the tree of this episode has the log-probability -inf",
    ),
    "a node used twice": (
        {"merges": torch.tensor([[2, 0], [3, 0]])},
        r"merges of this episode are not a forest over its 3 tokens: merge 1 is \[3, 0\]; expected",
    ),
    "a node not made yet": (
        {"merges": torch.tensor([[3, 0], [1, 2]])},
        r"are not a forest over its 3 tokens: merge 0 is \[3, 0\]",
    ),
    "a node with itself": ({"merges": torch.tensor([[2, 2], [3, 1]])}, r"merge 0 is \[2, 2\]"),
    "padding": (
        {"merges": torch.tensor([[2, 0], [-1, -1]])},
        r"merge 1 of this episode is \[-1, -1\]",
    ),
    "too many merges": (
        {"merges": torch.tensor([[2, 0], [3, 1], [4, 4]]), "behaviour_log_prob": torch.zeros(3)},
        "this episode has 3 merges over 3 tokens; expected at most 2",
    ),
    "lengths that differ": (
        {"behaviour_log_prob": torch.zeros(1)},
        "this episode has 2 merges, but log-probabilities",
    ),
    "a negative version": ({"policy_version": -1}, "this episode has policy version -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_episode_is_refused(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        episode(**changes)


def test_padding():
    small = Trajectory(TOKENS[:2], torch.tensor([[1, 0]]), torch.tensor([-0.25]), source="policy")
    episodes = [episode(), small, episode(policy_version=8)]
    batch = Trajectories.pad(episodes)
    assert batch.tokens.shape == (3, 3, 2)
    assert batch.present.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    assert batch.merges[1].tolist() == [[1, 0], [-1, -1]]
    assert batch.behaviour_log_prob.tolist() == [[-1.0, -0.5], [-0.25, 0.0], [-1.0, -0.5]]
    assert batch.policy_version.tolist() == [7, 0, 8]
    assert (batch.sources, batch.source.tolist()) == (("nearest", "policy"), [0, 1, 0])
    assert batch.steps.tolist() == [[True, True], [True, False], [True, True]]
    batch.check()
    wider = Trajectories.pad(episodes, num_slots=5)
    assert wider.tokens.shape == (3, 5, 2)
    wider.check()
    assert equal(wider, batch.in_slots(5))
    assert equal(wider.in_slots(3), batch)
    with pytest.raises(ValueError, match="episode 0 has 3 tokens; expected at most 2"):
        wider.in_slots(2)


def equal(first: Trajectories, second: Trajectories) -> bool:
    return first.sources == second.sources and all(
        torch.equal(one.nan_to_num(9), other.nan_to_num(9))
        for one, other in zip(first[:-3], second[:-3], strict=True)
    )


def test_batches_are_joined_under_the_names_of_their_sources():
    first = Trajectories.pad([episode(), episode(source="policy")])
    second = Trajectories.pad([episode(source="chain"), episode(source="policy")])
    both = first.joined(second)
    assert both.sources == ("nearest", "policy", "chain")
    assert both.source.tolist() == [0, 1, 2, 1]
    assert equal(both.rows(slice(0, 2))._replace(sources=first.sources), first)
    assert torch.equal(both.merges[2:], second.merges)


def test_rows_and_the_samples_of_a_batch():
    batch = Trajectories.pad([episode(), episode(policy_version=9)])
    assert batch.rows(torch.tensor([1])).policy_version.tolist() == [9]
    assert batch.rows(slice(0, 1)).size == 1
    samples = batch.token_batch
    assert isinstance(samples, TokenBatch)
    assert torch.equal(samples.tokens, batch.tokens)
    assert samples.clades.shape == (2, 0, 3)
    assert (samples.merges == -1).all()


def test_a_batch_that_was_just_collected():
    batch = Trajectories.pad([episode(), episode()])
    found = Trajectories.collected(
        batch.token_batch, batch.merges, batch.behaviour_log_prob, policy_version=3
    )
    assert found.policy_version.tolist() == [3, 3]
    assert found.tree_log_prob.isnan().all()
    assert (found.sources, found.source.tolist()) == (("policy",), [0, 0])


def test_episodes_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="no episodes to pad"):
        Trajectories.pad([])
    with pytest.raises(ValueError, match="episode 1 has 3 tokens of 1 coordinates; expected at m"):
        Trajectories.pad([episode(), episode(tokens=TOKENS[:, :1])])
    with pytest.raises(ValueError, match="episode 0 has 3 tokens of 2 coordinates; expected at mo"):
        Trajectories.pad([episode()], num_slots=2)


def changed(batch: Trajectories, field: str, row: tuple, value: float) -> Trajectories:
    tensor = getattr(batch, field).clone()
    tensor[row] = value
    return batch._replace(**{field: tensor})


@pytest.mark.parametrize(
    ("field", "place", "value", "message"),
    [
        ("tokens", (1, 2, 0), math.inf, r"token 2 of episode 1 is \[inf, 5.0\]"),
        ("behaviour_log_prob", (1, 0), 1.0, "merge 0 of episode 1 has the log-probability 1.0"),
        ("behaviour_log_prob", (2, 1), -1.0, "merge 1 of episode 2 .* expected 0, since it is pad"),
        (
            "merges",
            (1, 1, 0),
            5,
            r"merges of episode 1 are not a forest over its 3 tokens: merge 1 is \[5, 1\]",
        ),
        ("merges", (1, 0), -1, r"merges of episode 1 are not a forest .* merge 1 is \[3, 1\]"),
        ("present", (0, 1), False, "episode 0 has an empty slot before a token"),
        ("source", (1,), 2, "episode 1 has source 2; expected an index into"),
        ("policy_version", (1,), -4, "episode 1 has policy version -4"),
        ("tree_log_prob", (2,), math.inf, "the tree of episode 2 has the log-probability inf"),
    ],
)
def test_a_batch_names_the_episode_that_is_wrong(field, place, value, message):
    small = Trajectory(TOKENS[:2], torch.tensor([[1, 0]]), torch.tensor([-0.25]))
    batch = Trajectories.pad([episode(), episode(), small])
    batch.check()
    with pytest.raises(ValueError, match=message):
        changed(batch, field, place, value).check()


def test_empty_slots_may_hold_anything():
    small = Trajectory(TOKENS[:2], torch.tensor([[1, 0]]), torch.tensor([-0.25]))
    batch = Trajectories.pad([episode(), small])
    changed(batch, "tokens", (1, 2), math.nan).check()


def test_a_batch_of_lengths_that_differ_is_refused():
    batch = Trajectories.pad([episode(), episode()])
    with pytest.raises(ValueError, match=r"behaviour_log_prob of 2 episodes in 3 slots has shape"):
        batch._replace(behaviour_log_prob=batch.behaviour_log_prob[:, :1]).check()


def test_trees_of_one_sample_stay_trees_of_one_sample():
    """Stored, joined with others that were numbered alike, drawn again, saved and read."""
    merges = torch.tensor([[[0, 1]]] * 3)
    batch = TokenBatch(
        torch.randn(2, 2, 1),
        torch.ones(2, 2, dtype=torch.bool),
        torch.zeros(2, 0, 2, dtype=torch.bool),
        merges[:2],
    ).rows(torch.tensor([0, 0, 1]))
    one = Trajectories.collected(batch, merges, torch.zeros(3, 1), policy_version=0)
    assert one.token_batch.sample.tolist() == [0, 0, 1]
    assert one.joined(one).sample.tolist() == [0, 0, 1, 2, 2, 3]
    alone = Trajectories.pad([Trajectory(torch.zeros(2, 1), merges[0], torch.zeros(1))] * 2)
    assert alone.token_batch.sample is None
    assert one.joined(alone).rows(torch.tensor([4, 1, 0])).sample.tolist() == [3, 0, 0]

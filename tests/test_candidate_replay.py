"""Stored episodes among candidates: their lists come back, and probabilities are exact in them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from episodes import RAGGED, generator, random_batch, random_policy

from agents.config.dataclasses_json import config_from_dict
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.learners.replay import ReplayConfig, ReplayReinforce
from agents.ppo import PPOLearner
from agents.rollouts.rollout import Episodes, follow, rollout
from agents.runs.checkpoint import load_state, save_state
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates import Nearest
from htm_env.files import read_tensors, write_tensors
from replay import CandidatePairs, ReplayBuffer, Trajectories, Trajectory

SIZES = [size for size in RAGGED if size > 1]
SMALL = {
    "autoencoder": {"hidden_dim": 16},
    "policy_hidden_dim": 16,
    "candidates": "knn",
    "k": 2,
}
TREES = {"env_kwargs": {"heights": (2, 3)}, "embedding_dim": 4}


def rolled(seed: int = 0, version: int = 0) -> tuple[Episodes, Trajectories]:
    autoencoder = HTMAutoencoder(3, 5, 16, generator=generator(1))
    batch = random_batch(SIZES, slots=7, seed=seed)
    episodes, terms = rollout(
        autoencoder, random_policy("pointer"), batch, generator(seed), nearest=Nearest(2)
    )
    return episodes, Trajectories.collected(
        batch,
        episodes.merges,
        terms.log_prob,
        policy_version=version,
        candidates=episodes.candidates,
    )


def pairs(candidates: CandidatePairs) -> list[list[list[int]]]:
    """The nodes and times of every episode's pairs."""
    both = torch.cat([candidates.nodes, candidates.times], dim=1)
    return [both[candidates.row == row].tolist() for row in range(candidates.size)]


def buffer(**options) -> ReplayBuffer:
    return ReplayBuffer(options.pop("capacity", 20), generator=generator(), **options)


def alone(stored: Trajectories, row: int) -> Trajectory:
    """One episode of a batch, with its lists."""
    steps = stored.steps[row]
    return Trajectory(
        stored.tokens[row, stored.present[row]],
        stored.merges[row, steps],
        stored.behaviour_log_prob[row, steps],
        candidates=torch.tensor(pairs(stored.candidates)[row]).view(-1, 4),
    )


def test_lists_are_taken_apart_and_joined_again():
    _, stored = rolled()
    again = Trajectories.pad([alone(stored, row) for row in range(stored.size)], 7)
    assert pairs(again.candidates) == pairs(stored.candidates)
    assert (again.candidates.size, again.candidates.steps) == (len(SIZES), 6)
    picked = stored.rows(torch.tensor([3, 3, 0])).candidates
    assert pairs(picked) == [pairs(stored.candidates)[row] for row in (3, 3, 0)]


def test_the_buffer_gives_back_the_lists_of_what_it_holds():
    held = buffer(capacity=12, max_staleness=2)
    expected: list = []
    for version in range(6):
        _, stored = rolled(version, version)
        held.add(stored)
        expected += [(version, each) for each in pairs(stored.candidates)]
        expected = [(v, each) for v, each in expected if v >= version - 2][-12:]
        assert pairs(held.trajectories().candidates) == [each for _, each in expected]
    drawn = held.sample(9)
    assert pairs(drawn.trajectories.candidates) == [expected[row][1] for row in drawn.indices]


def test_saved_and_restored_buffers_hold_the_same_lists(tmp_path):
    held = buffer()
    for version in range(3):
        held.add(rolled(version, version)[1])
    held.save(tmp_path / "buffer")
    loaded = ReplayBuffer.load(tmp_path / "buffer", generator=generator())
    restored = buffer()
    save_state(tmp_path / "state", {"buffer": held.state()})
    restored.restore(load_state(tmp_path / "state")["buffer"])
    newest = rolled(9, 9)[1]
    for other in (loaded, restored):
        other.add(newest)
    held.add(newest)
    for other in (loaded, restored):
        stored = other.trajectories()
        assert pairs(stored.candidates) == pairs(held.trajectories().candidates)
        assert torch.equal(stored.merges, held.trajectories().merges)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("pair_counts", 1000, "add up to"),
        ("pair_counts", -1, "add up to"),
        ("pairs", 99, r"a candidate of episode 0 is the pair of nodes \[99, 99\]"),
        ("pairs", -1, "a candidate of episode 0"),
    ],
)
def test_files_with_lists_that_are_none_are_named(column, value, message, tmp_path):
    held = buffer()
    held.add(rolled()[1])
    held.save(tmp_path / "buffer")
    tensors, config = read_tensors(tmp_path / "buffer", "replay buffer")
    tensors[column][0] = value
    write_tensors(tmp_path / "buffer", "replay buffer", tensors, config)
    with pytest.raises(ValueError, match=message):
        ReplayBuffer.load(tmp_path / "buffer")


def test_pairs_that_cannot_be_are_refused():
    tokens, merges = torch.zeros(3, 2), torch.tensor([[0, 1], [3, 2]])
    for wrong in ([0, 0, 0, 0], [0, 3, 0, 1], [0, 1, 1, 0], [0, 1, 0, 2], [-1, 1, 0, 0]):
        with pytest.raises(ValueError, match="a candidate of this episode is the pair of nodes"):
            Trajectory(tokens, merges, -torch.ones(2), candidates=torch.tensor([wrong]))
    Trajectory(tokens, merges, -torch.ones(2), candidates=torch.tensor([[0, 1, 0, 0]]))


def test_episodes_with_and_without_lists_do_not_mix():
    _, stored = rolled()
    without = stored._replace(candidates=None)
    held = buffer()
    held.add(stored)
    with pytest.raises(ValueError, match="episode 0 has no candidates; the episodes of this buf"):
        held.add(without)
    other = buffer()
    other.add(without)
    with pytest.raises(ValueError, match="episode 0 has candidates; the episodes of this buffer"):
        other.add(stored)
    plain = replace(alone(stored, 4), candidates=None)
    with pytest.raises(ValueError, match="either episode 4 or episode 0 has candidates"):
        Trajectories.pad([*(alone(stored, row) for row in range(4)), plain])


# ---------------------------------------------------------------- learners


def config(learner: type, **changes):
    return config_from_dict(learner.config_class, {**SMALL, **changes})


def test_probabilities_are_exact_in_the_stored_lists_though_the_autoencoder_moved():
    learner = ReplayReinforce(
        "HTM-Trees-v0",
        config(ReplayReinforce, replays=1, demonstration_share=[[0.0, 0.0]]),
        **TREES,
    )
    learner.update(0.0)
    before = learner.buffer.trajectories()
    twin = ReplayReinforce("HTM-Trees-v0", learner.config, **TREES)
    sample = before.token_batch
    with torch.no_grad():
        for weight in learner.autoencoder.parameters():
            weight += torch.randn(weight.shape, generator=generator(4))
    lists_now = follow(learner.autoencoder, sample, before.merges, Nearest(2)).candidates
    assert pairs(lists_now) != pairs(before.candidates)  # neighbours have moved
    episodes = follow(twin.autoencoder, sample, before.merges)
    stored = replace(episodes, candidates=before.candidates)
    seen = twin.policy.terms(twin.autoencoder, sample, stored).measured(True)
    torch.testing.assert_close(seen.log_prob, before.behaviour_log_prob, rtol=1e-4, atol=1e-4)
    scalars = learner.update(0.1)
    assert scalars["replay/effective_sample_share"] > 0.05


@pytest.mark.parametrize("learner", [Reinforce, ReplayReinforce, PPOLearner])
@pytest.mark.parametrize("neighbours", ["embeddings", "centroids"])
@pytest.mark.parametrize("encoder", ["none", "attention"])
def test_learners_learn_among_candidates_and_resume(learner, neighbours, encoder):
    own = {"n_envs": 3} if learner is PPOLearner else {"batch_size": 4}
    options = config(learner, neighbours=neighbours, encoder=encoder, context={"width": 8}, **own)
    one, other = (learner("HTM-Trees-v0", options, **TREES) for _ in range(2))
    for step in range(4):
        scalars = one.update(step / 8)
        assert all(math.isfinite(value) for value in scalars.values())
    other.restore(one.state())
    for step in range(4, 8):
        assert one.update(step / 8) == other.update(step / 8)
    sample = one.dataset.fixed(5)
    merges = one.plan(sample, generator(), greedy=True)
    assert torch.equal((merges[..., 0] >= 0).sum(1), sample.num_tokens - 1)


def test_the_probability_of_trees_is_not_known_among_candidates():
    with pytest.raises(ValueError, match=r"the correction tree .* candidates='knn'"):
        ReplayReinforce("HTM-Trees-v0", config(ReplayReinforce, correction="tree"), **TREES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": "some"}, "unknown candidates 'some'; choose from .*knn"),
        ({"neighbours": "far"}, "unknown neighbours 'far'; choose from .*centroids"),
        ({"k": 0}, "k is 0: expected a whole number from 1 to 65536"),
    ],
)
def test_rules_that_are_none_are_named(changes, message):
    for options in (ReinforceConfig, ReplayConfig):
        with pytest.raises(ValueError, match=message):
            options(**changes)

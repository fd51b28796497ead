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
from agents.likelihood.judging import judge
from agents.ppo import PPOLearner
from agents.rollouts.rollout import Rollout, follow, rollout
from agents.runs.checkpoint import load_state, save_state
from htm_env.autoencoder import HTMAutoencoder
from htm_env.candidates.neighbours import Nearest
from replay import CandidatePairs, ReplayBuffer, Trajectories, Trajectory
from replay.candidate_store import CandidateStore
from replay.files import read_tensors, write_tensors

SIZES = [size for size in RAGGED if size > 1]
SMALL = {
    "autoencoder": {"hidden_dim": 16},
    "policy_hidden_dim": 16,
    "candidates": "knn",
    "k": 2,
}
TREES = {"env_kwargs": {"heights": (2, 3)}, "embedding_dim": 4}


def rolled(seed: int = 0, version: int = 0) -> tuple[Rollout, Trajectories]:
    autoencoder = HTMAutoencoder(3, 5, 16, generator=generator(1))
    batch = random_batch(SIZES, slots=7, seed=seed)
    episodes = rollout(
        autoencoder, random_policy("pointer"), batch, generator(seed), nearest=Nearest(2)
    )
    return episodes, Trajectories.collected(
        batch,
        episodes.merges,
        episodes.log_prob,
        policy_version=version,
        candidates=episodes.candidates,
    )


def pairs(candidates: CandidatePairs) -> list[list[list[int]]]:
    return [each.tolist() for each in candidates.of_each()]


def buffer(**options) -> ReplayBuffer:
    return ReplayBuffer(options.pop("capacity", 20), generator=generator(), **options)


def test_lists_are_taken_apart_and_joined_again():
    episodes, stored = rolled()
    each = stored.unpad()
    assert [one.candidates.tolist() for one in each] == pairs(episodes.candidates)
    again = Trajectories.pad(each, 7)
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
        assert len(held._candidates) <= 2 * len(held)
    drawn = held.sample(9)
    by_place = {int(slot): row for row, slot in enumerate(held._ring.slots())}
    rows = [by_place[int(place)] for place in drawn.indices]
    assert pairs(drawn.trajectories.candidates) == [expected[row][1] for row in rows]


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


@pytest.mark.parametrize(("tokens", "size"), [(16_384, 2), (16_385, 4)])
def test_numbers_of_large_trees_fit(tokens, size):
    """The root of 16,384 tokens is node 32,766: the last but one that two bytes hold."""
    store, steps, root = CandidateStore(), tokens - 1, 2 * tokens - 2
    nodes, times = torch.tensor([[root, 0]]), torch.tensor([[0, steps - 1]])
    numbers = store.add(CandidatePairs(1, steps, torch.zeros(1).long(), nodes, times))
    assert store.contents(numbers)["pairs"].element_size() == size
    assert pairs(store.rows(numbers, steps)) == [[[root, 0, 0, steps - 1]]]


def test_counts_below_0_are_refused():
    with pytest.raises(ValueError, match="1 candidates of 2 episodes have 2 counts"):
        CandidateStore.of([0, 1], torch.zeros(1, 4).long(), [2, -1])


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
    with pytest.raises(ValueError, match="either episode 4 or episode 0 has candidates"):
        Trajectories.pad([*stored.unpad()[:4], without.unpad()[0]])


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
    seen = judge(
        twin.policy, twin.autoencoder, sample, replace(episodes, candidates=before.candidates)
    ).judged(True)
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
        ({"k": 0}, "k is 0; expected a whole number of at least 1"),
    ],
)
def test_rules_that_are_none_are_named(changes, message):
    for options in (ReinforceConfig, ReplayConfig):
        with pytest.raises(ValueError, match=message):
            options(**changes)

"""The replay buffer against a plain list, its sampling against its priorities, and its files."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import batched, random_tree
from scipy.stats import chisquare

from agents.runs.checkpoint import load_state, save_state
from htm_env.files import read_tensors, write_tensors
from replay import ReplayBuffer, Trajectories, Trajectory
from replay.buffer import SAMPLERS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episodes(
    count: int, seed: int = 0, version: int = 0, slots: int = 5, source: str = "policy"
) -> Trajectories:
    """Random samples of two to ``slots`` tokens of two coordinates, merged whole."""
    drawn = generator(seed)
    sizes = torch.randint(2, slots + 1, (count,), generator=drawn).tolist()
    forest = batched([random_tree(n, drawn) for n in sizes], slots)
    steps = forest.merges[..., 0] >= 0
    tokens = torch.randn(count, slots, 2, generator=drawn) * forest.present[..., None]
    log_prob = -torch.rand(count, slots - 1, generator=drawn) * steps
    return Trajectories(
        tokens,
        forest.present,
        forest.merges,
        log_prob,
        log_prob.sum(1),
        torch.full((count,), version),
        torch.zeros(count, dtype=torch.int64),
        (source,),
    )


def alone(batch: Trajectories, row: int) -> Trajectory:
    """One episode of a batch."""
    steps = batch.steps[row]
    return Trajectory(
        batch.tokens[row, batch.present[row]],
        batch.merges[row, steps],
        batch.behaviour_log_prob[row, steps],
        float(batch.tree_log_prob[row]),
        int(batch.policy_version[row]),
        batch.sources[int(batch.source[row])],
    )


def versions(buffer: ReplayBuffer) -> list[int]:
    return buffer.trajectories().policy_version.tolist() if len(buffer) else []


def equal(first: Trajectories, second: Trajectories) -> bool:
    return all(
        torch.equal(getattr(first, name).nan_to_num(9), getattr(second, name).nan_to_num(9))
        for name in first._fields[:-3]
    )


# ---------------------------------------------------------------- what is stored


def test_episodes_come_back_as_they_were():
    buffer = ReplayBuffer(100, generator=generator())
    first, second = episodes(30, seed=1), episodes(20, seed=2, version=3, source="nearest")
    buffer.add(first)
    buffer.add([alone(second, row) for row in range(20)])
    buffer.add(alone(episodes(1, seed=3, slots=2), 0))
    assert len(buffer) == 51
    stored = buffer.trajectories()
    assert equal(stored.rows(slice(0, 30)), first)
    assert torch.equal(stored.merges[30:50], second.merges)
    assert buffer.sources == ("policy", "nearest")
    assert stored.source[[0, 30, 50]].tolist() == [0, 1, 0]
    assert stored.present[50].tolist() == [True, True, False, False, False]
    stored.check()


def test_sources_of_several_batches_keep_their_names():
    buffer = ReplayBuffer(100, generator=generator())
    for source in ("a", "b", "a", "c"):
        buffer.add(episodes(2, source=source))
    stored = buffer.trajectories()
    assert [stored.sources[source] for source in stored.source] == list("aabbaacc")


class PlainBuffer:
    """What a bounded list would hold: the policy versions, the oldest first."""

    def __init__(self, capacity: int, max_staleness: int | None) -> None:
        self.capacity, self.max_staleness, self.held = capacity, max_staleness, []

    def add(self, new: list[int]) -> None:
        self.held = (self.held + new)[-self.capacity :]
        if self.max_staleness is not None:
            self.drop_older_than(max(self.held) - self.max_staleness)

    def drop_older_than(self, version: int) -> int:
        before = len(self.held)
        self.held = [held for held in self.held if held >= version]
        return before - len(self.held)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(0, 30), min_size=1, max_size=12)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("sample"), st.integers(1, 5)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=40)
@given(actions=ACTIONS, capacity=st.integers(1, 40), limit=st.none() | st.integers(0, 20))
def test_the_buffer_is_a_bounded_list(sampler, actions, capacity, limit):
    buffer = ReplayBuffer(capacity, generator=generator(), sampler=sampler, max_staleness=limit)
    plain = PlainBuffer(capacity, limit)
    source = episodes(12)
    for action, argument in actions:
        if action == "add":
            batch = source.rows(slice(0, len(argument)))
            values = torch.tensor(argument, dtype=torch.float32) - 15
            buffer.add(batch._replace(policy_version=torch.tensor(argument)), values)
            plain.add(argument)
        elif action == "drop":
            assert buffer.drop_older_than(argument) == plain.drop_older_than(argument)
        elif plain.held:
            sampled = buffer.sample(argument)
            assert set(sampled.trajectories.policy_version.tolist()) <= set(plain.held)
            buffer.update_priorities(sampled.indices, torch.randn(argument))
        assert len(buffer) == len(plain.held)
        assert versions(buffer) == plain.held


def test_many_episodes_come_and_go():
    buffer = ReplayBuffer(2000, generator=generator())
    expected: list[int] = []
    for step in range(60):
        buffer.add(episodes(97, seed=step, version=step))
        expected = (expected + [step] * 97)[-2000:]
        if step % 7 == 6:
            buffer.drop_older_than(step - 2)
            expected = [version for version in expected if version >= step - 2]
        assert versions(buffer) == expected
    buffer.trajectories().check()


# ---------------------------------------------------------------- what is refused


def test_all_or_nothing():
    buffer = ReplayBuffer(10, generator=generator())
    buffer.add(episodes(4))
    bad = episodes(3, seed=1)
    bad.behaviour_log_prob[2, 0] = 0.5
    with pytest.raises(ValueError, match=r"merge 0 of episode 2 has the log-probability 0.5"):
        buffer.add(bad)
    with pytest.raises(ValueError, match="the value of episode 1 is nan; expected finite"):
        buffer.add(episodes(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="values have shape"):
        buffer.add(episodes(2), torch.zeros(3))
    assert len(buffer) == 4
    assert equal(buffer.trajectories(), episodes(4))
    buffer.add([])
    assert len(buffer) == 4


def test_episodes_that_do_not_fit_are_named():
    buffer = ReplayBuffer(10, generator=generator())
    buffer.add(episodes(4))
    large = Trajectories.pad([*(alone(episodes(2), row) for row in range(2)), *full(6)])
    with pytest.raises(ValueError, match="episode 2 has 6 tokens; expected at most 5"):
        buffer.add(large)
    with pytest.raises(ValueError, match=r"episode 0 has tokens of 1 coordinates; .* have 2"):
        buffer.add(episodes(2)._replace(tokens=torch.zeros(2, 5, 1)))
    roomy = ReplayBuffer(10, generator=generator(), num_slots=6)
    roomy.add(episodes(4))
    roomy.add(large)
    assert roomy.trajectories().num_tokens.max() == 6


def full(n: int) -> list[Trajectory]:
    """One episode of exactly ``n`` tokens."""
    merges = [[0, 1], *([n + step, step + 2] for step in range(n - 2))]
    return [Trajectory(torch.zeros(n, 2), torch.tensor(merges), torch.zeros(n - 1))]


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="capacity is 0"):
        ReplayBuffer(0, generator=generator())
    with pytest.raises(ValueError, match="max_staleness is -1"):
        ReplayBuffer(1, generator=generator(), max_staleness=-1)
    with pytest.raises(ValueError, match=r"alpha is -0.5"):
        ReplayBuffer(1, generator=generator(), sampler="return", alpha=-0.5)
    with pytest.raises(ValueError, match=r"'rank'; choose from \['uniform', 'advantage', 'return'"):
        ReplayBuffer(1, generator=generator(), sampler="rank")
    buffer = ReplayBuffer(9, generator=generator())
    with pytest.raises(ValueError, match="cannot draw 4 of 0 episodes"):
        buffer.sample(4)
    with pytest.raises(ValueError, match="this buffer is empty"):
        buffer.trajectories()
    buffer.add(episodes(3))
    with pytest.raises(ValueError, match="index 3 holds no episode"):
        buffer.update_priorities(torch.tensor([0, 3]), torch.zeros(2))
    with pytest.raises(ValueError, match="the value of episode 1 is inf"):
        buffer.update_priorities(torch.tensor([0, 1]), torch.tensor([0.0, math.inf]))


def test_old_episodes_go_as_new_ones_come():
    buffer = ReplayBuffer(100, generator=generator(), max_staleness=2)
    for version in range(5):
        buffer.add(episodes(3, version=version))
    assert versions(buffer) == [2] * 3 + [3] * 3 + [4] * 3
    buffer.add(episodes(2, version=1))  # already too old
    assert versions(buffer) == [2] * 3 + [3] * 3 + [4] * 3
    assert buffer.drop_older_than(10) == 9
    assert len(buffer) == 0
    buffer.add(episodes(2, version=10))
    assert versions(buffer) == [10, 10]


# ---------------------------------------------------------------- sampling


VALUES = [-3.0, 0.0, 0.5, 1.0, 2.0]
ALPHA, BETA = 0.7, 0.5
PRIORITIES = {
    "uniform": np.ones(5),
    "advantage": (np.array([3.0, 0.0, 0.5, 1.0, 2.0]) + 0.01) ** ALPHA,
    "return": (np.array([0.0, 3.0, 3.5, 4.0, 5.0]) / 5 + 0.01) ** ALPHA,
}


def five(sampler: str) -> ReplayBuffer:
    buffer = ReplayBuffer(10, generator=generator(1), sampler=sampler, alpha=ALPHA, beta=BETA)
    batch = episodes(5)._replace(policy_version=torch.arange(5))
    buffer.add(batch, torch.tensor(VALUES))
    return buffer


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_episodes_are_drawn_in_proportion_to_their_priorities(sampler, later):
    buffer = five(sampler)
    if later:  # values that change come to the same
        buffer.update_priorities(torch.arange(5), torch.tensor([5.0, -9, 7, 0, 0]))
        buffer.sample(3)
        buffer.update_priorities(torch.arange(5), torch.tensor(VALUES))
    share = PRIORITIES[sampler] / PRIORITIES[sampler].sum()
    count, calls = 20, 400
    found = np.zeros(5)
    for _ in range(calls):
        sampled = buffer.sample(count)
        which = sampled.trajectories.policy_version.numpy()
        times = np.bincount(which, minlength=5)
        assert (np.abs(times - count * share) < 2).all()  # stratified: never far off
        found += times
        beta = 0 if sampler == "uniform" else BETA
        weights = (5 * share) ** -beta
        np.testing.assert_allclose(sampled.weights, weights[which] / weights.max(), rtol=1e-6)
    assert chisquare(found, count * calls * share).pvalue > 0.01


def test_weights_correct_the_sampling_fully_at_beta_one():
    buffer = ReplayBuffer(10, generator=generator(), sampler="advantage", alpha=1.0, beta=1.0)
    buffer.add(episodes(5)._replace(policy_version=torch.arange(5)), torch.tensor(VALUES))
    total, weight = 0.0, 0.0
    for _ in range(300):
        sampled = buffer.sample(100)
        total += float((sampled.weights * sampled.trajectories.policy_version).sum())
        weight += float(sampled.weights.sum())
    assert total / weight == pytest.approx(2.0, abs=0.15)  # the plain mean of 0 .. 4


@pytest.mark.parametrize("sampler", ["advantage", "return"])
def test_new_episodes_have_the_largest_priority(sampler):
    buffer = five(sampler)
    buffer.sample(1)
    buffer.add(episodes(1)._replace(policy_version=torch.tensor([5])))
    shares = np.append(PRIORITIES[sampler], PRIORITIES[sampler].max())
    found = np.zeros(6)
    for _ in range(200):
        found += np.bincount(buffer.sample(20).trajectories.policy_version, minlength=6)
    assert chisquare(found, 4000 * shares / shares.sum()).pvalue > 0.01


def test_without_any_value_all_are_alike():
    for sampler in SAMPLERS:
        buffer = ReplayBuffer(10, generator=generator(), sampler=sampler)
        buffer.add(episodes(4)._replace(policy_version=torch.arange(4)))
        assert sorted(buffer.sample(4).trajectories.policy_version.tolist()) == [0, 1, 2, 3]
        assert (buffer.sample(4).weights == 1).all()


def test_the_last_of_equal_indices_counts():
    buffer = five("advantage")
    buffer.update_priorities(torch.tensor([1, 1, 1]), torch.tensor([5.0, 6.0, 0.25]))
    assert buffer.state()["columns"]["value"][1] == 0.25


# ---------------------------------------------------------------- save and resume


def worked(sampler: str, seed: int = 4) -> ReplayBuffer:
    """A buffer that was full, with values for some of its episodes."""
    buffer = ReplayBuffer(300, generator=generator(seed), sampler=sampler, max_staleness=6)
    for step in range(8):
        buffer.add(episodes(90, seed=step, version=step))
        work(buffer)
    return buffer


def work(buffer: ReplayBuffer) -> list[torch.Tensor]:
    sampled = buffer.sample(16)
    buffer.update_priorities(sampled.indices, sampled.trajectories.tokens.sum((1, 2)))
    return [sampled.indices, sampled.weights, sampled.trajectories.merges]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_restored_buffer_continues_bit_for_bit(sampler, tmp_path):
    buffer = worked(sampler)
    save_state(tmp_path / "state.safetensors", {"replay": buffer.state()})
    other = ReplayBuffer(300, generator=generator(99), sampler=sampler, max_staleness=6)
    other.restore(load_state(tmp_path / "state.safetensors")["replay"])
    for step in range(8, 14):
        for one in (buffer, other):
            one.add(episodes(70, seed=step, version=step))
        for found, expected in zip(work(other), work(buffer), strict=True):
            assert torch.equal(found, expected)
        assert equal(other.trajectories(), buffer.trajectories())


def test_a_state_does_not_change_when_the_buffer_does():
    buffer = worked("advantage")
    state = buffer.state()
    before = {name: column.clone() for name, column in state["columns"].items()}
    buffer.add(episodes(200, version=8))
    work(buffer)
    assert all(
        torch.equal(column.nan_to_num(9), before[name].nan_to_num(9))
        for name, column in state["columns"].items()
    )


def test_the_state_of_another_buffer_is_refused():
    with pytest.raises(ValueError, match=r"the state is that of a buffer with .*'capacity': 300"):
        ReplayBuffer(20, generator=generator()).restore(worked("uniform").state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_saved_buffer_is_loaded(sampler, tmp_path):
    buffer, path = worked(sampler), tmp_path / "new" / "buffer.safetensors"
    buffer.save(path)
    other = ReplayBuffer.load(path, generator=generator(7))
    assert equal(other.trajectories(), buffer.trajectories())
    buffer.generator.manual_seed(7)
    for found, expected in zip(work(other), work(buffer), strict=True):
        assert torch.equal(found, expected)


def test_an_empty_buffer_is_saved_and_loaded(tmp_path):
    ReplayBuffer(20, generator=generator()).save(tmp_path / "empty")
    loaded = ReplayBuffer.load(tmp_path / "empty", generator=generator())
    assert len(loaded) == 0
    loaded.add(episodes(3))
    assert len(loaded) == 3
    loaded.drop_older_than(1)
    loaded.save(tmp_path / "empty")
    assert len(ReplayBuffer.load(tmp_path / "empty", generator=generator())) == 0


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def killed(*paths) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("call", "failure", "error"),
    [("fsync", full_disk, OSError), ("replace", killed, KeyboardInterrupt)],
    ids=["full disk", "interrupted"],
)
def test_a_write_that_fails_leaves_the_old_buffer(call, failure, error, tmp_path, monkeypatch):
    path = tmp_path / "buffer.safetensors"
    buffer = worked("return")
    buffer.save(path)
    before, content = buffer.trajectories(), path.read_bytes()
    buffer.add(episodes(50, version=9))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failure)
        with pytest.raises(error):
            buffer.save(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing is left behind
    assert equal(ReplayBuffer.load(path, generator=generator()).trajectories(), before)
    drawn = [ReplayBuffer.load(path).sample(4).indices.tolist() for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_what_a_killed_process_left_does_not_matter(tmp_path):
    path = tmp_path / "buffer.safetensors"
    (tmp_path / ".buffer.safetensors.tmp").write_bytes(b"half a file")
    worked("uniform").save(path)
    assert len(ReplayBuffer.load(path, generator=generator())) == 300


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named(share, tmp_path):
    path = tmp_path / "buffer.safetensors"
    worked("uniform").save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"buffer\.safetensors does not hold a replay buffer"):
        ReplayBuffer.load(path, generator=generator())


def test_files_of_something_else_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no replay buffer at .*missing"):
        ReplayBuffer.load(tmp_path / "missing", generator=generator())
    (tmp_path / "text").write_text("hello")
    save_state(tmp_path / "other", {"a": torch.zeros(3)})
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=f"{name} does not hold a replay buffer"):
            ReplayBuffer.load(tmp_path / name, generator=generator())


@pytest.mark.parametrize(
    ("column", "place", "value", "message"),
    [
        ("behaviour_log_prob", (7, 0), 0.5, "merge 0 of episode 7 has the log-probability 0.5"),
        ("merges", (9, 0, 0), 100, "the merges of episode .*expected pairs of different"),
        ("priority", (3,), -1.0, "priorities that are not positive"),
        ("num_tokens", (4,), 1, "episode 4 has 1 tokens"),
        ("source", (4,), 3, "episode 4 has source 3"),
    ],
)
def test_a_file_with_episodes_that_are_none_is_named(column, place, value, message, tmp_path):
    path = tmp_path / "bad"
    worked("uniform").save(path)
    columns, about = read_tensors(path, "replay buffer")
    columns[column][place] = value
    write_tensors(path, "replay buffer", columns, about)
    with pytest.raises(ValueError, match=f"bad does not hold a replay buffer .*{message}"):
        ReplayBuffer.load(path, generator=generator())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_state_of_version_0_continues(sampler):
    """It had narrow integers, a place in a ring, a shape of columns and bounds of values."""
    buffer = worked(sampler)
    state = buffer.state()
    narrow = {"merges": torch.int8, "source": torch.int16, "num_tokens": torch.int32}
    columns = state["columns"]
    old = {**columns, **{name: columns[name].to(dtype) for name, dtype in narrow.items()}}
    extra = {"shape": [5, 2, False], "place": [7, 300], "bounds": [-1.0, 1.0]}
    other = ReplayBuffer(300, generator=generator(99), sampler=sampler, max_staleness=6)
    other.restore({**state, "columns": old, **extra})
    assert equal(other.trajectories(), buffer.trajectories())
    for found, expected in zip(work(other), work(buffer), strict=True):
        assert torch.equal(found, expected)

"""The short form of the benchmarks that hold the whole up for long: kills, and random actions."""

from __future__ import annotations

import random

import pytest

from benchmarks.endurance import endure
from benchmarks.fuzzed_environment import fuzz
from htm_env.registration import FLAT_IDS, IDS


@pytest.mark.timeout(1200)  # of the long form
def test_runs_that_are_disturbed_at_random_end_as_if_nothing_had_happened(tmp_path, in_full):
    kills = {"nearest": 20, "reinforce": 20, "replay": 20} if in_full else {"nearest": 4}
    for algo, count in kills.items():
        tally = endure(algo, count, tmp_path / algo, random.Random(algo))
        assert tally.others == []
        assert (tally.disturbed, tally.identical) == (count, tally.runs)


@pytest.mark.timeout(1200)  # of the long form
@pytest.mark.parametrize("env_id", [*IDS, *FLAT_IDS])
def test_random_actions_break_nothing(env_id, in_full):
    found = fuzz(env_id, 5000 if in_full else 100, steps=100 if in_full else 5)
    assert found.broken == []
    assert found.illegal > 0 < found.episodes
    assert found.largest <= 1e-5

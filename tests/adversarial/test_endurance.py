"""The short form of the benchmarks that take long: runs that are killed, and random actions."""

from __future__ import annotations

import random

import pytest

from benchmarks.endurance import endure
from benchmarks.fuzzed_environment import fuzz
from htm_env.registration import FLAT_IDS, IDS

KILLS = {"nearest": 15, "reinforce": 15, "replay": 15}
SOME = ("HTM-Trees-v0", "HTM-Jets-Flat-v0")


@pytest.mark.timeout(1200)  # of the long form
def test_runs_that_are_disturbed_at_random_end_as_if_nothing_had_happened(tmp_path, in_full):
    if not in_full:
        pytest.skip("make test-adversarial disturbs runs at random, test_resume at chosen moments")
    for algo, count in KILLS.items():
        tally = endure(algo, count, tmp_path / algo, random.Random(algo))
        assert tally.others == []
        assert (tally.disturbed, tally.identical) == (count, tally.runs)


@pytest.mark.timeout(1200)  # of the long form
def test_random_actions_break_nothing(in_full):
    for env_id in (*IDS, *FLAT_IDS) if in_full else SOME:
        found = fuzz(env_id, 3000 if in_full else 200, steps=30)
        assert found.broken == []
        assert min(found.actions, found.illegal, found.episodes) > 0
        assert found.largest <= 1e-5

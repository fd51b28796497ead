"""Sets of many tokens: advice, the size of updates and validations, signs of life, clustering."""

from __future__ import annotations

import io
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from scipy.cluster.hierarchy import linkage

from agents import FixedOrder, Reinforce, ReinforceConfig
from agents.evaluation.evaluate import validation_episodes
from agents.fixed import fixed_policy
from agents.learners.fixed_order import FixedOrderConfig
from agents.runs.loop import Position
from agents.runs.progress import ProgressBar, every, waiting
from htm_env.candidates import Nearest, advice_on_pairs
from htm_env.datasets import make_dataset
from htm_env.trees.merge_tree import MergeTree


def points(tokens, rows=20):
    return np.random.default_rng(0).standard_normal((rows, tokens, 2))


# ---------------------------------------------------------------- advice


def test_all_pairs_of_large_sets_are_priced():
    """1,000 tokens: 999,000 ordered pairs, and 4 bytes for each of a million in every tree."""
    assert advice_on_pairs(1000, None, trees=10) == (
        "sets of 1,000 tokens have 999,000 pairs to score at the first merge, in tables of 40.0 MB "
        "for 10 trees at a time; candidates knn with k=8 scores 8,000"
    )


def test_small_sets_and_candidates_need_no_advice():
    assert advice_on_pairs(256, None) is None
    assert advice_on_pairs(1000, Nearest(8)) is None


def test_the_environment_warns_once_of_all_pairs():
    data = {"dataset": points(257), "embedding_dim": 4}
    with pytest.warns(UserWarning, match=r"sets of 257 tokens have 65,792 pairs .* MB a tree;"):
        gym.make("htm_env:HTM-v0", **data)


def test_learners_advise():
    learner = Reinforce("HTM-v0", env_kwargs={"dataset": points(300)}, embedding_dim=4)
    assert "300 tokens" in learner.advice() and "for 54 trees" in learner.advice()
    knn = ReinforceConfig(candidates="knn")
    assert Reinforce("HTM-Trees-v0", knn).advice() is None


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("tokens", "samples"), [(20, 100), (256, 100), (512, 16), (9000, 1)])
def test_an_update_takes_few_large_sets(tokens, samples):
    config = FixedOrderConfig(policy="chain")
    data = {"dataset": points(tokens), "split_fractions": (0.8, 0.1, 0.1)}
    learner = FixedOrder("HTM-v0", config, env_kwargs=data, embedding_dim=2)
    assert learner.dataset.affordable(100) == samples


@pytest.mark.parametrize(("tokens", "episodes"), [(20, 256), (256, 256), (512, 128)])
def test_a_validation_takes_few_large_sets(tokens, episodes):
    assert validation_episodes(make_dataset(points(tokens), "validation")) == episodes


# ---------------------------------------------------------------- clustering


def test_clustering_of_many_tokens_is_that_of_scipy():
    data = make_dataset(points(300, rows=10))
    autoencoder = small_autoencoder(2)
    autoencoder.set_statistics(data.mean, data.std)
    batch = data.fixed(2)
    merges = fixed_policy("ward", autoencoder).plan(batch, torch.Generator())
    for row in range(2):
        standardised = autoencoder.standardise(batch.tokens)[row].double().numpy()
        theirs = linkage(standardised, "ward")[:, :2].astype(np.int64)
        ours = MergeTree(merges[row].numpy(), 300).clades()
        assert ours == MergeTree(theirs, 300).clades()


# ---------------------------------------------------------------- signs of life


def test_a_bar_without_a_terminal_tells_of_a_long_first_update(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    bar = ProgressBar("HTM-v0 chain", clock=lambda: now[0])
    for second in range(16):
        now[0] = float(second)
        bar.tick(Position(second / 100, float(second), 0, 0), "update 1")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "HTM-v0 chain    3%  3 s  0 merges  update 1"
    assert [line.split()[3] for line in lines] == ["3", "13"]


def test_a_thread_ticks_until_its_block_is_left():
    ticked = threading.Event()
    with every(0.001, ticked.set):
        assert ticked.wait(10)
    before = threading.active_count()
    ticked.clear()
    assert threading.active_count() == before and not ticked.is_set()


def test_what_is_not_visible_prints_nothing(capsys):
    with waiting("scores", visible=False):
        pass
    assert capsys.readouterr().err == ""

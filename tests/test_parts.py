"""Batches in parts: every row once, and the autoencoder's steps on them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import small_autoencoder
from episodes import random_batch
from hypothesis import given
from hypothesis import strategies as st

from agents.optim.autoencoder_trainer import (
    AutoencoderConfig,
    AutoencoderTrainer,
    equal_parts,
    mean_scalars,
)
from htm_env.datasets import make_dataset


@given(st.integers(1, 300), st.integers(1, 100))
def test_parts_hold_every_row_once_and_are_about_equal(total, size):
    parts = equal_parts(total, size)
    assert sorted(torch.cat(parts).tolist()) == list(range(total))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == max(1, round(total / size))


def test_trees_of_a_sample_come_into_different_parts():
    assert [part.tolist() for part in equal_parts(6, 2)] == [[0, 3], [1, 4], [2, 5]]


def test_means_are_of_what_is_there_and_finite():
    found = mean_scalars([{"a": 1.0, "b": math.nan}, {"a": 4.0, "c": 7.0}, {"a": math.inf}])
    assert math.isnan(found.pop("b"))
    assert found == {"a": 2.5, "c": 7.0}
    assert mean_scalars([]) == {}


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_parts_are_the_samples_in_order(size):
    batch = random_batch([3, 2, 5, 4, 2, 3, 2, 4])
    parts = list(batch.parts(size))
    assert [len(part.tokens) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 1 <= len(parts[-1].tokens) <= size
    for name in ("tokens", "present", "clades", "merges"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name))


@pytest.mark.parametrize("trees_per_step", [1, 3, 8, 100])
def test_steps_in_parts_are_steps_one_after_the_other(trees_per_step):
    dataset = make_dataset("HTM-Trees-v0", "train", heights=(2,))
    batch = dataset.sample(8, torch.Generator().manual_seed(0))
    merges = batch.merges
    config = AutoencoderConfig(noise_std=0.1)
    one = small_autoencoder(token_dim=2)
    other = copy.deepcopy(one)
    trainers = [
        AutoencoderTrainer(each, config, torch.Generator().manual_seed(1)) for each in (one, other)
    ]
    found = trainers[0].update_in_parts(batch, merges, trees_per_step, 0.2)
    rows = [
        trainers[1].update(batch.rows(part), merges[part], 0.2)
        for part in equal_parts(8, trees_per_step)
    ]
    assert found["loss/reconstruction"] == pytest.approx(
        sum(row["loss/reconstruction"] for row in rows) / len(rows)
    )
    assert one.weights_hash() == other.weights_hash()

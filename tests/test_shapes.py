"""Shapes of trees and distances between them, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.evaluation.shapes import shape_codes, tree_diagnoses, tree_distances
from agents.fixed import fixed_policy
from agents.learners.reinforce import Reinforce, ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.forest import pad_merges

MODEL = HTMAutoencoder(2, 4, 8, generator=torch.Generator().manual_seed(0))
CHAIN = [(0, 1), (4, 2), (5, 3)]
TURNED = [(1, 3), (2, 4), (0, 5)]
PAIRS = [(0, 3), (1, 2), (5, 4)]


def trees(*merges: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(merges)


def test_leaves_and_turned_pairs_change_no_shape():
    chain, turned, pairs = shape_codes(trees(CHAIN, TURNED, PAIRS), torch.full((3,), 4)).tolist()
    assert chain == turned != pairs


def test_trees_of_other_sizes_have_other_shapes_and_padding_changes_none():
    three = pad_merges(trees([(0, 1), (3, 2)]), 4)
    codes = shape_codes(torch.cat([three, trees(CHAIN)]), torch.tensor([3, 4]))
    assert codes[0] != codes[1]
    assert codes[0] == shape_codes(trees([(2, 1), (0, 3)]), torch.tensor([3]))[0]


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_as_many_shapes_as_there_are_are_found(tokens, seed):
    """The shapes of rooted binary trees without names: 1, 1, 2, 3, 6, 11, 23, 46, from two on."""
    generator = torch.Generator().manual_seed(seed)
    sets = torch.rand(32, tokens, 2, generator=generator).numpy()
    batch = make_dataset("HTM-v0", dataset=sets).fixed(16)
    merges = fixed_policy("random", MODEL).plan(batch, generator)
    known = (1, 1, 2, 3, 6, 11, 23, 46)[tokens - 2]
    assert 1 <= len(shape_codes(merges, batch.num_tokens).unique()) <= known


def test_distances_count_the_clades_that_are_not_shared():
    batch = make_dataset("HTM-v0", dataset=torch.rand(30, 4, 2).numpy()).fixed(3)
    # The chain has the clades 01 and 012; the second tree 03 and 12, the third 01 and 23.
    others = trees(CHAIN, PAIRS, [(0, 1), (2, 3), (4, 5)])
    found = tree_distances(trees(CHAIN, CHAIN, CHAIN), others, batch)
    assert found.tolist() == pytest.approx([0.0, 1.0, 0.5])


def test_a_rule_is_at_distance_0_from_itself_and_has_as_many_shapes_as_sizes():
    dataset = make_dataset("HTM-Crosses-v0", split="test")  # two, four and six segments
    learner = Reinforce("HTM-Crosses-v0")
    rule = fixed_policy("even_sorted", learner.autoencoder)
    found = tree_diagnoses(rule, rule, dataset, learner.device, 64)
    assert found == {"tree_shapes": 3.0, "cloned_distance": 0.0}


def test_every_learned_row_has_its_diagnoses_and_none_is_cloned_from_nothing():
    config = ReinforceConfig(autoencoder=AutoencoderConfig(hidden_dim=8), policy_hidden_dim=8)
    learner = Reinforce("HTM-Digits-v0", replace(config, demonstrations=("balanced_sorted",)))
    dataset = learner.task.dataset("validation")
    scores = learner.evaluate(dataset, 8)
    assert 1 <= scores["tree_shapes"] <= 8 and 0 < scores["cloned_distance"] <= 1
    assert "tree_shapes" not in learner.evaluate(dataset, 8, sampled=False)  # while it trains
    nothing = Reinforce("HTM-Digits-v0", replace(config, demonstration_share=((0.0, 0.0),)))
    assert nothing.evaluate(dataset, 8)["cloned_distance"] is None

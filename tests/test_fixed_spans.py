"""The ``spans`` policy: from the user's levels to trained trees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_autoencoder

from agents import FixedOrder, FixedOrderConfig
from agents.cli import main
from agents.fixed import fixed_policy
from agents.optim.autoencoder_trainer import AutoencoderConfig
from htm_env import make_dataset
from htm_env.datasets.sets import joined_spans
from htm_env.forest import leaf_sets
from htm_env.measures.metrics import clade_scores

TOKENS = np.random.default_rng(0).normal(size=(20, 6, 2))
SPANS = [[[(0, 2), (2, 5), (5, 6)], [(1, 3)]]] * 20
"""Tokens 01, 234, 5; then 234 with 5."""
CLADES = [{0, 1}, {2, 3, 4}, {2, 3, 4, 5}]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_trees_are_those_of_the_levels():
    dataset = make_dataset(TOKENS, spans=SPANS)
    batch = dataset.sample(8, generator())
    merges = fixed_policy("spans", small_autoencoder(2)).plan(batch, generator(), greedy=True)
    assert torch.equal(merges, batch.merges)
    trees = leaf_sets(merges, batch.num_tokens)
    scores = clade_scores(trees, batch.clades, batch.present)
    assert (scores.recall == 1).all() and (scores.f1 == 1).all()
    for row, tokens in enumerate(batch.tokens.numpy()):
        (found,) = (np.abs(TOKENS - tokens[:, None, None]) < 1e-6).all(3).any(0).all(1).nonzero()
        place = [int(np.abs(TOKENS[found[0]] - token).sum(1).argmin()) for token in tokens]
        made = [
            {place[slot] for slot in leaves.nonzero().ravel().tolist()} for leaves in trees[row]
        ]
        assert all(clade in made for clade in CLADES)


def test_other_policies_follow_the_same_levels():
    batch = make_dataset(TOKENS, spans=SPANS).sample(8, generator())
    merges = fixed_policy("structure", small_autoencoder(2)).plan(batch, generator(), greedy=True)
    assert torch.equal(merges.sort(2).values, batch.merges.sort(2).values)


def test_data_without_spans_are_told_what_is_missing():
    batch = make_dataset(TOKENS).sample(2, generator())
    message = "sample 0 of this data comes with 0 merges over its 6 tokens; .* 'span_counts' of an"
    with pytest.raises(ValueError, match=message):
        fixed_policy("spans", small_autoencoder(2)).plan(batch, generator(), greedy=True)


def test_a_saved_agent_takes_its_spans_along(tmp_path):
    config = FixedOrderConfig(AutoencoderConfig(hidden_dim=8), policy="spans")
    for data in (TOKENS, list(TOKENS)):
        task = {"dataset": data, "spans": SPANS}
        agent = FixedOrder("HTM-v0", config, env_kwargs=task, embedding_dim=3)
        folder = tmp_path / type(data).__name__
        agent.save(folder)
        folder.rename(tmp_path / "moved")
        again = FixedOrder.load(tmp_path / "moved")
        (tmp_path / "moved").rename(folder)
        pairs = zip(again.dataset.fixed(9)[:4], agent.dataset.fixed(9)[:4], strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert again.dataset.has_hierarchy


def test_the_command_trains_on_a_file_with_spans(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("mine.npz", tokens=TOKENS, **joined_spans(SPANS))
    np.savez("bare.npz", tokens=TOKENS)
    arguments = [
        "train",
        "--env",
        "HTM-v0",
        "--algo",
        "spans",
        "--merges",
        "60",
        "--out",
        "out",
        "--set",
        "autoencoder.hidden_dim=8",
        "--env-kwargs",
    ]
    assert main([*arguments, '{"dataset": "bare.npz"}']) == 1
    captured = capsys.readouterr()
    assert "the spans policy expected levels of spans" in captured.err
    assert not Path("out").exists()
    assert main([*arguments, '{"dataset": "mine.npz"}']) == 0
    assert '"tree_recall": 1.0' in Path("out/result.json").read_text()

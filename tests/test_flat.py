"""The set autoencoder without merges: its sets have no order, and its size is the tree's."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from agents.cli import main
from agents.comparison.problems import PROBLEMS
from agents.learners.flat import (
    Flat,
    FlatAutoencoder,
    FlatConfig,
    matched,
    matching_width,
    num_parameters,
)
from agents.registry import load_learner
from htm_env import HTMAutoencoder, make_dataset

SMALL = FlatConfig(hidden_dim=16, batch_size=32)
TREES = {"env_kwargs": {"heights": [2]}, "embedding_dim": 4}


POOLINGS = pytest.mark.parametrize("pooling", ["deep_sets", "set_transformer"])


def small(pooling: str = "deep_sets") -> FlatAutoencoder:
    generator = torch.Generator().manual_seed(0)
    return FlatAutoencoder(2, 5, 3, 8, pooling=pooling, generator=generator)


def test_a_decoded_set_is_matched_one_to_one():
    """Slots 1, 2, 0 decode tokens 0, 1, 2; the fourth decoded token is not of the set."""
    target = torch.tensor([[[0.0], [10.0], [20.0], [0.0]]])
    decoded = torch.tensor([[[21.0], [1.0], [11.0], [20.0]]])
    present = torch.tensor([[True, True, True, False]])
    assert matched(decoded, target, present).flatten().tolist() == [1.0, 11.0, 21.0, 0.0]


def test_no_token_serves_twice():
    """Both decoded 0 and 9 are nearest to their own; the one that stands for 1 has to be 9."""
    target = torch.tensor([[[0.0], [1.0]]])
    decoded = torch.tensor([[[0.4], [9.0]]])
    present = torch.ones(1, 2, dtype=torch.bool)
    assert matched(decoded, target, present).flatten().tolist() == pytest.approx([0.4, 9.0])


def test_matching_is_the_best_of_all_orders():
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(6, 4, 2, generator=generator)
    decoded = torch.randn(6, 5, 2, generator=generator)
    present = torch.arange(4) < torch.tensor([[1], [2], [3], [4], [4], [4]])
    result = matched(decoded, target, present)
    for row, n in enumerate(present.sum(1).tolist()):
        best = min(
            float((decoded[row, list(order)] - target[row, :n]).square().sum())
            for order in itertools.permutations(range(n))
        )
        found = float((result[row, :n] - target[row, :n]).square().sum())
        assert found == pytest.approx(best, rel=1e-6)


def test_gradients_go_through_the_matched_tokens_only():
    decoded = torch.tensor([[[5.0], [1.0], [7.0]]], requires_grad=True)
    target = torch.tensor([[[1.0], [5.0]]])
    matched(decoded, target, torch.ones(1, 2, dtype=torch.bool)).sum().backward()
    assert decoded.grad.flatten().tolist() == [1.0, 1.0, 0.0]


def test_what_is_not_finite_stays_visible():
    decoded = torch.tensor([[[float("nan")], [1.0]]])
    target = torch.zeros(1, 2, 1)
    assert matched(decoded, target, torch.ones(1, 2, dtype=torch.bool)).isnan().any()


@POOLINGS
def test_the_encoder_knows_no_order_and_no_empty_slots(pooling):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(3, 4, 2, generator=generator)
    present = torch.ones(3, 4, dtype=torch.bool)
    flat = small(pooling)
    root = flat.encode(tokens, present)
    torch.testing.assert_close(flat.encode(tokens[:, [2, 0, 3, 1]], present), root)
    padded = torch.cat([tokens, torch.full((3, 2, 2), 9.0)], dim=1)
    mask = torch.cat([present, torch.zeros(3, 2, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(flat.encode(padded, mask), root)


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="6 tokens; this flat autoencoder was made for at most 5"):
        small().decode(torch.zeros(1, 3), torch.tensor([6]))


@pytest.mark.parametrize("name", [name for name in PROBLEMS if PROBLEMS[name].embedding_dim])
def test_it_has_as_many_parameters_as_the_tree(name):
    problem = PROBLEMS[name]
    dataset = make_dataset(problem.env, **problem.env_kwargs)
    size = (dataset.token_dim, dataset.max_tokens, problem.embedding_dim)
    before = torch.get_rng_state()
    width = matching_width(*size, 256)
    assert torch.equal(torch.get_rng_state(), before)
    tree = num_parameters(HTMAutoencoder(dataset.token_dim, problem.embedding_dim, 256))
    assert num_parameters(FlatAutoencoder(*size, width)) == pytest.approx(tree, rel=0.02)
    other = num_parameters(FlatAutoencoder(*size, width + 1))
    assert abs(other - tree) > abs(num_parameters(FlatAutoencoder(*size, width)) - tree)


def test_attention_has_as_many_parameters_as_nearly_as_two_heads_allow():
    size = (8, 20, 16)
    width = matching_width(*size, 256, "set_transformer")
    tree = num_parameters(HTMAutoencoder(8, 16, 256))
    sizes = [
        abs(num_parameters(FlatAutoencoder(*size, other, pooling="set_transformer")) - tree)
        for other in (width - 2, width, width + 2)
    ]
    assert width % 2 == 0
    assert min(sizes) == sizes[1] < 0.05 * tree


def test_attention_reads_more_of_two_tokens_than_their_sum():
    """The mean of lifted tokens is linear in how often each is there, attention is not."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    sets = torch.stack([torch.stack([one, one]), torch.stack([other, other])])
    mixed = torch.stack([one, other])[None]
    present = torch.ones(2, 2, dtype=torch.bool)
    gaps = {}
    for pooling in ("deep_sets", "set_transformer"):
        flat = small(pooling)
        lifted = [flat.lifter(tokens) for tokens in (sets, mixed)]
        alone, both = flat.pool(lifted[0], present), flat.pool(lifted[1], present[:1])
        gaps[pooling] = float((alone.mean(0) - both[0]).abs().max().detach())
    assert gaps["deep_sets"] < 1e-6 < 1e-3 < gaps["set_transformer"]


def test_poolings_that_do_not_exist_or_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'deep_sets', 'set_transformer'"):
        FlatConfig(pooling="lstm")
    with pytest.raises(ValueError, match="width is 7; set_transformer takes multiples of 2"):
        FlatAutoencoder(2, 5, 3, 7, pooling="set_transformer")


@POOLINGS
def test_save_and_load(tmp_path, pooling):
    flat = small(pooling)
    flat.set_statistics(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    flat.save(tmp_path / "flat.safetensors")
    again = FlatAutoencoder.load(tmp_path / "flat.safetensors")
    assert again.weights_hash() == flat.weights_hash()
    with pytest.raises(ValueError, match="does not hold a saved autoencoder"):
        HTMAutoencoder.load(tmp_path / "flat.safetensors")


def test_predicting_the_mean_scores_the_mean_squared_standard_score():
    """All weights zero: every decoded token is the mean, and matching cannot help."""
    flat = Flat("HTM-Trees-v0", SMALL, **TREES)
    with torch.no_grad():
        for parameter in flat.autoencoder.parameters():
            parameter.zero_()
    dataset = flat.task.dataset("test")
    tokens = dataset.fixed(50).tokens.numpy()
    expected = (((tokens - dataset.mean.numpy()) / dataset.std.numpy()) ** 2).mean()
    scores = flat.evaluate(dataset, 50)
    assert scores["nmse"] == pytest.approx(expected, rel=1e-5)
    assert scores["sampled_nmse"] == scores["nmse"]
    assert scores["tree_recall"] is scores["tree_f1"] is scores["mean_height"] is None


def test_it_learns_and_counts_a_merge_for_every_token_but_one():
    flat = Flat("HTM-Trees-v0", SMALL, **TREES)
    validation = flat.task.dataset("validation")
    flat.train(merges=32 * 2 * 300)  # 300 updates of 32 samples of three tokens
    assert flat.updates == 300
    assert flat.evaluate(validation, 100)["nmse"] < 0.35  # 1 is the mean


def test_the_same_seed_gives_the_same_weights():
    hashes = set()
    for _ in range(2):
        flat = Flat("HTM-Trees-v0", SMALL, **TREES, seed=3)
        flat.train(merges=500)
        hashes.add(flat.autoencoder.weights_hash())
    assert len(hashes) == 1


def test_the_command_trains_resumes_and_evaluates_it(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = [
        "--env",
        "HTM-Trees-v0",
        "--env-kwargs",
        '{"heights": [2, 3]}',
        "--algo",
        "flat",
        "--merges",
        "600",
        "--set",
        "hidden_dim=8",
        "--out",
        str(folder),
    ]
    assert main(["train", *arguments]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["tree_recall"] is result["test"]["mean_height"] is None
    assert np.isfinite(result["test"]["nmse"])
    assert (folder / "figures" / "validation.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["nmse"] == result["test"]["nmse"]
    assert main(["train", "--resume", str(folder)]) == 0
    loaded = load_learner(folder)
    assert isinstance(loaded, Flat)
    loaded.train(merges=100)


def test_it_has_nothing_to_keep_frozen():
    with pytest.raises(ValueError, match="flat has no pretrained autoencoder"):
        Flat("HTM-Trees-v0", mode="frozen")


def test_it_plans_no_trees():
    flat = Flat("HTM-Trees-v0", SMALL, **TREES)
    with pytest.raises(ValueError, match="flat makes no trees"):
        flat.plan(flat.dataset.fixed(2), torch.Generator(), greedy=True)

"""Bits of a tree, a root and what is left, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import small_autoencoder
from torch import nn

from agents import load
from agents.cli import main as htm
from agents.cli.description import print_bits
from agents.evaluation.description import described
from agents.evaluation.yardsticks import mean_and_error
from agents.registry import algorithm
from benchmarks import bits
from htm_env import make_dataset
from htm_env.autoencoder import HTMAutoencoder
from htm_env.measures.description import (
    Bits,
    DescriptionCode,
    RootCode,
    laplace_bits,
    tree_bits,
)
from htm_env.types import TokenBatch


class Says(nn.Module):
    """A classifier that gives every node the same probability of being a leaf."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.logit = math.log(probability / (1 - probability)) if 0 < probability < 1 else math.inf

    def forward(self, state):
        return torch.full_like(state[:, :1], self.logit)


def batch_of(*sizes: int, token_dim: int = 3, seed: int = 0) -> tuple[TokenBatch, torch.Tensor]:
    """Random samples of these numbers of tokens, and a chain of each."""
    slots, generator = max(sizes), torch.Generator().manual_seed(seed)
    present = torch.arange(slots) < torch.tensor(sizes)[:, None]
    tokens = torch.randn(len(sizes), slots, token_dim, generator=generator) * present[..., None]
    merges = torch.full((len(sizes), slots - 1, 2), -1)
    for row, size in enumerate(sizes):
        for step in range(size - 1):
            merges[row, step] = torch.tensor([0 if step == 0 else size + step - 1, step + 1])
    clades = torch.zeros(len(sizes), 0, slots, dtype=torch.bool)
    return TokenBatch(tokens, present, clades, merges), merges


# ---------------------------------------------------------------- trees


@torch.no_grad()
def test_a_coin_costs_a_bit_a_node():
    """1, 2 and 4 tokens have 1, 3 and 7 nodes."""
    autoencoder = small_autoencoder(3)
    autoencoder.classifier = Says(0.5)
    batch, merges = batch_of(1, 2, 4)
    roots = torch.zeros(3, autoencoder.embedding_dim)
    assert tree_bits(autoencoder, roots, batch, merges).tolist() == [1, 3, 7]


@torch.no_grad()
def test_leaves_and_inner_nodes_cost_what_their_probabilities_say():
    """At 1/4 for "leaf" a leaf costs 2 bits and an inner node log2(4/3)."""
    autoencoder = small_autoencoder(3)
    autoencoder.classifier = Says(0.25)
    batch, merges = batch_of(1, 4)
    roots = torch.zeros(2, autoencoder.embedding_dim)
    expected = [2, 4 * 2 + 3 * math.log2(4 / 3)]
    assert tree_bits(autoencoder, roots, batch, merges).tolist() == pytest.approx(expected)


@torch.no_grad()
def test_certainty_is_bounded():
    """Always "leaf" is right once and wrong once of two tokens' root."""
    autoencoder = small_autoencoder(3)
    autoencoder.classifier = Says(1.0)
    batch, merges = batch_of(1, 2)
    roots = torch.zeros(2, autoencoder.embedding_dim)
    right, wrong = -math.log2(1 - 1e-3), -math.log2(1e-3)
    expected = [right, wrong + 2 * right]
    assert tree_bits(autoencoder, roots, batch, merges).tolist() == pytest.approx(expected)


# ---------------------------------------------------------------- numbers


def test_a_laplace_distribution_by_hand():
    """Its mass between -1/2 and 1/2 is 1 - e^(-1/2b), half of what is left is beyond each side."""
    spread = torch.tensor([2.0], dtype=torch.float64)
    steps = torch.tensor([[0], [1], [-1], [3]])
    zero, one = 1 - math.exp(-0.25), (math.exp(-0.25) - math.exp(-0.75)) / 2
    three = (math.exp(-1.25) - math.exp(-1.75)) / 2
    expected = [-math.log2(mass) for mass in (zero, one, one, three)]
    assert laplace_bits(steps, spread).flatten().tolist() == pytest.approx(expected)
    every = torch.arange(-200, 201)[:, None]
    assert float((2 ** -laplace_bits(every, spread)).sum()) == pytest.approx(1)


def roots_of(*deviations: float, count: int = 4000) -> torch.Tensor:
    """Normal draws, moved so that mean and covariance are exactly those of the deviations."""
    values = torch.randn(
        count, len(deviations), generator=torch.Generator().manual_seed(0)
    ).double()
    values -= values.mean(dim=0)
    values = values @ torch.linalg.inv(torch.linalg.cholesky(values.T @ values / count)).T
    return (values * torch.tensor(deviations)).float()


def test_a_gaussian_root_costs_its_entropy():
    """Decoded as it is, a number of deviation s in steps of d costs log2(s sqrt(2 pi e) / d)."""
    roots = roots_of(4.0, 1.0)
    code = RootCode.fit(roots, lambda values: values).coarser(0.25)
    numbers = code.numbers(roots)
    entropy = sum(math.log2(s * math.sqrt(2 * math.pi * math.e) / 0.25) for s in (4.0, 1.0))
    assert float(code.bits(numbers).mean()) == pytest.approx(entropy, abs=0.02)
    assert float((code.roots(numbers) - roots).abs().max()) <= 0.125 * math.sqrt(2) + 1e-5


def test_what_the_tokens_do_not_depend_on_is_not_sent():
    """The second number changes nothing; the first counts twice, and its steps are half as long."""
    roots = roots_of(4.0, 1.0)
    code = RootCode.fit(roots, lambda values: 2 * values[:, :1])
    entropy = math.log2(4 * math.sqrt(2 * math.pi * math.e) / 0.5)
    assert float(code.bits(code.numbers(roots)).mean()) == pytest.approx(entropy, abs=0.02)


def test_constant_roots_cost_nothing():
    roots = torch.ones(5, 3)
    code = RootCode.fit(roots, lambda values: values)
    assert code.bits(code.numbers(roots)).tolist() == [0.0] * 5
    assert torch.equal(code.roots(code.numbers(roots)).float(), roots)
    with pytest.raises(ValueError, match="expected at least 2 roots"):
        RootCode.fit(roots[:1], lambda values: values)
    with pytest.raises(ValueError, match="finite"):
        RootCode.fit(roots * math.inf, lambda values: values)


# ---------------------------------------------------------------- samples


def test_total_is_the_sum():
    parts = [torch.tensor([number], dtype=torch.float64) for number in (1.0, 2.0, 4.0)]
    assert Bits(*parts).total.tolist() == [7.0]


@torch.no_grad()
def passes_through() -> HTMAutoencoder:
    """Tokens of one number are their own embedding; a merge keeps both in two of three numbers.

    Trees of two tokens only: the lifter writes the first number, the merger the first numbers of
    both, and the unmerger gives them back.
    """
    autoencoder = HTMAutoencoder(1, embedding_dim=2, hidden_dim=8)
    for weight in autoencoder.parameters():
        weight.zero_()
    autoencoder.lifter.skip.weight.copy_(torch.tensor([[1.0], [0.0]]))
    autoencoder.merger.skip.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]))
    autoencoder.unmerger.skip.weight.copy_(torch.tensor([[1.0, 0], [0, 0], [0, 1.0], [0, 0]]))
    autoencoder.unlifter.skip.weight.copy_(torch.tensor([[1.0, 0.0]]))
    return autoencoder


def test_an_exact_decoder_leaves_nothing_but_the_root():
    """Two standard normal tokens cost at least their entropy in steps of 0.05, and about that."""
    autoencoder = passes_through()
    count = 500
    values = roots_of(1.0, 1.0, count=count)[..., None]
    present = torch.ones(count, 2, dtype=torch.bool)
    merges = torch.tensor([[[0, 1]]]).expand(count, 1, 2).clone()
    batch = TokenBatch(values, present, torch.zeros(count, 0, 2, dtype=torch.bool), merges)
    code = DescriptionCode.fit(autoencoder, batch, merges, torch.ones(1))
    found = code.bits(batch, merges)
    assert found.tree.tolist() == [3.0] * count  # a classifier that says 1/2
    entropy = 2 * math.log2(math.sqrt(2 * math.pi * math.e) / 0.05)
    sent = float((found.root + found.residual).mean())
    assert entropy - 0.05 <= sent <= entropy + 1.5
    exact = DescriptionCode(
        autoencoder, code.root.coarser(1e-3), code.spread * 0 + 1 / 8, code.step
    )
    nothing = -math.log2(1 - math.exp(-4))
    assert exact.bits(batch, merges).residual.tolist() == pytest.approx([2 * nothing] * count)


def test_a_useless_root_costs_nothing_and_the_tokens_their_own_entropy():
    """Decoded is always the mean: what is left are the tokens, under Laplace's distribution."""
    autoencoder = small_autoencoder(3)
    with torch.no_grad():
        for weight in autoencoder.unlifter.parameters():
            weight.zero_()
    autoencoder.set_statistics(torch.zeros(3), torch.ones(3))
    batch, merges = batch_of(*[2, 3, 5] * 40)
    code = DescriptionCode.fit(autoencoder, batch, merges, torch.ones(3), precision=0.1)
    found = code.bits(batch, merges)
    assert float(found.root.abs().max()) == pytest.approx(0, abs=1e-6)
    steps = (batch.tokens.double() / 0.1).round().long()
    spread = steps[batch.present].abs().double().mean(dim=0)
    each = laplace_bits(steps, spread).sum(dim=2) * batch.present
    assert found.residual.tolist() == pytest.approx(each.sum(dim=1).tolist())


def test_a_finer_precision_costs_a_bit_a_number_and_halving():
    """What is left of tokens whose root says nothing: 3 numbers of 4 tokens."""
    autoencoder = small_autoencoder(3)
    with torch.no_grad():
        for weight in autoencoder.unlifter.parameters():
            weight.zero_()
    batch, merges = batch_of(*[4] * 50)
    coarse, fine = (
        DescriptionCode.fit(autoencoder, batch, merges, torch.ones(3), precision)
        .bits(batch, merges)
        .residual
        for precision in (0.02, 0.01)
    )
    assert float((fine - coarse).mean()) == pytest.approx(3 * 4, abs=0.05)


def test_categories_cost_their_cross_entropy():
    """A decoder that says the frequencies: 1/4 of the tokens are of the first of two values."""
    autoencoder = HTMAutoencoder(3, embedding_dim=4, hidden_dim=8, categories=(2,))
    with torch.no_grad():
        for weight in autoencoder.unlifter.parameters():
            weight.zero_()
    autoencoder.set_statistics(torch.tensor([0.0, 0.25, 0.75]), torch.ones(3))
    batch, merges = batch_of(*[4] * 30)
    values = torch.zeros_like(batch.tokens)
    values[:, 0, 1], values[:, 1:, 2] = 1, 1
    batch = batch._replace(tokens=values)
    found = DescriptionCode.fit(autoencoder, batch, merges, torch.ones(3)).bits(batch, merges)
    zeros = 4 * -math.log2(1 - math.exp(-4))
    assert found.residual.tolist() == pytest.approx([2 + 3 * math.log2(4 / 3) + zeros] * 30)


def test_bits_do_not_depend_on_who_else_is_in_the_batch():
    autoencoder = small_autoencoder(4)
    batch = make_dataset("HTM-Crosses-v0", num_crosses=(1, 3)).fixed(40)
    code = DescriptionCode.fit(autoencoder, batch, batch.merges, torch.ones(4))
    every = code.bits(batch, batch.merges)
    few = code.bits(batch.rows(torch.tensor([3, 17])), batch.merges[[3, 17]])
    for one, other in zip(every, few, strict=True):
        np.testing.assert_allclose(one[[3, 17]], other, rtol=1e-6)
    assert all(bool((part > 0).all()) for part in every)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.nan, math.inf])
def test_refused_precisions(precision):
    batch, merges = batch_of(2, 2)
    with pytest.raises(ValueError, match="expected a number above 0"):
        DescriptionCode.fit(small_autoencoder(3), batch, merges, torch.ones(3), precision)


def test_a_forest_has_no_description():
    batch, merges = batch_of(3, 3)
    merges[1, 1] = -1
    with pytest.raises(ValueError, match="sample 1 has 2 trees; expected one root"):
        DescriptionCode.fit(small_autoencoder(3), batch, merges, torch.ones(3))


# ---------------------------------------------------------------- runs


def trained(tmp_path, algo: str, env: str = "HTM-Trees-v0", **data) -> str:
    """The folder of a short run."""
    learner = algorithm(algo).learner(env, algorithm(algo).config, env_kwargs=data)
    learner.train(merges=100, out=tmp_path / algo)
    return str(tmp_path / algo)


def test_htm_evaluate_says_what_a_sample_costs(tmp_path, capsys):
    """In all it is the sum, and mean and error are those of all samples."""
    folder = trained(tmp_path, "chain", heights=[3])
    capsys.readouterr()
    assert htm(["evaluate", folder, "--bits", "--episodes", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cost = found["bits"]
    assert list(cost) == ["tree", "root", "residual", "total"]
    parts = sum(cost[name]["mean"] for name in ("tree", "root", "residual"))
    assert cost["total"]["mean"] == pytest.approx(parts)
    assert found["bits_precision"] == 0.05
    learner = load(folder)
    splits = [learner.task.dataset(split) for split in ("test", "train")]
    again = described(learner, learner.autoencoder, *splits, 50)
    for name in ("tree", "total"):
        assert cost[name] == pytest.approx(mean_and_error(again[name])._asdict())
    assert found["nmse_untold"] == pytest.approx(mean_and_error(again["nmse_untold"])._asdict())
    assert len(again["total"]) == 50
    print_bits(found)
    printed = capsys.readouterr().out
    assert f"{cost['total']['mean']:.5g}" in printed and "nmse_untold" in printed


@pytest.mark.parametrize(
    ("algo", "env", "says"),
    [
        ("flat", "HTM-Trees-v0", "--bits is of trees, and flat makes none"),
        ("kt", "HTM-Jets-v0", "nothing can be decoded here"),
    ],
)
def test_what_has_no_bits_says_so(tmp_path, capsys, algo, env, says):
    folder = trained(tmp_path, algo, env)
    assert htm(["evaluate", folder, "--bits", "--episodes", "5"]) != 0
    assert says in capsys.readouterr().err


def test_the_benchmark_is_of_the_orders_that_it_names():
    """Experts' trees have every group; a short training of both."""
    orders = ["structure_sorted", "random"]
    found = [bits.measure(order, 4, merges=200, strokes=(4, 5), count=20) for order in orders]
    rows = [measured.row for measured in found]
    assert [row["order"] for row in rows] == orders
    assert rows[0]["tree_f1"] == 1 > rows[1]["tree_f1"]
    for row, measured in zip(rows, found, strict=True):
        assert row["total"] == pytest.approx(row["tree"] + row["root"] + row["residual"])
        assert row["total"] == pytest.approx(float(measured.totals.mean()))


def test_rows_are_means_over_seeds_beside_the_experts():
    """Two seeds each of two characters: 11 and 13 bits over the seeds, against 9 and 9."""

    def run(order: str, *totals: float) -> bits.Measured:
        mean = sum(totals) / len(totals)
        row = {"order": order, "D": 8, "rate": 0.0, "total": mean}
        return bits.Measured(row, torch.tensor(totals, dtype=torch.float64))

    runs = [run("chain", 10, 10), run("chain", 12, 16), run(bits.EXPERTS, 8, 8)]
    rows = bits.table([*runs, run(bits.EXPERTS, 10, 10)], seeds=2)
    assert [row["total"] for row in rows] == [12.0, 9.0]
    assert rows[0]["total, by seed"] == "10.0 14.0"
    assert rows[0]["above experts"] == 3.0  # 2 and 4
    assert rows[0]["± of that"] == pytest.approx(1.0)  # deviation of 2 and 4: 2 ** 0.5
    assert rows[1]["above experts"] == 0
    alone = bits.table(runs[:2], seeds=2)
    assert alone[0]["above experts"] is None

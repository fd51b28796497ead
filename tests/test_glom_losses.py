"""Glom's training signals by hand, and that a Glom learns from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders.config import GlomConfig, GlomTrainingConfig
from agents.encoders.glom.losses import (
    contrastive_loss,
    denoising_loss,
    draw_crops,
    draw_hidden,
    draw_two_regions,
)
from agents.encoders.glom.tokens import TokenGlom
from benchmarks.glom import mean_of_neighbours, restoring, train
from benchmarks.wholes import WholesDataset
from htm_env.autoencoder import seeded_initialisation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_hidden_coordinates_belong_to_tokens_and_one_token_stays_whole(seed, share):
    active = torch.arange(5) < torch.tensor([[5], [2], [1], [0]])
    hidden = draw_hidden(active, 3, share, 0.5, generator(seed))
    assert not hidden[~active].any()
    whole = active & ~hidden.any(2)
    assert (whole.any(1) == active.any(1)).all()
    if share == 0.0:
        assert not hidden.any()
    if share == 1.0:  # all but one, each with a coordinate at least
        assert hidden.any(2).sum(1).tolist() == [4, 1, 0, 0]
    assert torch.equal(hidden, draw_hidden(active, 3, share, 0.5, generator(seed)))


def test_hidden_shares_are_as_asked():
    """Of 15 tokens 14 may be hidden, 0.3 of them at random, with two coordinates 0.5 each: both
    are kept 1/4 of the time, and then the lower one is hidden all the same."""
    active = torch.ones(400, 15, dtype=torch.bool)
    hidden = draw_hidden(active, 2, 0.3, 0.5, generator())
    assert float(hidden.any(2).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(hidden[hidden.any(2)].float().mean()) == pytest.approx(0.5 + 0.125, abs=0.02)
    assert draw_hidden(active, 2, 0.3, 1.0, generator()).all(2).any()


@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_hidden_tokens_of_a_region_are_neighbours_and_one_token_stays_whole(seed, share):
    """Of points in a row no hidden one lies beyond one that is not, seen from any hidden one."""
    active = torch.arange(6) < torch.tensor([[6], [2], [1], [0]])
    order = torch.randperm(6, generator=generator(seed))
    places = order[None, :, None].expand(4, 6, 1).float()
    hidden = draw_hidden(active, 3, share, 0.5, generator(seed), places).any(2)
    assert not hidden[~active].any()
    assert hidden.sum(1).tolist() == {0.0: [0] * 4, 0.5: [3, 1, 0, 0], 1.0: [5, 1, 0, 0]}[share]
    in_a_row = hidden[0][order.argsort()].nonzero().flatten()
    if len(in_a_row):
        assert in_a_row[-1] - in_a_row[0] == len(in_a_row) - 1


def test_only_hidden_coordinates_cost():
    restored, tokens = torch.tensor([[[3.0, 9.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert float(denoising_loss(restored, tokens, torch.tensor([[[True, False]]]))) == 4.0
    assert float(denoising_loss(restored, tokens, torch.tensor([[[False, False]]]))) == 0.0


@given(seed=st.integers(0, 1000))
def test_crops_are_two_halves(seed):
    active = torch.rand(5, 7, generator=generator(seed)) < 0.6
    first, second = draw_crops(active, generator(seed))
    assert torch.equal(first | second, active) and not (first & second).any()
    assert torch.equal(first.sum(1), active.sum(1) // 2)


def test_any_half_may_be_the_first():
    """Each of six pairs of four tokens, and of 3,000 draws 500 times, within five deviations."""
    active = torch.tensor([True, False, True, True, True]).expand(3000, 5)
    first, _ = draw_crops(active, generator())
    pairs, counts = first.unique(dim=0, return_counts=True)
    assert len(pairs) == 6 and (counts - 500).abs().max() < 102


def plain_contrast(first, in_first, second, in_second, temperature: float) -> float:
    """Scene by scene and column by column; the mean over both directions."""
    crops = [
        (x[a], y[b])
        for x, a, y, b in zip(first, in_first, second, in_second, strict=True)
        if a.any() and b.any()
    ]

    def similarity(one, other) -> float:
        cosines = [[float(torch.cosine_similarity(x, y, dim=0)) for y in other] for x in one]
        rows, columns = [max(row) for row in cosines], [max(c) for c in zip(*cosines, strict=True)]
        return (sum(rows) / len(rows) + sum(columns) / len(columns)) / (2 * temperature)

    table = [[similarity(one, other) for _, other in crops] for one, _ in crops]
    costs = [
        math.log(sum(map(math.exp, others))) - others[scene]
        for lines in (table, list(zip(*table, strict=True)))
        for scene, others in enumerate(lines)
    ]
    return sum(costs) / max(1, len(costs))


@given(seed=st.integers(0, 1000))
def test_contrast_is_that_of_plain_loops(seed):
    """Crops of all sizes, empty ones among them, with junk where no column is."""
    drawn = generator(seed)
    first, second = torch.randn(2, 4, 3, 2, generator=drawn)
    in_first, in_second = torch.rand(2, 4, 3, generator=drawn) < 0.6
    expected = plain_contrast(first, in_first, second, in_second, 0.5)
    first[~in_first], second[~in_second] = math.nan, 1e3
    found = contrastive_loss(first, in_first, second, in_second, 0.5)
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_contrast_by_hand():
    """Two scenes of one column a crop, all cosines 1 or 0: log(1 + e^-10) for each of the four."""
    crop = torch.eye(2)[:, None]  # (2, 1, 2)
    here = torch.ones(2, 1, dtype=torch.bool)
    right = float(contrastive_loss(crop, here, 3 * crop, here, 0.1))
    assert right == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-2)
    wrong = float(contrastive_loss(crop, here, crop.flip(0), here, 0.1))
    assert wrong == pytest.approx(10 + right, rel=1e-5)
    blind = float(contrastive_loss(crop, here, torch.ones(2, 1, 2), here, 0.1))
    assert blind == pytest.approx(math.log(2), rel=1e-5)


def test_a_column_needs_one_like_it_and_no_more():
    """The first crop's two columns are both found among the second's three, in any order."""
    axes = torch.eye(4)
    first = torch.stack([axes[[0, 1]], axes[[2, 3]]])
    first = torch.cat([first, torch.full((2, 1, 4), math.nan)], dim=1)  # the last is empty
    second = torch.stack([axes[[1, 0, 0]], axes[[3, 3, 2]]])
    in_first = torch.tensor([[True, True, False]] * 2)
    loss = contrastive_loss(first, in_first, second, torch.ones(2, 3, dtype=torch.bool), 0.1)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-2)


def test_scenes_that_cannot_be_cropped_do_not_count():
    drawn = torch.randn(3, 4, 2, generator=generator())
    active = torch.arange(4) < torch.tensor([[4], [4], [1]])
    first, second = draw_crops(active, generator())
    loss = contrastive_loss(drawn, first, drawn, second, 0.1)
    two = contrastive_loss(drawn[:2], first[:2], drawn[:2], second[:2], 0.1)
    assert float(loss) == pytest.approx(float(two), rel=1e-5)
    assert float(contrastive_loss(drawn[2:], first[2:], drawn[2:], second[2:], 0.1)) == 0.0


def make(config: GlomConfig) -> TokenGlom:
    with seeded_initialisation(generator()):
        return TokenGlom(2, config)


def test_hidden_coordinates_are_not_seen():
    model, tokens = make(GlomConfig(level_width=8)), torch.randn(2, 4, 2, generator=generator())
    active, hidden = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, 2, dtype=torch.bool)
    hidden[:, 0, 1] = True
    other = tokens.clone()
    other[:, 0, 1] = 99.0
    assert torch.equal(model(tokens, active, hidden), model(other, active, hidden))
    at_the_mean = tokens.masked_fill(hidden, 0.0)  # hidden is not the same as zero
    assert not torch.equal(model(tokens, active, hidden), model(at_the_mean, active))


def test_crops_of_a_set_can_be_regions():
    """Three tokens in each of two corners: half of them is one corner's three. And halves drawn at
    random leave a crop without a token, a scene of one, out; a region of one is the token."""
    tokens = torch.tensor([-1.0, -1, -1, 1, 1, 1])[None, :, None].repeat(16, 1, 2)
    active = torch.ones(16, 6, dtype=torch.bool)
    crops = torch.cat(draw_two_regions(tokens, active, 0.5, generator()))
    assert {tuple(row) for row in crops.int().tolist()} == {(1, 1, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1)}
    model, alone = make(GlomConfig(level_width=8)), torch.ones(16, 1, dtype=torch.bool)
    for regions in (True, False):
        training = GlomTrainingConfig(0.0, regions=regions)
        loss = model.losses(tokens[:, :1], alone, training=training, generator=generator())
        assert (float(loss["contrastive"].detach()) > 0) is regions


def test_losses_reach_every_parameter_and_weight_nothing_is_left_out():
    model, data = make(GlomConfig(level_width=8)), WholesDataset("train")
    batch = data.fixed(8)
    tokens = (batch.tokens - data.mean) / data.std
    losses = model.losses(
        tokens, batch.present, training=GlomTrainingConfig(), generator=generator()
    )
    assert set(losses) == {"denoising", "contrastive"}
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())
    again = model.losses(
        tokens, batch.present, training=GlomTrainingConfig(), generator=generator()
    )
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    none = GlomTrainingConfig(denoising_weight=0.0, contrastive_weight=0.0)
    assert model.losses(tokens, batch.present, training=none, generator=generator()) == {}


def test_the_baseline_is_the_mean_of_the_nearest_whole_tokens():
    """The y of token 0, at x = 0, from x = 1, 2 and 3; token 5 is hidden itself, 4 is far."""
    tokens = torch.tensor([[[0.0, 99], [1, 10], [2, 20], [3, 60], [9, 0], [0, 7]]])
    hidden = torch.zeros(1, 6, 2, dtype=torch.bool)
    hidden[0, 0, 1] = hidden[0, 5] = True
    found = mean_of_neighbours(tokens, torch.ones(1, 6, dtype=torch.bool), hidden)
    assert float(found[0, 0, 1]) == 30.0
    assert found[0, 5].tolist() == [15 / 4, 90 / 4]  # nothing is left of it: all whole ones


@pytest.mark.slow
def test_hidden_coordinates_are_restored_better_than_by_the_neighbours():
    """On held-out samples; without its neighbours a column cannot do it better than the mean, 1."""
    training, held_out = WholesDataset("train"), WholesDataset("validation")
    config = GlomConfig(levels=2, iterations=4)
    learning = GlomTrainingConfig(contrastive_weight=0.0)
    model = train(training, config, 250, 32, seed=0, learning=learning)
    batch = held_out.fixed(200)
    assert restoring(model, held_out, batch) < 0.9 * restoring(None, held_out, batch)

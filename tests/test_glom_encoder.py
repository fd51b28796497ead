"""GlomEncoder as a context encoder."""

from __future__ import annotations

import math

import pytest
import torch

from agents.encoders.config import GlomConfig, GlomEncoderConfig
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.encoder import GlomEncoder
from htm_env.autoencoder import seeded_initialisation

SMALL = GlomConfig(levels=2, level_width=8)
CONFIGS = {
    "default": GlomEncoderConfig(glom=SMALL),
    "continued": GlomEncoderConfig(glom=SMALL, continued_iterations=2),
    "radius": GlomEncoderConfig(glom=GlomConfig(levels=2, level_width=8, radius=1.0)),
    "losses": GlomEncoderConfig(glom=SMALL, denoising_weight=1.0, contrastive_weight=0.5),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(config: GlomEncoderConfig) -> GlomEncoder:
    with seeded_initialisation(generator()):
        return GlomEncoder(6, config, 2)


def population() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of five slots 5, 3, 1 and none hold tokens."""
    drawn = generator(1)
    active = torch.arange(5) < torch.tensor([[5], [3], [1], [0]])
    return torch.randn(4, 5, 6, generator=drawn), active, torch.randn(4, 5, 2, generator=drawn)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("junk", [1e30, math.nan])
def test_what_stands_in_empty_slots_changes_nothing(name, junk):
    results = []
    for fill in (0.0, junk):
        encoder, (tokens, active, centroids) = make(CONFIGS[name]), population()
        tokens = tokens.masked_fill(~active[..., None], fill).requires_grad_()
        centroids = centroids.masked_fill(~active[..., None], fill)
        context = encoder(tokens, active, centroids=centroids, generator=generator())
        total = context.tokens.square().sum() + context.summary.square().sum()
        (total + sum(context.losses.values())).backward()
        gradients = [parameter.grad for parameter in encoder.parameters()]
        results.append([context.tokens, context.summary, context.state, tokens.grad, *gradients])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()
    assert (context.tokens[~active] == 0).all() and (context.summary[3] == 0).all()


def test_tokens_move_with_their_slots_and_the_summary_stays():
    encoder, (tokens, active, _) = make(CONFIGS["default"]), population()
    order = torch.tensor([3, 0, 4, 1, 2])
    context, moved = encoder(tokens, active), encoder(tokens[:, order], active[:, order])
    torch.testing.assert_close(moved.tokens, context.tokens[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.summary, context.summary, atol=1e-5, rtol=0)
    assert context.losses == {}


@pytest.mark.parametrize("name", ["default", "losses"])
def test_gradients_reach_every_parameter(name):
    encoder, (tokens, active, _) = make(CONFIGS[name]), population()
    context = encoder(tokens, active, generator=generator())
    total = context.tokens.pow(3).sum() + context.summary.pow(3).sum()
    (total + sum(context.losses.values())).backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad.any() and parameter.grad.isfinite().all(), parameter_name


def test_it_continues_from_its_state_with_fewer_iterations():
    encoder, (tokens, active, _) = make(CONFIGS["continued"]), population()
    assert encoder.carries and not make(CONFIGS["default"]).carries
    context = encoder(tokens, active)
    assert torch.equal(context.state, encoder.glom(tokens, active, iterations=6))
    merged, left = context.state.clone(), active.clone()
    for row, (first, second) in enumerate([(0, 1), (1, 2)]):
        columns = encoder.merged_state(merged[row, first], merged[row, second])
        assert torch.equal(columns, (merged[row, first] + merged[row, second]) / 2)
        merged[row, first], left[row, second] = columns, False
    continued = encoder(tokens, left, state=merged)
    assert torch.equal(continued.state, encoder.glom(tokens, left, iterations=2, state=merged))


def test_a_radius_needs_centroids():
    assert make(CONFIGS["radius"]).needs == ("centroids",)
    assert make(CONFIGS["default"]).needs == ()


def test_losses_are_drawn_from_the_generator_and_only_with_one():
    encoder, (tokens, active, _) = make(CONFIGS["losses"]), population()
    first, again, other = (
        encoder(tokens, active, generator=generator(seed)).losses for seed in (1, 1, 2)
    )
    assert set(first) == {"denoising", "contrastive"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["denoising"], other["denoising"])  # another token is hidden
    assert encoder(tokens, active).losses == {}


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="width is 0"):
        Glom(0, SMALL)
    encoder, (tokens, active, _) = make(CONFIGS["default"]), population()
    with pytest.raises(ValueError, match="iterations is -1"):
        encoder.glom(tokens, active, iterations=-1)

"""Hierarchical attention as context encoder of an ordered population."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.encoders.config import HierarchicalConfig
from agents.encoders.hierarchical.encoder import HierarchicalEncoder

CONFIGS = {
    "default": HierarchicalConfig(heads=2),
    "narrow": HierarchicalConfig(layers=1, rates=(1, 3), heads=1, window=2),
    "full": HierarchicalConfig(rates=(1, 2), heads=2, window=None),
    "shift only": HierarchicalConfig(heads=2, window=0),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
WIDTH = 8


def encoder(config):
    """With weights large enough that everything that can matter does."""
    made = HierarchicalEncoder(WIDTH, config, coordinates=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


def population(slots, seed=0, batch=3):
    """Tokens, active (random, some rows full, some empty) and random ranks, -1 in empty slots."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, slots, WIDTH, generator=generator)
    active = torch.rand(batch, slots, generator=generator) < 0.6
    active[0] = True
    order = torch.rand(batch, slots, generator=generator).argsort(1).masked_fill(~active, -1)
    return tokens, active, order


@each_config
@pytest.mark.parametrize("junk", [1e30, float("nan"), float("inf")], ids=["large", "nan", "inf"])
def test_junk_in_empty_slots_changes_nothing(config, junk):
    made = encoder(config)
    tokens, active, order = population(13)
    found = {}
    for name, fill in (("zeros", 0.0), ("junk", junk)):
        filled = tokens.masked_fill(~active[..., None], fill).requires_grad_()
        made.zero_grad()
        context = made(filled, active, order=order)
        (context.tokens.square().sum() + context.summary.pow(3).sum()).backward()
        found[name] = [*context[:2], filled.grad, *(each.grad for each in made.parameters())]
    for clean, dirty in zip(found["zeros"], found["junk"], strict=True):
        assert torch.equal(clean, dirty)
    assert not found["junk"][0][~active].any()
    assert not found["junk"][2][~active].any()


@each_config
def test_a_population_is_the_same_in_more_slots(config):
    made = encoder(config)
    tokens, active, order = population(11, batch=1)
    wide = torch.zeros(1, 40, WIDTH)
    wide[:, 7:18] = tokens
    context = made(tokens, active, order=order)
    wider = made(
        wide,
        torch.nn.functional.pad(active, (7, 22)),
        order=torch.nn.functional.pad(order, (7, 22), value=-1),
    )
    torch.testing.assert_close(wider.tokens[:, 7:18], context.tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(wider.summary, context.summary, atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), slots=st.integers(1, 20))
def test_renaming_the_slots_renames_the_result(seed, slots):
    made = encoder(CONFIGS["default"])
    tokens, active, order = population(slots, seed)
    context = made(tokens, active, order=order)
    new = torch.randperm(slots, generator=torch.Generator().manual_seed(seed))
    renamed = made(tokens[:, new], active[:, new], order=order[:, new])
    torch.testing.assert_close(renamed.tokens, context.tokens[:, new], atol=1e-5, rtol=0)
    torch.testing.assert_close(renamed.summary, context.summary, atol=1e-5, rtol=0)


def test_the_order_matters_and_only_its_ranks_do():
    made = encoder(CONFIGS["default"])
    tokens, active, order = population(13)
    context = made(tokens, active, order=order)
    stretched = torch.where(active, 5 * order + 2, order)
    assert torch.equal(made(tokens, active, order=stretched).tokens, context.tokens)
    other = made(tokens, active, order=torch.where(active, -order + 100, order))
    assert (other.tokens - context.tokens).abs().max() > 1e-2


@each_config
def test_one_token_and_none_give_finite_numbers(config):
    made = encoder(config)
    tokens, _, order = population(5, batch=2)
    active = torch.zeros(2, 5, dtype=torch.bool)
    active[0, 3] = True
    context = made(tokens, active, order=order.masked_fill(~active, -1))
    assert torch.isfinite(context.tokens).all()
    torch.testing.assert_close(context.summary[0], context.tokens[0, 3])
    assert context.tokens[0, 3].abs().max() > 0
    assert not context.tokens[1].any() and not context.summary[1].any()
    context.tokens.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@each_config
def test_gradients_reach_every_parameter(config):
    made = HierarchicalEncoder(WIDTH, config, coordinates=3)
    tokens, active, order = population(24, batch=8)
    made(tokens, active, order=order).tokens.pow(3).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_window_reaches_both_ways_and_no_further():
    """One layer, one hierarchy: the window of 3 reaches 2 places, the shifts before it 1 more."""
    made = encoder(HierarchicalConfig(layers=1, rates=(1,), heads=2, window=3))
    tokens = torch.randn(1, 20, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    everywhere, ranks = torch.ones(1, 20, dtype=torch.bool), torch.arange(20)[None]
    context = made(tokens, everywhere, order=ranks)
    (gradient,) = torch.autograd.grad(context.tokens[:, 10].square().sum(), tokens)
    seen = gradient.abs().sum((0, 2)).nonzero().flatten().tolist()
    assert seen == list(range(6, 15))  # 1 of the second shift, 2 of the window, 1 of the first


def test_the_order_is_asked_for():
    tokens, active, _ = population(5)
    asking = encoder(CONFIGS["default"])
    assert asking.needs == ("order",) and asking.ordered
    with pytest.raises(ValueError, match="HierarchicalEncoder needs order"):
        asking(tokens, active)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ValueError, match="width is 12; expected 4 heads of an even width"):
        HierarchicalEncoder(12, HierarchicalConfig(), coordinates=3)

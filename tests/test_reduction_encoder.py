"""``SpanEncoder``: what every context encoder promises, and descriptors against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders.base import Context, Spans
from agents.encoders.config import REDUCERS, SpanConfig
from agents.encoders.reduction.encoder import SpanEncoder
from htm_env.autoencoder import seeded_initialisation

ALL = SpanConfig(tuple(REDUCERS), expansion=1)
BATCH, SLOTS, LEAVES, WIDTH, COORDINATES = 3, 6, 7, 8, 2


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder(config: SpanConfig = ALL) -> SpanEncoder:
    with seeded_initialisation(generator()):
        made = SpanEncoder(WIDTH, config, COORDINATES)
    for parameter in made.parameters():  # queries of 0 would hide that scores are used
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(9))
    return made


def populations(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Spans]:
    """Four active slots, one, and none; leaves under the active ones, and some of no slot."""
    drawn = generator(seed)
    active = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6]).bool()
    owners = torch.tensor(
        [[3, 0, 5, -1, 0, 1, 3], [2, 2, -1, 2, -1, -1, 2], [-1] * 7]
    )  # not in the order of the slots
    tokens = torch.randn(BATCH, SLOTS, WIDTH, generator=drawn)
    leaves = torch.randn(BATCH, LEAVES, COORDINATES, generator=drawn)
    return tokens, active, Spans(leaves, owners)


def gradients(context: Context, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    loss = context.tokens.square().sum() + (context.summary * torch.arange(WIDTH)).sum()
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("summary", list(REDUCERS))
def test_junk_changes_nothing(summary):
    """In empty slots and in leaves of no slot, forward and backward, exactly."""
    network = encoder(SpanConfig(tuple(REDUCERS), summary))
    results = []
    for junk in (0.0, 1e9, torch.nan, torch.inf):
        tokens, active, (leaves, owners) = populations()
        tokens[~active], leaves[owners < 0] = junk, junk
        inputs = tokens.requires_grad_(), leaves.requires_grad_()
        context = network(tokens, active, spans=Spans(leaves, owners))
        found = gradients(context, *inputs, *network.parameters())
        results.append((context.tokens.detach(), context.summary.detach(), *found))
        assert (found[0][~active] == 0).all()
        assert (found[1][owners < 0] == 0).all()
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@given(seed=st.integers(0, 2**16))
def test_slots_and_leaves_may_stand_in_any_order(seed):
    network, (tokens, active, (leaves, owners)) = encoder(), populations(seed)
    slots = torch.randperm(SLOTS, generator=generator(seed))
    order = torch.randperm(LEAVES, generator=generator(seed + 1))
    new_slot = torch.cat([slots.argsort(), torch.tensor([-1])])  # the last is that of no slot
    moved = Spans(leaves[:, order], new_slot[owners[:, order]])
    with torch.no_grad():
        before = network(tokens, active, spans=Spans(leaves, owners))
        after = network(tokens[:, slots], active[:, slots], spans=moved)
    torch.testing.assert_close(after.tokens, before.tokens[:, slots], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.summary, before.summary, rtol=1e-5, atol=1e-5)


def test_one_token_and_none():
    network, (tokens, active, spans) = encoder(), populations()
    context = network(tokens, active, spans=spans)
    assert (context.tokens[~active] == 0).all() and (context.summary[2] == 0).all()
    # A softmax over one token, its mean, its sum: the token itself.
    torch.testing.assert_close(context.summary[1], context.tokens[1, 2])
    assert context.tokens[active].abs().sum() > 0
    found = gradients(context, *network.parameters())
    assert all(gradient.isfinite().all() for gradient in found)


def test_gradients_reach_every_parameter():
    network, (tokens, active, spans) = encoder(), populations()
    found = gradients(network(tokens, active, spans=spans), *network.parameters())
    names = [name for name, _ in network.named_parameters()]
    assert [name for name, one in zip(names, found, strict=True) if not one.any()] == []


def test_descriptors_equal_the_plain_loop():
    network, (tokens, active, (leaves, owners)) = encoder(SpanConfig(summary="mean")), populations()
    with torch.no_grad():
        context = network(tokens, active, spans=Spans(leaves, owners))
        for row in range(BATCH):
            described = []
            for slot in active[row].nonzero().ravel().tolist():
                under = network.lift(leaves[row, owners[row] == slot])
                vector = torch.cat([tokens[row, slot], under.mean(0), under.amax(0)])
                described.append(network.describe(vector))
                torch.testing.assert_close(context.tokens[row, slot], described[-1])
            if described:
                torch.testing.assert_close(context.summary[row], torch.stack(described).mean(0))


def test_a_leaf_reaches_its_token_and_its_population_only():
    network, (tokens, active, (leaves, owners)) = encoder(), populations()
    changed = leaves.clone()
    changed[0, 4] += 1.0  # under slot 0 of the first population
    with torch.no_grad():
        one = network(tokens, active, spans=Spans(leaves, owners))
        other = network(tokens, active, spans=Spans(changed, owners))
    assert (one.tokens != other.tokens).any(2).nonzero().tolist() == [[0, 0]]
    assert (one.summary != other.summary).any(1).nonzero().tolist() == [[0]]


def test_what_is_refused():
    tokens, active, (leaves, owners) = populations()
    with pytest.raises(ValueError, match="SpanEncoder needs spans, which was not given"):
        encoder()(tokens, active)
    owners[1, 2] = SLOTS
    with pytest.raises(ValueError, match="owners name slot 6; expected less than 6"):
        encoder()(tokens, active, spans=Spans(leaves, owners))
    with pytest.raises(ValueError, match=r"reducers is \(\)"):
        SpanConfig(())
    with pytest.raises(ValueError, match="unknown reducer 'mode'"):
        SpanConfig(("mean", "mode"))
    with pytest.raises(ValueError, match="unknown reducer 'mode'"):
        SpanConfig(summary="mode")
    with pytest.raises(ValueError, match="expansion is 0; expected at least 1"):
        SpanConfig(expansion=0)

"""Glom's columns: attention against loops, states against running through, who hears whom."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.encoders.config import GlomConfig
from agents.encoders.glom.columns import Glom
from agents.encoders.glom.levels import (
    near,
    neighbour_filters,
    similarity_attention,
    sinusoids,
)
from htm_env.autoencoder import seeded_initialisation

CONFIGS = {
    "default": GlomConfig(level_width=8),
    "agreement": GlomConfig(level_width=8, agreement_decay=0.5, sharpness=0.7),
    "radius": GlomConfig(level_width=8, radius=1.0),
    "deaf": GlomConfig(level_width=8, attention=False),
    "one level": GlomConfig(level_width=8, levels=1),
    "places": GlomConfig(level_width=8, place_frequencies=2),
    "neighbours": GlomConfig(level_width=8, neighbourhood=1.0),
    "others": GlomConfig(level_width=8, attend_self=False, agreement_decay=0.5),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(config: GlomConfig, width: int = 4, seed: int = 0) -> Glom:
    with seeded_initialisation(generator(seed)):
        return Glom(width, config, coordinates=2)


def population(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, who is there (of six slots 6, 3, 1 and none), and centroids."""
    drawn = generator(seed)
    active = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    active = active.gather(1, torch.rand(4, 6, generator=drawn).argsort(1))
    return torch.randn(4, 6, 4, generator=drawn), active, torch.randn(4, 6, 2, generator=drawn)


def attention(columns: Tensor, allowed: Tensor, sharpness: float, decay: float = 0.0) -> Tensor:
    """Of columns (B, P, L, d)."""
    levels = columns.permute(2, 0, 1, 3)
    return similarity_attention(levels, allowed, sharpness, decay).permute(1, 2, 0, 3)


def naive_attention(
    columns: Tensor, allowed: Tensor, sharpness: float, decay: float
) -> list[list[list[list[float]]]]:
    """softmax(sharpness sum_k decay^k X_{l+k} X_{l+k}^T) X_l, number by number."""
    batch, slots, levels, width = columns.shape
    x = columns.tolist()

    def agreement(b: int, i: int, j: int, level: int) -> float:
        return sharpness * sum(
            decay**k
            * sum(p * q for p, q in zip(x[b][i][level + k], x[b][j][level + k], strict=True))
            for k in range(levels - level)
        )

    def heard(b: int, i: int, level: int) -> list[float]:
        others = [j for j in range(slots) if allowed[b, i, j]]
        weights = [math.exp(agreement(b, i, j, level)) for j in others]
        return [
            sum(w * x[b][j][level][c] for w, j in zip(weights, others, strict=True))
            / (sum(weights) or 1.0)
            for c in range(width)
        ]

    return [
        [[heard(b, i, level) for level in range(levels)] for i in range(slots)]
        for b in range(batch)
    ]


@given(
    seed=st.integers(0, 1000),
    levels=st.integers(1, 3),
    decay=st.sampled_from([0.0, 0.3, 1.0]),
    sharpness=st.sampled_from([0.5, 2.0]),
)
def test_attention_is_that_of_plain_loops(seed, levels, decay, sharpness):
    drawn = generator(seed)
    columns = torch.randn(2, 4, levels, 3, generator=drawn, dtype=torch.float64)
    allowed = torch.rand(2, 4, 4, generator=drawn) < 0.7
    found = attention(columns, allowed, sharpness, decay)
    expected = torch.tensor(
        naive_attention(columns, allowed, sharpness, decay), dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_attention_by_hand():
    """Columns 1 and -1 on one level: each hears itself e^2 times as much as the other."""
    columns = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    heard = attention(columns, torch.ones(1, 2, 2, dtype=torch.bool), 1.0)
    value = math.tanh(1.0)
    assert heard.flatten().tolist() == pytest.approx([value, -value], abs=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_continuing_from_a_state_is_running_through(name):
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    through = glom(tokens, active, centroids, 5)
    state = glom(tokens, active, centroids, 2)
    assert torch.equal(glom(tokens, active, centroids, 3, state), through)
    assert not torch.equal(state, through)


@pytest.mark.parametrize("name", CONFIGS)
def test_iterations_come_to_rest(name):
    """Each voice is bounded and the old columns count less each time: no iteration runs away."""
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    early = glom(tokens, active, centroids, 60)
    later = glom(tokens, active, centroids, 61)
    assert float((later - early).detach().abs().max()) < 1e-3


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("junk", [7.0, 1e30, math.nan, math.inf])
def test_what_stands_in_empty_slots_changes_nothing(name, junk):
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    state = torch.randn(*active.shape, glom.config.levels, 8, generator=generator(1))
    gradients = []
    for fill in (0.0, junk):
        given_tokens = tokens.masked_fill(~active[..., None], fill).requires_grad_()
        given_centroids = centroids.masked_fill(~active[..., None], fill)
        given_state = state.masked_fill(~active[..., None, None], fill).requires_grad_()
        glom.zero_grad()
        columns = glom(given_tokens, active, given_centroids, 3, given_state)
        (columns.square().sum() + columns.sum()).backward()
        gradients.append(
            [columns.detach(), given_tokens.grad, given_state.grad]
            + [parameter.grad for parameter in glom.parameters() if parameter.grad is not None]
        )
    for clean, dirty in zip(*gradients, strict=True):
        assert torch.equal(clean, dirty)
    assert (columns[~active] == 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_slots_are_as_good_as_none(name):
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    padded = glom(tokens, active, centroids)
    for row in range(3):
        here = active[row]
        alone = glom(tokens[row : row + 1, here], here[here][None], centroids[row : row + 1, here])
        torch.testing.assert_close(padded[row, here], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_columns_move_with_their_tokens(name):
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    order = torch.randperm(6, generator=generator(3))
    moved = glom(tokens[:, order], active[:, order], centroids[:, order])
    torch.testing.assert_close(moved, glom(tokens, active, centroids)[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {"one level"}))
def test_gradients_reach_every_parameter_and_stay_finite(name):
    glom, (tokens, active, centroids) = make(CONFIGS[name]), population()
    columns = glom(tokens, active, centroids, 40)
    (columns * torch.randn(columns.shape, generator=generator(4))).sum().backward()
    for parameter_name, parameter in glom.named_parameters():
        if parameter_name == "fresh":
            continue  # after forty iterations where the columns came from is forgotten
        assert parameter.grad.isfinite().all() and parameter.grad.any(), parameter_name
    glom.zero_grad()
    glom(tokens, active, centroids, 2)[..., 0].sum().backward()
    assert glom.fresh.grad.any()


def test_without_attention_a_column_is_a_function_of_its_token():
    tokens, active, _ = population()
    other = tokens.clone()
    other[0, 1:] += 1.0
    for name, same in [("deaf", True), ("default", False)]:
        glom = make(CONFIGS[name])
        changed = glom(other, active)[0, 0] - glom(tokens, active)[0, 0]
        assert (float(changed.detach().abs().max()) < 1e-6) is same


def test_a_column_hears_only_what_lies_within_the_radius():
    """Places 0, 0.9 and 1.8: the ends lie too far apart for one step, but not for two."""
    glom = make(CONFIGS["radius"])
    tokens, active = (
        torch.randn(1, 3, 4, generator=generator(5)),
        torch.ones(1, 3, dtype=torch.bool),
    )
    centroids = torch.tensor([[[0.0], [0.9], [1.8]]])
    assert near(centroids, active, 1.0).int().tolist() == [[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]
    state = glom(tokens, active, centroids, 1)
    other = state.clone()
    other[0, 2] += 1.0
    for iterations, same in [(1, True), (2, False)]:
        changed = glom(tokens, active, centroids, iterations, other)[0, 0]
        unchanged = glom(tokens, active, centroids, iterations, state)[0, 0]
        assert torch.equal(changed, unchanged) is same
    with pytest.raises(ValueError, match="a Glom with a radius or places needs centroids"):
        glom(tokens, active)


def test_all_states_are_those_of_fewer_iterations():
    glom, (tokens, active, _) = make(CONFIGS["default"]), population()
    states = glom(tokens, active, iterations=3, return_all=True)
    assert states.shape == (4, *active.shape, 3, 8)
    for count, state in enumerate(states):
        assert torch.equal(state, glom(tokens, active, iterations=count))


def test_a_column_hears_others_only():
    """Of two columns each receives the other's level; one that is alone receives nothing."""
    levels = torch.tensor([1.0, -3.0]).reshape(1, 1, 2, 1)
    others = ~torch.eye(2, dtype=torch.bool)[None]
    heard = similarity_attention(levels, others, 1.0)
    assert heard.flatten().tolist() == pytest.approx([-3.0, 1.0])
    alone = torch.zeros(1, 2, 2, dtype=torch.bool)
    for decay in (0.0, 0.5):
        assert not similarity_attention(levels, alone, 1.0, decay).any()


def test_filters_are_the_mean_and_the_slopes():
    """Of places 0, 1 and 3 within 2 of one another: 1 has both others, 2 on one side of it at
    twice the distance of the other."""
    places = torch.tensor([[[0.0], [1.0], [3.0]]])
    mean, slope = neighbour_filters(places, torch.ones(1, 3, dtype=torch.bool), 2.0)
    assert mean[0].tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]
    assert slope[0].tolist() == [[0, 0.5, 0], [-0.25, 0, 0.5], [0, -1, 0]]


def test_places_are_sines_and_cosines():
    """The slowest wave is 8 long: at 2 a quarter of it; the next 4 long: half of it."""
    found = sinusoids(torch.tensor([[[2.0]]]), torch.ones(1, 1, dtype=torch.bool), 2)
    assert found.flatten().tolist() == pytest.approx([1, 0, 0, -1], abs=1e-6)


def test_places_need_their_number_of_coordinates():
    with pytest.raises(ValueError, match="expected coordinates, found None"):
        Glom(4, CONFIGS["places"])


def test_a_state_of_other_columns_is_refused():
    glom, (tokens, active, _) = make(CONFIGS["default"]), population()
    with pytest.raises(ValueError, match=r"\(4, 6, 2, 8\); expected \(4, 6, 3, 8\)"):
        glom(tokens, active, state=torch.zeros(4, 6, 2, 8))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 0),
        ("iterations", 0),
        ("sharpness", -1.0),
        ("agreement_decay", 1.5),
        ("radius", -1.0),
        ("neighbourhood", 0.0),
        ("place_frequencies", -1),
    ],
)
def test_impossible_configurations_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        GlomConfig(**{field: value})

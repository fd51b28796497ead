"""Compression, strands, quantiser, losses and configuration of the hierarchies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.encoders.config import HierarchicalConfig, HierarchyConfig
from agents.encoders.hierarchical.config import NO_TOKEN, HierarchicalTransformerConfig
from agents.encoders.hierarchical.layers import (
    HierarchicalLayers,
    Merge,
    covered,
    from_strands,
    rotate,
    spread,
    to_strands,
)
from agents.encoders.hierarchical.objectives import (
    ERRORS,
    ChunkSummarizer,
    LatentDynamics,
    RandomProjectionQuantiser,
    covered_tokens,
    following_tokens,
    latent_loss,
    next_code_loss,
    next_vector_loss,
    token_loss,
)

RATES = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (3, 3), (8, 1), (8, 2), (8, 8)])


@given(rates=RATES, length=st.integers(1, 20), causal=st.booleans())
def test_covered_tokens_are_those_that_end_or_begin_where_the_vector_stands(rates, length, causal):
    rate, stride = rates
    tokens = torch.arange(1.0, length + 1).view(1, -1, 1)
    found = covered(tokens, rate, stride, causal)[0].tolist()
    assert len(found) == math.ceil(length / stride)
    for j, row in enumerate(found):
        first = j * stride - (rate - 1 if causal else 0)
        wanted = [t + 1 if 0 <= t < length else 0 for t in range(first, first + rate)]
        assert row == wanted
    if causal:
        ids = covered_tokens(torch.arange(1, length + 1)[None], rate, stride)
        assert torch.where(ids == NO_TOKEN, 0, ids)[0].tolist() == found


@given(rates=RATES, length=st.integers(1, 20))
def test_a_token_is_given_a_vector_whose_last_token_is_not_after_it(rates, length):
    _, stride = rates
    count = math.ceil(length / stride)
    last = torch.arange(count, dtype=torch.float).view(1, -1, 1) * stride
    given_to = spread(last, stride, length).flatten().tolist()
    assert given_to == [t // stride * stride for t in range(length)]


@given(strands=st.integers(1, 8), length=st.integers(1, 20))
def test_strands_take_every_so_many_th_vector_and_come_back(strands, length):
    vectors = torch.arange(2.0 * length).view(2, length, 1) + 1
    split = to_strands(vectors, strands)
    assert split.shape == (2 * strands, math.ceil(length / strands), 1)
    for strand in range(min(strands, length)):
        wanted = vectors[1, strand::strands, 0].tolist()
        assert split[strands + strand, : len(wanted), 0].tolist() == wanted
    assert torch.equal(from_strands(split, strands, length), vectors)


@pytest.mark.parametrize("receivers", [(0,), (1,), (0, 1)])
def test_a_merge_is_one_network_over_all_hierarchies_at_a_token(receivers):
    drawn = torch.Generator().manual_seed(0)
    hierarchies = [HierarchyConfig(1, 1, 8, 2), HierarchyConfig(3, 3, 4, 1)]
    merge = Merge(hierarchies, receivers)
    with torch.no_grad():
        for weight in merge.parameters():
            weight.normal_(generator=drawn)
    vectors = [torch.randn(1, 7, 8, generator=drawn), torch.randn(1, 3, 4, generator=drawn)]
    expected = [each.clone() for each in vectors]
    for t in range(7):
        here = [vectors[0][0, t], vectors[1][0, t // 3]]
        hidden = sum(merge.hidden[i](merge.norms[i](here[i])) for i in range(2))
        update = merge.output(torch.nn.functional.silu(hidden))
        if 0 in receivers:
            expected[0][0, t] += update[:8]
        if 1 in receivers and t % 3 == 0:
            expected[1][0, t // 3] += update[-4:]
    for one, other in zip(merge(vectors, 7)[0], expected, strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------------------------------- what hierarchies are made of


def of_every_rate(**options) -> HierarchicalLayers:
    """Rates 1, 2 and 6 with overlap, one layer; no bias, so that nothing comes of nothing."""
    compressor = options.pop("compressor", "convolution")
    hierarchies = [
        HierarchyConfig(rate, stride, 8, 2, compressor=compressor)
        for rate, stride in ((6, 2), (1, 1), (2, 1))
    ]
    torch.manual_seed(0)
    return HierarchicalLayers(hierarchies, 1, 8, causal=True, **options)


MADE = {"convolution": {}, "attention": {"compressor": "attention"}, "a chain": {"chained": True}}


@pytest.mark.parametrize("options", MADE.values(), ids=MADE)
def test_a_vector_is_made_of_its_own_tokens_and_no_other(options):
    layers = of_every_rate(**options)
    tokens = torch.randn(1, 11, 8, requires_grad=True)
    starts = layers(tokens).starts
    for index, (rate, stride) in enumerate([(6, 2), (1, 1), (2, 1)]):
        for j in range(starts[index].shape[1]):
            (gradient,) = torch.autograd.grad(starts[index][0, j].sum(), tokens, retain_graph=True)
            last = j * stride
            wanted = list(range(max(0, last - rate + 1), last + 1))
            assert gradient.abs().sum((0, 2)).nonzero().flatten().tolist() == wanted


def test_the_attention_of_a_compressor_sees_the_order():
    layers = of_every_rate(compressor="attention")
    tokens = torch.randn(1, 6, 8)
    swapped = tokens[:, [1, 0, 2, 3, 4, 5]]
    first, second = (layers(each).starts[2][0, 2:] for each in (tokens, swapped))
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1:], second[1:])


def test_a_chain_makes_a_vector_of_those_of_the_lower_rate():
    layers = of_every_rate(chained=True)
    starts = layers(torch.randn(1, 11, 8)).starts
    pairs = starts[2][0, [4, 6, 8]]  # of tokens 3 and 4, 5 and 6, 7 and 8
    torch.testing.assert_close(starts[0][0, 4], layers.compress[0].project(pairs.flatten()))


def test_shared_attention_is_one_module_that_every_hierarchy_learns():
    apart, shared = of_every_rate(), of_every_rate(share_attention=True)

    def size(layers):
        return sum(each.numel() for each in layers.parameters())

    attention = shared.blocks[0][0].attention
    assert all(block.attention is attention for block in shared.blocks[0])
    assert size(apart) - size(shared) == 2 * sum(each.numel() for each in attention.parameters())
    tokens = torch.randn(1, 11, 8)
    for index in range(3):
        weights = attention.output.weight
        (gradient,) = torch.autograd.grad(shared(tokens).ends[index].square().sum(), weights)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("receivers", [(0,), (1, 2)])
def test_only_receivers_depend_on_other_hierarchies(receivers):
    layers = of_every_rate(receivers=receivers)
    ends = layers(torch.randn(1, 11, 8)).ends
    for own in range(3):
        weights = [layers.compress[other].project.weight for other in (0, 2) if other != own]
        gradients = torch.autograd.grad(
            ends[own].square().sum(), weights, retain_graph=True, allow_unused=True
        )
        assert all((each is not None) is (own in receivers) for each in gradients)


# ---------------------------------------------------------------- quantiser


def test_codes_are_the_nearest_rows_after_the_projection():
    generator = torch.Generator().manual_seed(0)
    quantiser = RandomProjectionQuantiser(6, codes=5, dimension=3, generator=generator)
    vectors = torch.randn(4, 7, 6, generator=generator)
    codes = quantiser(vectors)
    for b in range(4):
        for k in range(7):
            projected = vectors[b, k] @ quantiser.projection
            distances = (projected / projected.norm() - quantiser.codebook).norm(dim=1)
            assert codes[b, k] == distances.argmin()


def test_the_quantiser_is_frozen_and_comes_from_its_generator():
    first, again = (
        RandomProjectionQuantiser(6, 5, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert not list(first.parameters())
    assert torch.equal(first.projection, again.projection)
    assert torch.equal(first.codebook, again.codebook)
    torch.testing.assert_close(first.codebook.norm(dim=1), torch.ones(5))
    assert set(first.state_dict()) == {"projection", "codebook"}


def test_the_projection_is_drawn_evenly_around_0():
    """Xavier: uniform up to sqrt(6 / (100 + 50)) = 0.2 either way, whose deviation is 0.2 / 3**0.5;
    the mean of 5,000 is within five of its own."""
    drawn = RandomProjectionQuantiser(100, 1, 50, generator=torch.Generator().manual_seed(0))
    assert 0.199 < drawn.projection.max() <= 0.2 and -0.2 <= drawn.projection.min() < -0.199
    assert abs(drawn.projection.mean()) < 5 * 0.2 / 3**0.5 / 5000**0.5


def test_the_length_of_a_vector_does_not_change_its_code():
    generator = torch.Generator().manual_seed(0)
    quantiser = RandomProjectionQuantiser(6, 50, generator=generator)
    vectors = torch.randn(20, 6, generator=generator)
    assert torch.equal(quantiser(vectors), quantiser(100 * vectors))
    assert len(quantiser(vectors).unique()) > 5


def test_a_quantiser_of_no_codes_is_refused():
    with pytest.raises(ValueError, match="codes is 0"):
        RandomProjectionQuantiser(6, 0, generator=None)


# ---------------------------------------------------------------- losses


def test_token_loss_is_the_mean_over_the_tokens_that_are_there():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    assert token_loss(logits, torch.tensor([[1, 0]])).item() == pytest.approx(
        (math.log(2) + math.log(4 / 3)) / 2
    )
    assert token_loss(logits, torch.tensor([[NO_TOKEN, 0]])).item() == pytest.approx(
        math.log(4 / 3)
    )
    assert token_loss(logits, torch.tensor([[NO_TOKEN, NO_TOKEN]])).item() == 0


def test_next_vector_loss_is_one_minus_the_cosine_with_the_vector_ahead():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]], requires_grad=True)
    predicted = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [5.0, 5.0]]], requires_grad=True)
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    loss = next_vector_loss(predicted, vectors, 1, everywhere)
    assert loss.item() == pytest.approx((0 + 2) / 2)  # the same way, the opposite way
    loss.backward()
    assert vectors.grad is None
    assert next_vector_loss(predicted, vectors, 2, everywhere).item() == pytest.approx(1)
    without_the_last = torch.tensor([[True, True, False]])
    assert next_vector_loss(predicted, vectors, 1, without_the_last).item() == pytest.approx(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_positions_are_exact_in_few_bits(dtype):
    """Neighbours have the same product at place 1,000 as at place 5."""
    query, key = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0)).to(dtype)

    def product(place):
        turned = rotate(query, place).float() * rotate(key, place - 1).float()
        return turned.sum().item()

    size = (query.float().norm() * key.float().norm()).item()
    assert product(1_000) == pytest.approx(product(5), abs=torch.finfo(dtype).eps * size)


def test_latent_loss_counts_a_later_step_less_where_those_before_it_are_wrong():
    """Vectors that turn by a right angle and back."""
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])

    def loss(dynamics, rollouts, decay=0.0, there=(True, True, True)):
        weights = (1 / rollouts,) * rollouts
        return latent_loss(dynamics, vectors, vectors, torch.tensor([there]), weights, decay).item()

    def stays(vectors, summaries):
        return vectors

    def turns(vectors, summaries):
        return vectors.roll(1, dims=2)

    def goes_away(vectors, summaries):
        return vectors * torch.tensor([1.0, 0.0]) - 1.0

    right_angle = 0.9 * 1 + 0.1 * 1
    assert loss(stays, 1) == pytest.approx(right_angle)
    assert loss(stays, 1, there=(True, False, True)) == pytest.approx(right_angle)
    assert loss(stays, 2) == pytest.approx((right_angle + 0) / 2)
    assert loss(stays, 3) == 0  # no vector is three places later
    assert loss(turns, 2, decay=1.0) == pytest.approx(0)
    first = 0.9 * 2 + 0.1 * 2  # (0, -1) for (0, 1)
    second = 0.9 * (1 + 0.5**0.5) + 0.1 * 2.5  # (-1, -1) for (1, 0)
    assert loss(goes_away, 2) == pytest.approx((first + second) / 2)
    for decay in (1.0, 0.5):
        expected = (first + math.exp(-decay * first) * second) / 2
        assert loss(goes_away, 2, decay) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", (4 + 0.25) / 2), ("smooth_l1", (2 - 0.5 + 0.5 * 0.25) / 2)],
)
def test_errors_of_a_predicted_vector_by_name(name, expected):
    """Differences of 2 and 1/2."""
    errors = ERRORS[name](torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[1.0, 0.5]]]))
    assert errors.mean().item() == pytest.approx(expected)


def test_the_network_of_the_next_vector_has_so_many_layers():
    """Of width 4: 8 to 6, 6 to 6, 6 to 4, each with a bias, behind a norm of 8; one is 8 to 4."""
    sizes = [
        sum(each.numel() for each in LatentDynamics(4, hidden, layers).parameters())
        for hidden, layers in ((6, 3), (None, 2), (6, 1))
    ]
    assert sizes == [8 + 54 + 42 + 28, 8 + 36 + 20, 8 + 36]


def test_a_summary_is_the_mean_of_the_tokens_that_there_are():
    summarizer = ChunkSummarizer(HierarchyConfig(4, 2, 4, 1), embedding=4)
    tokens = torch.tensor([[[2.0], [4.0], [6.0], [8.0], [10.0]]]).expand(1, 5, 4)
    assert summarizer(tokens)[0, :, 0].tolist() == [2, 4, 7]


def test_the_following_tokens_are_those_after_the_last_of_a_vector():
    tokens = torch.arange(1, 6)[None]
    assert following_tokens(tokens, 2, 2).tolist() == [[[2, 3], [4, 5], [NO_TOKEN, NO_TOKEN]]]


@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_without_a_next_vector_the_losses_are_zero_and_have_a_gradient(ahead):
    vectors = torch.randn(2, 1, 3, requires_grad=True)
    for loss in (
        next_vector_loss(vectors, vectors, ahead, torch.ones(2, 1, dtype=torch.bool)),
        next_code_loss(vectors, torch.zeros(2, 1, dtype=torch.long), ahead),
    ):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert torch.equal(gradient, torch.zeros_like(vectors))


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 8, "stride": 3}, "rate is 8; expected a multiple of stride 3"),
        ({"width": 0}, "width is 0; expected at least 4"),
        ({"width": 30}, "width is 30; expected a multiple of 4"),
        ({"width": 12, "heads": 4}, "width is 12; expected 4 heads of an even width"),
        ({"window": -1}, "window is -1"),
        ({"rate": 0}, "rate is 0"),
        ({"expansion": 0.0}, "expansion is 0.0"),
        ({"head_width": 3}, "head_width is 3; expected an even number"),
        (
            {"compressor": "pooling"},
            r"unknown compressor 'pooling'; choose from \['convolution', 'attention'\]",
        ),
    ],
)
def test_a_hierarchy_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchyConfig(**arguments)


def test_an_encoder_without_heads_is_refused():
    with pytest.raises(ValueError, match="heads is 0"):
        HierarchicalConfig(heads=0)


@pytest.mark.parametrize("rates", [(), (2,), (1, 1), (1, 8, 2)])
def test_rates_of_the_encoder_rise_from_one(rates):
    with pytest.raises(ValueError, match="expected 1 first"):
        HierarchicalConfig(rates=rates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hierarchies": ()}, r"the rates are \[\]; expected at least one"),
        ({"hierarchies": (HierarchyConfig(2),) * 2}, r"the rates are \[2, 2\]; .* all different"),
        ({"predicting_rate": 4}, r"predicting_rate is 4; expected one of \[1, 2, 8\]"),
        ({"hierarchies": (HierarchyConfig(2, 2),)}, "that predicts has stride 2; expected 1"),
        ({"latent_weight": (0.1, 0.2)}, r"latent_weight is \(0.1, 0.2\); .* 3 of them"),
        ({"next_weight": -1.0}, "next_weight is -1.0; expected a number of at least 0"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"longest": 0}, "longest is 0"),
        ({"receiving_rates": (1, 4)}, r"receiving_rates has 4; expected some of \[1, 2, 8\]"),
        ({"receiving_rates": ()}, r"receiving_rates is \(\); expected at least one"),
        (
            {"hierarchies": (HierarchyConfig(3), HierarchyConfig(8)), "token_autoencoder": True},
            "rate 8 of stride 1 is above rate 3 of stride 1; expected multiples of both",
        ),
        (
            {
                "hierarchies": (HierarchyConfig(), HierarchyConfig(2, window=0)),
                "share_attention": True,
            },
            r"or a window of 0; expected equal ones with attention \(share_attention\)",
        ),
    ],
)
def test_a_transformer_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalTransformerConfig(**options)

"""The causal language model: what it may see, what it is trained for, what it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from agents.encoders.config import HierarchyConfig
from agents.encoders.hierarchical.config import HierarchicalTransformerConfig
from agents.encoders.hierarchical.layers import Hierarchies
from agents.encoders.hierarchical.transformer import HierarchicalTransformer


def hierarchy(rate=1, stride=1, width=8, window=None, heads=2):
    return HierarchyConfig(rate, stride, width, heads, 1.5, window)


FLAT = HierarchicalTransformerConfig(11, 2, (hierarchy(),))
CONFIGS = {
    "flat": FLAT,
    "local": replace(FLAT, hierarchies=(hierarchy(window=3),)),
    "shift only": replace(FLAT, hierarchies=(hierarchy(window=0), hierarchy(4, 2, window=0))),
    "every token": replace(FLAT, hierarchies=(hierarchy(), hierarchy(2), hierarchy(8))),
    "strided": replace(FLAT, hierarchies=(hierarchy(), hierarchy(2, 2), hierarchy(8, 8))),
    "all different": replace(
        FLAT,
        layers=3,
        hierarchies=(
            hierarchy(window=4),
            hierarchy(2, 1, width=12, window=2, heads=3),
            hierarchy(3, 3, width=4, window=0, heads=1),
            hierarchy(8, 4, width=16),
        ),
        receiving_rates=(1, 2, 3, 8),
    ),
    "any order, from all": replace(
        FLAT,
        hierarchies=(
            hierarchy(8, 4, window=2),
            replace(hierarchy(2), heads=3, head_width=2),
            hierarchy(4, 2, width=16),
        ),
        predict_from_all=True,
    ),
    "attention compresses": replace(
        FLAT,
        hierarchies=tuple(
            replace(each, compressor="attention")
            for each in (hierarchy(), hierarchy(2), hierarchy(8, 8))
        ),
        share_attention=True,
    ),
    "a chain": replace(
        FLAT,
        hierarchies=(
            hierarchy(12, 6, width=4),
            hierarchy(),
            hierarchy(2, 2),
            hierarchy(6, 2, width=12),
        ),
        token_autoencoder=True,
        receiving_rates=(2, 1),
    ),
    "hourglass": replace(
        FLAT, hierarchies=(hierarchy(), hierarchy(4, 4, width=12)), layers=(3, 2), hourglass=True
    ),
    "hourglass of three": replace(
        FLAT,
        hierarchies=(
            hierarchy(12, 6, width=4, heads=1),
            hierarchy(1, window=3),
            hierarchy(4, 2, width=16, window=2),
        ),
        hourglass=True,
        predict_from_all=True,
    ),
    "the second receives": replace(
        FLAT, hierarchies=(hierarchy(), hierarchy(4, width=12)), predicting_rate=4
    ),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def transformer(config, seed=0):
    """With weights large enough that everything that can matter does."""
    generator = seeded(seed)
    model = HierarchicalTransformer(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def some_tokens(length, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(11, (batch, length), generator=generator)


# ---------------------------------------------------------------- causality


@each_config
@pytest.mark.parametrize("length", [1, 2, 7, 17])
def test_no_logit_depends_on_a_later_token(config, length):
    model = transformer(config)
    embedded = model.embed(some_tokens(length)).detach().requires_grad_()
    logits = model.logits(model.read(embedded))
    for t in range(length):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), embedded, retain_graph=True)
        assert torch.equal(gradient[:, t + 1 :], torch.zeros_like(gradient[:, t + 1 :]))
        assert gradient[:, t].abs().max() > 1e-4


@each_config
def test_every_length_gives_the_start_of_a_longer_one(config):
    model, tokens = transformer(config), some_tokens(19)
    logits = model(tokens)
    for length in (*range(1, 10), 15, 16, 17):
        torch.testing.assert_close(model(tokens[:, :length]), logits[:, :length])


def test_a_coarse_vector_is_given_from_its_last_token_on():
    """The only way from one token to another is the hierarchy of rate 8: at token 8 its second
    vector stands, made of tokens 1 to 8."""
    config = replace(FLAT, layers=1, hierarchies=(hierarchy(window=1), hierarchy(8, 8, window=1)))
    model = transformer(config)
    embedded = model.embed(some_tokens(12, batch=1)).detach().requires_grad_()
    logits = model.logits(model.read(embedded))

    def seen(t):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), embedded, retain_graph=True)
        return gradient.abs().sum((0, 2)).nonzero().flatten().tolist()

    # The token shift of two sublayers reaches two further back in each hierarchy.
    assert seen(7) == [0, 5, 6, 7]
    assert seen(8) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert seen(11) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_an_hourglass_is_a_plain_transformer_with_coarse_vectors_in_its_middle():
    """Three blocks of tokens, one before the coarse ones: with nothing that comes back, those three
    alone; a coarse vector comes back to the tokens from its last one on, and reaches the others by
    the attention of the blocks behind."""
    fine = hierarchy(window=0)  # beside the token shift of one place a block
    config = replace(FLAT, hierarchies=(fine, hierarchy(4, 4)), layers=(3, 1), hourglass=True)
    model = transformer(config)
    assert [len(each) for each in model.layers.before] == [1, 1]
    assert [len(each) for each in model.layers.after] == [2, 0]
    plain = HierarchicalTransformer(replace(FLAT, hierarchies=(fine,), layers=3))
    flat = [*model.layers.before[0], *model.layers.after[0]]
    for block, source in zip(plain.layers.blocks, flat, strict=True):
        block[0].load_state_dict(source.state_dict())
    for name in ("embedding", "head", "last_norms"):
        getattr(plain, name).load_state_dict(getattr(model, name).state_dict())
    tokens = some_tokens(16)
    torch.testing.assert_close(
        model(tokens, ablate_hierarchical_merge=True), plain(tokens), atol=1e-5, rtol=1e-5
    )
    changed = tokens.clone()
    changed[:, 2] += 1 - 2 * (changed[:, 2] == 10).long()
    differs = (model(tokens) != model(changed)).any(2).any(0)
    # 2 and the three after it by the shifts; all from 4 on, where the vector of 1 to 4 ends
    assert differs.tolist() == [False, False] + [True] * 14
    alone = model(tokens, ablate_hierarchical_merge=True) != model(
        changed, ablate_hierarchical_merge=True
    )
    assert alone.any(2).any(0).tolist() == [False] * 2 + [True] * 4 + [False] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 1)}, r"layers is \(1, 1\); expected a number, or an hourglass"),
        ({"layers": (1,), "hourglass": True}, r"layers is \(1,\); expected a number or 2 of them"),
        ({"layers": (0, 1), "hourglass": True}, "layers is 0: expected"),
        ({"hourglass": True, "predicting_rate": 4}, "predicting_rate is 4; expected none in an ho"),
        ({"hourglass": True, "share_attention": True}, "share_attention is True; expected none"),
        ({"hourglass": True, "receiving_rates": (1,)}, r"receiving_rates is \(1,\); expected none"),
        (
            {"hourglass": True, "token_autoencoder": True},
            "token_autoencoder is True; expected none",
        ),
    ],
)
def test_an_hourglass_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(FLAT, **{"hierarchies": (hierarchy(), hierarchy(4))} | options)


def test_rates_of_an_hourglass_are_multiples():
    with pytest.raises(ValueError, match=r"rate 3 of stride 1 is above rate 2 .* \(hourglass\)"):
        replace(FLAT, hierarchies=(hierarchy(2), hierarchy(3)), hourglass=True)


def test_a_window_limits_what_is_seen():
    config = replace(FLAT, layers=1, hierarchies=(hierarchy(window=4),))
    model = transformer(config)
    embedded = model.embed(some_tokens(12, batch=1)).detach().requires_grad_()
    logits = model.logits(model.read(embedded))
    (gradient,) = torch.autograd.grad(logits[:, 10].square().sum(), embedded)
    # The window from 10 is 7, from 9 (through the shift) 6, whose own shift reaches 5.
    assert gradient.abs().sum((0, 2)).nonzero().flatten().tolist() == [5, 6, 7, 8, 9, 10]


# ---------------------------------------------------------------- losses

LOSSES = {
    "vectors": {"next_weight": 0.5},
    "codes": {"next_weight": 0.5, "codes": 7},
    "reconstruction": {"reconstruction_weight": 0.5},
    "all": {"next_weight": 0.1, "codes": 7, "reconstruction_weight": 0.2, "prophet_weight": 0.1},
    "latent": {"latent_weight": 0.5},
}


@each_config
@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("length", [1, 13])
def test_losses_and_gradients_are_finite_at_every_length(config, options, length):
    model = transformer(replace(config, **options))
    losses = model.losses(some_tokens(length))
    rates = [each.rate for each in config.hierarchies]
    wanted = {"token"}
    if "next_weight" in options:
        wanted |= {f"next_{rate}" for rate in rates}
    if "reconstruction_weight" in options:
        wanted |= {f"reconstruction_{rate}" for rate in rates if rate > 1}
    if "prophet_weight" in options:
        wanted |= {f"prophet_{rate}" for rate in rates if rate > 1}
    if "latent_weight" in options:
        wanted |= {f"latent_{rate}" for rate in rates}
    assert set(losses) == wanted
    sum(losses.values()).backward()
    for loss in losses.values():
        assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@each_config
def test_gradients_reach_every_parameter(config):
    model = HierarchicalTransformer(replace(config, next_weight=0.1, reconstruction_weight=0.1))
    sum(model.losses(some_tokens(24, batch=8)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_token_loss_is_that_of_the_logits():
    model, tokens = transformer(FLAT), some_tokens(9)
    log_probs = model(tokens).log_softmax(2)
    plain = [-log_probs[b, t, tokens[b, t + 1]] for b in range(2) for t in range(8)]
    torch.testing.assert_close(model.losses(tokens)["token"], torch.stack(plain).mean())


def test_rollouts_beyond_the_vectors_are_refused():
    model = transformer(replace(CONFIGS["strided"], latent_weight=0.5, rollouts=2))
    assert model.losses(some_tokens(17))["latent_8"] > 0  # of three vectors
    with pytest.raises(ValueError, match=r"2 rollouts .* of 2 vectors of rate 8; expected fewer"):
        model.losses(some_tokens(13))


def test_weights_scale_the_losses():
    small, large = (
        transformer(
            replace(CONFIGS["every token"], next_weight=weight, reconstruction_weight=weight)
        )
        for weight in (1.0, 3.0)
    )
    tokens = some_tokens(13)
    first, second = small.losses(tokens), large.losses(tokens)
    for name in first.keys() - {"token"}:
        torch.testing.assert_close(3 * first[name], second[name])
    torch.testing.assert_close(first["token"], second["token"])


def test_equal_tokens_have_equal_codes_and_codes_are_not_learned():
    config = replace(CONFIGS["strided"], next_weight=1.0, codes=50)
    model = transformer(config)
    tokens = some_tokens(24)
    tokens[:, 17:] = tokens[:, 9:16]  # vector 3 of rate 8 covers 17 to 24, vector 2 9 to 16
    tokens = torch.cat((tokens, tokens[:, 16:17]), 1)
    tokens[1, 24] = (tokens[1, 24] + 1) % 11
    codes = model.objectives.codes(tokens, 2)
    assert codes.shape == (2, 4)
    assert codes[0, 3] == codes[0, 2]
    names = {name for name, _ in model.named_parameters()}
    assert not any("quantiser" in name or "features" in name for name in names)


def test_a_token_autoencoder_learns_to_give_the_tokens_back():
    """Of random tokens, which nothing predicts: from vectors of two and of four."""
    config = replace(
        FLAT,
        layers=1,
        hierarchies=(hierarchy(), hierarchy(2, 2, width=16), hierarchy(4, 4, width=32)),
        token_autoencoder=True,
        reconstruction_weight=1.0,
    )
    model = HierarchicalTransformer(config, generator=seeded(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(150):
        losses = model.losses(some_tokens(33, batch=16, seed=step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert losses["token"] > 2.3  # log 11 is 2.4
    assert losses["reconstruction_2"] < 0.05
    assert losses["reconstruction_4"] < 0.5


# ---------------------------------------------------------------- generation


@each_config
@pytest.mark.parametrize("prompt", [1, 13])
def test_generation_writes_the_same_with_and_without_cache(config, prompt):
    model = transformer(config)
    for temperature in (0.0, 1.0):
        with_cache, without = (
            model.generate(
                some_tokens(prompt),
                12,
                temperature=temperature,
                cached=cached,
                generator=torch.Generator().manual_seed(1),
            )
            for cached in (True, False)
        )
        assert with_cache.shape == (2, 12)
        assert torch.equal(with_cache, without)


@each_config
def test_steps_give_the_logits_of_the_whole(config):
    model, tokens = transformer(config).double(), some_tokens(30)
    whole = model(tokens)
    cache = model.layers.empty_cache()
    with torch.no_grad():
        model.read(model.embed(tokens[:, :5]), cache)
        for t in range(5, 30):
            ends = model.layers.step(model.embed(tokens[:, t : t + 1]), cache)
            logits = model.logits(Hierarchies([], list(ends)))[:, 0]
            torch.testing.assert_close(logits, whole[:, t], atol=1e-12, rtol=0)


def test_a_cache_holds_no_more_than_the_windows():
    config = replace(FLAT, hierarchies=(hierarchy(window=4), hierarchy(8, 2, window=3)))
    model = transformer(config)
    cache = model.layers.empty_cache()
    with torch.no_grad():
        model.read(model.embed(some_tokens(40)), cache)
        for t in range(40):
            model.layers.step(model.embed(some_tokens(1, seed=t)), cache)
    for fine, coarse in cache.blocks:
        assert fine.keys.shape[2] == 4 and fine.count == 80
        assert coarse.keys.shape[2] == 3 * 4 and coarse.count == 40


def test_generation_repeats_with_its_generator():
    model = transformer(FLAT)
    first, again, other = (
        model.generate(some_tokens(3), 30, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("cached", [True, False])
def test_each_row_of_a_list_goes_on_from_its_own_last_token(cached):
    model = transformer(CONFIGS["strided"])
    rows = [some_tokens(length, batch=1)[0] for length in (9, 4, 9)]
    written = model.generate(rows, 12, temperature=0.0, cached=cached)
    assert written.shape == (3, 12)
    for row, tokens in zip(rows, written, strict=True):
        assert torch.equal(model.generate(row[None], 12, temperature=0.0)[0], tokens)
    numbers = [row.tolist() for row in rows]
    assert torch.equal(model.generate(numbers, 12, temperature=0.0), written)


def test_generating_nothing_gives_nothing():
    assert transformer(FLAT).generate(some_tokens(3), 0).shape == (2, 0)


def test_a_pattern_of_period_eight_is_learned():
    """100 updates, after which greedy generation goes on with the pattern."""
    torch.manual_seed(0)
    model = HierarchicalTransformer(CONFIGS["strided"])
    pattern = torch.tensor([1, 2, 3, 1, 2, 4, 1, 5]).repeat(6)
    tokens = torch.stack([pattern[start : start + 32] for start in range(8)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        loss = sum(model.losses(tokens).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    written = model.generate(pattern[None, :16], 24, temperature=0.0)
    assert written[0].tolist() == pattern[16:40].tolist()


# ---------------------------------------------------------------- errors and imports


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model(torch.zeros(1, 0, dtype=torch.long)), "the length is 0"),
        (lambda model: model(torch.tensor([[0, 11]])), "a token is 11; expected 0 to 10"),
        (lambda model: model(torch.tensor([[0, -2]])), "a token is -2; expected 0 to 10"),
        (lambda model: model(some_tokens(3)[0]), r"have the shape \(3,\); expected \(batch, len"),
        (lambda model: model.generate(some_tokens(3)[0], 2), r"have the shape \(3,\); expected"),
        (lambda model: model([]), r"the shapes \[\]; expected at least one"),
        (lambda model: model([[1, 2], []]), r"the shapes \[\(2,\), \(0,\)\]; expected at least"),
        (lambda model: model(["ab"]), "the tokens are no rows of whole numbers"),
        (lambda model: model(some_tokens(3).float()), "are torch.float32; expected whole numbers"),
        (lambda model: model(some_tokens(3) > 0), "are torch.bool; expected whole numbers"),
        (lambda model: model([[1.5]]), "are torch.float32; expected whole numbers"),
        (lambda model: model.generate(some_tokens(2), -1), "length is -1"),
        (
            lambda model: model.generate(some_tokens(2), 2.5),
            "length is 2.5: expected a whole number from 0",
        ),
        (
            lambda model: model.generate(some_tokens(2), 2, top_k=1.5),
            "top_k is 1.5: expected a whole number from 1",
        ),
        (
            lambda model: model.generate(torch.tensor([[1, -1], [1, 2]]), 2),
            "the prompt has the token -1, which is padding; expected a list of rows",
        ),
        (lambda model: model.generate(some_tokens(2), 1, temperature=-1.0), "temperature is -1"),
        (lambda model: model.generate(some_tokens(2), 1, temperature=float("nan")), "is nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(transformer(FLAT))


def test_the_same_generator_gives_the_same_weights():
    models = [HierarchicalTransformer(FLAT, generator=seeded(seed)) for seed in (3, 3, 4)]
    first, again, other = (model.head.weight for model in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

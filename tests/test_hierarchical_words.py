"""The language model in the words of the original package, and how tokens come in and go out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from agents import HierarchicalTransformer, HierarchicalTransformerConfig, HierarchyConfig
from agents.encoders.hierarchical.transformer import likeliest, nucleus

TINY = {"num_tokens": 11, "dim": 8, "depth": 2, "dim_head": 4, "heads": 2}


def transformer(**words) -> HierarchicalTransformer:
    return HierarchicalTransformer(**TINY | words, generator=torch.Generator().manual_seed(0))


def some_ids(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(1, 11, (batch, length), generator=torch.Generator().manual_seed(length))


# ---------------------------------------------------------------- words


def test_words_mean_what_they_mean_in_the_original():
    config = HierarchicalTransformerConfig.in_words_of_the_original(
        num_tokens=256,
        dim=(128, 256),
        depth=8,
        seq_len=1024,
        use_flash_attn=True,
        ff_mult=(2, 4),
        dim_head=(16, 64),
        heads=8,
        hierarchies=(16, 1),
        hierarchical_stride=(8, 1),
        window_sizes=(0, None),
        next_latent_loss_weight=(0.5, 0.25),
        prophet_loss_weight=0.3,
        hierarchy_merge_all=True,
        predict_use_all_hierarchy=True,
        next_weight=(0.2, 0.0),
        codes=32,
    )
    assert config == HierarchicalTransformerConfig(
        256,
        8,
        (
            HierarchyConfig(16, 8, 128, 8, 2.0, 0, 16),
            HierarchyConfig(1, 1, 256, 8, 4.0, None, 64),
        ),
        receiving_rates=(16, 1),
        predict_from_all=True,
        next_weight=(0.2, 0.0),
        codes=32,
        latent_weight=(0.5, 0.25),
        prophet_weight=(0.3, 0.3),
        reconstruction_weight=(0.1, 0.1),
        longest=1024,
        ignored=0,
    )
    assert config.predicts == 1


def test_by_default_it_is_a_plain_transformer():
    """One sequence of tokens, attention to everything before, nothing merged."""
    model = transformer()
    assert model.config.hierarchies == (HierarchyConfig(1, 1, 8, 2, 4.0, None, 4),)
    assert not model.layers.merges
    logits = sum(
        each.numel() for name, each in model.named_parameters() if not name.startswith("objectives")
    )
    attention, feed_forward, norms = 4 * 8 * (2 * 4), 2 * 8 * 32 + 32, 2 * 8
    assert logits == 2 * 11 * 8 + 2 * (attention + feed_forward + norms) + 8


THREE = {"hierarchies": (1, 2, 8), "window_sizes": (4, 6, None)}
README = {
    "three hierarchies": THREE,
    "next latent": {
        **THREE,
        "next_latent_loss_weight": 0.25,
        "num_rollouts": 2,
        "dynamic_rollout_loss_weight": True,
    },
    "plain": {"hierarchies": 1, "window_sizes": None},
    "one value a hierarchy": {
        "dim": (8, 12, 16, 32),
        "use_flash_attn": True,
        "ff_mult": (2, 2, 4, 4),
        "dim_head": (2, 4, 8, 8),
        "heads": (2, 3, 4, 4),
        "hierarchies": (1, 2, 4, 16),
        "hierarchical_stride": (1, 1, 1, 8),
        "window_sizes": (4, 6, 8, None),
    },
}


@pytest.mark.parametrize("words", README.values(), ids=README)
def test_what_its_users_write(words):
    """As in the original's README, at a tiny size: losses that can be unpacked, logits, causality
    and generation, the same with and without cache."""
    model, ids = transformer(seq_len=32, **words), some_ids(32)
    loss, (token, ahead, reconstruction, by_hierarchy) = model(ids, return_loss=True)
    torch.testing.assert_close(loss, token + ahead + reconstruction)
    torch.testing.assert_close(ahead, sum(by_hierarchy))
    assert len(by_hierarchy) == len(model.config.hierarchies)
    loss.backward()
    assert all(each.grad is not None for each in model.parameters())
    logits = model(ids)
    assert logits.shape == (2, 32, 11)
    log_probs = logits[:, :-1].log_softmax(2).gather(2, ids[:, 1:, None])
    torch.testing.assert_close(token, -log_probs.mean())
    changed = torch.cat((ids[:, :20], ids[:, 20:] % 10 + 1), 1)
    assert torch.equal(model(changed)[:, :20], logits[:, :20])
    with_cache, without = (
        model.generate(
            ids[:, :9], 30, 0.8, 0.5, generator=torch.Generator().manual_seed(1), cached=cached
        )
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)


class LastToken(nn.Module):
    """The last embedded token of each chunk of rate 8."""

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        return embedded[:, ::2]


def test_chunks_can_be_summarised_in_another_way():
    options = {"hierarchies": (1, 2, 8), "hierarchical_stride": (1, 1, 2)}
    own = transformer(**options, chunk_summarizers=(None, None, LastToken()))
    default = transformer(**options)
    first, second = own.losses(some_ids(20)), default.losses(some_ids(20))
    assert torch.equal(first["latent_1"], second["latent_1"])
    assert not torch.equal(first["latent_8"], second["latent_8"])
    with pytest.raises(ValueError, match=r"rate 1 gave shape \(2, 10, 8\); expected \(2, 20, 8\)"):
        transformer(**options, chunk_summarizers=LastToken()).losses(some_ids(20))
    with pytest.raises(ValueError, match=r"summarizer of rate 1, whose latent weight .* is 0"):
        transformer(**options, chunk_summarizers=LastToken(), next_latent_loss_weight=0.0)
    with pytest.raises(ValueError, match="there are 2 chunk summarizers; expected 3"):
        transformer(**options, chunk_summarizers=[None, None])


@pytest.mark.parametrize("detach", [True, False])
def test_summaries_lead_no_gradient_to_the_embedding_unless_they_should(detach):
    model = transformer(detach_summaries=detach)
    embedded = torch.randn(1, 9, 8, requires_grad=True)
    vectors = model.read(embedded.detach())
    losses = model.objectives(some_ids(9, batch=1), embedded, vectors)
    reaches = losses["latent_1"].requires_grad and bool(
        torch.autograd.grad(losses["latent_1"], embedded, allow_unused=True)[0] is not None
    )
    assert reaches is not detach


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"heads": (2, 2)}, r"heads is \(2, 2\); expected one value or 1, one a hierarchy"),
        ({"hierarchies": (1, 2), "dim": (8,)}, r"dim is \(8,\); expected one value or 2"),
        ({"hierarchies": (1, 2), "hierarchical_stride": 2}, "rate is 1; expected a multiple"),
        ({"config": HierarchicalTransformerConfig()}, r"a config beside \['depth', 'dim', "),
    ],
)
def test_words_that_do_not_fit_together_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        transformer(**words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"head": 3}, r"no keyword 'head'; expected those .*original \(did you mean 'heads'\?\)$"),
        ({"hierarchy": 2}, r"\(did you mean 'hierarchies'\?\)"),
        ({"chunk_summarisers": None}, r"\(did you mean 'chunk_summarizers'\?\)"),
        ({"rq_codebook_size": 64}, r"'rq_codebook_size'; .* \(did you mean codes\?\)"),
        ({"colour": 1}, "no keyword 'colour'; expected those of .*in_words_of_the_original$"),
        ({"next_latent_loss_type": "mae"}, r"unknown latent_error 'mae'; choose from \['mse_and"),
        ({"dynamics_num_layers": 0}, "dynamics_layers is 0; expected"),
        ({"dynamics_hidden_dim": 0}, "dynamics_hidden is 0; expected"),
        ({"dynamic_loss_decay": -1.0}, "rollout_decay is -1.0; expected at least 0"),
        ({"rollout_weights": (1, 2)}, r"rollout_weights is \(1, 2\); expected 1 \(rollouts\)"),
        ({"num_rollouts": 2, "rollout_weights": (0, 0)}, r"expected 2 \(rollouts\), not all 0"),
        ({"num_rollouts": 2, "rollout_weights": (1, -2)}, r"rollout_weights\[1\] is -2; expected"),
    ],
)
def test_a_word_that_cannot_be_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        transformer(**words)


def test_a_missing_word_is_named():
    with pytest.raises(ValueError, match="has no depth: expected num_tokens, dim, depth, or a con"):
        HierarchicalTransformer(num_tokens=11, dim=8)


def test_words_of_the_latent_prediction():
    """One layer, no hidden one; errors by a function; a step ahead that counts three times."""
    ids = some_ids(12)

    def loss(**words) -> float:
        return float(transformer(dynamics_num_layers=1, **words).losses(ids)["latent_1"].detach())

    def always_two(predicted, target):
        return torch.full_like(predicted[..., :1], 2.0)

    assert loss(next_latent_loss_type=always_two) == pytest.approx(0.25 * 2)
    two = {"next_latent_loss_type": always_two, "num_rollouts": 2}
    assert loss(**two) == pytest.approx(0.25 * (1 + math.exp(-2)))
    assert loss(**two, dynamic_loss_decay=0.5) == pytest.approx(0.25 * (1 + math.exp(-1)))
    assert loss(**two, rollout_weights=[1, 3]) == pytest.approx(0.25 * (0.5 + 1.5 * math.exp(-2)))
    assert loss(**two, dynamic_rollout_loss_weight=False) == pytest.approx(0.25 * 2)
    with pytest.raises(ValueError, match=r"\(next_latent_loss_type\) has shape \(\); expected one"):
        loss(next_latent_loss_type=nn.functional.mse_loss)


def test_what_a_call_returns():
    """Vectors before and after the layers, those that predict as the head receives them."""
    model, ids = transformer(**THREE, hierarchical_stride=(1, 1, 8)), some_ids(20)
    starts = model(ids, return_hierarchical_token_embeds=True)
    assert [tuple(each.shape) for each in starts] == [(2, 20, 8), (2, 20, 8), (2, 3, 8)]
    assert torch.equal(starts[0], model.embed(ids))
    logits, ends = model(ids, return_logits_and_embeds=True)
    assert torch.equal(logits, model(ids)) and torch.equal(model.head(ends[0]), logits)
    again = model(ids, return_hierarchical_embeds=True)
    assert all(torch.equal(one, other) for one, other in zip(ends, again, strict=True))
    assert ends[2].mean(2).abs().max() < 1e-5  # normalised
    with pytest.raises(ValueError, match="there are return_loss, return_hierarchical_embeds; exp"):
        model(ids, return_loss=True, return_hierarchical_embeds=True)


def test_without_the_merge_a_hierarchy_is_by_itself():
    model, ids = transformer(**THREE), some_ids(20)
    alone = model(ids, ablate_hierarchical_merge=True)
    assert not torch.equal(alone, model(ids))
    with torch.no_grad():
        for merge in model.layers.merges:
            merge.output.weight.zero_()
    assert torch.equal(alone, model(ids))
    loss, _ = model(ids, return_loss=True)
    ablated, _ = model(ids, return_loss=True, ablate_hierarchical_merge=True)
    assert torch.equal(loss, ablated)


def test_where_it_is_and_how_much_it_takes():
    model = transformer(seq_len=8)
    assert (model.seq_len, model.device) == (8, torch.device("cpu"))
    assert HierarchicalTransformer().seq_len is None


def test_more_tokens_than_seq_len_are_refused_and_a_longer_prompt_is_cut():
    model = transformer(seq_len=8)
    model.losses(some_ids(9))  # the last is a target only
    for call in (lambda ids: model(ids[:, :9]), lambda ids: model(ids, return_loss=True)):
        with pytest.raises(ValueError, match=r"the length is 9; expected at most 8 \(seq_len\)"):
            call(some_ids(10))
    long = some_ids(20)
    written = model.generate(long, 12, temperature=0.0)
    assert torch.equal(written, model.generate(long[:, -8:], 12, temperature=0.0))


# ---------------------------------------------------------------- bytes and ragged rows


def test_bytes_are_tokens():
    model, ids = transformer(num_tokens=256), some_ids(12)
    small = ids.to(torch.uint8)
    assert torch.equal(model(small), model(ids))
    assert torch.equal(model(small, return_loss=True)[0], model(ids, return_loss=True)[0])
    assert model.generate(small, 3).dtype == torch.int64


@pytest.mark.parametrize("ignored", [0, -1, -100])
def test_ragged_rows_have_the_losses_of_each(ignored):
    """The tokens of all rows count alike, and padding is as if it were not there."""
    model = transformer(
        hierarchies=(1, 2, 8), ignore_index=ignored, prophet_loss_weight=0.1, num_rollouts=1
    )
    rows = [some_ids(length, batch=1)[0] for length in (3, 17, 9)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=ignored)
    losses, alone = model.losses(rows), [model.losses(row[None]) for row in rows]
    for name, loss in model.losses(padded).items():
        assert torch.equal(losses[name], loss)
    targets = [len(row) - 1 for row in rows]
    for name in ("token", "latent_1", "latent_2"):  # one target for each token but the first
        mean = sum(n * each[name] for n, each in zip(targets, alone, strict=True)) / sum(targets)
        torch.testing.assert_close(losses[name], mean)
    torch.testing.assert_close(model(rows)[0, :3], model(rows[0][None])[0])


# ---------------------------------------------------------------- sampling


def test_the_likeliest_tokens_are_left():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    inf = torch.inf
    assert likeliest(logits, 2).tolist() == [[-inf, 3, 2, -inf]]
    assert torch.equal(likeliest(logits, None), logits) and torch.equal(
        likeliest(logits, 9), logits
    )


@pytest.mark.parametrize(
    ("reached", "left"),
    [(0.0, [1]), (0.5, [1]), (0.51, [1, 2]), (0.8, [1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_fewest_tokens_of_so_much_probability(reached, left):
    logits = torch.tensor([[0.125, 0.5, 0.3125, 0.0625]]).log()
    kept = nucleus(logits, reached, 1.0).isfinite()[0].nonzero().flatten().tolist()
    assert kept == left


def test_temperature_comes_before_the_nucleus():
    logits = torch.tensor([[0.0, 2.0]])  # 0.12 and 0.88, at a temperature of 4 0.38 and 0.62
    assert nucleus(logits, 0.8, 1.0).isfinite().tolist() == [[False, True]]
    assert nucleus(logits, 0.8, 4.0).isfinite().tolist() == [[True, True]]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"filter_thres": 0.95}, {"top_p": 0.0}])
def test_one_token_left_is_the_most_likely_one(options):
    model, prompt = transformer(), some_ids(5)
    greedy = model.generate(prompt, 6, temperature=0.0)
    assert torch.equal(model.generate(prompt, 6, **options), greedy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 1.5}, "top_p is 1.5; expected 0 to 1"),
        ({"filter_thres": -0.1}, "filter_thres is -0.1; expected 0 to 1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 3, "filter_thres": 0.5}, "filter_thres is beside top_k 3"),
    ],
)
def test_sampling_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transformer().generate(some_ids(3), 2, **options)

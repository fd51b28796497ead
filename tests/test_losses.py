"""Each loss of the autoencoder by hand, and whose weights it reaches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import small_autoencoder
from episodes import generator, plain_forests, random_batch
from oracle import PlainForest, encode, reconstruct

from agents.fixed import fixed_policy
from htm_env.autoencoder import HTMAutoencoder
from htm_env.losses import (
    LossWeights,
    autoencoder_losses,
    channel_rate,
    classifier_loss,
    cycle_loss,
    magnitude_loss,
    reconstruction_loss,
    transport_loss,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-6}
ALL = LossWeights(
    reconstruction=1.0, subtrees=2.0, cycle=3.0, transport=4.0, magnitude=5.0, classifier=6.0
)
PARTS = ["lifter", "merger", "unmerger", "unlifter", "classifier"]


def only(name: str) -> LossWeights:
    nothing = dict.fromkeys(
        ["reconstruction", "subtrees", "cycle", "transport", "magnitude", "classifier"], 0.0
    )
    return LossWeights(**{**nothing, name: 1.0})


def ragged(partial: bool = False):
    batch = random_batch([4, 2, 5, 3], slots=6)
    merges = fixed_policy("random", small_autoencoder(3)).plan(batch, generator())
    if partial:
        merges[0, 2:], merges[1, 0:], merges[2, 3:] = -1, -1, -1
    return batch, merges


def reached(autoencoder, loss) -> set[str]:
    """The parts that get a gradient."""
    autoencoder.zero_grad()
    loss.backward()
    return {
        part
        for part in PARTS
        for weight in getattr(autoencoder, part).parameters()
        if weight.grad is not None and weight.grad.abs().sum() > 0
    }


# ---------------------------------------------------------------- by hand


def test_reconstruction_by_hand():
    predicted, target = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.zeros(2, 2)
    loss = reconstruction_loss(HTMAutoencoder(2), predicted, target, torch.tensor([0.5, 0.25]))
    assert float(loss) == 0.5 * (1 + 4) / 2 + 0.25 * (0 + 16) / 2


@pytest.mark.parametrize("interpolation", [0.0, 0.25, 0.5, 1.0])
def test_transport_by_hand(interpolation):
    """The target goes with the decoder, so ``(1 - t)^2`` of the pull is left."""
    decoded, encoded = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 1.0]])
    whole = (4 + 16) / 2
    loss = transport_loss(decoded, encoded, interpolation)
    assert float(loss) == pytest.approx((1 - interpolation) ** 2 * whole)


def test_transport_pulls_the_decoder_only():
    decoded = torch.tensor([[1.0, 5.0]], requires_grad=True)
    encoded = torch.tensor([[3.0, 1.0]], requires_grad=True)
    transport_loss(decoded, encoded, 0.5).backward()
    assert encoded.grad is None
    # d/dx mean (x - target)^2 with the targets 2 and 3 held still.
    assert decoded.grad.tolist() == [[-1.0, 2.0]]


def test_magnitude_by_hand():
    assert float(magnitude_loss(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))) == 14 / 4


def test_cycle_by_hand():
    """Merge keeps the first and unmerge gives it twice: (1, 3) comes back as (1, 1)."""
    autoencoder = small_autoencoder(1, embedding_dim=1)
    with torch.no_grad():
        for part in (autoencoder.merger, autoencoder.unmerger):
            for weight in part.parameters():
                weight.zero_()
        autoencoder.merger.skip.weight.copy_(torch.tensor([[1.0, 0.0]]))
        autoencoder.unmerger.skip.weight.copy_(torch.tensor([[1.0], [1.0]]))
    loss = cycle_loss(autoencoder, torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    assert float(loss.detach()) == pytest.approx(4 / 4)


def test_classifier_counts_leaves_and_inner_nodes_the_same():
    """Three leaves at p = 1/2 and one inner node at p = 1/4 for "leaf"."""
    logits = torch.tensor([0.0, 0.0, 0.0, -math.log(3)])
    is_leaf = torch.tensor([True, True, True, False])
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert float(classifier_loss(logits, is_leaf)) == pytest.approx(expected, rel=1e-5)


def test_classifier_with_one_kind_of_node_only():
    loss = classifier_loss(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert float(loss) == pytest.approx(math.log(2) / 2, rel=1e-2)


# ---------------------------------------------------------------- all at once


@pytest.mark.parametrize("partial", [False, True])
def test_reconstruction_is_the_nmse_of_the_plain_loop(autoencoder, partial):
    """Each sample counts alike, in units of the autoencoder's own statistics."""
    batch, merges = ragged(partial)
    losses = autoencoder_losses(autoencoder, batch, merges, only("reconstruction"))
    errors = []
    for row, forest in enumerate(plain_forests(merges, batch.num_tokens)):
        tokens = batch.tokens[row, : forest.n]
        off = (reconstruct(autoencoder, tokens, forest) - tokens) / autoencoder.token_std
        errors.append(off.square().mean())
    torch.testing.assert_close(losses["reconstruction"], torch.stack(errors).mean(), **CLOSE)
    assert set(losses) == {"reconstruction", "total"}
    assert torch.equal(losses["total"], losses["reconstruction"])


def below(forest: PlainForest, node: int) -> list[int]:
    pair = forest.children(node)
    return [node] if pair is None else below(forest, pair[0]) + below(forest, pair[1])


def test_subtrees_are_decoded_for_themselves(autoencoder):
    """Every node but the root, each of its leaves counting alike; a leaf is its own leaf."""
    batch, merges = ragged()
    losses = autoencoder_losses(autoencoder, batch, merges, only("subtrees"), subtree_share=1.0)
    errors = []
    for row, forest in enumerate(plain_forests(merges, batch.num_tokens)):
        tokens = batch.tokens[row, : forest.n]
        target = autoencoder.standardise(tokens[None])[0]
        nodes = encode(autoencoder, tokens, forest)
        for node in range(2 * forest.n - 2):
            states = {node: nodes[node]}
            for inner in range(node, forest.n - 1, -1):
                if inner in states:
                    first, second = forest.children(inner)
                    states[first], states[second] = autoencoder.unmerger(states[inner]).chunk(2)
            errors += [
                (autoencoder.unlifter(states[leaf]) - target[leaf]).square().mean()
                for leaf in below(forest, node)
            ]
    torch.testing.assert_close(losses["subtrees"], torch.stack(errors).mean(), **CLOSE)
    assert torch.equal(losses["total"], losses["subtrees"] + 0 * losses["reconstruction"])


def test_subtrees_leave_the_reconstruction_alone(autoencoder):
    batch, merges = ragged()
    without = autoencoder_losses(autoencoder, batch, merges, ALL)
    everything = autoencoder_losses(autoencoder, batch, merges, ALL, subtree_share=1.0)
    torch.testing.assert_close(everything["reconstruction"], without["reconstruction"], **CLOSE)
    assert "subtrees" not in without
    assert "subtrees" not in autoencoder_losses(
        autoencoder, batch, merges, only("reconstruction"), subtree_share=1.0
    )


def test_a_share_of_the_subtrees_is_drawn_from_the_generator(autoencoder):
    batch, merges = ragged()

    def loss(seed):
        return autoencoder_losses(
            autoencoder, batch, merges, ALL, subtree_share=0.5, generator=generator(seed)
        ).get("subtrees", torch.zeros(()))

    assert torch.equal(loss(1), loss(1))
    assert len({float(loss(seed).detach()) for seed in range(8)}) > 1


@pytest.mark.parametrize("partial", [False, True])
def test_cycle_transport_and_magnitude_are_those_of_the_plain_loop(autoencoder, partial):
    batch, merges = ragged(partial)
    losses = autoencoder_losses(autoencoder, batch, merges, ALL, interpolation=0.5)
    cycle, transport, magnitude = [], [], []
    for row, forest in enumerate(plain_forests(merges, batch.num_tokens)):
        nodes = encode(autoencoder, batch.tokens[row, : forest.n], forest)
        magnitude += [node.square().mean() for node in nodes]
        states = {node: nodes[node] for node in forest.slots.values()}
        for parent in reversed(range(forest.n, len(nodes))):
            first, second = forest.children(parent)
            pair = torch.cat([nodes[first], nodes[second]])
            cycle.append((autoencoder.unmerger(nodes[parent]) - pair).square().mean())
            states[first], states[second] = autoencoder.unmerger(states[parent]).chunk(2)
            transport += [
                0.25 * (states[child] - nodes[child]).square().mean() for child in (first, second)
            ]
    for name, expected in [("cycle", cycle), ("transport", transport), ("magnitude", magnitude)]:
        torch.testing.assert_close(losses[name], torch.stack(expected).mean(), **CLOSE)


def test_the_total_is_the_weighted_sum(autoencoder):
    batch, merges = ragged()
    losses = autoencoder_losses(autoencoder, batch, merges, ALL, subtree_share=1.0)
    names = ["reconstruction", "subtrees", "cycle", "transport", "magnitude", "classifier"]
    assert set(losses) == {*names, "total"}
    expected = sum((number + 1) * losses[name] for number, name in enumerate(names))
    torch.testing.assert_close(losses["total"], expected)


@pytest.mark.parametrize("name", ["cycle", "transport", "classifier", "reconstruction"])
def test_forests_without_any_merge(autoencoder, name):
    batch, merges = ragged()
    merges[:] = -1
    losses = autoencoder_losses(autoencoder, batch, merges, only(name), subtree_share=1.0)
    assert losses["total"].isfinite()
    losses["total"].backward()


# ---------------------------------------------------------------- whose weights


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reconstruction", {"lifter", "merger", "unmerger", "unlifter"}),
        ("subtrees", {"lifter", "merger", "unmerger", "unlifter"}),
        ("cycle", {"merger", "unmerger"}),
        # The decoder starts from the root that the encoder made.
        ("transport", {"lifter", "merger", "unmerger"}),
        ("magnitude", {"lifter", "merger"}),
        ("classifier", {"lifter", "merger", "unmerger", "classifier"}),
    ],
)
def test_whose_weights_a_loss_reaches(autoencoder, name, parts):
    batch, merges = ragged()
    losses = autoencoder_losses(autoencoder, batch, merges, only(name), subtree_share=1.0)
    assert reached(autoencoder, losses["total"]) == parts


def test_a_detached_classifier_changes_nothing_but_itself(autoencoder):
    batch, merges = ragged()
    weights = replace(only("classifier"), classifier_detached=True)
    losses = autoencoder_losses(autoencoder, batch, merges, weights, subtree_share=1.0)
    assert reached(autoencoder, losses["total"]) == {"classifier"}


# ---------------------------------------------------------------- noise


def test_noise_only_when_asked_and_from_the_generator(autoencoder):
    batch, merges = ragged()

    def loss(noise_std, seed):
        drawn = generator(seed)
        losses = autoencoder_losses(
            autoencoder, batch, merges, only("reconstruction"), noise_std=noise_std, generator=drawn
        )
        return float(losses["total"].detach()), drawn.get_state()

    clean, state = loss(0.0, 1)
    assert loss(0.0, 2)[0] == clean
    assert torch.equal(state, generator(1).get_state())  # nothing was drawn
    noisy, _ = loss(0.1, 1)
    assert noisy != clean
    assert loss(0.1, 1)[0] == noisy
    assert loss(0.1, 2)[0] != noisy


def test_noise_has_the_given_deviation():
    """A lifter of zeros: what is left in the leaves is the noise alone."""
    autoencoder = small_autoencoder(3)
    with torch.no_grad():
        for weight in autoencoder.lifter.parameters():
            weight.zero_()
    batch = random_batch([2] * 500)
    merges = torch.full((500, 1, 2), -1)
    losses = autoencoder_losses(
        autoencoder, batch, merges, only("magnitude"), noise_std=0.3, generator=generator()
    )
    assert float(losses["magnitude"].detach()) == pytest.approx(0.09, rel=0.05)


# ---------------------------------------------------------------- the rate of a channel


def test_the_rate_of_a_channel_by_hand():
    """A variance of 3 beside noise of variance 1 is a bit, log2(1 + 3) / 2; one of 0 is nothing,
    and so is a constant."""
    values = math.sqrt(3) * torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) + torch.tensor([7.0, 9.0])
    assert float(channel_rate(values)) == pytest.approx(math.log(2))
    both = math.sqrt(3) * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert float(channel_rate(both)) == pytest.approx(2 * math.log(2))
    turned = math.sqrt(3) * torch.tensor([[1.0, 1.0], [-1.0, -1.0]]) / math.sqrt(2)
    assert float(channel_rate(turned)) == pytest.approx(math.log(2))  # the same on other axes
    assert float(channel_rate(values[:1])) == 0


@pytest.mark.parametrize("nodes", [False, True])
def test_the_rate_is_paid_for_roots_or_nodes_over_the_numbers_of_the_tokens(nodes):
    """14 tokens of 3 numbers in 4 samples: 4 roots, or 24 nodes."""
    autoencoder, (batch, merges) = small_autoencoder(3), ragged()
    weights = replace(only("reconstruction"), rate=0.5, rate_nodes=nodes)
    found = autoencoder_losses(autoencoder, batch, merges, weights, generator=generator())
    encoding = autoencoder.encode(batch.tokens, batch.present, merges)
    exists = torch.arange(11) < 2 * batch.num_tokens[:, None] - 1
    sent = encoding.nodes[exists] if nodes else encoding.roots
    assert len(sent) == (24 if nodes else 4)
    torch.testing.assert_close(found["rate"], channel_rate(sent) * len(sent) / (14 * 3))
    torch.testing.assert_close(found["total"], found["reconstruction"] + 0.5 * found["rate"])
    assert reached(autoencoder, found["rate"]) == {"lifter", "merger"}


@pytest.mark.parametrize("nodes", [False, True])
def test_what_is_decoded_has_the_noise_of_the_channel(nodes):
    """An exact line from the root to one token: the error is the variance of the noise, 1, of
    roots; of nodes below too where they pay. Tokens are their own embedding."""
    autoencoder = HTMAutoencoder(1, embedding_dim=1, hidden_dim=8)
    with torch.no_grad():
        for weight in autoencoder.parameters():
            weight.zero_()
        for part in (autoencoder.lifter, autoencoder.unlifter):
            part.skip.weight.fill_(1.0)
        autoencoder.merger.skip.weight.copy_(torch.tensor([[0.5, 0.5]]))
        autoencoder.unmerger.skip.weight.copy_(torch.tensor([[1.0], [1.0]]))
    batch = random_batch([2] * 4000)._replace(tokens=torch.ones(4000, 2, 1))
    merges = torch.tensor([[[0, 1]]]).expand(4000, 1, 2).clone()
    weights = LossWeights(classifier=0.0, rate=1e-9, rate_nodes=nodes)
    found = autoencoder_losses(
        autoencoder, batch, merges, weights, subtree_share=1.0, generator=generator()
    )
    assert float(found["reconstruction"].detach()) == pytest.approx(1, abs=0.1)
    assert float(found["subtrees"].detach()) == pytest.approx(1 if nodes else 0, abs=0.1)


def test_the_rate_of_embeddings_that_are_not_finite_is_not_finite():
    """So that the step is skipped."""
    assert not math.isfinite(float(channel_rate(torch.tensor([[math.inf, 1.0], [1.0, 2.0]]))))


def test_without_a_rate_nothing_is_drawn():
    autoencoder, (batch, merges) = small_autoencoder(3), ragged()
    draws = generator()
    before = draws.get_state()
    found = autoencoder_losses(autoencoder, batch, merges, LossWeights(), generator=draws)
    assert "rate" not in found and torch.equal(draws.get_state(), before)

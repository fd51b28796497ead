"""The scorers against plain loops over pairs, and against what is in empty slots."""

from __future__ import annotations

import pytest
import torch
from episodes import (
    EITHER_WAY,
    RAGGED,
    SCORERS,
    generator,
    known_merger,
    plain_policy,
    random_batch,
    random_policy,
)

from agents.networks.context import make_policy
from agents.networks.scorers import MergedPolicy, PairPolicy, PointerPolicy
from agents.rollouts.pair_scores import ILLEGAL, Features
from agents.rollouts.rollout import rollout
from htm_env.autoencoder import HTMAutoencoder
from htm_env.forest import pair_to_action

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def observation(sizes_active: list[list[int]], slots: int, seed: int = 0) -> dict:
    """Random embeddings of five numbers in the given slots."""
    drawn = generator(seed)
    active = torch.zeros(len(sizes_active), slots, dtype=torch.int8)
    for row, slots_of_row in enumerate(sizes_active):
        active[row, slots_of_row] = 1
    tokens = torch.randn(len(sizes_active), slots, 5, generator=drawn) * active[..., None]
    counts = torch.randint(1, 9, active.shape, generator=drawn) * active
    return {"tokens": tokens, "active": active, "leaf_counts": counts.to(torch.int32)}


def plain_pointer_score(policy: PointerPolicy, first, second) -> torch.Tensor:
    """``q_i . k_j / sqrt(d) - |f_i - f_j|^2 + o_i - o_j`` from one token's numbers each."""

    def parts(token):
        embedding, count = token
        hidden = policy.body(torch.cat([embedding, count.float().log2()[None]]))
        hidden = hidden + policy.residual(hidden)
        query, key, place, order = policy.head(hidden).split(
            [policy.key_dim, policy.key_dim, policy.distance_dim, 1]
        )
        return query, key, place + policy.distance_skip(embedding), order

    query, _, place, order = parts(first)
    _, key, other_place, other_order = parts(second)
    near = (place - other_place).square().sum()
    return query @ key / policy.key_dim**0.5 - near + (order - other_order)[0]


def plain_pair_score(policy: PairPolicy, first, second) -> torch.Tensor:
    """The MLP over the two concatenated embeddings."""
    return policy.rest(policy.first(torch.cat([first[0], second[0]])))[0]


def plain_merged_score(policy: MergedPolicy, first, second) -> torch.Tensor:
    """The MLP over both tokens and what they become, and the reward of that."""
    one, other = first[0], second[0]
    weight = 0.5 if policy.symmetric else 0.8
    merged = weight * one + (1 - weight) * other
    reward = -merged[:1].square()
    rows = []
    for embedding, count in (first, second):
        hidden = policy.body(torch.cat([embedding, count.float().log2()[None]]))
        rows.append(policy.head(hidden).chunk(1 if policy.symmetric else 2))
    hidden = rows[0][0] + rows[1][-1] + policy.become(torch.cat([merged, reward.asinh()]))
    return (policy.rest(hidden) + policy.reward_scale * reward)[0]


PLAIN = {
    "pointer": plain_pointer_score,
    "pair_mlp": plain_pair_score,
    "merged": plain_merged_score,
    "merged_in_order": plain_merged_score,
}


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_logits_are_the_scores_of_each_pair(scorer):
    policy = random_policy(scorer)
    seen = observation([[0, 1, 3, 4], [2, 0], [1, 2, 3, 4, 0]], slots=5)
    logits, values = policy(seen)
    assert logits.shape == (3, 20)
    assert values.shape == (3,)
    for row in range(3):
        tokens = list(zip(seen["tokens"][row], seen["leaf_counts"][row], strict=True))
        for first in range(5):
            for second in set(range(5)) - {first}:
                logit = logits[row, pair_to_action(first, second, 5)]
                if seen["active"][row, first] and seen["active"][row, second]:
                    expected = PLAIN[scorer](policy, tokens[first], tokens[second])
                    torch.testing.assert_close(logit, expected, **CLOSE)
                else:
                    assert float(logit.detach()) == ILLEGAL


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_illegal_actions_have_probability_exactly_zero(scorer):
    logits, _ = random_policy(scorer)(observation([[0, 1, 3], [4, 2], [0, 1, 2, 3, 4]], slots=5))
    probabilities = logits.softmax(1)
    assert (probabilities > 0).sum(1).tolist() == [6, 2, 20]  # n (n - 1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
@pytest.mark.parametrize("junk", [7.0, -1e4, 1e30, float("inf"), float("nan")])
def test_what_stands_in_empty_slots_changes_nothing(scorer, junk):
    policy = random_policy(scorer)
    seen = observation([[0, 2, 3], [4, 1]], slots=5)
    empty = seen["active"] == 0
    spoilt = {
        **seen,
        "tokens": torch.where(empty[..., None], junk, seen["tokens"]),
        "leaf_counts": torch.where(empty, 2**20, seen["leaf_counts"]).to(torch.int32),
    }
    (logits, values), (spoilt_logits, spoilt_values) = policy(seen), policy(spoilt)
    assert torch.equal(logits, spoilt_logits)
    assert torch.equal(values, spoilt_values)

    def gradients(output):
        policy.zero_grad()
        (output[0].log_softmax(1)[:, pair_to_action(1, 4, 5)].sum() + output[1].sum()).backward()
        return [weight.grad.clone() for weight in policy.parameters() if weight.grad is not None]

    for clean, dirty in zip(gradients(policy(seen)), gradients(policy(spoilt)), strict=True):
        torch.testing.assert_close(clean, dirty, **CLOSE)


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_a_sample_scores_the_same_in_more_slots(scorer):
    policy = random_policy(scorer)
    small = observation([[0, 1, 2]], slots=3)
    large = observation([[0, 1, 2]], slots=6)
    large["tokens"][:, :3] = small["tokens"]
    large["leaf_counts"][:, :3] = small["leaf_counts"]
    (small_logits, small_value), (logits, value) = policy(small), policy(large)
    torch.testing.assert_close(value, small_value, **CLOSE)
    for first, second in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]:
        torch.testing.assert_close(
            logits[0, pair_to_action(first, second, 6)],
            small_logits[0, pair_to_action(first, second, 3)],
            **CLOSE,
        )


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_the_order_of_the_slots_carries_no_information(scorer):
    policy = random_policy(scorer)
    seen = observation([[0, 1, 3, 4]], slots=5)
    order = torch.tensor([3, 0, 4, 2, 1])  # slot s of the shuffled one holds slot order[s]
    shuffled = {key: value[:, order] for key, value in seen.items()}
    (logits, value), (shuffled_logits, shuffled_value) = policy(seen), policy(shuffled)
    torch.testing.assert_close(value, shuffled_value, **CLOSE)
    for first in range(5):
        for second in set(range(5)) - {first}:
            here = logits[0, pair_to_action(int(order[first]), int(order[second]), 5)]
            there = shuffled_logits[0, pair_to_action(first, second, 5)]
            torch.testing.assert_close(there, here, **CLOSE)


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_fifty_slots_and_embeddings_at_the_bound_of_what_is_observed(scorer):
    policy = plain_policy(scorer, 5, 12)
    seen = observation([list(range(50)), [7, 49], list(range(0, 50, 3))], slots=50)
    seen["tokens"] = (seen["tokens"] * 1e5).clamp(-1e4, 1e4)
    logits, values = policy(seen)
    assert logits.shape == (3, 2450)
    legal = logits > ILLEGAL
    assert legal.sum(1).tolist() == [2450, 2, 17 * 16]
    assert (logits[legal] >= ILLEGAL / 10).all()
    probabilities = logits.softmax(1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    assert not probabilities[~legal].any()
    (logits.log_softmax(1).amax(1).sum() + values.sum()).backward()
    assert all(
        weight.grad.isfinite().all() for weight in policy.parameters() if weight.grad is not None
    )


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_node_scores_are_the_scores_of_the_needed_pairs(scorer):
    policy = random_policy(scorer)
    drawn = generator(3)
    features = policy.features(
        torch.randn(2, 7, 5, generator=drawn), torch.randint(1, 4, (2, 7), generator=drawn)
    )
    needed = torch.rand(2, 7, 7, generator=drawn) < 0.4
    weights = torch.randn(2, 7, 7, generator=drawn) * needed
    results = []
    for score in (
        lambda seen: policy.scores(seen.first, seen.second),
        lambda seen: policy.node_scores(seen.first, seen.second, lambda: needed),
    ):
        seen = Features(
            features.first.detach().requires_grad_(), features.second.detach().requires_grad_()
        )
        scores = score(seen)
        (scores * weights).sum().backward()
        halves = (seen.first.grad, seen.second.grad)  # of the same features, if it is symmetric
        gradients = (sum(halves),) if policy.symmetric else halves
        results.append((scores[needed], *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert score(features).isfinite().all()


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_values_of_many_states_are_those_of_each(scorer):
    policy = random_policy(scorer)
    seen = observation([[0, 1, 2, 3, 4]], slots=5)
    features = policy.features(seen["tokens"], seen["leaf_counts"])
    states = [[0, 1, 2, 3, 4], [1, 3], [4, 0, 2]]
    members = torch.zeros(1, 3, 5)
    for row, state in enumerate(states):
        members[0, row, state] = 1.0
    values = policy.values(features.pooled, members)[0]
    for value, state in zip(values, states, strict=True):
        alone = {**seen, "active": torch.zeros(1, 5, dtype=torch.int8)}
        alone["active"][0, state] = 1
        torch.testing.assert_close(value, policy(alone)[1][0], **CLOSE)
    assert len({round(float(value.detach()), 4) for value in values}) == 3


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
def test_values_along_an_episode_are_those_of_its_states(scorer):
    policy, batch = random_policy(scorer), random_batch([*RAGGED, 12])
    autoencoder = HTMAutoencoder(3, 5, 16, generator=generator(1))
    num_merges = (batch.num_tokens - 1).clamp(max=8)  # the last one ends early
    episodes, _ = rollout(autoencoder, policy, batch, generator(2), num_merges=num_merges)
    features = policy.features(episodes.nodes, episodes.leaf_counts)
    along = policy.values_along(features.pooled, episodes.merges, episodes.num_leaves)
    states = policy.values(features.pooled, episodes.members)
    assert along.isfinite().all()
    torch.testing.assert_close(along[episodes.steps], states[episodes.steps], **CLOSE)


def test_an_unknown_scorer_lists_the_choices():
    with pytest.raises(ValueError, match=r"'mlp'; choose from \['merged', 'pair_mlp', 'pointer'\]"):
        make_policy("mlp", 4, 8)


@pytest.mark.parametrize("scorer", [*SCORERS, EITHER_WAY])
@pytest.mark.parametrize("encoder", ["none", "attention"])
def test_candidates_are_scored_as_in_the_whole_population(scorer, encoder):
    model = known_merger(scorer)
    policy = make_policy(scorer.removesuffix("_in_order"), 5, 16, encoder, model=model)
    seen = observation([[0, 1, 3, 4], [2, 0], [1, 2, 3, 4, 0]], slots=5)
    partners = torch.randint(0, 5, (3, 5, 3), generator=generator(4))
    own = torch.arange(5)[:, None]
    rows = torch.arange(3)[:, None, None]
    there = seen["active"].bool()
    legal = there[rows, partners] & there[:, :, None] & (partners != own)
    scores, values = policy.state_scores(seen)
    listed = seen | {"candidates": partners.where(legal, -1).to(torch.int32)}
    logits, listed_values = policy(listed)
    assert torch.equal(values, listed_values) and logits.shape == (3, 15)
    expected = scores[rows, own, partners].masked_fill(~legal, ILLEGAL).flatten(1)
    torch.testing.assert_close(logits, expected, **CLOSE)

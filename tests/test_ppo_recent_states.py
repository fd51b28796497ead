"""The policy network on one population after another: what is kept changes nothing."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_ppo_policies import (
    DIM,
    POLICIES,
    CountingScorer,
    episodes,
    make,
    states,
    with_candidates,
)

from agents.networks.context import make_policy
from agents.networks.scorers import NodePolicy
from agents.ppo.policies import network_of
from agents.ppo.sharing import RecentStates
from agents.rollouts.pair_scores import Features


def steps(slots: int, copies: int, seed: int, k: int | None) -> list[dict[str, torch.Tensor]]:
    """What copies of the environment show: each has two episodes, the second of other tokens."""
    columns = [episodes(slots, 2, 10 * seed + copy) for copy in range(copies)]
    shown = [
        {key: torch.stack([column[key][step] for column in columns]) for key in columns[0]}
        for step in range(len(columns[0]["active"]))
    ]
    return shown if k is None else [with_candidates(observation, k) for observation in shown]


def looker(network):
    """A new look, of this network."""
    return partial(RecentStates(), network)


def assert_same(one, other) -> None:
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@given(
    st.integers(2, 7),
    st.integers(1, 3),
    st.integers(0, 20),
    st.sampled_from(["pointer", "pair_mlp"]),
    st.sampled_from([None, 1, 3]),
)
def test_it_gives_what_the_network_gives(slots, copies, seed, scorer, k):
    torch.manual_seed(seed)
    network = make_policy(scorer, DIM, 16)
    look = looker(network)
    for observation in steps(max(slots, 3), copies, seed, k):
        assert_same(look(observation), network(observation))
    other = states(slots, copies + 1, seed)  # populations of another number and size
    assert_same(look(other), network(other))


@pytest.mark.parametrize("k", [None, 2])
def test_after_the_first_population_only_what_changed_is_evaluated(k):
    network = CountingScorer(DIM, 16)
    look, shown = looker(network), steps(8, 5, 0, k)
    for observation in shown[:7]:  # the first episode of all copies
        look(observation)
    assert network.tokens == [5 * 8] + 6 * [5 * 2]  # the merged token and the slot that it left
    if k is None:
        return
    for number, before, after in zip(network.pairs[1:], shown[:6], shown[1:7], strict=True):
        stays = (before["tokens"] == after["tokens"]).all(2)
        before, after = (seen["candidates"].long() for seen in (before, after))
        partner = stays.gather(1, after.clamp(min=0).flatten(1)).view_as(after)
        assert number == (~(stays[..., None] & partner & (before == after)) & (after >= 0)).sum()


@pytest.mark.parametrize("k", [None, 2])
def test_weights_that_change_in_any_way_are_noticed(k):
    torch.manual_seed(0)
    network = make_policy("pointer", DIM, 16)
    look, observation = looker(network), steps(5, 2, 0, k)[0]
    look(observation)
    first = next(network.parameters())
    with torch.no_grad():
        first += 1.0
    assert_same(look(observation), network(observation))
    first.data.mul_(2.0)  # which leaves no trace in the tensor
    assert_same(look(observation), network(observation))
    network.load_state_dict(make_policy("pointer", DIM, 16).state_dict())
    assert_same(look(observation), network(observation))


def test_observations_that_are_written_to_are_not_mistaken_for_the_old_ones():
    """As tensors that would do for what is kept, were it not for copies."""
    network = make_policy("pointer", DIM, 16)
    observation = with_candidates(states(5, 3), 2)
    observation = {key: value.long() for key, value in observation.items() if key != "tokens"} | {
        "tokens": observation["tokens"]
    }
    look = looker(network)
    for key in ("leaf_counts", "tokens"):
        look(observation)
        observation[key] += 1
        assert_same(look(observation), network(observation))
    look(observation)
    observation["candidates"].copy_(observation["candidates"].flip(2))
    assert_same(look(observation), network(observation))


def test_lists_of_another_length_or_none_are_looked_at_anew():
    network, plain = make_policy("pointer", DIM, 16), states(6, 3)
    look = looker(network)
    for k in (2, 3, None, 2):
        observation = plain if k is None else with_candidates(plain, k)
        assert_same(look(observation), network(observation))


def test_what_stands_in_empty_slots_does_not_matter():
    network = make_policy("pointer", DIM, 16)
    look, observation = looker(network), states(6, 3)
    empty = observation["active"] == 0
    assert empty.any()
    observation["tokens"][empty] = torch.nan
    for _ in range(2):
        assert_same(look(observation), network(observation))
    assert torch.isfinite(look(observation)[1]).all()


def test_features_that_are_the_embeddings_themselves_are_copied():
    class Bare(type(make_policy("pointer", DIM, 16))):
        def features(self, embeddings, leaf_counts):
            return Features(
                embeddings, embeddings, super().features(embeddings, leaf_counts).hidden
            )

    network = Bare(DIM, 16)
    look = looker(network)
    for observation in steps(5, 2, 0, 2):
        assert_same(look(observation), network(observation))


def test_an_interrupted_call_leaves_nothing():
    network, shown = CountingScorer(DIM, 16), steps(6, 2, 0, 2)
    look = looker(network)
    look(shown[0])
    network.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        look(shown[1])
    network.interrupted = False
    assert_same(look(shown[1]), network(shown[1]))


def test_another_network_is_another_one():
    one, other = make_policy("pointer", DIM, 16), make_policy("pointer", DIM, 16)
    recent, observation = RecentStates(), states(5, 3)
    recent(one, observation)
    assert_same(recent(other, observation), other(observation))


def test_mixed_precision_keeps_nothing():
    network, observation = make_policy("pointer", DIM, 16), states(5, 3)
    look = looker(network)
    look(observation)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(look(observation), network(observation))
    assert_same(look(observation), network(observation))


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda recent: pickle.loads(pickle.dumps(recent))]
)
def test_copies_begin_with_nothing(again):
    recent, network = RecentStates(), make_policy("pointer", DIM, 16)
    recent(network, states(5, 3))
    assert vars(again(recent)) == vars(RecentStates())


def test_tokens_that_are_not_finite_are_forgotten():
    network = make_policy("pointer", DIM, 16)
    look, observation = looker(network), with_candidates(states(5, 3), 2)
    broken = {**observation, "tokens": observation["tokens"].clone()}
    broken["tokens"][:, :2] = torch.nan
    for _ in range(2):
        logits, _ = look(broken)
        assert torch.equal(logits, network(broken)[0])
    assert_same(look(observation), network(observation))


@pytest.mark.parametrize("k", [None, 2])
def test_a_look_in_inference_mode_does_not_spoil_the_next_one(k):
    network = make_policy("pointer", DIM, 16)
    look, shown = looker(network), steps(6, 2, 0, k)
    for number, observation in enumerate(shown[:4]):
        with torch.inference_mode(number % 2 == 0):
            found = look({key: value.clone() for key, value in observation.items()})
        assert_same(found, network(observation))


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("k", [None, 2])
def test_policies_look_at_what_changed_alone_and_learn_from_the_same_numbers(policy_class, k):
    """Of a rollout, which has no gradients, and of the update on it, which has."""
    policy = make(policy_class, 6, k)
    shown = steps(6, 4, 0, k)[:5]  # the first episode
    seen = []
    network_of(policy).body.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0][..., 0].numel())
    )
    for observation in shown:
        with torch.no_grad():
            actions, values, log_prob = policy(observation)
        again, log_prob_again, _ = policy.evaluate_actions(observation, actions)
        assert_same((values, log_prob), (again, log_prob_again))
    assert seen[::2] == [4 * 6] + 4 * [4 * 2]  # every second look is the rollout's


def test_a_network_with_a_forward_of_its_own_is_asked_itself():
    class Other(type(make_policy("pointer", DIM, 16))):
        pair_scorer = None

        def forward(self, observation):
            return torch.zeros(1, 2), torch.ones(1)

    assert issubclass(Other, NodePolicy)
    logits, values = looker(Other(DIM, 16))(states(2, 1))
    assert logits.tolist() == [[0, 0]] and values.tolist() == [1]

"""The shared policy network as policies of Stable-Baselines3: masks, entropy, saving, sharing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from agents.networks.context import make_policy
from agents.networks.scorers import PointerPolicy
from agents.ppo import MaskableMergeActorCriticPolicy, MergeActorCriticPolicy
from agents.ppo.buffers import shuffled_runs
from agents.ppo.distribution import (
    MergeDistribution,
    candidate_entropy,
    choice_entropy,
    observed_entropy,
)
from agents.ppo.policies import network_of
from agents.ppo.sharing import Runs, shared_forward
from agents.rollouts.pair_scores import ILLEGAL
from agents.rollouts.rollout import most_entropy
from htm_env.actions import legal_actions, num_actions
from htm_env.candidates import nearest_candidates
from htm_env.forest import action_mask, pair_to_action
from htm_env.observation import observation_space

POLICIES = [MergeActorCriticPolicy, MaskableMergeActorCriticPolicy]
DIM = 4


class CountingScorer(PointerPolicy):
    """Keeps the numbers of tokens and of pairs that it was called with."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.tokens, self.pairs, self.interrupted = [], [], False

    def features(self, embeddings, leaf_counts):
        self.tokens.append(leaf_counts.numel())
        return super().features(embeddings, leaf_counts)

    def paired_scores(self, first, second):
        if self.interrupted:
            raise KeyboardInterrupt
        self.pairs.append(len(first))
        return super().paired_scores(first, second)


def make(policy_class, slots: int, k: int | None = None, **kwargs):
    torch.manual_seed(0)
    space = observation_space(slots, DIM, 2, (), k)
    actions = spaces.Discrete(num_actions(slots, k))
    return policy_class(space, actions, lambda _: 1e-3, hidden_dim=16, **kwargs)


def states(slots: int, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Unrelated states of two to all active slots."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, slots, generator=generator).argsort(1)
    num = torch.randint(2, slots + 1, (batch, 1), generator=generator)
    active = order < num
    tokens = torch.randn(batch, slots, DIM, generator=generator) * active[..., None]
    return {"tokens": tokens, "active": active.to(torch.int8), "leaf_counts": active.int()}


def episodes(slots: int, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """All states of ``count`` episodes, one after the other, some of them shorter."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[torch.Tensor]] = {"tokens": [], "active": [], "leaf_counts": []}
    for episode in range(count):
        num = slots - episode % 2
        active = torch.arange(slots) < num
        tokens = torch.randn(slots, DIM, generator=generator) * active[:, None]
        counts = active.int()
        for _ in range(num - 1):
            for key, value in (("tokens", tokens), ("active", active), ("leaf_counts", counts)):
                rows[key].append(value.clone())
            here = active.nonzero().squeeze(1)
            first, second = here[torch.randperm(len(here), generator=generator)[:2]]
            tokens[first] = torch.randn(DIM, generator=generator)
            counts[first] += counts[second]
            tokens[second], counts[second], active[second] = 0.0, 0, False
    return {key: torch.stack(values) for key, values in rows.items()} | {
        "active": torch.stack(rows["active"]).to(torch.int8)
    }


def with_candidates(observation: dict[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """Every token with its ``k`` nearest."""
    lists = nearest_candidates(observation["tokens"], observation["active"].bool(), k)
    return {**observation, "candidates": lists.partners.int()}


# ---------------------------------------------------------------- masks and distributions


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("scorer", ["pointer", "pair_mlp"])
@pytest.mark.parametrize("k", [None, 2])
def test_both_forms_give_what_the_network_gives(policy_class, scorer, k):
    policy = make(policy_class, 5, k, scorer=scorer)
    observation = states(5, 20) if k is None else with_candidates(states(5, 20), k)
    logits, values = network_of(policy)(observation)
    actions, found, log_prob = policy(observation)
    assert torch.equal(found[:, 0], values)
    expected = logits.log_softmax(1).gather(1, actions[:, None])[:, 0]
    torch.testing.assert_close(log_prob, expected)
    again, log_prob_again, entropy = policy.evaluate_actions(observation, actions)
    torch.testing.assert_close(again, found)
    torch.testing.assert_close(log_prob_again, log_prob)
    reference = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy, reference)
    best, _, _ = policy(observation, deterministic=True)
    assert torch.equal(best, logits.argmax(1))
    torch.testing.assert_close(policy.predict_values(observation), found)


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("slots", [2, 5, 46])
def test_no_illegal_action_is_ever_drawn(policy_class, slots):
    """46 slots are 2,070 actions. The masks come from the observation alone."""
    policy = make(policy_class, slots)
    with torch.no_grad():
        for weight in policy.parameters():
            weight *= 30.0  # far from uniform
    for seed in range(5):
        observation = states(slots, 200, seed)
        legal = action_mask(observation["active"].bool())
        for deterministic in (False, True):
            actions, _, log_prob = policy(observation, deterministic=deterministic)
            assert legal.gather(1, actions[:, None]).all()
            assert torch.isfinite(log_prob).all()
        probability = policy.get_distribution(observation).log_probabilities.exp()
        assert (probability[~legal] == 0).all()
        numbers = {key: value.numpy() for key, value in observation.items()}
        chosen, _ = policy.predict(numbers)
        assert legal.gather(1, torch.as_tensor(chosen)[:, None]).all()


@pytest.mark.parametrize("policy_class", POLICIES)
def test_only_candidates_are_drawn(policy_class):
    policy = make(policy_class, 12, 3)
    with torch.no_grad():
        for weight in policy.parameters():
            weight *= 30.0  # far from uniform
    observation = with_candidates(states(12, 300), 3)
    legal = (observation["candidates"] >= 0).flatten(1)
    assert not legal.all()
    for deterministic in (False, True):
        actions, _, log_prob = policy(observation, deterministic=deterministic)
        assert legal.gather(1, actions[:, None]).all() and torch.isfinite(log_prob).all()
        chosen, _ = policy.predict(
            {key: value.numpy() for key, value in observation.items()}, deterministic=deterministic
        )
        assert legal.gather(1, torch.as_tensor(chosen)[:, None]).all()


@pytest.mark.parametrize("policy_class", POLICIES)
@pytest.mark.parametrize("slots", [4, 46])
def test_a_uniform_policy_has_as_many_choices_as_there_are_legal_actions(policy_class, slots):
    policy = make(policy_class, slots)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.zero_()
    observation = states(slots, 50)
    legal = action_mask(observation["active"].bool()).sum(1).float()
    _, log_prob, entropy = policy.evaluate_actions(observation, policy(observation)[0])
    torch.testing.assert_close(entropy.exp(), legal, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_prob, -legal.log())


def test_gradients_are_finite_at_thousands_of_actions():
    policy = make(MaskableMergeActorCriticPolicy, 46)
    observation = states(46, 64)
    masks = action_mask(observation["active"].bool())
    actions, _, _ = policy(observation, action_masks=masks.numpy())
    values, log_prob, entropy = policy.evaluate_actions(observation, actions, masks.float())
    (values.sum() + log_prob.sum() + entropy.sum()).backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_masks_given_beside_the_observation_forbid_more_and_can_be_taken_back():
    policy = make(MaskableMergeActorCriticPolicy, 4)
    observation = states(4, 30)
    legal = action_mask(observation["active"].bool())
    only = torch.zeros_like(legal)
    only[torch.arange(30), legal.int().argmax(1)] = True
    actions, _, log_prob = policy(observation, action_masks=only.numpy())
    assert torch.equal(actions, legal.int().argmax(1))
    assert torch.equal(log_prob, torch.zeros(30))
    distribution = MergeDistribution(2).proba_distribution(torch.tensor([[1.0, 1.0]]))
    distribution.apply_masking(np.array([[True, False]]))
    assert distribution.entropy().item() == 0.0
    distribution.apply_masking(None)
    assert distribution.entropy().item() == pytest.approx(math.log(2))


def test_actions_are_drawn_as_often_as_they_are_likely():
    """Between, before and behind actions of no weight; five standard errors either way."""
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 6.0, 0.0])
    logits = weights.log().clamp(min=ILLEGAL).expand(20_000, -1)
    torch.manual_seed(0)
    drawn = MergeDistribution(6).proba_distribution(logits).sample()
    expected = weights / weights.sum()
    error = (expected * (1 - expected) / len(drawn)).sqrt()
    found = drawn.bincount(minlength=6) / len(drawn)
    assert ((found - expected).abs() <= 5 * error).all()


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1.0 - 2.0**-53, 4)])
def test_the_least_and_the_largest_random_number_give_actions_of_some_weight(
    number, expected, monkeypatch
):
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, number, **kind))
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.1, 0.7, 0.0]])
    distribution = MergeDistribution(6).proba_distribution(weights.log().clamp(min=ILLEGAL))
    assert distribution.sample().tolist() == [expected]
    distribution.log_probabilities = (0.5 * weights).log().clamp(min=ILLEGAL)  # do not add up to 1
    assert distribution.sample().tolist() == [expected]


def test_numbers_that_are_not_finite_still_give_legal_actions():
    policy = make(MergeActorCriticPolicy, 5)
    observation = states(5, 20)
    observation["tokens"][:, 1] = torch.nan
    actions, _, log_prob = policy(observation)
    assert action_mask(observation["active"].bool()).gather(1, actions[:, None]).all()
    assert torch.isfinite(log_prob).all()


def test_choice_entropy_counts_pairs_and_not_their_order():
    """Three slots: three pairs, of which two are equally likely, and in one order only."""
    slots = 3
    probability = torch.zeros(1, 6)
    probability[0, pair_to_action(0, 1, slots)] = 0.5
    probability[0, pair_to_action(2, 1, slots)] = 0.5
    logs = probability.clamp_min(1e-30).log()
    entropy = choice_entropy(logs, torch.tensor([3]), slots)
    assert entropy.item() == pytest.approx(math.log(2) / math.log(3), rel=1e-5)
    uniform = torch.full((1, 6), -math.log(6))
    assert choice_entropy(uniform, torch.tensor([3]), slots).item() == pytest.approx(1.0, rel=1e-5)
    assert choice_entropy(uniform, torch.tensor([2]), slots).isnan().all()  # nothing to choose


def test_the_entropy_of_candidates_counts_the_order():
    """Three slots in a row, the outer two listing the middle one, which lists the first."""
    lists = torch.tensor([[[1], [0], [1]]])
    logs = torch.tensor([[0.25, 0.25, 0.5]]).log()
    expected = 1.5 * math.log(2) / math.log(3)
    assert candidate_entropy(logs, lists).item() == pytest.approx(expected, rel=1e-5)
    logs = torch.tensor([[0.0, 1.0, 0.0]]).log().clamp(min=-1e9)
    assert candidate_entropy(logs, lists).item() == pytest.approx(0.0, abs=1e-6)
    alone = torch.tensor([[[1], [-1], [-1]]])
    assert candidate_entropy(logs, alone).isnan().all()


@given(st.integers(2, 7), st.integers(0, 3), st.integers(0, 20))
def test_the_entropy_of_long_lists_is_that_of_all_ordered_pairs(slots, more, seed):
    observation = states(slots, 6, seed)
    listed = with_candidates(observation, slots - 1 + more)
    network = make_policy("pointer", DIM, 16)
    with torch.no_grad():
        logs, few = (network(seen)[0].log_softmax(1) for seen in (observation, listed))
    active = observation["active"].long().sum(1)
    nats = torch.special.entr(logs.exp()).sum(1)
    expected = (nats / most_entropy(active, ordered=True)).masked_fill(active < 2, torch.nan)
    torch.testing.assert_close(observed_entropy(few, listed), expected, equal_nan=True)


# ---------------------------------------------------------------- a token is computed once


@given(
    st.integers(2, 6),
    st.integers(1, 4),
    st.integers(0, 5),
    st.sampled_from(["pointer", "pair_mlp"]),
)
def test_sharing_changes_nothing(slots, count, seed, scorer):
    """Values, logits and gradients, on episodes and on rows that have nothing in common."""
    torch.manual_seed(seed)
    network = make_policy(scorer, DIM, 16)
    plain = (episodes(max(slots, 3), count, seed), states(slots, 3 * count, seed))
    for observation in (*plain, *(with_candidates(seen, 2) for seen in plain)):
        legal = legal_actions(observation["active"].bool(), observation.get("candidates"))
        results = []
        for forward in (network, lambda obs: shared_forward(network, obs)):
            logits, values = forward(observation)
            network.zero_grad()
            ((logits * legal).sin().sum() + values.sum()).backward()
            gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
            results.append([logits.detach(), values.detach(), *gradients])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_run_has_each_node_once():
    """Episodes of 5 and 4 tokens: 9 and 7 nodes less the root, which no state shows."""
    observation = episodes(5, 2)
    runs = Runs.of(observation["tokens"], observation["leaf_counts"], observation["active"].bool())
    assert runs.tokens.shape[:2] == (2, 8)
    assert runs.run.tolist() == [0] * 4 + [1] * 3
    assert runs.step.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert runs.members[0].sum(1).tolist() == [5, 4, 3, 2]
    active = observation["active"].bool()
    rebuilt = runs.tokens[runs.run[:, None], runs.node]
    assert torch.equal(rebuilt[active], observation["tokens"][active])


def test_candidates_that_stay_in_their_places_are_scored_once():
    """Three tokens, two of them one behind the other, then their parent and the third; k = 2.

    All six pairs are new at first. Then slot 0 has the parent, whose one candidate is the third
    token in place 0, and the third token lists the parent: two new pairs. Rows that repeat a state
    have none.
    """
    network = CountingScorer(DIM, 16)
    tokens = torch.tensor([[0.0], [1.0], [5.0]]).expand(3, DIM)
    merged = torch.stack([tokens[0] + 0.5, torch.zeros(DIM), tokens[2]])
    three, two = torch.tensor([1, 1, 1]), torch.tensor([2, 0, 1])
    observation = {
        "tokens": torch.stack([tokens, tokens, merged, merged]),
        "leaf_counts": torch.stack([three, three, two, two]),
        "active": torch.stack([three, three, two, two]).clamp(max=1),
    }
    shared_forward(network, with_candidates(observation, 2))
    assert network.pairs == [6 + 2]


def test_a_network_with_a_forward_of_its_own_is_asked_itself():
    class Other(type(make_policy("pointer", DIM, 16))):
        pair_scorer = None

        def forward(self, observation):
            return torch.zeros(1, 2), torch.ones(1)

    logits, values = shared_forward(Other(DIM, 16), states(2, 1))
    assert logits.tolist() == [[0, 0]] and values.tolist() == [1]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 20))
def test_runs_cover_every_step_once_and_stay_together(steps, copies, run):
    indices = shuffled_runs(steps, copies, run)
    assert sorted(indices) == list(range(steps * copies))
    begins = indices % steps % run == 0  # each run begins at a multiple of its length
    follows = np.diff(indices, prepend=-9) == 1
    assert (begins | follows).all()


# ---------------------------------------------------------------- like any other policy


@pytest.mark.parametrize("policy_class", POLICIES)
def test_a_policy_alone_is_saved_and_loaded(policy_class, tmp_path):
    policy = make(policy_class, 5, scorer="pair_mlp")
    policy.save(str(tmp_path / "policy.pt"))
    loaded = policy_class.load(str(tmp_path / "policy.pt"), device="cpu")
    observation = states(5, 10)
    for one, other in zip(
        network_of(policy)(observation), network_of(loaded)(observation), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy_class", POLICIES)
def test_other_spaces_are_refused(policy_class):
    space, actions = observation_space(3, DIM, 2, ()), spaces.Discrete(6)
    box = spaces.Box(0, 1, (3,))
    with pytest.raises(ValueError, match="expected a Dict with"):
        policy_class(box, actions, lambda _: 1e-3)
    with pytest.raises(ValueError, match=r"expected Discrete\(6\)"):
        policy_class(space, spaces.Discrete(9), lambda _: 1e-3)
    listed = observation_space(3, DIM, 2, (), 2)
    with pytest.raises(ValueError, match=r"expected Discrete\(6\), an action for each of the 2 c"):
        policy_class(listed, spaces.Discrete(9), lambda _: 1e-3)
    with pytest.raises(ValueError, match="unknown scorer 'none'"):
        policy_class(space, actions, lambda _: 1e-3, scorer="none")

"""What merges earn: step by step, by level, and in the plain loop that decodes everything again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from conftest import small_autoencoder
from hypothesis import given
from hypothesis import strategies as st
from oracle import PlainForest, batched, forests, random_tree

from agents.fixed import fixed_policy
from htm_env.datasets import make_dataset
from htm_env.env import HTMEnv
from htm_env.forest import action_to_pair, leaf_sets, merges_to_actions
from htm_env.measures.metrics import clade_scores
from htm_env.population import MOST_LEAVES, Population, merge_pairs, start_population
from htm_env.rewards import (
    REWARDS,
    EncodedEpisodes,
    Reward,
    Transition,
    reward_on,
    right_merges,
    unmerge_errors,
)
from htm_env.types import TokenBatch
from htm_env.vector_env import HTMVectorEnv

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
STD = torch.tensor([0.5, 2.0, 3.0])  # neither 1 nor the autoencoder's own


def token_batch(drawn, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*drawn.present.shape, 3, generator=generator)
    batch, slots = drawn.present.shape
    return TokenBatch(
        tokens * drawn.present[..., None],
        drawn.present,
        torch.zeros(batch, 0, slots, dtype=torch.bool),
        torch.full((batch, slots - 1, 2), -1),
    )


def populations(autoencoder, batch: TokenBatch, merges: torch.Tensor) -> list[Population]:
    """The populations before the first merge, and after each."""
    found = [start_population(autoencoder, batch, STD)]
    actions = merges_to_actions(merges, batch.num_tokens)
    for step in range(actions.shape[1]):
        now = actions[:, step]
        first, second = action_to_pair(now.clamp(min=0), batch.present.shape[1])
        found.append(merge_pairs(autoencoder, found[-1], first, second, STD, now >= 0))
    return found


def stepwise_rewards(name: str, autoencoder, batch, merges) -> torch.Tensor:
    """``(B, M)``: what an environment would pay for these merges; 0 in padding."""
    actions = merges_to_actions(merges, batch.num_tokens)
    chain = populations(autoencoder, batch, merges)
    columns = []
    for step in range(actions.shape[1]):
        now = actions[:, step]
        first, second = action_to_pair(now.clamp(min=0), batch.present.shape[1])
        reward = REWARDS[name].step(
            Transition(autoencoder, chain[step], chain[step + 1], first, second)
        )
        columns.append(reward)
    return torch.stack(columns, dim=1).detach()


def with_clades(batch: TokenBatch, plain: list[PlainForest], seed: int) -> TokenBatch:
    """Clades by lot: some of the forest's own nodes, some sets of leaves that are none of them."""
    generator = torch.Generator().manual_seed(seed)
    slots = batch.present.shape[1]
    clades = torch.rand(len(plain), 4, slots, generator=generator) < 0.5
    clades &= batch.present[:, None]
    clades &= clades.sum(2, keepdim=True) > 1
    for row, forest in enumerate(plain):
        for node in forest.nodes()[forest.n :][:2]:
            clades[row, node - forest.n] = False
            clades[row, node - forest.n, list(forest.leaves(node))] = True
    clades[0, -1] = False  # padding
    return batch._replace(clades=clades)


def encoded(autoencoder, batch, merges) -> EncodedEpisodes:
    nodes = autoencoder.encode(batch.tokens, batch.present, merges).nodes.detach()
    return EncodedEpisodes(autoencoder, batch, merges, nodes, STD)


def by_level_rewards(name: str, autoencoder, batch, merges) -> torch.Tensor:
    return REWARDS[name].episode(encoded(autoencoder, batch, merges))


def test_the_subtrees_of_a_long_chain_are_decoded_some_at_a_time():
    """512 tokens, joined one at a time: the subtrees have about P^2 / 2 leaves together, more than
    are held at once."""
    autoencoder, slots = small_autoencoder(3, seed=0), 512
    present = torch.ones(1, slots, dtype=torch.bool)
    last = [0, *range(slots, 2 * slots - 2)]
    merges = torch.tensor(
        [[[node, leaf] for node, leaf in zip(last, range(1, slots), strict=True)]]
    )
    tokens = torch.randn(1, slots, 3)
    batch = TokenBatch(tokens, present, torch.zeros(1, 0, slots, dtype=torch.bool), merges)
    episodes, decoded = encoded(autoencoder, batch, merges), []
    hook = autoencoder.unlifter.register_forward_hook(
        lambda network, inputs, output: decoded.append(len(output))
    )
    assert episodes.node_errors.isfinite().all()
    hook.remove()
    assert sum(decoded) == slots + sum(range(2, slots + 1))
    assert len(decoded) > 1 and max(decoded) <= MOST_LEAVES + 2 * slots


# ---------------------------------------------------------------- three ways, one answer


@given(forests(smallest=2, max_slots=7), st.integers(0, 9))
def test_incremental_rewards_charge_each_merge_for_its_damage(drawn, seed):
    autoencoder, batch = small_autoencoder(3, seed=seed), token_batch(drawn, seed)
    expected = torch.zeros(drawn.merges.shape[:2])
    for row, plain in enumerate(drawn.plain):
        errors = oracle.errors_along(autoencoder, batch.tokens[row, : plain.n], plain, STD)
        for step in range(len(plain.merges)):
            expected[row, step] = errors[step] - errors[step + 1]
    step_by_step = stepwise_rewards("incremental", autoencoder, batch, drawn.merges)
    by_level = by_level_rewards("incremental", autoencoder, batch, drawn.merges)
    torch.testing.assert_close(step_by_step, expected, **CLOSE)
    torch.testing.assert_close(by_level, expected, **CLOSE)


@given(forests(smallest=2, max_slots=7), st.integers(0, 9))
def test_one_step_rewards_by_level_and_by_step(drawn, seed):
    autoencoder, batch = small_autoencoder(3, seed=seed), token_batch(drawn, seed)
    expected = torch.zeros(drawn.merges.shape[:2])
    for row, plain in enumerate(drawn.plain):
        tokens = batch.tokens[row, : plain.n]
        for step in range(len(plain.merges)):
            expected[row, step] = oracle.one_step_reward(autoencoder, tokens, plain, step)
    step_by_step = stepwise_rewards("one_step", autoencoder, batch, drawn.merges)
    by_level = by_level_rewards("one_step", autoencoder, batch, drawn.merges)
    torch.testing.assert_close(step_by_step, expected, **CLOSE)
    torch.testing.assert_close(by_level, expected, **CLOSE)


@given(forests(smallest=2, max_slots=7), st.integers(0, 9))
def test_right_merges_by_level_and_by_step(drawn, seed):
    """Also with clades that stand there twice, and with samples that have none."""
    autoencoder = small_autoencoder(3, seed=seed)
    batch = with_clades(token_batch(drawn, seed), drawn.plain, seed)
    expected = torch.zeros(drawn.merges.shape[:2])
    for row, plain in enumerate(drawn.plain):
        clades = [frozenset(clade.nonzero().flatten().tolist()) for clade in batch.clades[row]]
        clades = [clade for clade in clades if clade]
        for step in range(len(plain.merges)):
            if frozenset(plain.leaves(plain.n + step)) in clades:
                expected[row, step] = 1 / len(clades)
    step_by_step = stepwise_rewards("right_merges", autoencoder, batch, drawn.merges)
    by_level = by_level_rewards("right_merges", autoencoder, batch, drawn.merges)
    assert torch.equal(step_by_step, expected)
    assert torch.equal(by_level, expected)


@pytest.mark.parametrize("env_id", ["HTM-Keys-v0", "HTM-Crosses-v0", "HTM-Trees-v0"])
def test_the_return_of_right_merges_is_the_share_of_clades_found(env_id):
    batch = make_dataset(env_id).fixed(50)
    assert right_merges(batch.merges, batch).sum(1).tolist() == pytest.approx([1.0] * 50)
    autoencoder = small_autoencoder(batch.tokens.shape[2])
    merges = fixed_policy("nearest", autoencoder).plan(batch, torch.Generator())
    if env_id == "HTM-Keys-v0":  # whose clades are all of those that count
        recall = clade_scores(leaf_sets(merges, batch.num_tokens), batch.clades, batch.present)
        torch.testing.assert_close(right_merges(merges, batch).sum(1), recall.recall)
    begun = batch.merges.clone()
    begun[:, 1:] = -1
    rewards = right_merges(begun, batch)
    assert torch.equal(rewards[:, 0], right_merges(batch.merges, batch)[:, 0])
    assert not rewards[:, 1:].any()


@given(forests(smallest=2, max_slots=7), st.integers(0, 9))
def test_the_error_of_a_population_is_that_of_the_whole_forest(drawn, seed):
    """Only the merged subtree is decoded again, yet the sum stays that of the whole forest."""
    autoencoder, batch = small_autoencoder(3, seed=seed), token_batch(drawn, seed)
    last = populations(autoencoder, batch, drawn.merges)[-1]
    encoding = autoencoder.encode(batch.tokens, batch.present, drawn.merges)
    torch.testing.assert_close(last.embeddings, encoding.population.detach(), **CLOSE)
    for row, plain in enumerate(drawn.plain):
        tokens = batch.tokens[row, : plain.n]
        final = oracle.nmse(autoencoder, tokens, plain, STD)
        initial = oracle.nmse(autoencoder, tokens, PlainForest(plain.n), STD)
        assert float(last.error[row]) == pytest.approx(final, rel=1e-4)
        assert float(last.initial_error[row]) == pytest.approx(initial, rel=1e-4)
        counts = [0] * batch.present.shape[1]
        for slot, node in plain.slots.items():
            counts[slot] = len(plain.leaves(node))
        assert last.leaf_counts[row].tolist() == counts


@pytest.mark.parametrize("name", ["incremental", "terminal"])
def test_returns_telescope_whatever_the_order(autoencoder, name):
    """The same five tokens in three orders, beside a pair: the return is ``E_0 - E_final``."""
    generator = torch.Generator().manual_seed(0)
    trees = [random_tree(5, generator) for _ in range(3)] + [random_tree(2, generator)]
    drawn = batched(trees, slots=6)
    batch = token_batch(drawn)
    batch.tokens[1:3] = batch.tokens[:1]
    returns = stepwise_rewards(name, autoencoder, batch, drawn.merges).sum(1)
    for row, plain in enumerate(trees):
        tokens = batch.tokens[row, : plain.n]
        initial = oracle.nmse(autoencoder, tokens, PlainForest(plain.n), STD)
        final = oracle.nmse(autoencoder, tokens, plain, STD)
        assert float(returns[row]) == pytest.approx(initial - final, rel=1e-4)
    assert len({round(float(value), 6) for value in returns[:3]}) == 3  # the order matters


def test_terminal_pays_with_the_last_merge_only(autoencoder):
    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2, 3)], slots=4)
    batch = token_batch(drawn)
    rewards = stepwise_rewards("terminal", autoencoder, batch, drawn.merges)
    paid = [[False, False, True], [True, False, False], [False, True, False]]
    assert (rewards != 0).tolist() == paid


def test_an_unfinished_episode_has_earned_nothing_of_the_terminal_reward(autoencoder):
    plain = PlainForest(4)
    plain.merge(0, 1)
    plain.merge(2, 3)
    drawn = batched([plain], slots=4)
    rewards = stepwise_rewards("terminal", autoencoder, token_batch(drawn), drawn.merges)
    assert not rewards.any()


# ---------------------------------------------------------------- by hand


def test_one_step_by_hand():
    """Unmerging gives (1, 2 | 3, 4) where (0, 0 | 0, 0) was merged: (1 + 4 + 9 + 16) / 4."""
    autoencoder = small_autoencoder(2, embedding_dim=2)
    with torch.no_grad():
        for weight in autoencoder.unmerger.parameters():
            weight.zero_()
        autoencoder.unmerger.skip.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    error = unmerge_errors(autoencoder, torch.zeros(1, 2), torch.zeros(1, 2, 2))
    assert error.tolist() == [7.5]


def test_the_initial_error_by_hand():
    """An unlifter that always says 0 (standardised): the distance from the mean, over ``std``."""
    autoencoder = small_autoencoder(2)  # mean (-1, 2), std (0.5, 3)
    with torch.no_grad():
        for weight in autoencoder.unlifter.parameters():
            weight.zero_()
    present = torch.tensor([[True, True, False]])
    tokens = torch.tensor([[[0.0, 2.0], [-1.0, 6.0], [0.0, 0.0]]])
    batch = TokenBatch(
        tokens, present, torch.zeros(1, 0, 3, dtype=torch.bool), torch.full((1, 2, 2), -1)
    )
    population = start_population(autoencoder, batch, torch.tensor([0.5, 2.0]))
    # Token 0: (1 / 0.5)^2 + 0 = 4, token 1: 0 + (4 / 2)^2 = 4; over 2 tokens x 2 coordinates.
    assert population.squared_errors.tolist() == [[4.0, 4.0, 0.0]]
    assert population.error.tolist() == [2.0]


def test_merging_does_not_change_the_population_before(autoencoder):
    drawn = batched([PlainForest(3), PlainForest(2)], slots=3)
    start = start_population(autoencoder, token_batch(drawn), STD)
    kept = [
        value.clone()
        for value in (
            start.embeddings,
            start.leaf_counts,
            start.squared_errors,
            start.forest.slots,
            start.forest.merges,
        )
    ]
    merge_pairs(autoencoder, start, torch.tensor([1, 0]), torch.tensor([0, 1]), STD)
    now = (
        start.embeddings,
        start.leaf_counts,
        start.squared_errors,
        start.forest.slots,
        start.forest.merges,
    )
    for before, after in zip(kept, now, strict=True):
        assert torch.equal(before, after)


def test_a_sample_that_does_not_move_earns_nothing(autoencoder):
    drawn = batched([PlainForest(3), PlainForest(3)], slots=3)
    before = start_population(autoencoder, token_batch(drawn), STD)
    first, second = torch.tensor([0, 0]), torch.tensor([1, 1])
    after = merge_pairs(autoencoder, before, first, second, STD, where=torch.tensor([True, False]))
    batch = before.batch._replace(clades=before.batch.present[:, None].clone())
    batch.clades[:, :, 2] = False
    before, after = replace(before, batch=batch), replace(after, batch=batch)
    for name in ("incremental", "one_step", "right_merges"):
        reward = REWARDS[name].step(Transition(autoencoder, before, after, first, second))
        assert float(reward[0].detach()) != 0
        assert float(reward[1].detach()) == 0
    assert after.forest.num_merges.tolist() == [1, 0]
    assert torch.equal(after.embeddings[1], before.embeddings[1])


class Given:
    """The incremental reward, by hand, and not a subclass."""

    def step(self, transition):
        return transition.before.error - transition.after.error

    def episode(self, episodes):
        return episodes.error_falls


class OnlyStep(Reward):
    step = Given.step


class Plain:
    step = Given.step


def with_an_option(transition, scale=1):
    return scale * Given.step(None, transition)


def of_any(*fields):
    before, after, _, _ = fields
    return before.error - after.error


@pytest.mark.parametrize(
    "given", [Given(), OnlyStep(), Plain(), Given().step, with_an_option, of_any]
)
def test_a_reward_may_be_an_object_or_a_callable(autoencoder, given):
    """With its own ``episode``, or following the merges with ``step``."""
    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2, 5)], slots=5)
    drawn.merges[2, -1] = -1  # not merged to the end
    batch = token_batch(drawn)
    found = reward_on(make_dataset("HTM-Trees-v0"), given)
    episodes = encoded(autoencoder, batch, drawn.merges)
    expected = stepwise_rewards("incremental", autoencoder, batch, drawn.merges)
    torch.testing.assert_close(found.episode(episodes), expected, **CLOSE)
    before, after = populations(autoencoder, batch, drawn.merges)[:2]
    pair = drawn.merges[:, 0].unbind(1)  # leaves are in their slots
    paid = found.step(Transition(autoencoder, before, after, *pair))
    assert torch.equal(paid, before.error - after.error)
    assert not found.needs_clades and not found.is_fall_of_error


def test_terminal_pays_whole_episodes_with_their_last_merge(autoencoder):
    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2, 3)], slots=4)
    batch = token_batch(drawn)
    found = by_level_rewards("terminal", autoencoder, batch, drawn.merges)
    torch.testing.assert_close(
        found, stepwise_rewards("terminal", autoencoder, batch, drawn.merges), **CLOSE
    )


def test_an_unknown_reward_lists_the_choices():
    trees = make_dataset("HTM-Trees-v0")
    for unknown in ("dense", 3):
        with pytest.raises(ValueError, match=r"choose from \['incremental', 'one_step'"):
            reward_on(trees, unknown)
    assert sorted(REWARDS) == ["incremental", "one_step", "right_merges", "terminal"]


class OnlyEpisode:
    episode = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("increment", r"or an object with step\(transition\) \(did you mean 'incremental'\?\)"),
        ("mine:fall", "expected the object itself, since only the command line"),
        (OnlyEpisode(), "the reward of type OnlyEpisode has episode but no step"),
        (lambda before, after: None, r"takes neither \(before, after, first, second\) nor one"),
        (divmod, "the reward divmod takes neither"),
    ],
)
def test_what_is_no_reward_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        reward_on(make_dataset("HTM-Trees-v0"), given)


def test_a_reward_is_an_object_and_not_its_class():
    with pytest.raises(ValueError, match=r"the class Given; expected an object of it, as Given()"):
        reward_on(make_dataset("HTM-Trees-v0"), Given)


class WrongEpisode(Given):
    def episode(self, episodes):
        return episodes.error


@pytest.mark.parametrize(
    ("returned", "given"),
    [
        (lambda error: 1.0, "an object of type float"),
        (lambda error: error.mean(), r"a tensor of shape \(\)"),
        (lambda error: error[:, None], r"a tensor of shape \(2, 1\)"),
    ],
)
def test_a_reward_returns_one_number_a_sample(autoencoder, returned, given):
    class Own(Reward):
        def step(self, transition):
            return returned(transition.after.error)

    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2)], slots=4)
    batch = token_batch(drawn)
    message = rf"the reward returned {given}; expected a tensor of shape \(2,\)"
    for reward in (Own(), Own().step):
        found = reward_on(make_dataset("HTM-Trees-v0"), reward)
        with pytest.raises(ValueError, match=message):
            found.episode(encoded(autoencoder, batch, drawn.merges))
        env = HTMVectorEnv("HTM-Trees-v0", num_envs=2, autoencoder="untrained", reward=reward)
        env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(np.zeros(2, int))
    found = reward_on(make_dataset("HTM-Trees-v0"), WrongEpisode())
    with pytest.raises(ValueError, match=r"of shape \(2,\); expected a tensor of shape \(2, 3\)"):
        found.episode(encoded(autoencoder, batch, drawn.merges))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda error: error * torch.nan, "the reward returned nan; expected finite numbers"),
        (lambda error: error / 0, "the reward returned inf"),
        (lambda error: error.long(), r"the reward returned torch\.int64; expected floating-point"),
    ],
)
def test_a_reward_is_a_finite_floating_point_number(autoencoder, returned, message):
    def own(transition):
        return returned(transition.after.error)

    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2)], slots=4)
    trees = make_dataset("HTM-Trees-v0")
    with pytest.raises(ValueError, match=message):
        reward_on(trees, own).episode(encoded(autoencoder, token_batch(drawn), drawn.merges))
    for env in (
        HTMEnv("HTM-Trees-v0", autoencoder="untrained", reward=own),
        HTMVectorEnv("HTM-Trees-v0", autoencoder="untrained", reward=own),
    ):
        env.reset(seed=0)
        with pytest.raises(ValueError, match=message):
            env.step(np.zeros(env.action_space.shape, int))


def test_a_reward_may_be_anything_where_nothing_is_merged(autoencoder):
    drawn = batched([random_tree(n, torch.Generator().manual_seed(n)) for n in (4, 2)], slots=4)

    def one_or_nan(before, after, first, second):
        return torch.where(after.forest.num_merges > before.forest.num_merges, 1.0, torch.nan)

    found = reward_on(make_dataset("HTM-Trees-v0"), one_or_nan)
    paid = found.episode(encoded(autoencoder, token_batch(drawn), drawn.merges))
    assert paid.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_reward_that_is_not_given_is_the_datas_own():
    keys, trees = make_dataset("HTM-Keys-v0"), make_dataset("HTM-Trees-v0")
    digits = make_dataset("HTM-Digits-v0")
    assert reward_on(keys) is REWARDS["right_merges"]
    assert reward_on(trees) is reward_on(digits) is REWARDS["incremental"]
    assert reward_on(keys, "one_step") is REWARDS["one_step"]
    assert reward_on(trees, "right_merges") is REWARDS["right_merges"]
    with pytest.raises(ValueError, match="counts clades, but HTM-Digits-v0 has no hierarchy"):
        reward_on(digits, "right_merges")
    with pytest.raises(ValueError, match="unknown reward 'dense'"):
        reward_on(keys, "dense")

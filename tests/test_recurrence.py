"""What recurs: affinities of tokens, the trees and the reward that are made of them."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from conftest import small_autoencoder

from agents.evaluation.evaluate import tree_scores
from agents.fixed import fixed_policy
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import Dataset, make_dataset
from htm_env.datasets.user import ArrayDataset
from htm_env.env import HTMEnv
from htm_env.forest import leaf_sets, merges_to_actions
from htm_env.recurrence import Recurrence, mean_affinities, recurrence
from htm_env.rewards import EncodedEpisodes, Reward, reward_on

BOND = np.array([3.0, 1.0])
"""Where the second point of a part lies from the first."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bonded_points(rows: int = 400, parts: int = 3) -> Dataset:
    """Sets of ``parts`` pairs of points at ``BOND`` from each other, anywhere in a square: the
    points ``2 k`` and ``2 k + 1`` of the row are a pair, which mostly is not near."""
    drawn = np.random.default_rng(1)
    first = drawn.uniform(0, 10, (rows, parts, 1, 2))
    sets = np.concatenate([first, first + BOND], axis=2).reshape(rows, 2 * parts, 2)
    clades = np.zeros((rows, parts, 2 * parts), bool)
    for part in range(parts):
        clades[:, part, 2 * part : 2 * part + 2] = True
    return make_dataset(sets.astype(np.float32))


def share_of_bonds(merges: torch.Tensor, dataset: Dataset, keys: np.ndarray) -> float:
    """The share of the pairs of :func:`bonded_points` that are merged with each other first."""
    places = dataset.places(keys)
    found = 0
    for row, place in zip(merges.tolist(), places.tolist(), strict=True):
        leaves = {(place[a] // 2, place[b] // 2) for a, b in row if max(a, b) < len(place)}
        found += sum(first == second for first, second in leaves)
    return found / (len(places) * places.shape[1] / 2)


def test_pairs_that_recur_are_found_where_nearness_finds_few():
    dataset = bonded_points(1000)
    keys = dataset.fixed_keys(100)
    batch, model = dataset.episodes(keys), small_autoencoder(2)
    model.set_statistics(dataset.mean, dataset.std)
    found = {
        name: share_of_bonds(
            fixed_policy(name, model, dataset).plan(batch, generator()), dataset, keys
        )
        for name in ("recurrent", "closest")
    }
    assert found["recurrent"] > 0.95
    assert found["closest"] < 0.5


def test_affinity_by_hand():
    """Sets of two points, one at 0 and the other at 1 or, as often, at 2. Half of the sets have a
    given distance. A point of one set and one of another are at 0, 1, 2 with probabilities 1/2,
    1/4, 1/4 each: they are 1 apart with probability 2 (1/8 + 1/16), and 2 apart with 2 / 8."""
    sets = [np.array([[0.0, 0.0], [1.0 + row % 2, 0.0]], np.float32) for row in range(24_000)]
    dataset = make_dataset(sets)
    chosen = Recurrence(dataset, pairs=30_000, rare=1.0, weight=1.0, touching=0.5)
    batch = dataset.fixed(20)
    found = chosen.affinities(batch)
    tokens = dataset.training_tokens()
    unit = math.sqrt(tokens.var(axis=0).mean())
    for row in range(20):
        apart = float((batch.tokens[row, 0] - batch.tokens[row, 1]).norm())
        by_chance = {1.0: 3 / 8, 2.0: 1 / 4}[apart]
        expected = math.log((1 / 2) / by_chance) - math.log(apart / unit + 0.5)
        assert float(found[row, 0, 1]) == pytest.approx(expected, abs=0.05)
        assert float(found[row, 1, 0]) == float(found[row, 0, 1])
        assert float(found[row, 0, 0]) == 0.0


@pytest.mark.parametrize("env", ["HTM-Trees-v0", "HTM-Digits-v0", "HTM-Keys-v0"])
def test_neither_the_order_of_tokens_nor_other_samples_change_an_affinity(env):
    dataset = make_dataset(env)
    affinities = Recurrence(dataset, pairs=500).affinities
    batch = dataset.fixed(6)
    together = affinities(batch)
    size = batch.present.shape[1]
    for row in range(6):
        count = int(batch.num_tokens[row])
        order = torch.cat(
            [torch.randperm(count, generator=generator(row)), torch.arange(count, size)]
        )
        alone = batch.rows(torch.tensor([row]))
        turned = alone._replace(tokens=alone.tokens[:, order])
        expected = together[row][order[:, None], order]
        torch.testing.assert_close(affinities(turned)[0], expected, rtol=0, atol=0)
        torch.testing.assert_close(
            Recurrence(dataset, pairs=500).affinities(alone)[0], together[row], rtol=0, atol=0
        )
        assert not together[row, count:].any() and not together[row, :, count:].any()


def test_what_recurs_is_that_of_the_training_split_whatever_split_is_given():
    splits = [make_dataset("HTM-Crosses-v0", split) for split in ("train", "test")]
    batch = splits[1].fixed(4)
    one, other = (Recurrence(split, pairs=2000).affinities(batch) for split in splits)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_too_few_samples_are_refused():
    sets = [np.float32([[0, 0], [1, row]]) for row in range(3)]
    dataset = make_dataset(sets, split_of=["train", "validation", "test"])
    with pytest.raises(ValueError, match="has 1 samples of two tokens or more"):
        recurrence(dataset).affinities(dataset.fixed(1))


def test_tokens_of_another_dimension_are_refused():
    segments = make_dataset("HTM-Crosses-v0").fixed(2)
    with pytest.raises(ValueError, match="tokens have 4 numbers; expected 2, as those of HTM-Tree"):
        recurrence(make_dataset("HTM-Trees-v0")).affinities(segments)


def test_the_recurrent_policies_ask_for_the_data():
    batch = make_dataset("HTM-Trees-v0").fixed(2)
    with pytest.raises(ValueError, match="dataset is None"):
        fixed_policy("recurrent", HTMAutoencoder(4, 4)).plan(batch, generator())


@pytest.mark.parametrize("env", ["HTM-Crosses-v0", "HTM-Trees-v0"])
def test_clades_of_the_generators_are_found_without_any_knowledge_of_them(env):
    dataset = make_dataset(env)
    model = HTMAutoencoder(dataset.token_dim, 4)
    model.set_statistics(dataset.mean, dataset.std)
    batch = dataset.fixed(60)
    merges = fixed_policy("recurrent", model, dataset).plan(batch, generator())
    assert float(tree_scores(batch, merges)["tree_recall"].nanmean()) >= 0.95


def test_affinities_do_not_outlive_their_data():
    dataset = bonded_points(20)
    assert recurrence(dataset) is recurrence(dataset)
    recurrence(dataset).affinities(dataset.fixed(2))
    known = weakref.ref(dataset)
    del dataset
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    "of", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))]
)
def test_a_copy_of_the_data_has_affinities_of_its_own(of):
    dataset = bonded_points(20)
    expected = recurrence(dataset).affinities(dataset.fixed(2))
    copied = of(dataset)
    assert recurrence(copied).dataset is copied
    torch.testing.assert_close(recurrence(copied).affinities(copied.fixed(2)), expected)


def test_pairs_of_few_training_samples_do_not_recur_by_themselves():
    """Five random points in 16 dimensions: no pair is like another, so that of a training pair at
    most the few times that it was drawn itself are near, and 10 are added to both counts."""
    sets = list(np.random.default_rng(0).normal(size=(40, 5, 16)).astype(np.float32))
    dataset = make_dataset(sets)
    chosen = Recurrence(dataset, weight=1.0, touching=1e6)  # nothing but the information
    found = chosen.affinities(dataset.fixed(20)) + math.log(1e6)
    assert float(found[:, ~torch.eye(5, dtype=torch.bool)].max()) < math.log(2)


def test_forgotten_samples_and_few_pairs_at_a_time_change_no_affinity():
    dataset = bonded_points(60)
    batch = dataset.fixed(5)
    expected = Recurrence(dataset, pairs=500).affinities(batch)
    narrow = Recurrence(dataset, pairs=500, most_remembered=2 * 6 * 6, at_once=20)
    torch.testing.assert_close(narrow.affinities(batch), expected, rtol=0, atol=0)
    for _ in range(2):
        for row in range(5):
            found = narrow.affinities(batch.rows(torch.tensor([row])))
            torch.testing.assert_close(found[0], expected[row], rtol=0, atol=0)


class Counted(ArrayDataset):
    """Points that count how often their lines were asked for."""

    asked = 0

    def polylines(self, tokens: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().polylines(tokens)


def test_the_latest_samples_are_remembered():
    """Of a stream of new samples that of an episode in progress is not estimated at every step."""
    dataset = Counted(np.random.default_rng(0).normal(size=(60, 6, 2)).astype(np.float32))
    stream = Recurrence(dataset, pairs=500, most_remembered=2 * 6 * 6)
    batch = dataset.fixed(5)
    for row in range(5):
        stream.affinities(batch.rows(torch.tensor([row])))
    before = dataset.asked
    stream.affinities(batch.rows(torch.tensor([4])))
    assert dataset.asked == before
    stream.affinities(batch.rows(torch.tensor([0])))
    assert dataset.asked > before


def test_wide_tokens_have_fewer_pairs():
    dataset = bonded_points(60)
    few = Recurrence(dataset, pairs=100)
    many = Recurrence(dataset, most_numbers=100 * 2 * 5)  # a pair in both orders: 2 places, a crowd
    batch = dataset.fixed(5)
    torch.testing.assert_close(many.affinities(batch), few.affinities(batch), rtol=0, atol=0)


# ---------------------------------------------------------------- the reward


def test_mean_affinity_by_hand():
    table = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 4.0], [2.0, 4.0, 0.0]]])
    sets = torch.tensor([[[True, True, False], [True, False, False], [False, False, False]]])
    others = torch.tensor([[[False, False, True], [False, True, False], [False, False, True]]])
    assert mean_affinities(table, sets, others).tolist() == [[3.0, 1.0, 0.0]]


@pytest.mark.parametrize("env", ["HTM-Crosses-v0", "HTM-Jets-v0"])
def test_whole_episodes_earn_what_their_merges_earn_one_by_one(env):
    dataset = make_dataset(env)
    model = small_autoencoder(dataset.token_dim)
    model.set_statistics(dataset.mean, dataset.std)
    batch = dataset.fixed(5)
    reward = reward_on(dataset, "recurring")
    merges = fixed_policy("random", model).plan(batch, generator())
    nodes = model.encode(batch.tokens, batch.present, merges).nodes
    episodes = EncodedEpisodes(model, batch, merges, nodes, dataset.std)
    torch.testing.assert_close(reward.episode(episodes), Reward.episode(reward, episodes))


def test_the_environment_pays_the_mean_affinity_of_both_sides():
    env = HTMEnv("HTM-Crosses-v0", reward="recurring")
    env.reset(seed=3)
    batch, dataset = env.population.batch, make_dataset("HTM-Crosses-v0")
    count = int(batch.num_tokens[0])
    merges = fixed_policy("random", small_autoencoder(4)).plan(batch, generator())
    affinities = recurrence(dataset).affinities(batch)[0]
    sets = leaf_sets(merges, batch.num_tokens)[0]
    for action, (one, other) in zip(
        merges_to_actions(merges, batch.num_tokens)[0, : count - 1].tolist(),
        merges[0, : count - 1].tolist(),
        strict=True,
    ):
        pairs = [
            float(affinities[a, b])
            for a in sets[one].nonzero()[:, 0].tolist()
            for b in sets[other].nonzero()[:, 0].tolist()
        ]
        assert env.step(action)[1] == pytest.approx(sum(pairs) / len(pairs), rel=1e-4)

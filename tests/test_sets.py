"""Token sets in, trees, roots and reconstructions out, in the user's own indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import load
from agents.evaluation.sets import PlacedSets
from agents.registry import algorithm, configured
from htm_env.datasets import make_dataset
from htm_env.trees.merge_tree import MergeTree

ALGORITHMS = ["reinforce", "maskable_ppo", "glom", "chain", "nearest", "beam"]


def learner_of(name, data, **task):
    entry = algorithm(name)
    own = {} if name == "flat" else {"autoencoder": {"hidden_dim": 16}}
    return entry.learner("HTM-v0", configured(name, own), env_kwargs={"dataset": data}, **task)


@pytest.fixture(scope="module")
def sets():
    """Seven sets of 1 to 12 tokens; the learners below have seen five at most."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=(count, 3)) for count in (2, 9, 1, 5, 5, 12, 3)]


@pytest.fixture(scope="module")
def learner(own_data):
    return learner_of("reinforce", own_data, embedding_dim=4)


def along(learner, tokens, tree):
    """What the root of one set decodes to along a tree over its tokens."""
    tokens = torch.from_numpy(np.asarray(tokens, dtype=np.float32))[None]
    present = torch.ones(tokens.shape[:2], dtype=torch.bool)
    merges = torch.from_numpy(tree.merges.copy())[None]
    with torch.no_grad():
        encoding = learner.autoencoder.encode(tokens, present, merges)
        return learner.autoencoder.decode(encoding.roots, merges, present)[0].numpy()


# ---------------------------------------------------------------- sets in, arrays out


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_set_gets_the_same_whatever_its_order_and_its_neighbours(name, own_data, sets):
    learner = learner_of(name, own_data, embedding_dim=4)
    roots, decoded = learner.embed(sets), learner.reconstruct(sets)
    assert roots.shape == (7, 4)
    order = [np.random.default_rng(2).permutation(len(one)) for one in sets]
    turned = [one[places] for one, places in zip(sets, order, strict=True)]
    assert learner.embed(turned) == pytest.approx(roots, abs=1e-5)
    for before, after, places in zip(decoded, learner.reconstruct(turned), order, strict=True):
        assert after == pytest.approx(before[places], abs=1e-5)
    alone = np.concatenate([learner.embed([one]) for one in sets[::-1]])[::-1]
    assert alone == pytest.approx(roots, abs=1e-5)
    for one, tree, tokens in zip(sets, learner.trees(sets), decoded, strict=True):
        assert tree.num_leaves == len(one)
        assert len(tree.merges) == len(one) - 1
        assert along(learner, one, tree) == pytest.approx(tokens, abs=1e-5)


def test_leaves_are_columns_of_an_array_with_empty_places(learner, sets):
    places = [[4, 1], [0, 2, 3, 4, 6], [5, 0, 3]]
    given = np.full((3, 7, 3), np.nan)
    present = np.zeros((3, 7), dtype=bool)
    for row, (columns, one) in enumerate(zip(places, (sets[0], sets[3], sets[6]), strict=True)):
        given[row, columns] = one
        present[row, columns] = True
    encoded = learner.encode_sets(given, present=present)
    assert encoded.roots == pytest.approx(learner.embed([sets[0], sets[3], sets[6]]), abs=1e-5)
    assert np.array_equal(encoded.present, present)
    decoded = learner.reconstruct(given, present=present)
    assert (decoded[~present] == 0).all()
    for row, tree in enumerate(learner.trees(given, present=present)):
        assert tree.leaves.tolist() == sorted(places[row])
        assert along(learner, given[row, tree.leaves], tree) == pytest.approx(
            decoded[row, tree.leaves], abs=1e-5
        )
        assert tree.clades()[-1] == frozenset(places[row])
    # Merges name columns too: the first merge of any row makes node 7.
    assert set(encoded.merges[0, 0].tolist()) == {4, 1}
    assert (encoded.merges[0, 1:] == -1).all()
    last = encoded.merges[2, 1].tolist()
    assert 7 in last and set(last) - {7} < {5, 0, 3}


def test_lengths_say_how_many_columns_are_tokens(learner, sets):
    given = np.zeros((2, 6, 3))
    given[0, :5], given[1, :3] = sets[3], sets[6]
    roots = learner.embed(given, lengths=[5, 3])
    assert roots == pytest.approx(learner.embed([sets[3], sets[6]]), abs=1e-5)


def test_ragged_sets_have_lengths_and_presence_too(learner, sets):
    two = np.empty(2, dtype=object)
    two[:] = [sets[3], sets[6]]
    assert learner.embed(two) == pytest.approx(learner.embed([*two]), abs=1e-5)
    present = [np.array([1, 0, 1, 1, 0]), np.array([0, 0, 1])]
    there = [one[here == 1] for one, here in zip(two, present, strict=True)]
    assert learner.embed(two, present=present) == pytest.approx(learner.embed(there), abs=1e-5)
    decoded = learner.reconstruct(two, present=present)
    assert [one.shape for one in decoded] == [(5, 3), (3, 3)]
    expected = learner.reconstruct(there)
    for one, here, tokens in zip(decoded, present, expected, strict=True):
        assert one[here == 1] == pytest.approx(tokens, abs=1e-5)
        assert (one[here == 0] == 0).all()


def test_the_slots_are_filled_in_an_order_of_the_sets_own(sets):
    data = make_dataset(np.arange(54.0).reshape(9, 2, 3))
    placed = PlacedSets.read([sets[3], sets[3][::-1]], data)
    part, seeds = placed.part(np.array([0, 1]))
    assert torch.equal(part.batch.tokens[0], part.batch.tokens[1])
    assert seeds[0] == seeds[1]
    assert torch.equal(part.places[0], 4 - part.places[1])
    # Every token comes into every slot: the order says nothing of the coordinates.
    rng = np.random.default_rng(0)
    rows = np.sort(rng.normal(size=(4000, 4, 1)), axis=1)
    part, _ = PlacedSets.read(rows, make_dataset(rows)).part(np.arange(4000))
    shares = torch.nn.functional.one_hot(part.places, 4).float().mean(0)
    assert shares.numpy() == pytest.approx(np.full((4, 4), 0.25), abs=0.03)


def test_large_sets_are_encoded_a_few_at_a_time():
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=(count, 2)) for count in [3] * 300 + [800] * 3]
    parts = list(PlacedSets.read(sets, make_dataset(sets)).parts())
    assert sorted(np.concatenate(parts).tolist()) == list(range(303))
    assert [len(part) for part in parts] == [256, 44, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (np.zeros((2, 5, 4)), {}, "4 numbers.*: expected 3"),
        (np.zeros((5, 3)), {}, r"sets has shape \(5, 3\): expected \(N, P, T\)"),
        ([], {}, "sets is empty"),
        (
            [np.zeros((2, 3)), np.zeros((0, 3))],
            {},
            "sets: row 1 has no tokens: expected at",
        ),
        ([np.zeros((2, 3)), np.zeros((2, 2))], {}, "row 1 has tokens of 2 numbers: expected 3"),
        ([[[0, 0, np.inf]]], {}, "row 0, token 0 has coordinate inf"),
        ([["a"]], {}, "element type"),
        (np.zeros((2, 5, 3)), {"lengths": [6, 1]}, "length 6 of row 0, but it has 5 tokens"),
        (np.zeros((2, 5, 3)), {"lengths": [1]}, "'lengths' is of 1 rows, but there are 2"),
        (np.zeros((2, 5, 3)), {"present": np.ones((2, 4))}, r"'present' of row 0 has sh.* \(4,\)"),
        (np.zeros((1, 2, 3)), {"present": [[0.5, 1]]}, "'present' of row 0 is not only True"),
        (
            np.zeros((1, 2, 3)),
            {"present": [[1, 1]], "lengths": [2]},
            "both 'lengths' and 'present'",
        ),
        (np.zeros((2, 5, 3)), {"search": -1}, "search is -1"),
    ],
)
def test_sets_that_cannot_be_read_are_refused(learner, given, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        learner.embed(given, **options)


def test_what_a_learner_cannot_do_is_said(own_data, sets):
    flat = learner_of("flat", own_data, embedding_dim=4)
    few = [sets[0], sets[4]]
    assert flat.embed(few).shape == (2, 4)
    assert [one.shape for one in flat.reconstruct(few)] == [(2, 3), (5, 3)]
    with pytest.raises(ValueError, match="makes no trees"):
        flat.trees(few)
    with pytest.raises(ValueError, match="none to search from"):
        flat.embed(few, search=1)
    with pytest.raises(ValueError, match="has 12 tokens; this flat autoencoder was made for at "):
        flat.embed(sets)
    structure = algorithm("structure")
    trees = structure.learner("HTM-Trees-v0", structure.config, env_kwargs={"heights": [2]})
    with pytest.raises(ValueError, match="expected a complete hierarchy"):
        trees.trees(np.zeros((1, 3, 2)))


def test_categories_are_in_the_users_columns():
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.integers(3, size=(20, 4, 1)), rng.normal(size=(20, 4, 1))], axis=2)
    entry = algorithm("nearest")
    task = {"env_kwargs": {"dataset": data, "categorical": {0: 3}}, "embedding_dim": 4}
    learner = entry.learner("HTM-v0", entry.config, **task)
    decoded = learner.reconstruct(data[:5])
    assert decoded.shape == (5, 4, 2)
    assert set(decoded[..., 0].flatten()) <= {0, 1, 2}
    with pytest.raises(ValueError, match="3 in column 0: expected a category"):
        learner.embed(np.full((1, 2, 2), 3.0))


@pytest.mark.parametrize("name", ["reinforce", "maskable_ppo", "nearest", "flat", "glom"])
def test_a_loaded_agent_of_any_algorithm_embeds_as_before(name, own_data, sets, tmp_path):
    agent = learner_of(name, own_data, embedding_dim=4)
    agent.save(tmp_path)
    few = [sets[0], sets[3]]
    assert np.array_equal(load(tmp_path).embed(few), agent.embed(few))


# ---------------------------------------------------------------- search


def test_search_is_an_argument(learner, sets):
    errors = [learner.encode_sets(sets, search=search).errors for search in (0, 30)]
    assert (errors[1] <= errors[0] + 1e-6).all()
    assert errors[1].sum() < errors[0].sum()


# ---------------------------------------------------------------- names of leaves


def test_newick_has_the_names_of_tokens():
    tree = MergeTree([[0, 2], [1, 3]], 3, leaves=[1, 4, 6])
    assert tree.newick() == "(4,(1,6));"
    assert tree.nested() == (4, (1, 6))
    names = ["a", "b c", "-", "d", "it's", "x", "("]
    text = tree.newick(names=names)
    assert text == "('it''s',('b c','('));"
    back = MergeTree.from_newick(text, names)
    assert (back.leaves.tolist(), back.nested()) == ([1, 4, 6], (4, (1, 6)))
    assert MergeTree.from_newick(tree.newick(), range(7)) == back
    with pytest.raises(ValueError, match="7 names"):
        MergeTree([[0, 1]], 2, leaves=[0, 7]).newick(names=names)
    with pytest.raises(ValueError, match="'z', which is none of the 2 tokens"):
        MergeTree.from_newick("(a,z);", ["a", "b"])
    with pytest.raises(ValueError, match="two tokens have one name"):
        MergeTree.from_newick("(a,b);", ["a", "b", "a"])
    with pytest.raises(ValueError, match="2 different indices"):
        MergeTree([[0, 1]], 2, leaves=[3, 3])


def test_other_programs_read_the_names(tmp_path):
    import dendropy

    names = ["alpha", "two words", "o'clock", "under_score"]
    text = MergeTree([[0, 1], [2, 3], [4, 5]], 4).newick(names=names)
    read = dendropy.Tree.get(data=text, schema="newick")
    assert [leaf.taxon.label for leaf in read.leaf_node_iter()] == names

"""``HierarchicalTokenMerger`` beside the other estimators of scikit-learn."""

from __future__ import annotations

import shutil
from unittest import SkipTest

import numpy as np
import pytest
from scipy.sparse import issparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from test_crashes import check_consistent, in_a_child, killed_at

from agents import FixedOrder, HierarchicalTokenMerger, load
from agents.cli import main
from agents.runs.directory import RunDirectory

SMALL = {"autoencoder.hidden_dim": 8}


def merger(algo="balanced_sorted", **parameters):
    defaults = {"embedding_dim": 3, "merges": 200, "options": SMALL}
    return HierarchicalTokenMerger(algo, **(defaults | parameters))


@pytest.fixture(scope="module")
def sets():
    """Thirty sets of two to six points; those of class 1 are far from the origin."""
    rng = np.random.default_rng(0)
    return [rng.normal(4.0 * (row % 2), 1.0, size=(2 + row % 5, 2)) for row in range(30)]


@pytest.fixture(scope="module")
def classes():
    return np.arange(30) % 2


@pytest.fixture(scope="module")
def fitted(sets):
    return merger().fit(sets)


# ---------------------------------------------------------------- what it gives


def test_sets_become_vectors_trees_and_sets_again(fitted, sets):
    assert fitted.transform(sets).shape == (30, 3)
    assert fitted.roots_ == pytest.approx(fitted.transform(sets), abs=1e-5)
    assert (fitted.n_features_in_, fitted.embedding_dim_) == (2, 3)
    for tree, decoded, one in zip(fitted.trees(sets), fitted.reconstruct(sets), sets, strict=True):
        assert sorted(tree.clades()[-1]) == list(range(len(one)))
        assert decoded.shape == one.shape
    several = fitted.inverse_transform(fitted.transform(sets[:4]))
    assert len(several) == 4
    assert all(one.ndim == 2 and one.shape[1] == 2 for one in several)
    drawn = fitted.sample(5)
    assert len(drawn) == 5
    assert all(1 <= len(one) <= 12 for one in drawn)
    assert all(map(np.array_equal, drawn, fitted.sample(5)))


def test_the_score_is_minus_the_error_in_units_of_the_deviation(fitted, sets):
    std = fitted.learner_.dataset.std.numpy()
    errors = [
        np.square((decoded - one) / std).mean()
        for one, decoded in zip(sets, fitted.reconstruct(sets), strict=True)
    ]
    assert fitted.score(sets) == pytest.approx(-np.mean(errors), rel=1e-4)
    assert fitted.nmse_ == pytest.approx(np.mean(errors), rel=1e-4)
    better = clone(fitted).set_params(search=10).fit(sets)
    assert better.score(sets) > fitted.score(sets)


def test_a_tenth_is_held_out_of_enough_sets_and_nothing_of_few(fitted, sets):
    learner = fitted.learner_
    splits = [learner.task.dataset(split).rows for split in ("train", "validation", "test")]
    assert sorted(np.concatenate(splits)) == list(range(30))
    assert len(splits[0]) == 26  # a twentieth of 30 is 1.5, which rounds to 2
    held_out = np.concatenate(splits[1:])
    errors = learner.encode_sets(sets).errors
    assert fitted.validation_nmse_ == pytest.approx(errors[held_out].mean())
    few = merger(merges=30).fit(sets[:5])
    assert few.learner_.dataset.rows.tolist() == list(range(5))
    assert few.validation_nmse_ is None
    one = merger(merges=10).fit(sets[3:4])
    assert one.transform(sets[3:4]).shape == (1, 3)
    with pytest.raises(ValueError, match="at least 2 roots"):
        one.sample()


@pytest.mark.parametrize("algo", ["reinforce", "nearest"])
def test_the_random_state_decides(algo, sets):
    first, again, other = (
        merger(algo, merges=60, random_state=state).fit_transform(sets)
        for state in (3, 3, np.random.RandomState(3))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_spans_are_merged_as_they_are_given():
    rng = np.random.default_rng(0)
    spans = [[[(0, 2), (2, 4)]]] * 4
    made = merger("spans", merges=30).fit(rng.normal(size=(4, 4, 2)), spans=spans)
    assert made.learner_.dataset.has_hierarchy


def test_padding_is_told_apart(sets):
    """Padded sets give what the same sets in lists give, whatever is in the padding."""
    few = sets[:8]
    padded, present = np.full((8, 7, 2), np.nan), np.zeros((8, 7), dtype=bool)
    for row, one in enumerate(few):
        padded[row, 1 : 1 + len(one)], present[row, 1 : 1 + len(one)] = one, True
    plain, made = merger(merges=60), merger(merges=60)
    roots = plain.fit_transform(few)
    assert made.fit_transform(padded, present=present) == pytest.approx(roots, abs=1e-5)
    assert made.transform(padded, present=present) == pytest.approx(roots, abs=1e-5)
    assert made.score(padded, present=present) == pytest.approx(plain.score(few), abs=1e-5)
    tree, decoded = made.trees(padded, present=present)[1], made.reconstruct(padded, None, present)
    assert tree.leaves.tolist() == [1, 2, 3]
    assert decoded[1, 1:4] == pytest.approx(plain.reconstruct(few)[1], abs=1e-5)
    shifted = np.nan_to_num(np.roll(padded, -1, axis=1))
    lengths = [len(one) for one in few]
    assert made.transform(shifted, lengths=lengths) == pytest.approx(roots, abs=1e-5)
    assert merger(merges=60).fit(shifted, lengths=lengths).roots_ == pytest.approx(roots, abs=1e-5)
    ragged = np.empty(8, dtype=object)
    ragged[:] = few
    assert np.array_equal(merger(merges=60).fit_transform(ragged), roots)


def test_the_numbers_of_a_token_are_described_by_data(tmp_path):
    rng = np.random.default_rng(0)
    sets = np.concatenate([rng.integers(3, size=(6, 4, 1)), rng.normal(size=(6, 4, 1))], axis=2)
    made = clone(merger(merges=30, data={"categorical": {"0": 3}, "weights": [1, 2]})).fit(sets)
    assert made.learner_.dataset.categories == (3,)
    assert made.n_features_in_ == 2
    assert set(made.reconstruct(sets)[..., 0].flatten()) <= {0, 1, 2}
    made.save(tmp_path)
    back = HierarchicalTokenMerger.load(tmp_path)
    assert back.get_params() == made.get_params()
    assert np.array_equal(back.transform(sets), made.transform(sets))
    with pytest.raises(ValueError, match="split_of"):
        merger(data={"split_of": ["train"] * 6}).fit(sets)


def test_what_cannot_be_used_is_refused(sets):
    for parameters, sentence in [
        ({"algo": "magic"}, "magic"),
        ({"options": {"no_such": 1}}, "no_such"),
        ({"merges": 0}, "budget is 0"),
        ({"merges": None, "seconds": None}, "seconds"),
        ({"search": -1}, "search is -1"),
        ({"embedding_dim": 0}, "embedding_dim"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            merger(**parameters).fit(sets)
    with pytest.raises(ValueError, match="one token: expected at least two"):
        merger().fit([*sets, np.zeros((1, 2))])
    with pytest.raises(NotFittedError):
        merger().save("nowhere")
    flat = merger("flat", options=None).fit(sets)
    with pytest.raises(ValueError, match="makes no trees"):
        flat.trees(sets)
    with pytest.raises(ValueError, match="no leaf classifier"):
        flat.sample()


# ---------------------------------------------------------------- beside others


def test_it_works_in_a_pipeline_and_a_grid_search(sets, classes):
    options = {"autoencoder.hidden_dim": 16, "batch_size": 4}
    pipeline = make_pipeline(merger(merges=1000, options=options), LogisticRegression())
    pipeline.fit(sets[:20], classes[:20])
    assert pipeline.score(sets[20:], classes[20:]) > 0.8  # the classes are far apart
    # One number cannot hold what six hold of up to twelve.
    grid = {"hierarchicaltokenmerger__embedding_dim": [1, 6]}
    alone = make_pipeline(merger(merges=400, options=options))
    search = GridSearchCV(alone, grid, cv=2, refit=False).fit(sets)
    assert list(search.best_params_.values()) == [6]
    # Without labels the score is minus the error.
    assert (cross_val_score(merger(), sets, cv=2) < 0).all()


def test_a_clone_has_the_parameters_and_is_not_fitted(fitted, sets):
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        twin.transform(sets)


def test_columns_have_names_for_pandas(fitted):
    names = [f"hierarchicaltokenmerger{number}" for number in range(3)]
    assert fitted.get_feature_names_out().tolist() == names


def test_it_is_saved_without_pickle(fitted, sets, tmp_path, capsys):
    fitted.save(tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".json", ".npz", ".safetensors"}
    back = HierarchicalTokenMerger.load(tmp_path)
    assert back.get_params() == fitted.get_params()
    assert np.array_equal(back.transform(sets), fitted.transform(sets))
    assert np.array_equal(back.sample()[0], fitted.sample()[0])
    assert (back.nmse_, back.n_features_in_) == (fitted.nmse_, 2)
    assert np.array_equal(load(tmp_path).embed(sets), fitted.transform(sets))  # a run folder too
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    capsys.readouterr()
    with pytest.raises(ValueError, match="a file can only hold a number or None"):
        clone(fitted).set_params(random_state=np.random.RandomState(0)).fit(sets).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        HierarchicalTokenMerger.load(tmp_path / "checkpoint")
    FixedOrder("HTM-Trees-v0", embedding_dim=3).save(tmp_path / "learner")
    with pytest.raises(FileNotFoundError, match="no saved estimator at"):
        HierarchicalTokenMerger.load(tmp_path / "learner")


def test_saving_that_is_killed_leaves_one_estimator(fitted, sets, tmp_path):
    longer, calls = merger(merges=300, search=2).fit(sets), []
    fitted.save(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "whole")
    with killed_at(0, calls):
        longer.save(tmp_path / "whole")
    found = set()
    renames = [number for number, name in enumerate(calls, start=1) if name == "replace"]
    for moment in (*renames, len(calls)):  # each before the call; the last one removes the lock
        folder = shutil.copytree(tmp_path / "saved", tmp_path / str(moment))

        def killed(folder=folder, moment=moment):
            with killed_at(moment, []):
                longer.save(folder)

        assert in_a_child(killed) == 9, calls[moment - 1]
        check_consistent(folder)
        back = HierarchicalTokenMerger.load(folder)
        whole = fitted if back.merges == 200 else longer
        assert back.get_params() == whole.get_params()
        assert np.array_equal(back.roots_, whole.roots_) and back.nmse_ == whole.nmse_
        assert back.learner_.autoencoder.weights_hash() == whole.learner_.autoencoder.weights_hash()
        found.add(back.merges)
    assert found == {200, 300}


def test_what_no_estimator_saves_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    state = RunDirectory(tmp_path).load_checkpoint()["learner"]
    about, roots = state["saved_with"]["estimator"], state["saved_with"]["roots"]
    for wrong, message in (
        ({"estimator": about}, "roots"),
        ({"estimator": about, "roots": roots[0]}, "roots is torch.float32 .3,.; expected"),
        ({"estimator": about, "roots": roots * np.nan}, "not finite"),
        ({"estimator": about | {"nmse": "low"}, "roots": roots}, 'nmse is "low"'),
        ({"estimator": about | {"parameters": {"colour": 1}}, "roots": roots}, "colour"),
    ):
        learner = load(tmp_path)
        learner.saved_with = wrong
        learner.save(tmp_path)
        with pytest.raises(ValueError, match=f"holds no saved estimator .*{message}"):
            HierarchicalTokenMerger.load(tmp_path)


# ---------------------------------------------------------------- scikit-learn's own checks


class OnColumns(HierarchicalTokenMerger):
    """Rows (N, F) of numbers as sets of F tokens with one number each.

    scikit-learn's checks make arrays (N, F), and skip estimators that take others.
    """

    def _checked(self, sets, lengths=None, present=None):
        if not issparse(sets):
            sets = np.asarray(sets)
            sets = sets[..., None] if sets.ndim == 2 else sets
        return super()._checked(sets, lengths, present)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


FEATURES = "the numbers of a token are its features, here one; the number of tokens is free"
FAILS = {
    "check_n_features_in": FEATURES,
    "check_n_features_in_after_fitting": FEATURES,
    "check_transformer_general": f"{FEATURES} (check_transformer_data_not_an_array has the rest)",
    "check_fit2d_1feature": "sets of one token have no merges to learn from: the error says so",
    "check_estimators_empty_data_messages": "0 features are sets without tokens: the error says so",
}
"""Checks that do not apply to sets, and why."""


SKIPS = {"check_array_api_input": "needs SCIPY_ARRAY_API"}
"""Checks that skip themselves, and why."""


@parametrize_with_checks(
    [
        OnColumns(
            "balanced_sorted", embedding_dim=2, merges=20, options={"autoencoder.hidden_dim": 4}
        )
    ]
)
def test_checks_of_scikit_learn(estimator, check):
    """All but those that are listed, which are known not to pass."""
    name = check.func.__name__
    if name in FAILS:
        with pytest.raises((AssertionError, ValueError)):
            check(estimator)
        return
    skipped = False
    try:
        check(estimator)
    except SkipTest:
        skipped = True
    assert not skipped or name in SKIPS


def test_the_one_check_that_needs_no_columns_passes_as_it_is():
    """scikit-learn has no others for sets: those above are why :class:`OnColumns` is there."""
    found = check_estimator(merger(), on_skip=None)
    assert {one["check_name"]: one["status"] for one in found} == {
        "check_estimator_cloneable": "passed"
    }

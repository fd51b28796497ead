"""Padding, labels, names and splits that come with the user's own data, in every container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config.run import RunConfig
from agents.runs.directory import RunDirectory
from htm_env.datasets import SPLITS, ArrayDataset, make_dataset

PADDING = np.nan  # which would be refused if it were read
KEYS = np.arange(40, dtype=np.int64)


@st.composite
def own_rows(draw: Any) -> list[np.ndarray]:
    """For each row which of its up to six places have a token."""
    places = st.lists(st.booleans(), min_size=6, max_size=6).filter(lambda row: sum(row) >= 2)
    return [np.array(row) for row in draw(st.lists(places, min_size=10, max_size=14))]


def padded(present: np.ndarray) -> np.ndarray:
    """(N, P, 3) tokens that say their row and place."""
    tokens = np.full((*present.shape, 3), PADDING)
    rows, places = np.nonzero(present)
    tokens[rows, places] = np.stack([rows, places, rows * 0 + 1], axis=1)
    return tokens


@settings(max_examples=16)
@given(rows=own_rows(), container=st.sampled_from(["present", "npz", "lists", "shards"]))
def test_any_pattern_of_tokens_comes_back_by_its_places(
    rows: list[np.ndarray], container: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    present = np.stack(rows)
    tokens = padded(present)
    folder = tmp_path_factory.mktemp("own")
    keywords: dict[str, Any] = {}
    data: Any = tokens
    if container == "present":
        keywords = {"present": present}
    elif container == "lists":
        data = [row.tolist() for row in tokens]
        keywords = {"present": present.astype(int).tolist()}
    elif container == "npz":
        data = folder / "own.npz"
        np.savez(data, tokens=tokens, present=present)
    else:
        data = folder
        np.savez(folder / "a.npz", tokens=tokens[:3], present=present[:3])
        np.savez(folder / "b.npz", tokens=tokens[3:, ::-1], present=present[3:, ::-1])
        tokens[3:], present[3:] = tokens[3:, ::-1].copy(), present[3:, ::-1].copy()
    for split in SPLITS:
        dataset = ArrayDataset(data, split, **keywords)
        assert dataset.max_tokens == present.sum(axis=1).max()
        batch, places = dataset.episodes(KEYS), dataset.places(KEYS)
        row_of_key = dataset.rows[KEYS % dataset.size]
        for found, there, place, row in zip(
            batch.tokens.numpy(), batch.present.numpy(), places, row_of_key, strict=True
        ):
            assert sorted(place[there]) == np.flatnonzero(present[row]).tolist()
            assert (found[there] == tokens[row][place[there]]).all()
            assert (place[~there] == -1).all() and (found[~there] == 0).all()


LENGTHS = np.array([2, 7, 3, 4, 2, 5, 6, 2, 3, 6])
PRESENT = np.arange(7) < LENGTHS[:, None]
DENSE = padded(PRESENT)
RAGGED = [row[:length] for row, length in zip(DENSE, LENGTHS, strict=True)]


def containers(folder: Path) -> list[tuple[Any, dict[str, Any]]]:
    """The same rows in every way in which they can be given."""
    values = np.concatenate(RAGGED)
    np.savez(folder / "lengths.npz", tokens=DENSE, lengths=LENGTHS)
    np.savez_compressed(folder / "present.npz", tokens=DENSE, present=PRESENT)
    np.savez(folder / "values.npz", values=values, lengths=LENGTHS)
    (folder / "shards").mkdir()
    for start in range(0, 10, 4):
        part = slice(start, start + 4)
        path = folder / "shards" / f"part_{start}.npz"
        np.savez(path, tokens=DENSE[part], lengths=LENGTHS[part])
    return [
        (RAGGED, {}),
        ([row.tolist() for row in RAGGED], {}),
        (DENSE, {"lengths": LENGTHS}),
        (DENSE.tolist(), {"lengths": LENGTHS.tolist()}),
        (torch.from_numpy(DENSE), {"present": torch.from_numpy(PRESENT)}),
        (values, {"lengths": LENGTHS}),
        (folder / "lengths.npz", {}),
        (str(folder / "present.npz"), {}),
        (folder / "values.npz", {}),
        (folder / "shards", {}),
        (str(folder / "shards" / "part_*.npz"), {}),
    ]


def test_the_same_rows_are_the_same_data_in_every_container(tmp_path: Path) -> None:
    expected = ArrayDataset(RAGGED)
    for data, keywords in containers(tmp_path):
        found = make_dataset("HTM-v0", dataset=data, **keywords)
        assert torch.equal(found.episodes(KEYS).tokens, expected.episodes(KEYS).tokens)
        assert (found.places(KEYS) == expected.places(KEYS)).all()
        assert found.fingerprint()["sha256"] == expected.fingerprint()["sha256"]
        assert (found.mean == expected.mean).all() and (found.std == expected.std).all()


def test_an_npy_is_an_array(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).normal(size=(10, 3, 2))
    np.save(tmp_path / "own.npy", tokens)
    found, expected = ArrayDataset(tmp_path / "own.npy"), ArrayDataset(tokens)
    assert torch.equal(found.fixed(8).tokens, expected.fixed(8).tokens)
    assert found.fingerprint() == expected.fingerprint() | {"name": "own.npy"}


# ---------------------------------------------------------------- what comes beside the tokens

TOKENS = np.arange(60.0).reshape(10, 3, 2)
LABELS = ["bee", "ant", "bee", "cat", "ant", "bee", "bee", "cat", "ant", "ant"]
NAMES = [f"row-{row}" for row in range(10)]
SPLIT = ["test", "train", "validation", "train", "train", "test", "train", "test", "train", "train"]
PARTS = ["head", "trunk", "leg"]


@pytest.mark.parametrize("in_a_file", [False, True])
def test_labels_names_and_splits_belong_to_their_rows(tmp_path: Path, in_a_file: bool) -> None:
    beside = {"labels": LABELS, "names": NAMES, "token_names": PARTS}
    data: dict[str, Any] = {"dataset": TOKENS, **beside, "split_of": SPLIT}
    if in_a_file:
        data = {"dataset": tmp_path / "own.npz"}
        np.savez(data["dataset"], tokens=TOKENS, split=SPLIT, **beside)
    rows = {"train": [1, 3, 4, 6, 8, 9], "validation": [2], "test": [0, 5, 7]}
    for split in SPLITS:
        dataset = make_dataset("HTM-v0", split, **data)
        assert dataset.rows.tolist() == rows[split]
        assert dataset.has_labels and dataset.label_names == ["ant", "bee", "cat"]
        found = [dataset.label_names[label] for label in dataset.labels(KEYS)]
        row_of_key = dataset.rows[KEYS % dataset.size]
        assert found == [LABELS[row] for row in row_of_key]
        assert dataset.row_names == [NAMES[row] for row in rows[split]]
        assert dataset.token_names == [PARTS] * len(rows[split])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([7, 3] * 5), ["3", "7"]),
        (np.array([2.0, 10.0] * 5), ["2", "10"]),  # in the order of numbers, not of words
        (np.array([b"x", b"y"] * 5), ["x", "y"]),
        (np.array([True, False] * 5), ["0", "1"]),
    ],
)
def test_labels_of_any_sort_become_class_numbers(labels: np.ndarray, names: list[str]) -> None:
    dataset = ArrayDataset(TOKENS, labels=labels)
    assert dataset.label_names == names
    classes = dataset.labels(np.arange(dataset.size))
    assert classes.dtype == np.int64
    first = classes[dataset.rows.tolist().index(0)], classes[dataset.rows.tolist().index(1)]
    assert sorted(first) == [0, 1]


def test_names_of_ragged_tokens_may_differ_by_row() -> None:
    names = [
        [f"{row}/{place}" for place in range(len(tokens))] for row, tokens in enumerate(RAGGED)
    ]
    dataset = ArrayDataset(RAGGED, token_names=names)
    for row, place in zip(dataset.rows, dataset.places(np.arange(dataset.size)), strict=True):
        index = dataset.rows.tolist().index(row)
        shown = [dataset.token_names[index][where] for where in place if where >= 0]
        assert sorted(shown) == names[row]


def test_a_split_is_part_of_the_data_and_labels_are_not() -> None:
    plain = ArrayDataset(TOKENS).fingerprint()["sha256"]
    assert ArrayDataset(TOKENS, labels=LABELS, names=NAMES).fingerprint()["sha256"] == plain
    assert ArrayDataset(TOKENS, split_of=SPLIT).fingerprint()["sha256"] != plain


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"lengths": [3] * 9}, "dataset: 'lengths' is of 9 rows, but there are 10"),
        ({"lengths": [3] * 9 + [4]}, "dataset: length 4 of row 9, but it has 3 tokens"),
        ({"lengths": [3] * 9 + [1]}, "dataset: row 9 has one token: expected at least two"),
        ({"lengths": [3.0] * 10}, "dataset: 'lengths' is float64"),
        ({"lengths": [3] * 10, "present": np.ones((10, 3))}, "both 'lengths' and 'present'"),
        ({"present": np.ones((9, 3))}, "'present' is of 9 rows, but there are 10"),
        ({"present": np.ones((10, 2), bool)}, r"row 0 has shape \(2,\), but the row has 3 tokens"),
        ({"present": np.full((10, 3), 2)}, "'present' of row 0 is not only True and False"),
        ({"present": np.eye(10, 3, dtype=bool) | (TOKENS[..., 0] < 12)}, "row 2 has one token"),
        ({"present": True}, r"'present' is True, expected \(N, P\)"),
        ({"labels": LABELS[:9]}, r"'labels' has shape \(9,\), but there are 10 rows"),
        ({"labels": [0.5] * 10}, "label 0.5 of row 0, expected whole numbers or strings"),
        ({"labels": [1, 2, float("nan"), *range(7)]}, "label nan of row 2"),
        ({"labels": [None] * 10}, "'labels' is object, expected whole numbers or strings"),
        ({"names": NAMES[1:]}, r"'names' has shape \(9,\), but there are 10 rows"),
        ({"names": [1.5] * 10}, "'names' is float64, expected strings"),
        ({"split_of": ["dev", *SPLIT[1:]]}, "row 0 is of split 'dev', expected one of train, vali"),
        ({"split_of": ["train"] * 9 + ["test"]}, "dataset has no row of the split 'validation'"),
        ({"token_names": PARTS[:2]}, "'token_names' has 2 names, but a row has 3 places"),
        ({"token_names": "abc"}, "'token_names' is 'abc', expected strings"),
        ({"token_names": [PARTS] * 9}, "'token_names' is of 9 rows, but there are 10"),
        ({"token_names": [PARTS] * 9 + [PARTS[1:]]}, "of row 9 has 2 names, but the row has 3 pl"),
        ({"lengths": np.full(10, 2**64 - 1, np.uint64)}, "length 18446744073709551615 of row 0"),
        ({"labels": [2**63 + 5] * 10}, "label 9223372036854775813 of row 0, expected .* 64 bits"),
        ({"labels": [1e300, 2e300] * 5}, r"label 1e\+300 of row 0, expected .* 64 bits"),
        ({"labels": ["a", "\ud800"] * 5}, "number 1 of 'labels' is a text of numbers"),
        ({"names": [*NAMES[:9], "\x1b\ud800"]}, "number 9 of 'names' is a text of numbers"),
        ({"token_names": ["a", "b", "\ud800"]}, "number 2 of 'token_names' is a text of numbers"),
        ({"memory_limit": True}, "memory_limit is True: expected a whole number"),
        ({"kind": "clouds"}, "unknown kind 'clouds'; choose from"),
        ({"columns": ["x"]}, "has no keyword 'columns': expected dataset, split_fractions"),
    ],
)
def test_contradictions_are_named(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset("HTM-v0", dataset=TOKENS, **keywords)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": TOKENS, "colour": np.zeros(10)}, "has the unknown array 'colour': expected"),
        ({"tokens": TOKENS, "label": np.zeros(10)}, "has the unknown array 'label'"),
        ({"tokens": TOKENS, "values": np.zeros((20, 2))}, "has both 'tokens' and 'values'"),
        ({"tokens": TOKENS, "lengths": np.full(10, 4)}, "length 4 of row 0, but it has 3 tokens"),
        (
            {"values": np.zeros((20, 2)), "lengths": np.full(10, 2), "present": np.ones((10, 2))},
            "both 'lengths' and 'present'",
        ),
        ({"tokens": TOKENS, "labels": np.zeros((10, 2))}, r"'labels' has shape \(10, 2\)"),
    ],
)
def test_files_that_contradict_themselves_are_named(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        ArrayDataset(tmp_path / "own.npz")
    assert "own.npz" in str(error.value)


def test_a_file_holds_what_comes_beside_its_tokens(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", tokens=TOKENS)
    for key, value in (("labels", LABELS), ("split_of", SPLIT), ("lengths", [3] * 10)):
        with pytest.raises(ValueError, match=f"{key}= goes with an array or a list, not with"):
            ArrayDataset(tmp_path / "own.npz", **{key: value})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"tokens": np.zeros((5, 3, 4))},
            "b.npz has tokens of 4 numbers: expected 2, as in .*a.npz",
        ),
        ({"tokens": TOKENS}, "b.npz has no 'labels', but .*a.npz has"),
        ({"tokens": TOKENS, "labels": LABELS}, "labels of .*b.npz and of .*a.npz are strings and"),
        ({"tokens": TOKENS, "labels": range(10), "names": NAMES}, "a.npz has no 'names'"),
        ({"tokens": TOKENS + np.inf, "labels": range(10)}, "b.npz: row 0, token 0 has coord"),
    ],
)
def test_shards_that_differ_are_named(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", tokens=TOKENS, labels=np.arange(10))
    np.savez(tmp_path / "b.npz", **second)
    with pytest.raises(ValueError, match=message):
        ArrayDataset(tmp_path)


def test_shards_may_hold_a_split_each(tmp_path: Path) -> None:
    for number, split in enumerate(SPLITS):
        path = tmp_path / f"{number}.npz"
        np.savez(path, tokens=TOKENS, labels=["a" if number else "b"] * 10, split=[split] * 10)
    (tmp_path / "README.txt").write_text("not a shard")
    dataset = ArrayDataset(tmp_path, "validation")
    assert dataset.rows.tolist() == list(range(10, 20))
    assert dataset.label_names == ["a", "b"]
    assert dataset.labels(KEYS).tolist() == [0] * 40
    with pytest.raises(FileNotFoundError, match=r"no file is like .*none\*\.npz"):
        ArrayDataset(str(tmp_path / "none*.npz"))
    with pytest.raises(ValueError, match=r"README\.txt is no shard"):
        ArrayDataset(str(tmp_path / "*"))
    (tmp_path / "3.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3\.parquet and .*0\.npz are a table and an array"):
        ArrayDataset(tmp_path)


@pytest.mark.parametrize(
    ("count", "advice"),
    [
        (2, "give a set several times, with split_of= the split of each"),
        (4, r"give split_fractions=\[0.5, 0.25, 0.25\], or the split of each row with split_of="),
    ],
)
def test_few_rows_are_told_how_they_can_be_split(count: int, advice: str) -> None:
    with pytest.raises(ValueError, match=f"^dataset: {count} rows .*; {advice}$"):
        ArrayDataset(TOKENS[:count])


def test_the_advice_to_few_rows_can_be_followed() -> None:
    for count in range(3, 12):
        for split in SPLITS:
            few = TOKENS[np.arange(count) % len(TOKENS)]
            assert ArrayDataset(few, split, split_fractions=[0.5, 0.25, 0.25]).size
    twice = [TOKENS[0], TOKENS[1], TOKENS[0], TOKENS[1]]
    split_of = ["train", "train", "validation", "test"]
    assert ArrayDataset(twice, split_of=split_of).rows.tolist() == [0, 1]


def test_splits_of_rows_are_not_the_split_to_use() -> None:
    message = "split is a list: expected one of train, .* the splits of rows are split_of="
    with pytest.raises(ValueError, match=message):
        make_dataset(TOKENS, split=SPLIT)


def test_an_array_of_ragged_sets_is_a_list_of_them() -> None:
    ragged = np.empty(10, dtype=object)
    ragged[:] = RAGGED
    assert ArrayDataset(ragged).fingerprint() == ArrayDataset(RAGGED).fingerprint()


@pytest.mark.parametrize(
    ("kind", "dims"),
    [
        ("points", {2, 3}),
        ("segments", {4}),
        ("strokes", {4, 6, 8}),
        ("patches", {3, 6}),
        ("vectors", {1, 2, 3, 4, 5, 6, 7, 8}),
    ],
)
def test_a_kind_has_the_token_dimensions_that_it_can_draw(kind: str, dims: set[int]) -> None:
    for token_dim in range(1, 9):
        tokens = np.random.default_rng(0).normal(size=(10, 3, token_dim))
        if token_dim in dims:
            assert ArrayDataset(tokens, kind=kind).kind == kind
        else:
            message = f"kind '{kind}' does not fit tokens of {token_dim} numbers: expected"
            with pytest.raises(ValueError, match=message):
                ArrayDataset(tokens, kind=kind)
    assert ArrayDataset(TOKENS).kind == "points"
    assert ArrayDataset(np.eye(3)[None].repeat(10, 0)).kind == "vectors"


def test_a_run_keeps_arrays_with_everything_beside_them(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).permuted(PRESENT, axis=1)
    beside = {"present": gaps, "labels": LABELS, "names": NAMES, "split_of": SPLIT}
    names = [[f"{row}/{place}" for place in range(7)] for row in range(10)]
    kwargs = {"dataset": padded(gaps), **beside, "token_names": names, "kind": "vectors"}
    run = RunConfig(env="HTM-v0", env_kwargs=kwargs, algo="ward")
    RunDirectory(tmp_path).save_config(run)
    found, expected = (
        config.dataset("test") for config in (RunDirectory(tmp_path).load_config(), run)
    )
    assert torch.equal(found.episodes(KEYS).tokens, expected.episodes(KEYS).tokens)
    assert (found.places(KEYS) == expected.places(KEYS)).all()
    assert found.fingerprint()["sha256"] == expected.fingerprint()["sha256"]
    assert (found.row_names, found.label_names) == (expected.row_names, expected.label_names)
    for kept, given_names, row in zip(
        found.token_names, expected.token_names, found.rows, strict=True
    ):
        places = np.flatnonzero(gaps[row])
        assert [kept[place] for place in places] == [given_names[place] for place in places]

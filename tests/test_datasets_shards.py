"""Shards that are read part by part: the same data as one array, of which little is in memory."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import Reinforce, ReinforceConfig
from agents.config.errors import RunWarning
from agents.registry import load_learner
from htm_env import make_dataset
from htm_env.datasets.shards import ShardedDataset
from htm_env.files import read_json, write_json

ROWS = 60
LENGTHS = np.random.default_rng(0).integers(2, 7, size=ROWS)
PRESENT = np.arange(6) < LENGTHS[:, None]
SCATTERED = np.random.default_rng(1).permuted(PRESENT, axis=1)
TOKENS = np.random.default_rng(2).normal(size=(ROWS, 6, 3))
LABELS = np.array(["bee", "ant", "cat"])[np.arange(ROWS) % 3]
NAMES = np.array([f"row-{row}" for row in range(ROWS)])
SPLIT = np.array(["train", "test", "train", "validation", "train"])[np.arange(ROWS) % 5]
KEYS = np.array([0, 1, 7, 7, 59, 2**40 + 3, 2**61], dtype=np.int64)
SPLITS = ("train", "validation", "test")
Write = Callable[[Path, slice], None]


def in_lengths(folder: Path, rows: slice) -> None:
    tokens = np.where(PRESENT[rows, :, None], TOKENS[rows], np.nan)  # padding is never read
    np.savez(folder, tokens=tokens, lengths=LENGTHS[rows], labels=LABELS[rows], names=NAMES[rows])


def in_values(folder: Path, rows: slice) -> None:
    values = TOKENS[rows][PRESENT[rows]].astype(np.float32)
    np.savez(folder, values=values, lengths=LENGTHS[rows], split=SPLIT[rows])


def packed(folder: Path, rows: slice) -> None:
    np.savez_compressed(folder, tokens=TOKENS[rows], present=SCATTERED[rows], labels=LABELS[rows])


def dense(folder: Path, rows: slice) -> None:
    np.save(folder.with_suffix(".npy"), TOKENS[rows])


def in_columns(folder: Path, rows: slice) -> None:
    np.save(folder.with_suffix(".npy"), np.asfortranarray(TOKENS[rows]))


def table(folder: Path, rows: slice) -> None:
    """A set may be in two row groups: of 7 lines each."""
    pandas = pytest.importorskip("pandas")
    lines = [
        (NAMES[row], LABELS[row], *token)
        for row in range(ROWS)[rows]
        for token in TOKENS[row, : LENGTHS[row]]
    ]
    frame = pandas.DataFrame(lines, columns=["set", "label", "x", "y", "z"])
    frame.to_parquet(folder.with_suffix(".parquet"), row_group_size=7)


def written(folder: Path, write: Write, size: int = 17) -> Path:
    folder.mkdir()
    for number, start in enumerate(range(0, ROWS, size)):
        write(folder / f"part_{number}.npz", slice(start, start + size))
    return folder


RAGGED = {"present": PRESENT}
KINDS: list[tuple[Write, dict[str, Any]]] = [
    (in_lengths, {"lengths": LENGTHS, "labels": LABELS, "names": NAMES}),
    (in_values, {**RAGGED, "split_of": SPLIT}),
    (packed, {"present": SCATTERED, "labels": LABELS}),
    (dense, {}),
    (in_columns, {}),
    (table, {**RAGGED, "labels": LABELS, "names": NAMES}),
]


@pytest.mark.parametrize(("write", "beside"), KINDS)
def test_shards_are_the_same_data_as_one_array(
    tmp_path: Path, write: Write, beside: dict[str, Any]
) -> None:
    folder = written(tmp_path / "sets", write)
    tokens = TOKENS.astype(np.float32) if write is in_values else TOKENS
    for split in SPLITS:
        found = make_dataset(folder, split, shards_held=1)
        expected = make_dataset(tokens, split, **beside)
        assert isinstance(found, ShardedDataset)
        assert found.size == expected.size and list(found.rows) == list(expected.rows)
        ours, theirs = found.episodes(KEYS), expected.episodes(KEYS)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.present, theirs.present)
        assert (found.places(KEYS) == expected.places(KEYS)).all()
        assert found.fingerprint() == expected.fingerprint() | {"name": "sets"}
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.std, expected.std, rtol=1e-6, atol=1e-7)
        assert found.has_labels == expected.has_labels
        if found.has_labels:
            assert (found.labels(KEYS) == expected.labels(KEYS)).all()
            assert found.label_names == expected.label_names
        names = found.row_names
        assert (names and list(names)) == expected.row_names
        assert all(map(np.array_equal, found.training_sets(9), expected.training_sets(9)))
        assert sorted(map(tuple, found.training_tokens())) == sorted(
            map(tuple, expected.training_tokens())
        )


def test_categories_are_those_of_the_array(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[:, :, 1] = np.arange(6) % 4
    written(tmp_path / "sets", lambda path, rows: np.save(f"{path}.npy", tokens[rows]))
    asked = {"categorical": {1: 4}, "weights": [1.0, 2.0, 1.0]}
    found = make_dataset(tmp_path / "sets", shards_held=2, **asked)
    expected = make_dataset(tokens, **asked)
    assert torch.equal(found.episodes(KEYS).tokens, expected.episodes(KEYS).tokens)
    assert found.fingerprint()["sha256"] == expected.fingerprint()["sha256"]
    torch.testing.assert_close(found.std, expected.std)
    assert found.to_user(found.fixed(1).tokens).shape[-1] == 3


# ---------------------------------------------------------------- what is kept


def passes(folder: Path) -> set[Path]:
    return {path for path in (folder / ".htm-shards").iterdir() if path.is_dir()}


def test_the_pass_is_made_once_until_a_file_changes(tmp_path: Path) -> None:
    folder = written(tmp_path / "sets", packed)
    first = make_dataset(folder, shards_held=2)
    (kept,) = passes(folder)
    made = os.stat(kept / "index.json").st_mtime_ns
    second = make_dataset(folder, "test", shards_held=3)
    assert passes(folder) == {kept} and os.stat(kept / "index.json").st_mtime_ns == made
    assert second.fingerprint() == first.fingerprint()
    np.savez_compressed(
        folder / "part_3.npz", tokens=TOKENS[:9], present=SCATTERED[:9], labels=LABELS[:9]
    )
    changed = make_dataset(folder, shards_held=2)
    assert passes(folder).isdisjoint({kept})  # and the one before is gone
    expected = np.concatenate([TOKENS[:51], TOKENS[:9]])
    there = np.concatenate([SCATTERED[:51], SCATTERED[:9]])
    sha256 = make_dataset(expected, present=there).fingerprint()["sha256"]
    assert changed.fingerprint()["sha256"] == sha256


@pytest.mark.parametrize("damage", ["index.json", "lengths", "000001.values"])
def test_what_is_kept_and_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = written(tmp_path / "sets", packed)
    expected = make_dataset(folder, shards_held=2)
    (kept,) = passes(folder)
    content = (kept / damage).read_bytes()
    (kept / damage).write_bytes(content[:-30])
    found = make_dataset(folder, shards_held=2)
    assert torch.equal(found.episodes(KEYS).tokens, expected.episodes(KEYS).tokens)
    assert (kept / damage).read_bytes() == content


@pytest.mark.parametrize("forged", [["../../other", False], ["other.npy", True]])
def test_what_is_kept_names_no_other_file(tmp_path: Path, forged: list[Any]) -> None:
    folder = written(tmp_path / "sets", dense)
    for other in ("other", "other.npy"):
        (folder / other).write_bytes(bytes(17 * 6 * 3 * 8))  # as many as the first shard has
    pattern = f"{folder}/part_*.npy"
    expected = make_dataset(pattern, shards_held=1)
    (kept,) = passes(folder)
    index = read_json(kept / "index.json")
    index["shards"][0][1][:2] = forged
    write_json(kept / "index.json", index)
    found = make_dataset(pattern, shards_held=1)
    assert torch.equal(found.fixed(40).tokens, expected.fixed(40).tokens)


def test_a_file_that_changes_under_training_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "sets", dense)
    dataset = make_dataset(folder, shards_held=1)
    np.save(folder / "part_2.npy", TOKENS[:5])
    with pytest.raises(ValueError, match=r"part_2\.npy was changed after it was opened"):
        dataset.fixed(40)


def test_where_the_folder_cannot_be_written_the_pass_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTM_CACHE", str(tmp_path / "cache"))
    folder = written(tmp_path / "sets", dense)
    (folder / ".htm-shards").write_text("no folder can be made here")
    found = [make_dataset(f"{folder}/*.npy", shards_held=1) for _ in range(2)]
    assert len(list((tmp_path / "cache").rglob("index.json"))) == 1
    expected = make_dataset(TOKENS)
    assert torch.equal(found[1].fixed(5).tokens, expected.fixed(5).tokens)


# ---------------------------------------------------------------- which data is read so


def test_shards_are_read_so_where_they_are_more_than_the_memory(tmp_path: Path) -> None:
    folder = written(tmp_path / "sets", dense)
    small = make_dataset(folder)
    large = make_dataset(folder, memory_limit=20_000)  # 8,640 bytes and a header a shard, thrice
    assert not isinstance(small, ShardedDataset) and isinstance(large, ShardedDataset)
    assert large.fingerprint() == small.fingerprint()
    assert torch.equal(large.fixed(5).tokens, small.fixed(5).tokens)
    with pytest.raises(ValueError, match="or shards_held= reads shards as they are needed"):
        make_dataset(folder, memory_limit=40_000)


@pytest.mark.parametrize("held", [1, 3])
def test_so_many_shards_are_mapped_at_most(tmp_path: Path, held: int) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not say what is mapped")
    dataset = make_dataset(written(tmp_path / "sets", dense, size=6), shards_held=held)
    found = set()
    for key in range(40):
        dataset.episodes(np.array([key]))
        lines = maps.read_text().splitlines()
        mapped = {line.split("/")[-1] for line in lines if f"{tmp_path}/sets/part_" in line}
        assert 1 <= len(mapped) <= held
        found |= mapped
    assert len(found) == 10  # of all shards


def test_processes_read_different_shards(tmp_path: Path) -> None:
    whole = make_dataset(written(tmp_path / "sets", dense), shards_held=2)
    parts = [whole.of_rank(rank, 3) for rank in range(3)]
    assert sorted(np.concatenate([part.rows for part in parts])) == sorted(whole.rows)
    shards = [{int(row) // 17 for row in part.rows} for part in parts]
    assert shards == [{0, 3}, {1}, {2}]
    for part in parts:
        assert torch.equal(part.std, whole.std) and part.max_tokens == whole.max_tokens
        assert part.fingerprint() == whole.fingerprint()
        given = TOKENS[part.rows[0]].astype(np.float32)
        assert (np.sort(part.fixed(1).tokens[0], axis=0) == np.sort(given, axis=0)).all()
    for rank in (0, 4):  # there are four shards: process 4 would have none, and all say so
        with pytest.raises(ValueError, match=r"process 4 of 5 in its 4 shards.*a shard"):
            whole.of_rank(rank, 5)
    with pytest.raises(ValueError, match=r"rank is 3.*from 0 to 2"):
        whole.of_rank(3, 3)
    generated = make_dataset("HTM-Trees-v0")
    assert generated.of_rank(1, 2) is generated


def test_a_file_system_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: Any) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert make_dataset(written(tmp_path / "sets", dense), shards_held=1).size == 48  # of 60 rows


def test_training_on_shards_gives_the_weights_of_the_array(tmp_path: Path) -> None:
    tokens = np.tile([[[-1.0], [1.0]]], (ROWS, 3, 3)) * (1 + np.arange(ROWS) % 4)[:, None, None]
    written(tmp_path / "sets", lambda path, rows: np.save(f"{path}.npy", tokens[rows]))
    weights = []
    for data in (tokens, str(tmp_path / "sets")):
        held = {"shards_held": 1} if isinstance(data, str) else {}
        kwargs = {"dataset": data, **held}
        learner = Reinforce("HTM-v0", ReinforceConfig(batch_size=4), env_kwargs=kwargs, seed=1)
        learner.update(0.5)
        weights.append(learner.autoencoder.weights_hash())
    assert weights[0] == weights[1]


def test_a_run_on_shards_goes_on_elsewhere(tmp_path: Path) -> None:
    kwargs = {"dataset": str(written(tmp_path / "sets", dense)), "shards_held": 1}
    learner = Reinforce("HTM-v0", ReinforceConfig(), env_kwargs=kwargs, embedding_dim=4)
    learner.save(tmp_path / "run")
    np.save(tmp_path / "whole.npy", TOKENS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it would be said that this is other data
        whole = load_learner(tmp_path / "run", tmp_path / "whole.npy")
        assert not isinstance(whole.dataset, ShardedDataset)
        assert isinstance(load_learner(tmp_path / "run").dataset, ShardedDataset)
    shutil.rmtree(tmp_path / "sets")
    with pytest.warns(RunWarning, match="data of .*run is not at .*sets"):
        absent = load_learner(tmp_path / "run")
    assert torch.equal(absent.std, learner.std)


# ---------------------------------------------------------------- what is refused


def part(path: Path, **arrays: Any) -> Callable[[], None]:
    return lambda: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"tokens": TOKENS[:5, :, :2]}, "b.npz has tokens of 2 numbers: expected 3, as in .*a.npz"),
        ({"tokens": TOKENS[:5], "labels": LABELS[:5]}, "a.npz has no 'labels', but .*b.npz has"),
        ({"tokens": np.where(TOKENS[3, 2, 1] == TOKENS, np.nan, TOKENS)}, "b.npz: row 3, token 2 "),
        ({"tokens": TOKENS[:5], "lengths": [2, 3, 1, 2, 2]}, "b.npz: row 2 has one token"),
        ({"tokens": TOKENS[:5], "lengths": [2, 9, 2, 2, 2]}, "b.npz: length 9 of row 1"),
        ({"values": TOKENS[0], "lengths": [2, 3]}, "b.npz: 'lengths' add up to 5"),
        ({"tokens": TOKENS[:5], "other": LABELS}, "b.npz has the unknown array 'other'"),
        ({"tokens": TOKENS[:5], "token_names": NAMES[:6]}, "b.npz has 'token_names', which"),
        ({"tokens": np.array([{}])}, "b.npz is not a readable .*pickled objects"),
    ],
)
def test_a_shard_that_cannot_be_used_is_named(
    tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "a.npz", tokens=TOKENS)
    np.savez(tmp_path / "b.npz", **second)
    with pytest.raises(ValueError, match=message) as error:
        make_dataset(tmp_path, shards_held=1)
    assert "\n" not in str(error.value)
    assert not passes(tmp_path)


def test_a_shard_that_was_cut_is_named(tmp_path: Path) -> None:
    for name in ("cut.npz", "cut.npy"):
        path = tmp_path / name
        (np.save if name.endswith(".npy") else np.savez)(path, TOKENS)
        content = path.read_bytes()
        if name.endswith(".npz"):
            np.savez(path, tokens=TOKENS)
            content = path.read_bytes()
        for size in range(1, len(content), 1500):
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match=name):
                make_dataset(f"{tmp_path}/*{path.suffix}", shards_held=1)


def test_numbers_that_32_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "sets", lambda path, rows: np.save(f"{path}.npy", TOKENS[rows] + 1e12))
    with pytest.raises(ValueError, match="column 0 has numbers near 1e\\+12"):
        make_dataset(tmp_path / "sets", shards_held=1)


def test_a_set_of_a_table_is_in_one_piece(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"set": [1, 1, 2, 2, 3, 3, 1, 4], "x": np.arange(8.0)})
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(ValueError, match=r"a\.parquet: the set 1 goes on in row group 3"):
        make_dataset(tmp_path)


def test_shards_held_is_of_shards(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", TOKENS)
    with pytest.raises(ValueError, match="shards_held= goes with shards"):
        make_dataset(tmp_path / "own.npy", shards_held=2)
    with pytest.raises(ValueError, match="shards_held is 0"):
        make_dataset(tmp_path, shards_held=0)
    with pytest.raises(ValueError, match="lengths= goes with an array or a list"):
        make_dataset(tmp_path, shards_held=2, lengths=LENGTHS)


def test_shares_of_splits_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "sets", dense)
    with pytest.raises(ValueError, match="split_fractions is -1"):
        make_dataset(folder, "test", shards_held=1, split_fractions=(1.0, 1.0, -1.0))
    assert not (folder / ".htm-shards").exists()

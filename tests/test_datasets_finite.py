"""Digits, the user's own data, and ``make_dataset``."""

from __future__ import annotations

import gzip
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from htm_env.datasets import (
    DATASETS,
    SPLITS,
    ArrayDataset,
    CrossesDataset,
    DigitsDataset,
    TreesDataset,
    make_dataset,
)
from htm_env.datasets.splits import split_rows
from htm_env.types import TokenBatch

# --- Digits ----------------------------------------------------------------------------------


def test_digits_splits_share_nothing_and_keep_the_classes() -> None:
    datasets = [DigitsDataset(split) for split in SPLITS]
    assert [dataset.size for dataset in datasets] == [1437, 180, 180]
    assert sorted(np.concatenate([dataset.rows for dataset in datasets])) == list(range(1797))
    totals = np.bincount(load_digits().target)
    for dataset in datasets:
        labels = dataset.labels(dataset.fixed_keys(2000))
        assert (labels == load_digits().target[dataset.rows]).all()
        share = dataset.size / 1797
        assert np.abs(np.bincount(labels) - share * totals).max() <= 1


def test_digits_labels_are_those_of_the_pixels_whatever_the_key() -> None:
    """Found again by the image alone: scikit-learn's rows are all different."""
    digits = load_digits()
    images = digits.images.astype(float)
    targets = {image.tobytes(): label for image, label in zip(images, digits.target, strict=True)}
    dataset = DigitsDataset("validation")
    keys = np.random.default_rng(0).integers(2**62, size=300)  # most rows more than once
    batch, labels = dataset.episodes(keys), dataset.labels(keys)
    assert labels.dtype == np.int64
    for tokens, label in zip(batch.tokens.numpy(), labels, strict=True):
        image = np.zeros((8, 8))
        for x, y, *pixels in tokens:
            column, row = 2 * int(x), 2 * int(y)
            image[row : row + 2, column : column + 2] = np.reshape(pixels, (2, 2))
        assert targets[image.tobytes()] == label


def test_nothing_that_a_learner_sees_has_a_label() -> None:
    assert set(TokenBatch._fields) == {"tokens", "present", "clades", "merges", "sample"}
    for env_id, keywords in (
        ("HTM-Trees-v0", {}),
        ("HTM-v0", {"dataset": np.eye(3)[None].repeat(20, 0)}),
    ):
        dataset = make_dataset(env_id, **keywords)
        assert not dataset.has_labels
        with pytest.raises(ValueError, match=f"{env_id} has no labels"):
            dataset.labels(dataset.fixed_keys(2))
    with pytest.raises(ValueError, match="key"):
        DigitsDataset("test").labels(np.array([-1]))


def test_digits_patches_put_the_image_back_together() -> None:
    dataset = DigitsDataset("test")
    batch = dataset.fixed(1000)
    assert batch.tokens.shape == (180, 16, 6)
    assert batch.present.all()
    for row in range(180):
        image = np.full((8, 8), -1.0)
        for x, y, *pixels in batch.tokens[row].tolist():
            image[2 * int(y) : 2 * int(y) + 2, 2 * int(x) : 2 * int(x) + 2] = np.reshape(
                pixels, (2, 2)
            )
        assert (image == load_digits().images[dataset.rows[row]]).all()
    assert (dataset.kind, dataset.has_hierarchy, dataset.has_labels) == ("patches", False, True)
    assert (batch.merges == -1).all()
    assert batch.merges.shape == (180, 15, 2)
    assert batch.clades.shape == (180, 0, 16)


def test_digits_are_shuffled_anew_by_every_key() -> None:
    dataset = DigitsDataset()
    rows = 1600
    batch = dataset.episodes(np.arange(rows) * dataset.size)  # the same image each time
    corner = (batch.tokens[:, :, :2] == 0).all(dim=2)  # (rows, P): the patch at (0, 0)
    counts = Counter(corner.int().argmax(dim=1).tolist())
    assert set(counts) == set(range(16))
    assert all(abs(count - 100) < 5 * np.sqrt(rows / 16) for count in counts.values())
    assert len({row.numpy().tobytes() for row in batch.tokens}) == rows


def test_digits_statistics_by_hand() -> None:
    dataset = DigitsDataset("validation")
    # Columns and rows 0, 1, 2, 3 in equal numbers.
    assert dataset.mean[:2].tolist() == [1.5, 1.5]
    assert dataset.std[:2].tolist() == pytest.approx([np.sqrt(1.25)] * 2)
    images = load_digits().images[DigitsDataset("train").rows]
    assert float(dataset.mean[2]) == pytest.approx(images[:, ::2, ::2].mean(), rel=1e-6)
    assert float(dataset.std[5]) == pytest.approx(images[:, 1::2, 1::2].std(), rel=1e-6)


def test_a_digit_alone_equals_its_row() -> None:
    dataset = DigitsDataset("train")
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(2**62, (40,), generator=generator).numpy()
    together = dataset.episodes(keys)
    drawn = dataset.sample(40, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.tokens, together.tokens)
    for row, key in enumerate(keys):
        assert torch.equal(dataset.episodes(np.array([key])).tokens[0], together.tokens[row])


# --- The user's own: what comes out -----------------------------------------------------------


def numbered(lengths: list[int], dim: int = 2) -> list[np.ndarray]:
    """Ragged rows whose every token says where it came from: row, token, 0, 0, ..."""
    rows = []
    for row, length in enumerate(lengths):
        tokens = np.zeros((length, dim))
        tokens[:, 0], tokens[:, 1] = row, np.arange(length)
        rows.append(tokens)
    return rows


def rows_and_tokens(batch: TokenBatch) -> list[tuple[set[float], list[float]]]:
    """For each sample the rows that its tokens name, and the tokens, sorted."""
    found = []
    for tokens, present in zip(batch.tokens, batch.present, strict=True):
        kept = tokens[present]
        found.append((set(kept[:, 0].tolist()), sorted(kept[:, 1].tolist())))
    return found


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 9), min_size=10, max_size=40), dim=st.integers(2, 4))
def test_ragged_rows_all_come_back_once(lengths: list[int], dim: int) -> None:
    seen = []
    for split in SPLITS:
        dataset = ArrayDataset(numbered(lengths, dim), split)
        assert (dataset.max_tokens, dataset.token_dim) == (max(lengths), dim)
        assert dataset.kind == ("points" if dim == 2 else "vectors")
        batch = dataset.fixed(1000)
        assert len(batch.tokens) == dataset.size
        assert torch.equal(batch.present, torch.arange(max(lengths)) < batch.num_tokens[:, None])
        assert (batch.tokens[~batch.present] == 0).all()
        for source, (rows, tokens) in zip(dataset.rows, rows_and_tokens(batch), strict=True):
            assert rows == {float(source)}
            assert tokens == list(range(lengths[source]))
            seen.append(int(source))
    assert sorted(seen) == list(range(len(lengths)))


def test_array_list_and_archives_agree(tmp_path: Path) -> None:
    ragged = numbered([5] * 20)
    array = np.stack(ragged)
    np.savez(tmp_path / "dense.npz", tokens=array)
    np.savez(tmp_path / "ragged.npz", values=np.concatenate(ragged), lengths=np.full(20, 5))
    expected = ArrayDataset(array, "validation").fixed(9)
    for data in (
        ragged,
        torch.from_numpy(array),
        array.tolist(),
        tmp_path / "dense.npz",
        str(tmp_path / "ragged.npz"),
    ):
        found = ArrayDataset(data, "validation").fixed(9)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.present, expected.present)


def test_ragged_archive_is_cut_at_its_lengths(tmp_path: Path) -> None:
    lengths = [2, 7, 3, 4, 2, 5, 6, 2, 3, 9]
    np.savez(
        tmp_path / "own.npz",
        values=np.concatenate(numbered(lengths)),
        lengths=np.array(lengths, dtype=np.uint8),
    )
    dataset = ArrayDataset(tmp_path / "own.npz")
    found = rows_and_tokens(dataset.fixed(10))
    assert found == [({float(row)}, list(range(lengths[row]))) for row in dataset.rows]


def idx(images: np.ndarray) -> bytes:
    """The file that MNIST's format gives these images."""
    shape = b"".join(size.to_bytes(4, "big") for size in images.shape)
    return b"\x00\x00\x08\x03" + shape + images.astype(np.uint8).tobytes()


def lit_images() -> np.ndarray:
    """Ten images of 3x4 pixels: row k has k + 2 pixels over 130, from the top left on."""
    images = np.full((10, 12), 130)
    for row, image in enumerate(images):
        image[: row + 2] = 131
    return images.reshape(10, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_pixels_become_points(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(pack(idx(lit_images())))
    for split in SPLITS:
        dataset = ArrayDataset(path, split)
        batch = dataset.fixed(10)
        assert dataset.max_tokens == 11
        for row, tokens, present in zip(dataset.rows, batch.tokens, batch.present, strict=True):
            points = {(x, y) for x, y in tokens[present].tolist()}
            assert points == {(place % 4, place // 4) for place in range(row + 2)}
    everything = ArrayDataset(path, threshold=129).fixed(1)
    assert everything.num_tokens.tolist() == [12]


def test_own_statistics_by_hand() -> None:
    # The second coordinate never varies, and 0.1 is rounded: its spread must still count as none.
    data = [np.array([[row, 0.1], [row + 1, 0.1]]) for row in range(10)]
    for split in SPLITS:
        dataset = ArrayDataset(data, split)
        train = ArrayDataset(data, "train").rows
        firsts = np.array([value for row in train for value in (row, row + 1)])
        assert dataset.mean.tolist() == pytest.approx([firsts.mean(), 0.1])
        assert dataset.std.tolist() == pytest.approx([firsts.std(), 1.0])


def test_padding_does_not_enter_the_statistics() -> None:
    data = [np.resize([[4.0, 4.0], [6.0, 6.0]], (length, 2)) for length in [2, 8] * 5]
    dataset = ArrayDataset(data)
    assert dataset.mean.tolist() == [5, 5]
    assert dataset.std.tolist() == [1, 1]


def test_own_episodes_are_shuffled_and_pure() -> None:
    dataset = ArrayDataset(numbered([6] * 10))
    keys = np.arange(64) * dataset.size
    together = dataset.episodes(keys)
    assert len({tuple(tokens[:, 1].tolist()) for tokens in together.tokens}) > 40
    for row, key in enumerate(keys):
        assert torch.equal(dataset.episodes(np.array([key])).tokens[0], together.tokens[row])


def test_a_batch_is_a_copy() -> None:
    dataset = ArrayDataset(numbered([3] * 10))
    before = dataset.fixed(2).tokens.clone()
    dataset.fixed(2).tokens.zero_()
    assert torch.equal(dataset.fixed(2).tokens, before)


@given(st.integers(10, 500))
def test_split_rows_partition(count: int) -> None:
    parts = split_rows(count)
    assert sorted(np.concatenate(parts)) == list(range(count))
    assert [len(part) for part in parts[1:]] == [round(count * 0.1)] * 2


def test_split_rows_mix_the_rows() -> None:
    train, validation, test = split_rows(1000, (0.5, 0.25, 0.25))
    assert [len(train), len(validation), len(test)] == [500, 250, 250]
    # Rows that come sorted by class must not end up in one split: five standard deviations.
    assert abs((train < 500).sum() - 250) < 5 * np.sqrt(1000 / 16)
    assert not (np.diff(train) > 0).all()


# --- The user's own: what is refused ----------------------------------------------------------

GOOD = numbered([3] * 10)


def spoiled(row: int, tokens: Any) -> list[Any]:
    return [*GOOD[:row], tokens, *GOOD[row + 1 :]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "dataset is empty"),
        (np.zeros((0, 3, 2)), "dataset is empty"),
        (spoiled(4, np.zeros((1, 2))), "dataset: row 4 has one token: expected at least two"),
        (spoiled(4, np.zeros((0, 2))), "dataset: row 4 has no tokens: expected at least two"),
        (spoiled(4, []), r"dataset: row 4 has no tokens: expected \(n, T\)"),
        (np.zeros((10, 1, 2)), "dataset: row 0 has one token"),
        (np.zeros((10, 0, 2)), "dataset: row 0 has no tokens"),
        (spoiled(7, [[0, 1], [2, np.nan]]), "dataset: row 7, token 1 has coordinate nan"),
        (spoiled(7, [[0, -np.inf], [2, 3]]), "dataset: row 7, token 0 has coordinate -inf"),
        (spoiled(7, [[0, 1e39], [2, 3]]), "row 7, token 0 has coordinate 1e.39: .* up to 1e.18"),
        (np.where(np.arange(60).reshape(10, 3, 2) == 27, np.nan, 0), "row 4, token 1 .* nan"),
        (spoiled(2, np.zeros((3, 4))), "row 2 has tokens of 4 numbers: expected 2, as in row 0"),
        (spoiled(2, np.zeros(3)), r"row 2 has shape \(3,\): expected \(n, T\)"),
        (spoiled(2, [[1, 2], [3]]), "row 2 is not an array of numbers"),
        (spoiled(2, [["a", "b"], ["c", "d"]]), "row 2 has element type <U1"),
        (np.zeros((10, 3)), r"dataset has shape \(10, 3\): expected \(N, P, T\)"),
        (np.zeros((10, 3, 0)), r"dataset has shape \(10, 3, 0\)"),
        (np.zeros((10, 3, 2), dtype=complex), "dataset has element type complex128"),
        (np.array(5.0), r"dataset has shape \(\)"),
        (None, "dataset has element type object"),
        ({"tokens": 1}, "dataset has element type object"),
    ],
)
def test_unusable_arrays_are_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(data)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has nothing: expected 'tokens', or 'values' and 'lengths'"),
        ({"points": np.zeros(3)}, "has the unknown array 'points': expected only tokens, values"),
        ({"values": np.zeros((4, 2))}, "has values: expected 'tokens'"),
        (
            {"values": np.zeros((4, 2)), "lengths": np.array([2, 3])},
            "'lengths' add up to 5, but 'values' has 4 rows",
        ),
        (
            {"values": np.zeros((4, 2)), "lengths": np.array([5, -1])},
            "length -1 of row 1, expected none below 0",
        ),
        (
            {"values": np.zeros((4, 2)), "lengths": np.array([2**62, 2**62, 2**62, 2**62, 4])},
            "length 4611686018427387904 of row 0, expected at most 2147483647",
        ),
        (
            {"values": np.zeros((4, 2)), "lengths": np.array([2.0, 2.0])},
            "'lengths' is float64",
        ),
        ({"values": np.zeros(4), "lengths": np.array([2, 2])}, r"'values' has shape \(4,\)"),
        ({"values": np.zeros((3, 2)), "lengths": np.array([2, 1])}, "row 1 has one token"),
        ({"tokens": np.zeros((4, 2))}, r"has shape \(4, 2\): expected \(N, P, T\)"),
        ({"tokens": np.array([{}, {}])}, "is not a readable .npz archive of plain arrays"),
    ],
)
def test_unusable_archives_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message) as error:
        ArrayDataset(path)
    assert "own.npz" in str(error.value)


def test_archives_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.npz"
    np.savez(path, tokens=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match=r"trap\.npz"):
        ArrayDataset(path)
    (tmp_path / "trap.idx").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"trap\.idx"):
        ArrayDataset(tmp_path / "trap.idx")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_archive_is_refused_wherever_it_ends(tmp_path: Path, save: Any) -> None:
    whole, cut = tmp_path / "whole.npz", tmp_path / "cut.npz"
    save(whole, values=np.concatenate(GOOD), lengths=np.full(10, 3))
    content = whole.read_bytes()
    for size in range(0, len(content), 7):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut\.npz"):
            ArrayDataset(cut)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez(path, tokens=np.stack(GOOD))
    with zipfile.ZipFile(path) as archive:
        start = archive.read("tokens.npy")[:40]
    content = bytearray(path.read_bytes())
    content[content.index(start) + 200] ^= 0xFF  # one byte of the values: the checksum tells
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged\.npz is not a readable"):
        ArrayDataset(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for name in ("gone.npz", "gone-idx3-ubyte", "gone.gz"):
        with pytest.raises(FileNotFoundError, match=name):
            ArrayDataset(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder without shards"):
        ArrayDataset(tmp_path)


GOOD_IDX = idx(lit_images())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG" + GOOD_IDX[4:], "has magic number 0x89504e47: expected 0x00000803"),
        (b"\x00\x00\x0d\x03" + GOOD_IDX[4:], "has magic number 0x00000d03"),
        (b"\x00\x00\x08\x01" + GOOD_IDX[4:], "has magic number 0x00000801"),
        (GOOD_IDX[:9], "is truncated: 9 bytes, expected a header of 16"),
        (GOOD_IDX[:-1], "is truncated: 135 bytes, expected 136 for 10 images of 3x4"),
        (GOOD_IDX + b"\x00", "goes on after its last image: 137 bytes, expected 136"),
        (gzip.compress(GOOD_IDX, mtime=0)[:-9], "is a truncated or damaged gzip file"),
        (gzip.compress(GOOD_IDX, mtime=0)[:12], "is a truncated or damaged gzip file"),
        (gzip.compress(GOOD_IDX[:-1], mtime=0), "is truncated: 135 bytes"),
        (idx(np.zeros((0, 3, 4))), "is empty: expected at least one row"),
    ],
)
def test_unusable_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        ArrayDataset(path)
    assert "images-idx3-ubyte" in str(error.value)


@pytest.mark.parametrize("lit", [0, 1])
def test_a_dark_image_is_named(tmp_path: Path, lit: int) -> None:
    images = lit_images()
    images[6] = 0
    images[6, 0, :lit] = 255
    path = tmp_path / "dark"
    path.write_bytes(idx(images))
    with pytest.raises(ValueError, match=f"dark: row 6 has {lit} pixels over 130: expected at"):
        ArrayDataset(path)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.8, 0.2), "expected three numbers"),
        ((0.8, 0.1, 0.2), "expected the sum 1, not 1.1"),
        ((0.9, 0.1, 0.0), "split_fractions is 0.0: expected a number above 0"),
        ((1.2, -0.1, -0.1), "split_fractions is -0.1"),
        ((0.8, 0.1, float("nan")), "split_fractions is nan"),
    ],
)
def test_bad_fractions_are_named(fractions: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(GOOD, split_fractions=fractions)


def test_too_few_rows_for_three_splits() -> None:
    message = r"4 rows with split_fractions \(0.8, 0.1, 0.1\) give 4 train, 0 validation, 0 test"
    with pytest.raises(ValueError, match=message):
        ArrayDataset(GOOD[:4])
    assert ArrayDataset(GOOD[:4], split_fractions=[0.5, 0.25, 0.25]).size == 2


@pytest.mark.parametrize("threshold", [-1, 256])
def test_bad_thresholds_are_named(threshold: int) -> None:
    with pytest.raises(ValueError, match=f"threshold is {threshold}: .* from 0 to 255"):
        ArrayDataset(GOOD, threshold=threshold)


# --- make_dataset ----------------------------------------------------------------------------


def test_make_dataset_finds_every_id() -> None:
    kwargs: dict[str, dict[str, Any]] = {"HTM-v0": {"dataset": GOOD}}
    for name in DATASETS:
        for spelling in (name, f"htm_env:{name}"):
            dataset = make_dataset(spelling, "test", **kwargs.get(name, {}))
            assert (dataset.name, dataset.split) == (name, "test")
            assert dataset.fixed(1).present.any()


def test_make_dataset_passes_the_geometry_on() -> None:
    trees = make_dataset("HTM-Trees-v0", heights=[3], num_trees=2)
    assert isinstance(trees, TreesDataset)
    assert (trees.geometry.heights, trees.geometry.num_trees) == ((3,), (2,))
    assert trees.max_tokens == 14
    crosses = make_dataset("HTM-Crosses-v0", angle_range=[30, 60], segment_length=10)
    assert isinstance(crosses, CrossesDataset)
    assert crosses.geometry.angle_range == (30, 60)


def test_make_dataset_takes_data_directly(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", tokens=np.stack(GOOD))
    expected = make_dataset("HTM-v0", dataset=GOOD).fixed(3).tokens
    for data in (GOOD, np.stack(GOOD), tmp_path / "own.npz", str(tmp_path / "own.npz")):
        assert torch.equal(make_dataset(data).fixed(3).tokens, expected)
    assert make_dataset(GOOD, split_fractions=(0.5, 0.3, 0.2)).size == 5


def test_a_file_may_be_called_like_an_id(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("HTM-Mine-v0").write_bytes(GOOD_IDX)
    assert make_dataset("HTM-Mine-v0").size == 8


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        (("HTM-Tree-v0",), {}, "unknown id 'HTM-Tree-v0': expected one of HTM-Trees-v0, HTM-Cro"),
        (("htm_env:Trees",), {}, "unknown id 'htm_env:Trees'"),
        (("HTM-v1",), {}, "unknown id 'HTM-v1'"),
        (("HTM-Trees-v0", "dev"), {}, "unknown split 'dev': expected one of train, validation, t"),
        ((GOOD, "dev"), {}, "unknown split 'dev'"),
        (
            ("HTM-Trees-v0",),
            {"height": 3},
            "HTM-Trees-v0 has no keyword 'height': expected heights, num_trees",
        ),
        (("HTM-Digits-v0",), {"seed": 3}, "HTM-Digits-v0 has no keyword 'seed': expected no key"),
        (("HTM-v0",), {}, "HTM-v0 has no data: expected dataset="),
        (("HTM-v0",), {"data": 1}, "has no keyword 'data': expected dataset, split_fractions"),
        ((GOOD,), {"dataset": GOOD}, "has no keyword 'dataset': expected split_fractions"),
    ],
)
def test_make_dataset_lists_the_choices(
    arguments: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset(*arguments, **kwargs)


def test_a_name_that_is_no_id_is_a_path() -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'absent\.npz'"):
        make_dataset("absent.npz")

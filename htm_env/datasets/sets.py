"""``TokenSets``: the user's rows of tokens, checked, with what comes beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from htm_env.datasets.base import SPLITS, RowFacts

Names = list[str]
LARGEST, SMALLEST = 1e18, 1e-18
"""Coordinates, at most, and their spread, at least: numbers whose squares 32 bits hold."""
LONGEST = 2**31 - 1
"""Tokens of a row, at most: the sum of so many lengths has no more than 64 bits."""
MOST_LOST = 0.01
"""Share of the spread of a column that rounding to 32 bits may move a number by."""
NOISE = 1e-14
"""Numbers that differ by less, relative to their size, are one number computed in several ways."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSets:
    """Rows of tokens without padding; None is what the data does not have."""

    name: str
    """What errors call the data."""
    rows: list[Float[np.ndarray, "_ T"]]
    """The tokens that are present, with 32 or 64 bits, as they were given."""
    places: list[Int64[np.ndarray, "_"]] | None = None
    """Place of each token in its row as given; None: the tokens are all there, in order."""
    labels: np.ndarray | None = None
    """(N,) whole numbers or strings."""
    names: Names | None = None
    split: Int64[np.ndarray, "N"] | None = None
    """Index in ``SPLITS`` of each row's split."""
    token_names: list[Names] | None = None
    """By place in the row as given."""
    spans: Any = None
    """The levels of every row, unchecked."""
    column_names: Names | None = None
    """Of the numbers of a token, in a table."""

    @property
    def lengths(self) -> Int64[np.ndarray, "N"]:
        """The tokens of each row."""
        return np.array([len(row) for row in self.rows], dtype=np.int64)

    def padded(self) -> Float32[np.ndarray, "N P T"]:
        """All tokens, zeros behind them."""
        values = np.zeros(
            (len(self.rows), max(map(len, self.rows)), self.rows[0].shape[1]), dtype=np.float32
        )
        for index, row in enumerate(self.rows):
            values[index, : len(row)] = row
        return values

    def check_spread(self) -> None:
        """Raise ``ValueError`` naming a column whose numbers 32 bits cannot tell apart."""
        if any(row.dtype != np.float32 for row in self.rows):
            spread = Spread()
            spread.add(np.concatenate(self.rows))
            spread.check(self.name)

    def facts(self, name: str, others: Mapping[str, Any]) -> RowFacts:
        """What a dataset of these rows tells about them, labels as class numbers."""
        classes = label_values = places = None
        if self.labels is not None:
            label_values, classes = np.unique(self.labels, return_inverse=True)
        if self.places is not None:
            places = np.zeros((len(self.rows), max(map(len, self.rows))), dtype=np.int64)
            for row, given in enumerate(self.places):
                places[row, : len(given)] = given
        return RowFacts(
            name=name,
            places=places,
            classes=classes,
            label_values=label_values,
            row_names=self.names,
            token_names=self.token_names,
            others=others if self.split is None else {**others, "split": self.split},
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as arrays of an ``.npz``."""
        arrays: dict[str, np.ndarray] = {}
        if self.places is None:
            values = np.concatenate(self.rows).astype(np.float32)
            arrays |= {"values": values, "lengths": self.lengths}
        else:
            shape = (len(self.rows), 1 + max(int(places[-1]) for places in self.places))
            arrays["present"] = np.zeros(shape, dtype=bool)
            arrays["tokens"] = np.zeros((*shape, self.rows[0].shape[1]), dtype=np.float32)
            for row, (tokens, places) in enumerate(zip(self.rows, self.places, strict=True)):
                arrays["present"][row, places] = True
                arrays["tokens"][row, places] = tokens
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.names is not None:
            arrays["names"] = np.array(self.names)
        if self.split is not None:
            arrays["split"] = np.array(SPLITS)[self.split]
        if self.token_names is not None:
            most = max(map(len, self.token_names))
            padded = [[*names, *[""] * (most - len(names))] for names in self.token_names]
            arrays["token_names"] = np.array(padded)
        if self.spans is not None:
            arrays |= joined_spans(self.spans)
        return arrays


class Moments:
    """Mean and standard deviation of numbers that come in parts, in 64 bits.

    Parts are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = np.float64(0.0)
        self._squares: Any = np.float64(0.0)

    def add(self, values: Float[np.ndarray, "n T"]) -> None:
        """Take in more numbers; none is as good as no call."""
        if not len(values):
            return
        values = values.astype(np.float64)
        mean, count = values.mean(axis=0), self.count + len(values)
        apart = mean - self.mean
        self._squares = (
            self._squares
            + ((values - mean) ** 2).sum(axis=0)
            + apart**2 * (self.count * len(values) / count)
        )
        self.mean = self.mean + apart * (len(values) / count)
        self.count = count

    @property
    def std(self) -> Float64[np.ndarray, "T"]:
        """0 where all numbers are the same."""
        found: np.ndarray = np.sqrt(self._squares / self.count)
        return found


class Spread:
    """How far the numbers of each column are apart, beside their size."""

    def __init__(self) -> None:
        self._first: Any = None
        self._largest: Any = np.float64(0.0)
        self._moments = Moments()
        """Of the numbers less those of the first token, which keeps their digits."""

    def add(self, values: Float[np.ndarray, "n T"]) -> None:
        """Take in tokens, one or more."""
        values = values.astype(np.float64)
        self._first = values[0] if self._first is None else self._first
        self._largest = np.maximum(self._largest, np.abs(values).max(axis=0))
        self._moments.add(values - self._first)

    def check(self, name: str) -> None:
        """Raise ``ValueError`` naming a column whose numbers 32 bits cannot tell apart."""
        if self._first is None:
            return
        spread, largest = self._moments.std, self._largest
        rounded = largest * np.finfo(np.float32).epsneg
        varies = spread > largest * NOISE
        lost = varies & (spread < np.maximum(rounded / MOST_LOST, SMALLEST))
        if lost.any():
            column = int(lost.argmax())
            mean = (self._first + self._moments.mean)[column]
            raise ValueError(
                f"{name}: column {column} has numbers near {mean:g} that differ by about "
                f"{spread[column]:.2g}, which 32 bits cannot tell apart: expected them without "
                "their offset, such as less their mean, in a larger unit"
            )


class BesideRows(NamedTuple):
    """What comes beside the tokens of rows, checked; None is what there is not."""

    labels: np.ndarray | None
    """(N,) whole numbers or strings."""
    names: Names | None
    split: Int64[np.ndarray, "N"] | None
    """Index in ``SPLITS`` of each row's split."""


def beside_rows(name: str, given: Mapping[str, Any], count: int) -> BesideRows:
    """Labels, names and splits of ``count`` rows; errors are those of :func:`token_sets`."""
    return BesideRows(
        _labels(name, given["labels"], count) if "labels" in given else None,
        _strings(name, "names", given["names"], count) if "names" in given else None,
        _split(name, given["split"], count) if "split" in given else None,
    )


def token_sets(name: str, given: Mapping[str, Any], least: int = 2) -> TokenSets:
    """Checked token sets.

    Args:
        name: what to call them in an error.
        given: arrays or lists by name: ``tokens`` (N, P, T) or a list of (n_i, T), perhaps with
            ``lengths`` (N,) or ``present`` (N, P); or ``values`` (sum n_i, T) with ``lengths``; and
            perhaps ``labels``, ``names``, ``split`` (N,), ``token_names`` (P,) or (N, P), and
            ``spans``, the levels of every row, and ``column_names`` (T,). None is the same as
            leaving it out.
        least: the tokens that a row must have.

    Raises ``ValueError``, with the row where it is one, for what cannot be used.
    """
    given = {key: value for key, value in given.items() if value is not None or key == "tokens"}
    rows, places = _rows(name, given, least)
    count = len(rows)
    token_names = None
    if "token_names" in given:
        widths = [len(row) for row in rows]
        if places is not None:
            widths = [int(there[-1]) + 1 for there in places]
        token_names = _token_names(name, given["token_names"], widths)
    return TokenSets(
        name=name,
        rows=rows,
        places=places,
        **beside_rows(name, given, count)._asdict(),
        token_names=token_names,
        spans=given.get("spans"),
        column_names=given.get("column_names"),
    )


def joined(name: str, shards: Sequence[TokenSets]) -> TokenSets:
    """The rows of all shards, one shard after another.

    Raises ``ValueError``, naming the shard, where one differs from the first in the numbers of a
    token or in what comes beside the tokens.
    """
    first = shards[0]
    for shard in shards[1:]:
        here, there = shard.rows[0].shape[1], first.rows[0].shape[1]
        if here != there:
            raise ValueError(
                f"{shard.name} has tokens of {here} numbers: expected {there}, as in {first.name}"
            )
        if shard.column_names != first.column_names:
            raise ValueError(
                f"{shard.name} has the columns {shard.column_names}: expected "
                f"{first.column_names}, as in {first.name}"
            )
        for key in ("labels", "names", "split", "token_names", "spans"):
            missing = [one for one in (first, shard) if getattr(one, key) is None]
            if len(missing) == 1:
                other = shard if missing[0] is first else first
                raise ValueError(f"{missing[0].name} has no {key!r}, but {other.name} has")
        if first.labels is not None and shard.labels is not None:
            kinds = [labels.dtype.kind == "U" for labels in (first.labels, shard.labels)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"the labels of {shard.name} and of {first.name} are strings and numbers: "
                    "expected one of them"
                )
    everything: dict[str, Any] = {}
    for field in fields(TokenSets):
        values = [getattr(shard, field.name) for shard in shards]
        if isinstance(values[0], np.ndarray):
            everything[field.name] = np.concatenate(values)
        elif field.name == "column_names":
            everything[field.name] = values[0]
        elif field.name not in ("name", "places") and values[0] is not None:
            everything[field.name] = [item for value in values for item in value]
    if any(shard.places is not None for shard in shards):
        everything["places"] = [
            places
            for shard in shards
            for places in shard.places or [np.arange(len(row)) for row in shard.rows]
        ]
    return TokenSets(name=name, **everything)


# ---------------------------------------------------------------- rows and places


def _rows(
    name: str, given: Mapping[str, Any], least: int
) -> tuple[list[Float[np.ndarray, "_ T"]], list[Int64[np.ndarray, "_"]] | None]:
    """The tokens of each row, and their places unless they are all in order."""
    if "tokens" in given and "values" in given:
        raise ValueError(f"{name} has both 'tokens' and 'values': expected one of them")
    if "lengths" in given and "present" in given:
        raise ValueError(f"{name} has both 'lengths' and 'present': expected one of them")
    if "tokens" not in given:
        if not {"values", "lengths"} <= given.keys():
            found = ", ".join(given) or "nothing"
            raise ValueError(f"{name} has {found}: expected 'tokens', or 'values' and 'lengths'")
        return _checked(name, _cut(name, given["values"], given["lengths"]), least), None
    tokens = as_list(given["tokens"])
    if not isinstance(tokens, list | tuple):
        tokens = numbers(name, tokens)
        if tokens.ndim != 3 or tokens.shape[2] < 1:
            raise ValueError(f"{name} has shape {tokens.shape}: expected (N, P, T)")
    if "lengths" in given:
        return _checked(name, _first(name, tokens, given["lengths"]), least), None
    if "present" in given:
        there = _presence(name, given["present"], tokens)
        places = [np.flatnonzero(here) for here in there]
        rows = [numbers(name, row)[here] for row, here in zip(tokens, there, strict=True)]
        rows = _checked(name, rows, least)
        in_order = all(here[-1] == len(here) - 1 for here in places)
        return rows, None if in_order else places
    return _checked(name, tokens, least), None


def _cut(name: str, given: Any, lengths: Any) -> list[Float[np.ndarray, "_ T"]]:
    """Values (sum of lengths, T), a row for each length."""
    values = numbers(f"{name}: 'values'", given)
    if values.ndim != 2:
        raise ValueError(f"{name}: 'values' has shape {values.shape}, expected (sum of lengths, T)")
    ends = np.cumsum(row_lengths(name, lengths))
    if len(ends) and int(ends[-1]) != len(values):
        raise ValueError(
            f"{name}: 'lengths' add up to {ends[-1]}, but 'values' has {len(values)} rows"
        )
    return np.split(values, ends[:-1]) if len(ends) else []


def _first(name: str, tokens: Any, given: Any) -> list[Any]:
    """The first tokens of each row, as many as its length says."""
    lengths = row_lengths(name, given)
    if len(lengths) != len(tokens):
        raise ValueError(
            f"{name}: 'lengths' is of {len(lengths)} rows, but there are {len(tokens)}"
        )
    for row, (length, padded) in enumerate(zip(lengths.tolist(), tokens, strict=True)):
        if length > len(padded):
            raise ValueError(
                f"{name}: length {length} of row {row}, but it has {len(padded)} tokens"
            )
    return [padded[:length] for length, padded in zip(lengths.tolist(), tokens, strict=True)]


def row_lengths(name: str, given: Any) -> Int64[np.ndarray, "N"]:
    """How many tokens each row has; ``ValueError`` for what is no list of whole numbers."""
    lengths = array_of(f"{name}: 'lengths'", given)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: 'lengths' is {lengths.dtype} {lengths.shape}, expected whole numbers (N,)"
        )
    wrong = (lengths < 0) | (lengths > LONGEST)
    if wrong.any():
        row = int(wrong.argmax())
        wanted = "none below 0" if lengths[row] < 0 else f"at most {LONGEST}"
        raise ValueError(f"{name}: length {lengths[row]} of row {row}, expected {wanted}")
    return lengths.astype(np.int64)


def _presence(name: str, given: Any, tokens: Any) -> list[Bool[np.ndarray, "_"]]:
    """True <--> the token of this row is there."""
    if not isinstance(given, Sequence) and np.ndim(given) < 1:
        raise ValueError(f"{name}: 'present' is {given!r}, expected (N, P)")
    if len(given) != len(tokens):
        raise ValueError(f"{name}: 'present' is of {len(given)} rows, but there are {len(tokens)}")
    found = []
    for row, (here, there) in enumerate(zip(given, tokens, strict=True)):
        mask = array_of(f"{name}: 'present' of row {row}", here)
        if mask.shape != (len(there),):
            raise ValueError(
                f"{name}: 'present' of row {row} has shape {mask.shape}, but the row has "
                f"{len(there)} tokens"
            )
        zeros_and_ones = mask.dtype.kind in "iu" and bool(((mask == 0) | (mask == 1)).all())
        if mask.dtype.kind != "b" and not zeros_and_ones:
            raise ValueError(f"{name}: 'present' of row {row} is not only True and False")
        found.append(mask.astype(bool))
    return found


def _checked(
    name: str, ragged: Sequence[Any] | np.ndarray, least: int
) -> list[Float[np.ndarray, "_ T"]]:
    if len(ragged) == 0:
        raise ValueError(f"{name} is empty: expected at least one row of tokens")
    rows: list[Float[np.ndarray, "_ T"]] = []
    for index, given in enumerate(ragged):
        own = f"{name}: row {index}"
        row = numbers(own, given)
        if row.ndim != 2 or row.shape[1] < 1:
            # An empty list has shape (0,): say what is missing, not what shape it is.
            found = "no tokens" if row.size == 0 else f"shape {row.shape}"
            raise ValueError(f"{own} has {found}: expected (n, T) with at least {_tokens(least)}")
        if rows and row.shape[1] != rows[0].shape[1]:
            raise ValueError(
                f"{own} has tokens of {row.shape[1]} numbers: expected {rows[0].shape[1]}, as in "
                "row 0"
            )
        check_row(own, row, least)
        rows.append(row)
    return rows


def _tokens(count: int) -> str:
    return {0: "no tokens", 1: "one token", 2: "two tokens"}[count]


def check_row(name: str, tokens: Float[np.ndarray, "n T"], least: int = 2) -> None:
    """Raise ``ValueError`` for fewer than ``least`` tokens, and for one that is not finite or too
    large."""
    if len(tokens) < least:
        wanted = _tokens(least).split()[0]
        raise ValueError(f"{name} has {_tokens(len(tokens))}: expected at least {wanted}")
    usable = np.abs(tokens) <= LARGEST
    if not usable.all():
        token, coordinate = np.argwhere(~usable)[0]
        raise ValueError(
            f"{name}, token {token} has coordinate {tokens[token, coordinate]}: "
            f"expected finite numbers up to {LARGEST:g}"
        )


# ---------------------------------------------------------------- what comes beside the tokens


def _labels(name: str, given: Any, count: int) -> np.ndarray:
    """Whole numbers as int64, or strings."""
    labels = _of_rows(name, "labels", given, count)
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "f":
        wrong = ~np.isfinite(labels) | (labels != np.round(labels))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{name}: label {labels[row]} of row {row}, expected whole numbers or strings"
            )
    elif labels.dtype.kind not in "biu":
        raise ValueError(f"{name}: 'labels' is {labels.dtype}, expected whole numbers or strings")
    if labels.dtype.kind in "fu":
        wrong = (labels >= 2.0**63) | (labels < -(2.0**63))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{name}: label {labels[row]} of row {row}, expected whole numbers of 64 bits"
            )
    return labels.astype(np.int64)


def _split(name: str, given: Any, count: int) -> Int64[np.ndarray, "N"]:
    indices = []
    for row, split in enumerate(_strings(name, "split", given, count)):
        if split not in SPLITS:
            raise ValueError(
                f"{name}: row {row} is of split {split!r}, expected one of {', '.join(SPLITS)}"
            )
        indices.append(SPLITS.index(split))
    return np.array(indices, dtype=np.int64)


def _token_names(name: str, given: Any, widths: Sequence[int]) -> list[Names]:
    """The names of each row's places, from one list for all rows or a list for each."""
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str) or len(given) == 0:
        raise ValueError(f"{name}: 'token_names' is {given!r}, expected strings (P,) or (N, P)")
    if np.ndim(given[0]) == 0:
        names = _strings(name, "token_names", given, len(given), of="tokens")
        if len(names) < max(widths):
            raise ValueError(
                f"{name}: 'token_names' has {len(names)} names, but a row has {max(widths)} places"
            )
        return [names] * len(widths)
    if len(given) != len(widths):
        raise ValueError(
            f"{name}: 'token_names' is of {len(given)} rows, but there are {len(widths)}"
        )
    found = []
    for row, (own, width) in enumerate(zip(given, widths, strict=True)):
        if not isinstance(own, Sequence | np.ndarray) or isinstance(own, str):
            raise ValueError(f"{name}: 'token_names' of row {row} is {own!r}, expected strings")
        names = _strings(f"{name}, row {row}", "token_names", own, len(own), of="tokens")
        if len(names) < width:
            raise ValueError(
                f"{name}: 'token_names' of row {row} has {len(names)} names, but the row has "
                f"{width} places"
            )
        found.append(names)
    return found


def _strings(name: str, key: str, given: Any, count: int, of: str = "rows") -> Names:
    """Strings, or whole numbers as strings."""
    array = _of_rows(name, key, given, count, of)
    if array.dtype.kind not in "Uiu":
        raise ValueError(f"{name}: {key!r} is {array.dtype}, expected strings")
    return [str(value) for value in array.tolist()]


def _of_rows(name: str, key: str, given: Any, count: int, of: str = "rows") -> np.ndarray:
    """One value for each row."""
    array = array_of(f"{name}: {key!r}", given)
    if array.shape != (count,):
        raise ValueError(f"{name}: {key!r} has shape {array.shape}, but there are {count} {of}")
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: {key!r} is not UTF-8 ({error})") from error
    elif array.dtype.kind == "O" and all(isinstance(value, str) for value in array):
        array = array.astype(np.str_)
    if array.dtype.kind == "U" and not are_letters(array).all():
        row = int(are_letters(array).reshape(count, -1).all(axis=1).argmin())
        raise ValueError(
            f"{name}: number {row} of {key!r} is a text of numbers that are no letters, such as "
            "half of a pair of surrogates: expected text that UTF-8 can hold"
        )
    return array


def are_letters(array: np.ndarray) -> Bool[np.ndarray, "..."]:
    """True <--> the number is the code of a letter of Unicode, of all letters of all texts."""
    if not array.dtype.itemsize:
        return np.ones(0, dtype=bool)
    codes = np.ascontiguousarray(array).reshape(-1).view(array.dtype.str[0] + "u4")
    return (codes < 0xD800) | ((codes > 0xDFFF) & (codes <= 0x10FFFF))


# ---------------------------------------------------------------- arrays


def joined_spans(rows: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    """The arrays ``spans`` (all spans, 2) and ``span_counts`` (N, levels) of an ``.npz``.

    ``rows`` are the levels of every row. Row follows row and, within it, level follows level; a row
    with fewer levels than others has no spans in those that it lacks.
    """
    levels = max((len(row) for row in rows), default=0)
    counts = np.zeros((len(rows), levels), dtype=np.int64)
    for row, given in enumerate(rows):
        counts[row, : len(given)] = [len(spans) for spans in given]
    pairs = [pair for row in rows for spans in row for pair in spans]
    return {"spans": np.array(pairs, dtype=np.int64).reshape(-1, 2), "span_counts": counts}


def as_list(given: Any) -> Any:
    """Sets in an array of objects as a list; anything else as it is."""
    ragged = isinstance(given, np.ndarray) and given.dtype == object and given.ndim == 1
    return list(given) if ragged else given


def numbers(name: str, given: Any) -> Float[np.ndarray, "*shape"]:
    """An array of real numbers, of 32 bits where these hold all that was given, else of 64;
    ``ValueError`` naming it for anything else."""
    array = array_of(name, given)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has element type {array.dtype}: expected real numbers")
    exact = np.can_cast(array.dtype, np.float32)
    return array.astype(np.float32 if exact else np.float64, copy=False)


def array_of(name: str, given: Any) -> np.ndarray:
    """An array of anything; ``ValueError`` naming it where there is no such array."""
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not an array of numbers ({error})") from error

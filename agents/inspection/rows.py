"""Rows of a run's data with their trees, roots and reconstructions, in the user's own indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from agents.config.options import TEST_EPISODES
from agents.evaluation.sets import EncodedSets, PlacedSets, encode_sets
from agents.learners.base import Learner
from htm_env.datasets import Dataset
from htm_env.files import atomic_write_bytes, atomic_write_text

Keys = Int64[np.ndarray, "B"]


@dataclass(frozen=True)
class EncodedRows:
    """Rows of the data, and what a learner makes of each."""

    rows: Int64[np.ndarray, "N"]
    """Their numbers in the data as it was given; of generated data the numbers of the episodes."""
    splits: list[str]
    names: list[str] | None
    labels: list[Any] | None
    """As they were given, whole numbers or strings; None where the data has none. No learner sees
    them."""
    token_names: list[list[str]] | None
    """Names by place in the row as it was given."""
    tokens: Float[np.ndarray, "N P T"]
    """As they were given; zeros where there is no token."""
    encoded: EncodedSets

    @property
    def has_trees(self) -> bool:
        """False <--> the learner makes no trees."""
        several = self.encoded.present.sum(axis=1) > 1
        return not several.any() or bool((self.encoded.merges >= 0).any())

    @property
    def tokens_file(self) -> str:
        """Name of the file of the tokens, with what the roots decode to if anything is decoded."""
        return "tokens.npz" if self.encoded.reconstruction is None else "reconstructions.npz"

    def newick(self) -> Iterator[str]:
        """The tree of every row; leaves have the names of the tokens, or their indices."""
        for number in range(len(self.rows)):
            names = None if self.token_names is None else distinct(self.token_names[number])
            yield self.encoded.tree(number).newick(names=names)

    def write(self, folder: Path) -> list[Path]:
        """Write the files of ``htm embed`` and return their paths; those of trees where there are
        trees."""
        encoded, numbers = self.encoded, {"row": self.rows, "split": np.array(self.splits)}
        decoded = encoded.reconstruction
        about = {"name": self.names, "label": self.labels}
        files = {
            "embeddings.npz": {
                **numbers,
                **{name: np.array(values) for name, values in about.items() if values is not None},
                "root": encoded.roots,
                **({"return": -encoded.errors} if decoded is None else {"error": encoded.errors}),
            },
            self.tokens_file: {
                **numbers,
                **({} if decoded is None else {"reconstruction": decoded}),
                "tokens": self.tokens,
                "present": encoded.present,
            },
        }
        if self.has_trees:
            files["merges.npz"] = {**numbers, "merges": encoded.merges}
        for name, arrays in files.items():
            content = BytesIO()
            np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
            atomic_write_bytes(folder / name, content.getvalue())
        if not self.has_trees:
            return [folder / name for name in files]
        atomic_write_text(folder / "trees.nwk", "".join(f"{tree}\n" for tree in self.newick()))
        return [folder / name for name in (*files, "trees.nwk")]


def encode_rows(
    learner: Learner, splits: Sequence[str], count: int | None = None, search: int = 0
) -> EncodedRows:
    """Rows of some splits in the order of their numbers, as ``learner.embed`` encodes them.

    At most the first ``count`` of each split; None: all rows of finite data, and 1,000 generated
    episodes. ``search`` is that of ``learner.embed``.
    """
    datasets = [learner.task.dataset(split) for split in splits]
    most = [dataset.size or TEST_EPISODES if count is None else count for dataset in datasets]
    keys = [dataset.fixed_keys(own) for dataset, own in zip(datasets, most, strict=True)]
    pairs = list(zip(datasets, keys, strict=True))
    placed = [PlacedSets.of(dataset, own) for dataset, own in pairs]
    columns = max(sets.columns for sets in placed)
    placed = [replace(sets, columns=columns) for sets in placed]
    rows = np.concatenate([own if of.rows is None else of.rows[own] for of, own in pairs])
    order = np.argsort(rows, kind="stable")

    def joined(values: Callable[[Dataset, Keys], Sequence[Any] | None]) -> list[Any] | None:
        """Values of each row in the order of their numbers; None where a split has none."""
        found = [values(dataset, own) for dataset, own in pairs]
        if any(each is None for each in found):
            return None
        together = [value for each in found if each is not None for value in each]
        return [together[number] for number in order]

    def labels(dataset: Dataset, own: Keys) -> list[Any] | None:
        if not dataset.has_labels:
            return None
        numbers, given = dataset.labels(own), dataset.label_values
        found: list[Any] = (numbers if given is None else given[numbers]).tolist()
        return found

    encoded = [encode_sets(learner, sets, search) for sets in placed]
    tokens = [
        sets.in_columns(dataset.to_user(sets.batch.tokens).numpy())
        for dataset, sets in zip(datasets, placed, strict=True)
    ]
    return EncodedRows(
        rows=rows[order],
        splits=joined(lambda dataset, own: [dataset.split] * len(own)) or [],
        names=joined(lambda dataset, own: _picked(dataset.row_names, own)),
        labels=joined(labels),
        token_names=joined(lambda dataset, own: _picked(dataset.token_names, own)),
        tokens=np.concatenate(tokens)[order],
        encoded=EncodedSets.joined(encoded).chosen(order),
    )


def distinct(names: Sequence[str]) -> list[str]:
    """Names that tell tokens apart: one that several have gets the token's index behind it."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}#{index}" for index, name in enumerate(names)]


def _picked(names: Sequence[Any] | None, keys: Keys) -> list[Any] | None:
    return None if names is None else [names[key] for key in keys]

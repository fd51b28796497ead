"""The data of a run: what ``config.json`` records of it, and other data in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from agents.config.options import OWN_DATA
from agents.config.run import RunConfig
from htm_env.datasets import Dataset
from htm_env.datasets.files import Memory
from htm_env.datasets.user import BESIDE_ROWS, OF_SHARDS
from htm_env.types import TokenBatch


def recorded_data(dataset: Dataset) -> dict[str, Any] | None:
    """The dataset's fingerprint, and what a learner is built from; None for generated data.

    Beside ``sha256``, ``rows``, ``tokens``, ``token_dim`` and ``name`` there are the ``kind`` of
    the tokens, and ``mean`` and ``std`` of their coordinates over the training split.
    """
    found = dataset.fingerprint()
    if found is None:
        return None
    statistics = {"mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    return {**found, "kind": dataset.kind, **statistics}


def after(found: dict[str, Any] | None, recorded: dict[str, Any] | None) -> dict[str, Any] | None:
    """The record of a run that goes on with data ``found``.

    Other data that it was trained on before is listed under ``earlier``.
    """
    if found is None or recorded is None:
        return found
    before = dict(recorded)
    earlier = before.pop("earlier", [])
    if found["sha256"] != before["sha256"]:
        earlier = [*earlier, before]
    return {**found, "earlier": earlier} if earlier else found


def _described(found: dict[str, Any]) -> str:
    return f"{found['name']} ({found['rows']:,} rows, sha256 {found['sha256'][:8]})"


@dataclass(frozen=True)
class RunData:
    """The data of a run as its folder describes it, which need not be there any more."""

    folder: Path
    run: RunConfig
    recorded: dict[str, Any] | None
    """What :func:`recorded_data` gave; None for generated data, and for older runs."""

    def moved_to(self, data: str | PathLike[str]) -> RunConfig:
        """The run with its data in another file; one on generated data becomes one of own data."""
        kept = self.run.env_kwargs if self.run.env == OWN_DATA else {}
        kwargs = {name: value for name, value in kept.items() if name not in BESIDE_ROWS}
        kwargs["dataset"] = str(Path(data).resolve())
        if Path(data).is_file():
            kwargs.pop(OF_SHARDS, None)
        return replace(self.run, env=OWN_DATA, env_kwargs=kwargs)

    @property
    def is_missing(self) -> bool:
        """True <--> the data was in a file that is not there."""
        try:
            self.run.dataset("train")
        except FileNotFoundError:
            return True
        return False

    @property
    def missing(self) -> str:
        """What to say where :attr:`is_missing`."""
        return (
            f"the data of {self.folder} is not at {self.run.env_kwargs.get('dataset')}: expected "
            "it there, or named by --data FILE (data= in Python)"
        )

    def difference(self, dataset: Dataset) -> str | None:
        """One sentence where this is other data than the run was trained on; None if not known."""
        found = dataset.fingerprint()
        trained = None if self.recorded is None else self.recorded["sha256"]
        known = trained is not None or self.run.env != OWN_DATA
        if not known or (found is not None and found["sha256"] == trained):
            return None
        was = self.run.env if self.recorded is None else _described(self.recorded)
        now = dataset.name if found is None else _described(found)
        return f"{self.folder} was trained on other data: on {was}, and this is {now}"

    def check_token_dim(self, dataset: Dataset, token_dim: int | None = None) -> None:
        """Raise ``ValueError`` where tokens have another dimension than those of training.

        ``token_dim`` is theirs where it is not recorded.
        """
        if self.recorded is not None:
            token_dim = self.recorded["token_dim"]
        if token_dim is not None and dataset.token_dim != token_dim:
            raise ValueError(
                f"tokens of this data have {dataset.token_dim} coordinates; {self.folder} was "
                f"trained on tokens of {token_dim}"
            )

    def check_slots(self, dataset: Dataset) -> None:
        """Raise ``ValueError`` for sets of another size than the run can continue with."""
        slots = dataset.max_tokens if self.recorded is None else self.recorded["tokens"]
        if dataset.max_tokens != slots:
            raise ValueError(
                f"sets of this data have up to {dataset.max_tokens} tokens; {self.folder} can "
                f"continue only with sets of up to {slots}"
            )

    def stand_in(self) -> RunConfig:
        """The run on four rows of zeros and ones in the shape of its data.

        A learner can be built on it, to be restored; there is nothing to learn from it or to
        evaluate on it, see :meth:`forbid_sets`. Raises ``FileNotFoundError`` where nothing is
        recorded, ``ValueError`` for a shape that no data can have.
        """
        if self.recorded is None:
            raise FileNotFoundError(self.missing)
        kept = {name: arg for name, arg in self.run.env_kwargs.items() if name not in BESIDE_ROWS}
        kept.pop(OF_SHARDS, None)
        slots, columns = self.recorded["tokens"], self.recorded["token_dim"]
        for values in (kept.get("categorical") or {}).values():
            columns -= values - 1  # a column of so many values is as many coordinates
        Memory(f"the data that {self.folder} records").take_array((4, slots, columns))
        rows = np.zeros((4, slots, columns), dtype=np.float32)
        rows[:, ::2] = 1.0  # tokens have to differ
        own = {"dataset": rows}
        return replace(self.run, env_kwargs=kept | own | {"split_fractions": (0.5, 0.25, 0.25)})

    def forbid_sets(self, dataset: Dataset) -> None:
        """Let the data of :meth:`stand_in` raise ``FileNotFoundError`` where its training sets are
        asked for: what a fixed order or a reward estimates from them would be of no data."""
        dataset.training_sets = partial(_no_sets, self.missing)  # type: ignore[method-assign]


def _no_sets(message: str, count: int) -> NoReturn:
    raise FileNotFoundError(message)


class AbsentDataset(Dataset):
    """Data of a run that is not there: its shape and statistics without any sample.

    Args:
        shape: the training split of :meth:`RunData.stand_in`.
        recorded: what :func:`recorded_data` gave.
        message: what the error says where a sample is asked for.
    """

    has_hierarchy = False
    size = None

    def __init__(self, shape: Dataset, recorded: dict[str, Any], message: str) -> None:
        super().__init__(shape.split)
        self.name, self.kind = shape.name, recorded["kind"]
        self.max_tokens, self.token_dim = recorded["tokens"], recorded["token_dim"]
        self.categories = shape.categories
        self.to_user, self.from_user = shape.to_user, shape.from_user  # type: ignore[method-assign]
        self.recorded, self.message = recorded, message

    def episodes(self, keys: Int64[np.ndarray, "B"]) -> TokenBatch:
        raise FileNotFoundError(self.message)

    def training_tokens(self) -> Float32[np.ndarray, "tokens T"]:
        raise FileNotFoundError(self.message)

    def training_sets(
        self, count: int
    ) -> tuple[Float32[np.ndarray, "N P T"], Bool[np.ndarray, "N P"]]:
        raise FileNotFoundError(self.message)

    def fingerprint(self) -> dict[str, Any]:
        return self.recorded

    @property
    def mean(self) -> Float[Tensor, "T"]:
        return torch.tensor(self.recorded["mean"])

    @property
    def std(self) -> Float[Tensor, "T"]:
        return torch.tensor(self.recorded["std"])

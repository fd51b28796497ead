"""Episodes in as few bytes as they need: the columns of a replay buffer.

An episode of ``P`` token slots with ``T`` coordinates takes ``4 P T + 6 (P - 1) + 34`` bytes as
long as ``P`` is at most 64: 238 for 15 tokens of two coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from replay.candidate_store import CandidateStore
from replay.trajectory import Trajectories

_CHECKED_AT_ONCE = 65536
"""Episodes unpacked together when a file is checked."""


@dataclass(frozen=True)
class Packing:
    """The shape that all episodes of a buffer share."""

    num_slots: int
    token_dim: int
    listed: bool = False
    """True <--> the episodes have candidates, under a number in ``candidate_store.py``."""

    def __post_init__(self) -> None:
        if self.num_slots < 2 or self.token_dim < 1:
            raise ValueError(
                f"episodes have {self.num_slots} slots of {self.token_dim} coordinates; expected "
                "at least 2 slots and 1 coordinate"
            )

    @property
    def dtypes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The type and the shape of one row of every column."""
        steps = self.num_slots - 1
        return {
            "tokens": (torch.float32, (self.num_slots, self.token_dim)),
            "num_tokens": (torch.int32, ()),
            "merges": (self._node_dtype, (steps, 2)),
            "behaviour_log_prob": (torch.float32, (steps,)),
            "tree_log_prob": (torch.float32, ()),
            "policy_version": (torch.int64, ()),
            "source": (torch.int16, ()),
            "value": (torch.float64, ()),
            "priority": (torch.float64, ()),
            **({"candidates": (torch.int64, ())} if self.listed else {}),
        }

    @property
    def bytes_per_episode(self) -> int:
        return sum(
            dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.dtypes.values()
        )

    @property
    def _node_dtype(self) -> torch.dtype:
        """The smallest type that holds -1 and the nodes ``0 .. 2 P - 2``."""
        fitting = (
            dtype
            for dtype in (torch.int8, torch.int16, torch.int32)
            if 2 * self.num_slots - 2 <= torch.iinfo(dtype).max
        )
        return next(fitting, torch.int64)

    def check_fits(self, batch: Trajectories) -> None:
        """Raise ``ValueError`` naming the first episode that has no room here."""
        if batch.tokens.shape[2] != self.token_dim:
            raise ValueError(
                f"episode 0 has tokens of {batch.tokens.shape[2]} coordinates; the episodes of "
                f"this buffer have {self.token_dim}"
            )
        if (batch.candidates is not None) != self.listed:
            raise ValueError(
                f"episode 0 has {'no ' if self.listed else ''}candidates; the episodes of this "
                f"buffer have {'some' if self.listed else 'none'}"
            )
        too_large = batch.num_tokens > self.num_slots
        if too_large.any():
            row = int(too_large.nonzero()[0])
            raise ValueError(
                f"episode {row} has {int(batch.num_tokens[row])} tokens; the episodes of this "
                f"buffer have at most {self.num_slots}"
            )

    def check_columns(
        self, columns: dict[str, Tensor], sources: tuple[str, ...], candidates: CandidateStore
    ) -> None:
        """Raise ``ValueError`` naming what is wrong with columns that were read from a file."""
        if set(columns) != set(self.dtypes):
            raise ValueError(f"the columns are {sorted(columns)}; expected {sorted(self.dtypes)}")
        count = len(columns["tokens"])
        for name, (dtype, shape) in self.dtypes.items():
            found = columns[name]
            if found.dtype != dtype or found.shape != (count, *shape):
                raise ValueError(
                    f"{name} is {found.dtype} of shape {tuple(found.shape)}; expected {dtype} of "
                    f"shape {(count, *shape)}"
                )
        if not (columns["priority"].isfinite() & (columns["priority"] > 0)).all():
            raise ValueError("there are priorities that are not positive; expected only such")
        if columns["value"].isinf().any():
            raise ValueError("there are infinite values; expected finite ones, or nan for unknown")
        for start in range(0, count, _CHECKED_AT_ONCE):
            part = {name: column[start:][:_CHECKED_AT_ONCE] for name, column in columns.items()}
            self.unpack(part, sources, candidates).check(first=start)

    def pack(self, batch: Trajectories, source: Tensor) -> dict[str, Tensor]:
        """The columns of episodes that fit, without value, priority and candidates; ``source``
        holds ids."""
        batch = batch.to("cpu")
        count, slots = batch.present.shape
        columns = {
            name: torch.zeros(count, *shape, dtype=dtype)
            for name, (dtype, shape) in self.dtypes.items()
            if name not in ("value", "priority", "candidates")
        }
        columns["merges"].fill_(-1)
        width = min(slots, self.num_slots)
        tokens = batch.tokens[:, :width].masked_fill(~batch.present[:, :width, None], 0.0)
        columns["tokens"][:, :width] = tokens
        columns["merges"][:, : width - 1] = batch.merges[:, : width - 1]
        columns["behaviour_log_prob"][:, : width - 1] = batch.behaviour_log_prob[:, : width - 1]
        columns["num_tokens"][:] = batch.num_tokens
        columns["tree_log_prob"][:] = batch.tree_log_prob
        columns["policy_version"][:] = batch.policy_version
        columns["source"][:] = source
        return columns

    def unpack(
        self, columns: dict[str, Tensor], sources: tuple[str, ...], candidates: CandidateStore
    ) -> Trajectories:
        """The episodes of columns; the ``candidates`` of those that have some."""
        pairs = None
        if self.listed:
            pairs = candidates.rows(columns["candidates"], self.num_slots - 1)
        return Trajectories(
            columns["tokens"],
            torch.arange(self.num_slots) < columns["num_tokens"][:, None],
            columns["merges"].long(),
            columns["behaviour_log_prob"],
            columns["tree_log_prob"],
            columns["policy_version"],
            columns["source"].long(),
            sources,
            pairs,
        )

"""The candidates of stored episodes, which are too uneven for columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from replay.candidate_pairs import CandidatePairs

SMALL = torch.iinfo(torch.int16).max


class CandidateStore:
    """Every episode's pairs under a number, which its row in the buffer holds.

    A pair takes eight bytes up to 16,384 tokens, and sixteen beyond.
    """

    def __init__(self) -> None:
        self._pairs: dict[int, Tensor] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, candidates: CandidatePairs) -> Int64[Tensor, "B"]:
        """Store those of new episodes; returns their numbers."""
        numbers = range(self._next, self._next + candidates.size)
        small = 2 * candidates.steps + 1 <= SMALL
        for number, pairs in zip(numbers, candidates.to("cpu").of_each(), strict=True):
            self._pairs[number] = pairs.to(torch.int16 if small else torch.int32)
        self._next = numbers.stop
        return torch.tensor(numbers)

    def keep(self, numbers: Int64[Tensor, "N"]) -> None:
        """Forget all others."""
        self._pairs = {number: self._pairs[number] for number in numbers.tolist()}

    def rows(self, numbers: Int64[Tensor, "B"], steps: int) -> CandidatePairs:
        """Those of some episodes, which have ``steps`` merges at most."""
        return CandidatePairs.joined([self._pairs[n] for n in numbers.tolist()], steps)

    def contents(self, numbers: Int64[Tensor, "N"]) -> dict[str, Tensor]:
        """The pairs of all episodes, one behind the other, and how many each has."""
        pairs = [self._pairs[number] for number in numbers.tolist()]
        empty = torch.zeros(0, 4, dtype=torch.int16)
        return {
            "pairs": torch.cat([empty, *pairs]),
            "pair_counts": torch.tensor([len(each) for each in pairs], dtype=torch.int64),
        }

    @classmethod
    def of(
        cls, numbers: Sequence[int], pairs: Int[Tensor, "E 4"], counts: Sequence[int]
    ) -> CandidateStore:
        """What :meth:`contents` gave; ``ValueError`` where its parts do not fit together."""
        if len(numbers) != len(counts) or sum(counts) != len(pairs) or min(counts, default=0) < 0:
            raise ValueError(
                f"{len(pairs)} candidates of {len(numbers)} episodes have {len(counts)} counts "
                f"that add up to {sum(counts)}"
            )
        store = cls()
        store._pairs = dict(zip(numbers, pairs.split(list(counts)), strict=True))
        store._next = max(numbers, default=-1) + 1
        return store

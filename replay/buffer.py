"""``ReplayBuffer``: stored episodes of bounded number, drawn by priority."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from replay.candidate_store import CandidateStore
from replay.files import not_readable, read_tensors, write_tensors
from replay.packing import Packing
from replay.priorities import Priorities
from replay.ring import Ring
from replay.samplers import Sampled, known_values, make_sampler
from replay.trajectory import Trajectories, Trajectory

_KIND = "replay buffer"
_MOST_SOURCES = 2**15


class ReplayBuffer:
    """The newest episodes, at most ``capacity`` of them, in arrays that grow as they are needed.

    Everything is held on the CPU. All randomness comes from ``generator``.

    Args:
        capacity: episodes held at most; beyond it, the oldest make room.
        generator: draws the samples.
        sampler: ``uniform``, ``advantage`` or ``return`` (see ``samplers.py``).
        alpha: exponent of the priorities; 0 is uniform.
        beta: exponent of the weights that correct for them; 1 corrects fully.
        max_staleness: episodes whose policy is older than the newest by more versions than this
            are dropped; none if None.
        num_slots: the most tokens that an episode can have; by default what the first added
            episodes have, padding included.

    Raises ``ValueError`` for an unknown sampler, listing the choices, and for numbers out of range.
    """

    def __init__(
        self,
        capacity: int,
        *,
        generator: torch.Generator,
        sampler: str = "uniform",
        alpha: float = 0.6,
        beta: float = 0.4,
        max_staleness: int | None = None,
        num_slots: int | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; expected at least 1")
        if max_staleness is not None and max_staleness < 0:
            raise ValueError(f"max_staleness is {max_staleness}; expected 0 or more, or None")
        self.generator = generator
        self.sampler = make_sampler(sampler, alpha, beta)
        self.sources: tuple[str, ...] = ()
        """The names of the sources of all episodes that were ever added."""
        self._config = {
            "capacity": capacity,
            "sampler": sampler,
            "alpha": alpha,
            "beta": beta,
            "max_staleness": max_staleness,
            "num_slots": num_slots,
        }
        self._max_staleness, self._num_slots = max_staleness, num_slots
        self._ring = Ring(capacity)
        self._packing: Packing | None = None
        self._candidates = CandidateStore()
        self._priorities = Priorities(self._ring, self.sampler)

    def __len__(self) -> int:
        return self._ring.size

    @property
    def capacity(self) -> int:
        return self._ring.capacity

    def trajectories(self) -> Trajectories:
        """All episodes, the oldest first. Raises ``ValueError`` if there are none."""
        return self._unpacked(self._ring.slots())

    # ------------------------------------------------------------ add and drop

    def add(
        self,
        trajectories: Trajectory | Sequence[Trajectory] | Trajectories,
        values: Float[Tensor, "B"] | None = None,
    ) -> None:
        """Store episodes as the newest; all of them or, where one is refused, none.

        ``values`` are what the sampler goes by (advantages or returns). Episodes without get the
        largest priority that is stored, so that all are replayed soon.

        Raises ``ValueError`` naming the first episode that :class:`Trajectory` refuses, that does
        not fit this buffer, or whose value is not finite.
        """
        if isinstance(trajectories, Trajectory):
            trajectories = [trajectories]
        if not isinstance(trajectories, Trajectories):
            if not trajectories:
                return
            trajectories = Trajectories.pad(trajectories)
        batch = trajectories
        if batch.size == 0:
            return
        batch.check()
        packing = self._packing or Packing(
            batch.present.shape[1] if self._num_slots is None else self._num_slots,
            batch.tokens.shape[2],
            batch.candidates is not None,
        )
        packing.check_fits(batch)
        known = known_values(values, batch.size)
        sources = tuple(dict.fromkeys((*self.sources, *batch.sources)))
        if len(sources) > _MOST_SOURCES:
            raise ValueError(f"there are {len(sources)} sources; expected at most {_MOST_SOURCES}")
        ids = torch.tensor([sources.index(name) for name in batch.sources])
        columns = packing.pack(batch, ids[batch.source.cpu()])
        columns |= self._priorities.columns(known)
        if batch.candidates is not None:
            columns["candidates"] = self._candidates.add(batch.candidates)
        slots, moved = self._ring.append(columns)
        self._packing, self.sources = packing, sources
        if moved:
            self._priorities.rebuild()
        else:
            self._priorities.enter(slots)
        if self._max_staleness is not None:
            newest = int(self._ring.unordered("policy_version").max())
            self.drop_older_than(newest - self._max_staleness)
        if len(self._candidates) > 2 * len(self):
            self._candidates.keep(self._ring.column("candidates"))

    def drop_older_than(self, version: int) -> int:
        """Drop the episodes whose policy version is below this one; returns how many went."""
        if not len(self):
            return 0
        if self._ring.unordered("policy_version").min() >= version:
            return 0
        stale = self._ring.column("policy_version") < version
        count = int(stale.sum())
        if stale[:count].all():  # as a rule the oldest
            self._priorities.leave(self._ring.slots(count))
            self._ring.drop_oldest(count)
        else:
            self._ring.keep(self._ring.slots()[~stale])
            self._priorities.rebuild()
        return count

    # ------------------------------------------------------------ sample

    def sample(self, batch: int) -> Sampled:
        """Draw episodes, with replacement, each with a probability proportional to its priority.

        Stratified, as in the paper: one from each of ``batch`` equal parts of the total.
        Raises ``ValueError`` if there is nothing to draw.
        """
        if batch < 1 or not len(self):
            raise ValueError(
                f"cannot draw {batch} of {len(self)} episodes; expected at least 1 of each"
            )
        slots, weights = self._priorities.draw(batch, self.generator)
        return Sampled(self._unpacked(slots), weights, slots)

    def update_priorities(self, indices: Int64[Tensor, "B"], values: Float[Tensor, "B"]) -> None:
        """Give drawn episodes new values (advantages or returns); the last of equal indices counts.

        Raises ``ValueError`` for a value that is not finite and an index that holds no episode.
        """
        indices = indices.cpu()
        known = known_values(values, len(indices))
        held = self._ring.occupied(indices)
        if not held.all():
            row = int((~held).nonzero()[0])
            raise ValueError(
                f"index {int(indices[row])} holds no episode; expected those of a sample"
            )
        self._priorities.update(indices, known)

    # ------------------------------------------------------------ save and resume

    def save(self, path: str | Path) -> None:
        """Write everything but the generator's state, all or nothing.

        Raises ``OSError`` where the disk does; the file then holds what it held before.
        """
        state = self._contents()
        write_tensors(path, _KIND, state.pop("columns"), state)

    @classmethod
    def load(cls, path: str | Path, *, generator: torch.Generator | None = None) -> ReplayBuffer:
        """The buffer that :meth:`save` wrote, drawing from ``generator`` from now on.

        Without one it draws from a new generator, always the same.
        Raises ``FileNotFoundError`` where there is no file, and ``ValueError`` naming it where it
        is truncated, something else, or holds episodes that :meth:`add` would refuse.
        """
        columns, state = read_tensors(path, _KIND)
        try:
            buffer = cls(**state["config"], generator=generator or torch.Generator())
            buffer._restore_contents({**state, "columns": columns})
        except (KeyError, TypeError, ValueError) as error:
            raise not_readable(path, _KIND, error) from error
        return buffer

    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs: nested dicts of tensors and numbers."""
        return {**self._contents(), "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave, bit for bit.

        Raises ``ValueError`` for the state of a buffer with another configuration.
        """
        if state["config"] != self._config:
            raise ValueError(
                f"the state is that of a buffer with {state['config']}; this one has {self._config}"
            )
        self._restore_contents(state)
        self.generator.set_state(state["generator"])

    def _contents(self) -> dict[str, Any]:
        ring, packing = self._ring, self._packing
        columns = {name: ring.column(name).clone() for name in ring.columns}
        if packing is not None and packing.listed:
            columns |= self._candidates.contents(columns["candidates"])
        return {
            "config": self._config,
            "columns": columns,
            "shape": [] if packing is None else [*vars(packing).values()],
            "sources": list(self.sources),
            "place": [ring.first, ring.room],
            "bounds": list(self._priorities.bounds),
        }

    def _restore_contents(self, state: dict[str, Any]) -> None:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError``, and has then changed nothing."""
        ring, packing, sources = Ring(self.capacity), None, tuple(map(str, state["sources"]))
        candidates, columns = CandidateStore(), dict(state["columns"])
        low, high = map(float, state["bounds"])
        first, room = map(int, state["place"])
        if state["shape"]:
            packing = Packing(*state["shape"])
            if packing.listed:
                pairs, counts = columns.pop("pairs"), columns.pop("pair_counts").tolist()
                candidates = CandidateStore.of(columns["candidates"].tolist(), pairs, counts)
            packing.check_columns(columns, sources, candidates)
            size = len(columns["tokens"])
            if not (0 <= first < room <= self.capacity and size <= room):
                raise ValueError(
                    f"{size} episodes stand from {first} on in {room} places; expected them to fit "
                    f"a capacity of {self.capacity}"
                )
            ring.place(columns, first, room)
        self._ring, self._packing, self.sources = ring, packing, sources
        self._candidates = candidates
        self._priorities = Priorities(ring, self.sampler, (low, high))

    def _unpacked(self, slots: Tensor) -> Trajectories:
        if self._packing is None:
            raise ValueError("this buffer is empty; expected at least one episode")
        return self._packing.unpack(self._ring.rows(slots), self.sources, self._candidates)

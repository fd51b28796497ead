"""``ReplayBuffer``: stored episodes of bounded number, drawn by priority.

Prioritised replay: Schaul, Quan, Antonoglou and Silver (2016). An episode has a priority, from the
value that it was given; it is drawn with a probability proportional to ``priority^alpha``, and
weighted by ``(N * probability)^-beta``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from htm_env.candidates import CandidatePairs
from htm_env.checks import at_least
from htm_env.files import read_tensors, reading, write_tensors
from replay.trajectory import COLUMNS, Trajectories, Trajectory

_KIND = "replay buffer"
_COLUMNS = tuple("num_tokens" if name == "present" else name for name in COLUMNS)
Values = NDArray[np.float64]
"""(N,): one number for each stored episode; nan where none was given."""

FLOOR = 0.01
"""Added before the exponent, so that every episode can be drawn (the paper's epsilon)."""


def by_return(values: Values) -> Values:
    """``rescaled + FLOOR``: good episodes more often. Values are returns.

    They are rescaled to [0, 1] between the worst and the best of them, so their unit does not
    matter. An unknown return (nan) counts as the best.
    """
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    rescaled = (values - low) / (high - low) if high > low else np.ones_like(values)
    priorities: Values = np.nan_to_num(rescaled, nan=1.0) + FLOOR
    return priorities


class Sampler(NamedTuple):
    """A rule that turns values into priorities."""

    priorities: Callable[[Values], Values]
    relative: bool = False
    """True <--> an episode's priority depends on the values of all stored episodes."""


SAMPLERS = {
    "uniform": Sampler(np.ones_like),
    "advantage": Sampler(lambda values: np.abs(values) + FLOOR),
    "return": Sampler(by_return, relative=True),
}
"""The rules by name. ``advantage``: surprising episodes more often; advantages should be of order
one, as they are once a batch is divided by its root mean square."""


class Sampled(NamedTuple):
    """Episodes that a buffer has drawn."""

    trajectories: Trajectories
    weights: Float[Tensor, "B"]
    """``(N * probability)^-beta``, divided by the largest in the buffer; 1 for uniform sampling."""
    indices: Int64[Tensor, "B"]
    """Their places, for ``ReplayBuffer.update_priorities``; valid until the next add or drop."""


class ReplayBuffer:
    """The newest episodes, at most ``capacity`` of them, the oldest first.

    Everything is held on the CPU. All randomness comes from ``generator``.

    Args:
        capacity: episodes held at most; beyond it, the oldest make room.
        generator: draws the samples.
        sampler: one of ``SAMPLERS``: ``uniform``, ``advantage`` or ``return``.
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
        at_least(1, capacity=capacity)
        at_least(0, alpha=alpha, beta=beta, max_staleness=max_staleness or 0)
        if sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {sampler!r}; choose from {list(SAMPLERS)}")
        self.capacity, self.generator = capacity, generator
        self._config = {
            "capacity": capacity,
            "sampler": sampler,
            "alpha": alpha,
            "beta": beta,
            "max_staleness": max_staleness,
            "num_slots": num_slots,
        }
        self._sampler, self._alpha, self._beta = SAMPLERS[sampler], alpha, beta
        self._max_staleness, self._num_slots = max_staleness, num_slots
        self._episodes: Trajectories | None = None  # until the first are added
        self._values = np.zeros(0)  # nan where none was given
        self._priorities = np.zeros(0)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources of all episodes that were ever added."""
        return () if self._episodes is None else self._episodes.sources

    def trajectories(self) -> Trajectories:
        """All episodes, the oldest first. Raises ``ValueError`` if there are none."""
        if self._episodes is None or not len(self):
            raise ValueError("this buffer is empty; expected at least one episode")
        return self._episodes

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
        if trajectories.size == 0:
            return
        trajectories.check()
        batch = self._fitted(trajectories.to("cpu"))
        known = _known_values(values, batch.size)
        largest = self._priorities.max(initial=0.0) or 1.0
        given = self._sampler.priorities(known) ** self._alpha
        self._episodes = batch if self._episodes is None else self._episodes.joined(batch)
        self._values = np.append(self._values, known)
        self._priorities = np.append(self._priorities, np.where(np.isnan(known), largest, given))
        if len(self) > self.capacity:
            self._keep(torch.arange(len(self) - self.capacity, len(self)))
        if self._max_staleness is not None:
            newest = int(self._episodes.policy_version.max())
            self.drop_older_than(newest - self._max_staleness)

    def drop_older_than(self, version: int) -> int:
        """Drop the episodes whose policy version is below this one; returns how many went."""
        if self._episodes is None:
            return 0
        recent = self._episodes.policy_version >= version
        count = int((~recent).sum())
        if count:
            self._keep(recent.nonzero()[:, 0])
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
        if self._sampler.relative:
            self._priorities = self._sampler.priorities(self._values) ** self._alpha
        totals = self._priorities.cumsum()
        device = self.generator.device
        drawn = torch.rand(batch, generator=self.generator, device=device, dtype=torch.float64)
        positions = (np.arange(batch) + drawn.cpu().numpy()) / batch * totals[-1]
        places = np.searchsorted(totals, positions, side="right").clip(max=len(self) - 1)
        # N and the total cancel when the weights are divided by that of the rarest episode.
        weights = (self._priorities[places] / self._priorities.min()) ** -self._beta
        indices = torch.from_numpy(places)
        return Sampled(
            self.trajectories().rows(indices), torch.from_numpy(weights).float(), indices
        )

    def update_priorities(self, indices: Int64[Tensor, "B"], values: Float[Tensor, "B"]) -> None:
        """Give drawn episodes new values (advantages or returns); the last of equal indices counts.

        Raises ``ValueError`` for a value that is not finite and an index that holds no episode.
        """
        places, known = indices.cpu().numpy(), _known_values(values, len(indices))
        for place in places[(places < 0) | (places >= len(self))]:
            raise ValueError(f"index {place} holds no episode; expected those of a sample")
        if not len(places):  # and so no range of returns
            return
        self._values[places] = known
        self._priorities[places] = self._sampler.priorities(known) ** self._alpha

    # ------------------------------------------------------------ save and resume

    def save(self, path: str | Path) -> None:
        """Write everything but the generator's state, all or nothing.

        Raises ``OSError`` where the disk does; the file then holds what it held before.
        """
        contents = self._contents()
        write_tensors(path, _KIND, contents.pop("columns"), contents)

    @classmethod
    def load(cls, path: str | Path, *, generator: torch.Generator | None = None) -> ReplayBuffer:
        """The buffer that :meth:`save` wrote, drawing from ``generator`` from now on.

        Without one it draws from a new generator, always the same.
        Raises ``FileNotFoundError`` where there is no file, and ``ValueError`` naming it where it
        is truncated, something else, or holds episodes that :meth:`add` would refuse.
        """
        with reading(path, _KIND):
            columns, contents = read_tensors(path, _KIND)
            buffer = cls(**contents["config"], generator=generator or torch.Generator())
            buffer._restore_contents({**contents, "columns": columns})
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
        columns: dict[str, Tensor] = {}
        if self._episodes is not None:
            columns = {name: getattr(self._episodes, name) for name in _COLUMNS}
            columns["sample"] = self._episodes.numbered()
            columns["value"] = torch.tensor(self._values)
            columns["priority"] = torch.tensor(self._priorities)
            if (candidates := self._episodes.candidates) is not None:
                columns["pairs"] = torch.cat([candidates.nodes, candidates.times], dim=1)
                columns["pair_counts"] = candidates.starts.diff()
        return {"config": self._config, "columns": columns, "sources": list(self.sources)}

    def _restore_contents(self, contents: dict[str, Any]) -> None:
        """Raises ``ValueError``, ``KeyError`` or ``TypeError``, and has then changed nothing."""
        columns, episodes = contents["columns"], None
        values = priorities = np.zeros(0)
        if columns:
            slots = columns["tokens"].shape[1]
            candidates = None
            if "pairs" in columns:
                counts = columns["pair_counts"].tolist()
                candidates = CandidatePairs.listed(columns["pairs"], counts, slots - 1)
            episodes = Trajectories(
                columns["tokens"],
                torch.arange(slots) < columns["num_tokens"][:, None],
                columns["merges"].long(),
                columns["behaviour_log_prob"],
                columns["tree_log_prob"],
                columns["policy_version"],
                columns["source"].long(),
                tuple(map(str, contents["sources"])),
                candidates,
                columns.get("sample"),
            )
            episodes.check()
            values = columns["value"].numpy().copy()
            priorities = columns["priority"].numpy().copy()
            if not (len(values) == len(priorities) == episodes.size <= self.capacity):
                raise ValueError(
                    f"there are {episodes.size} episodes, {len(values)} values and "
                    f"{len(priorities)} priorities; expected as many, at most {self.capacity}"
                )
            if not (np.isfinite(priorities) & (priorities > 0)).all():
                raise ValueError("there are priorities that are not positive; expected only such")
            if np.isinf(values).any():
                raise ValueError("there are infinite values; expected finite ones, or nan")
        self._episodes, self._values, self._priorities = episodes, values, priorities

    # ------------------------------------------------------------ helpers

    def _keep(self, index: Int64[Tensor, "K"]) -> None:
        """Drop all other episodes."""
        self._episodes, places = self.trajectories().rows(index), index.numpy()
        self._values, self._priorities = self._values[places], self._priorities[places]

    def _fitted(self, batch: Trajectories) -> Trajectories:
        """The episodes in the shape and the types of those that are stored."""
        stored, slots = self._episodes, self._num_slots or batch.present.shape[1]
        if stored is not None:
            slots = stored.present.shape[1]
            if batch.tokens.shape[2] != stored.tokens.shape[2]:
                raise ValueError(
                    f"episode 0 has tokens of {batch.tokens.shape[2]} coordinates; the episodes of "
                    f"this buffer have {stored.tokens.shape[2]}"
                )
            if (batch.candidates is None) != (stored.candidates is None):
                found, expected = ("no ", "some") if batch.candidates is None else ("", "none")
                raise ValueError(
                    f"episode 0 has {found}candidates; the episodes of this buffer have {expected}"
                )
        batch = batch.in_slots(slots)
        return batch._replace(
            tokens=batch.tokens.float(),
            behaviour_log_prob=batch.behaviour_log_prob.float(),
            tree_log_prob=batch.tree_log_prob.float(),
        )


def _known_values(values: Float[Tensor, "B"] | None, count: int) -> Values:
    """The values of ``count`` episodes; nan where there are none.

    Raises ``ValueError`` for another number of values, and naming the first that is not finite.
    """
    if values is None:
        return np.full(count, np.nan)
    if values.shape != (count,):
        raise ValueError(
            f"values have shape {tuple(values.shape)}; expected one for each of {count} episodes"
        )
    if not values.isfinite().all():
        row = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"the value of episode {row} is {float(values[row])}; expected finite")
    return values.detach().cpu().double().numpy()

"""Rollout buffers whose minibatches keep neighbouring steps of an episode together.

Neighbouring states share all tokens but two, and the policy computes a token's features once where
it is in consecutive rows (see ``sharing.py``): minibatches of short runs of steps are several
times cheaper than those of single steps, and about as mixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer

RUN = 16
"""Steps of one copy that stay together, at most."""


class RunsRolloutBuffer(DictRolloutBuffer):
    """Shuffles runs of up to :data:`RUN` steps of a copy instead of single steps."""

    flat: tuple[str, ...] = ("actions", "values", "log_probs", "advantages", "returns")

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        """Minibatches of ``batch_size`` steps, the last perhaps smaller; all in one if None."""
        if not self.generator_ready:  # (steps, copies, ...) to (copies * steps, ...)
            for key, values in self.observations.items():
                self.observations[key] = self.swap_and_flatten(values)
            for name in self.flat:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        indices = shuffled_runs(self.buffer_size, self.n_envs)
        size = batch_size or len(indices)
        for start in range(0, len(indices), size):
            yield self._get_samples(indices[start : start + size])


class MaskableRunsRolloutBuffer(RunsRolloutBuffer, MaskableDictRolloutBuffer):  # type: ignore[misc]
    """The same for MaskablePPO."""

    flat = (*RunsRolloutBuffer.flat, "action_masks")


def shuffled_runs(steps: int, copies: int, run: int = RUN) -> Int64[np.ndarray, "_"]:
    """Every index of ``copies * steps`` once: runs of neighbours, in random order.

    The order comes from NumPy's global generator, as in Stable-Baselines3.
    """
    first = np.arange(0, steps, run)  # of each run, within its copy
    starts = (np.arange(copies)[:, None] * steps + first).ravel()  # (runs,)
    lengths = np.tile(np.minimum(run, steps - first), copies)
    order = np.random.permutation(len(starts))  # noqa: NPY002
    inside = np.arange(run)
    return (starts[order, None] + inside)[inside < lengths[order, None]]

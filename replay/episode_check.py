"""What every stored episode has to be: finite tokens, a forest of merges, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from replay.forest_check import check_forests

if TYPE_CHECKING:
    from replay.trajectory import Trajectories


def check_episodes(batch: Trajectories, name: Callable[[int], str]) -> None:
    """Raise ``ValueError`` naming the first row that is no episode, by ``name(row)``."""
    _check_shapes(batch)
    num_tokens = batch.num_tokens
    if (row := _first(num_tokens < 2)) is not None:
        raise ValueError(f"{name(row)} has {int(num_tokens[row])} tokens; expected at least 2")
    gaps = (batch.present[:, 1:] & ~batch.present[:, :-1]).any(1)
    if (row := _first(gaps)) is not None:
        raise ValueError(f"{name(row)} has an empty slot before a token; expected them behind")
    wrong = ~batch.tokens.isfinite() & batch.present[..., None]
    if (row := _first(wrong.flatten(1).any(1))) is not None:
        token = int(wrong[row].any(1).nonzero()[0])
        raise ValueError(
            f"token {token} of {name(row)} is {batch.tokens[row, token].tolist()}; "
            "expected finite coordinates"
        )
    check_forests(batch.merges, num_tokens, name)
    if batch.candidates is not None:
        batch.candidates.check(batch.merges, num_tokens, name)
    log_prob, steps = batch.behaviour_log_prob, batch.steps
    wrong = torch.where(steps, ~(log_prob.isfinite() & (log_prob <= 0)), log_prob != 0)
    if (row := _first(wrong.any(1))) is not None:
        step = int(wrong[row].nonzero()[0])
        what = "finite and at most 0" if steps[row, step] else "0, since it is padding"
        raise ValueError(
            f"merge {step} of {name(row)} has the log-probability {float(log_prob[row, step])}; "
            f"expected {what}"
        )
    tree = batch.tree_log_prob
    if (row := _first(~tree.isnan() & ~(tree.isfinite() & (tree <= 0)))) is not None:
        raise ValueError(
            f"the tree of {name(row)} has the log-probability {float(tree[row])}; expected finite "
            "and at most 0, or nan if it was not computed"
        )
    if (row := _first(batch.policy_version < 0)) is not None:
        raise ValueError(
            f"{name(row)} has policy version {int(batch.policy_version[row])}; expected 0 or more"
        )
    if (row := _first((batch.source < 0) | (batch.source >= len(batch.sources)))) is not None:
        raise ValueError(
            f"{name(row)} has source {int(batch.source[row])}; expected an index into "
            f"{list(batch.sources)}"
        )


def _check_shapes(batch: Trajectories) -> None:
    size, slots = batch.present.shape
    expected = {
        "tokens": (size, slots, batch.tokens.shape[-1]),
        "merges": (size, slots - 1, 2),
        "behaviour_log_prob": (size, slots - 1),
        "tree_log_prob": (size,),
        "policy_version": (size,),
        "source": (size,),
    }
    for field, shape in expected.items():
        found = tuple(getattr(batch, field).shape)
        if found != shape:
            raise ValueError(
                f"{field} of {size} episodes in {slots} slots has shape {found}; expected {shape}"
            )


def _first(wrong: Bool[Tensor, "B"]) -> int | None:
    """The first row where it is True."""
    return int(wrong.nonzero()[0]) if wrong.any() else None

"""Costs of repairing candidate lists, and their share of true neighbours; see ``scaling.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.measuring import Row, seconds_of
from htm_env.candidates import merged_candidates, nearest_candidates

EMBEDDING_DIM, K = 64, 8


def repairs(
    tokens: int,
    seconds: float,
    device: str = "cpu",
    *,
    timed: Callable[[Callable[[], object], float, str], float] = seconds_of,
) -> Row:
    """The lists of one population of random embeddings: repaired after a merge, and made anew.

    ``timed(work, seconds, device)`` gives the mean seconds of a call.
    """
    torch.set_num_threads(1)
    generator = torch.Generator(device).manual_seed(0)
    places = torch.randn(1, tokens, EMBEDDING_DIM, generator=generator, device=device)
    active = torch.ones(1, tokens, dtype=torch.bool, device=device)
    lists = nearest_candidates(places, active, K)
    first, second = torch.tensor([0], device=device), lists.partners[:, 0, 0]
    active[0, second] = False
    repaired = timed(
        lambda: merged_candidates(lists, places, active, first, second), seconds / 2, device
    )
    anew = timed(lambda: nearest_candidates(places, active, K), seconds / 2, device)
    return {
        "tokens": tokens,
        "lists repaired after a merge, ms": repaired * 1e3,
        "all lists made anew, ms": anew * 1e3,
        "true neighbours listed before that": _remembered(tokens, device),
    }


def _remembered(tokens: int, device: str) -> float:
    """The share of the true nearest that repaired lists hold when they are about to be made anew.

    The two that are listed as nearest are merged, and the parent is between them.
    """
    generator = torch.Generator(device).manual_seed(0)
    places = torch.randn(1, tokens, EMBEDDING_DIM, generator=generator, device=device)
    active = torch.ones(1, tokens, dtype=torch.bool, device=device)
    lists = nearest_candidates(places, active, K)
    for _ in range(tokens - 1 - int(lists.renewal)):
        first, place = divmod(int(lists.distances.argmin()), lists.partners.shape[2])
        second = int(lists.partners[0, first, place])
        places[0, first] = (places[0, first] + places[0, second]) / 2
        active[0, second] = False
        pair = (torch.tensor([slot], device=device) for slot in (first, second))
        lists = merged_candidates(lists, places, active, *pair)
    truth = nearest_candidates(places, active, K).partners[0]
    listed = (lists.partners[0, :, None] == truth[:, :, None]).any(2)
    return float(listed[truth >= 0].float().mean())

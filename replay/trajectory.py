"""Stored episodes: the sample and the tree that was made of it, never an embedding.

The autoencoder moves, so embeddings and rewards are recomputed under the current weights when an
episode is replayed; only the policy's probabilities need importance weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from htm_env.candidates import CandidatePairs
from htm_env.forest import check_merges
from htm_env.types import NONE, TokenBatch


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One stored episode.

    Raises ``ValueError`` for fewer than two tokens, tokens or log-probabilities that are not
    finite, a positive log-probability, merges that are not a forest, and lengths that differ.
    """

    tokens: Float[Tensor, "n T"]
    """The sample's own tokens, in the data's units."""
    merges: Int64[Tensor, "K 2"]
    """Ordered node ids (leaves ``0 .. n-1``, merge ``t`` makes ``n + t``); ``K <= n - 1``."""
    behaviour_log_prob: Float[Tensor, "L"]
    """Log-probability of each merge under the policy that made it: ``L = K``."""
    tree_log_prob: float = math.nan
    """Log-probability of the ordered tree, however it was reached; nan if it was not computed."""
    policy_version: int = 0
    """The learner's update count when the episode was collected."""
    source: str = "policy"
    """Its origin: the policy, or a demonstrator's name."""
    candidates: Int64[Tensor, "E 4"] | None = None
    """The pairs that could be merged: two nodes, and the first and the last merge at which they
    could be; None where all pairs could."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2:
            raise ValueError(f"tokens have shape {tuple(self.tokens.shape)}; expected (n, T)")
        if self.merges.ndim != 2 or self.merges.shape[1] != 2:
            raise ValueError(f"merges have shape {tuple(self.merges.shape)}; expected (K, 2)")
        if self.behaviour_log_prob.shape != self.merges.shape[:1]:
            raise ValueError(
                f"this episode has {len(self.merges)} merges, but log-probabilities of shape "
                f"{tuple(self.behaviour_log_prob.shape)}; expected one for each merge"
            )
        padding = (self.merges < 0).any(1)
        if padding.any():
            step = int(padding.nonzero()[0])
            raise ValueError(
                f"merge {step} of this episode is {self.merges[step].tolist()}; expected node ids, "
                "0 or more (only batches are padded)"
            )
        if len(self.merges) >= max(2, len(self.tokens)):
            raise ValueError(
                f"this episode has {len(self.merges)} merges over {len(self.tokens)} tokens; "
                f"expected at most {len(self.tokens) - 1}"
            )
        _check(_padded([self], max(2, len(self.tokens))), lambda row: "this episode")


class Trajectories(NamedTuple):
    """A batch of stored episodes, padded to ``P`` token slots."""

    tokens: Float[Tensor, "B P T"]
    """Zeros in empty slots."""
    present: Bool[Tensor, "B P"]
    """True <--> a token is here; the tokens of a sample fill its slots ``0 .. n-1``."""
    merges: Int64[Tensor, "B M 2"]
    """``M = P - 1``; -1 pads."""
    behaviour_log_prob: Float[Tensor, "B M"]
    """0 in padding."""
    tree_log_prob: Float[Tensor, "B"]
    """nan where it was not computed."""
    policy_version: Int64[Tensor, "B"]
    source: Int64[Tensor, "B"]
    """Index into ``sources``."""
    sources: tuple[str, ...]
    """The names of the sources."""
    candidates: CandidatePairs | None = None
    """The pairs that could be merged; None for all of them."""
    sample: Int64[Tensor, "B"] | None = None
    """The number of each sample, the same for trees of one; None <--> every episode has its own."""

    @property
    def size(self) -> int:
        """The number of episodes."""
        return len(self.tokens)

    @property
    def num_tokens(self) -> Int64[Tensor, "B"]:
        return self.present.sum(dim=1)

    @property
    def steps(self) -> Bool[Tensor, "B M"]:
        """True <--> a merge was made."""
        return self.merges[..., 0] >= 0

    @property
    def token_batch(self) -> TokenBatch:
        """The samples alone; what hierarchy the data had is not stored."""
        batch, slots = self.present.shape
        return TokenBatch(
            self.tokens,
            self.present,
            self.present.new_zeros(batch, 0, slots),
            torch.full_like(self.merges, NONE),
            self.sample,
        )

    def to(self, device: torch.device | str) -> Trajectories:
        """The same episodes on another device."""
        candidates = None if self.candidates is None else self.candidates.to(device)
        return self._each(lambda tensor: tensor.to(device), candidates)

    def rows(self, index: Tensor | slice) -> Trajectories:
        """The episodes that ``index`` selects."""
        candidates = None if self.candidates is None else self.candidates.rows(index)
        return self._each(lambda tensor: tensor[index], candidates)

    def _each(
        self, change: Callable[[Tensor], Tensor], candidates: CandidatePairs | None
    ) -> Trajectories:
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in COLUMNS}
        return self._replace(**changed, candidates=candidates, sample=change(self.numbered()))

    def numbered(self) -> Int64[Tensor, "B"]:
        """The number of each episode's sample; their places where they have none."""
        here = torch.arange(self.size, device=self.tokens.device)
        return here if self.sample is None else self.sample

    def in_slots(self, num_slots: int) -> Trajectories:
        """The same episodes in another number of slots, with zeros in the empty ones.

        Raises ``ValueError`` naming the first episode that has more tokens.
        """
        if (row := _first(self.num_tokens > num_slots)) is not None:
            raise ValueError(
                f"episode {row} has {int(self.num_tokens[row])} tokens; expected at most "
                f"{num_slots}"
            )
        more, pairs = num_slots - self.present.shape[1], self.candidates
        tokens = self.tokens.masked_fill(~self.present[..., None], 0.0)
        return self._replace(
            tokens=pad(tokens, (0, 0, 0, more)),
            present=pad(self.present, (0, more)),
            merges=pad(self.merges, (0, 0, 0, more), value=NONE),
            behaviour_log_prob=pad(self.behaviour_log_prob, (0, more)),
            candidates=None if pairs is None else replace(pairs, steps=num_slots - 1),
        )

    def joined(self, other: Trajectories) -> Trajectories:
        """These episodes and then those of ``other``, which are of the same shape and of other
        samples."""
        sources = tuple(dict.fromkeys((*self.sources, *other.sources)))
        renamed = torch.tensor([sources.index(name) for name in other.sources])[other.source]
        columns: dict[str, Any] = {
            name: torch.cat([getattr(self, name), getattr(other, name)]) for name in COLUMNS
        }
        columns["source"] = torch.cat([self.source, renamed])
        pairs = None
        if self.candidates is not None and other.candidates is not None:
            pairs = self.candidates.joined(other.candidates)
        own, more = self.numbered(), other.numbered()
        more = more - more.min() + own.max() + 1 if len(own) else more
        return Trajectories(
            **columns, sources=sources, candidates=pairs, sample=torch.cat([own, more])
        )

    def check(self) -> None:
        """Raise ``ValueError`` naming the first episode that :class:`Trajectory` would refuse.

        Tokens in empty slots may be anything; log-probabilities in padding must be 0.
        """
        _check(self, "episode {}".format)

    @classmethod
    def pad(cls, episodes: Sequence[Trajectory], num_slots: int | None = None) -> Trajectories:
        """The batch of these episodes, by default in as many slots as the largest fills.

        Raises ``ValueError`` for none at all, and naming the first episode whose token dimension is
        not that of the first, or that has more than ``num_slots`` tokens.
        """
        if not episodes:
            raise ValueError("there are no episodes to pad; expected at least 1")
        largest = max(len(episode.tokens) for episode in episodes)
        slots = max(2, largest if num_slots is None else num_slots)
        token_dim = episodes[0].tokens.shape[1]
        for row, episode in enumerate(episodes):
            n, dim = episode.tokens.shape
            if n > slots or dim != token_dim:
                raise ValueError(
                    f"episode {row} has {n} tokens of {dim} coordinates; expected at most {slots} "
                    f"tokens of {token_dim} coordinates"
                )
            if (episode.candidates is None) != (episodes[0].candidates is None):
                raise ValueError(
                    f"either episode {row} or episode 0 has candidates; expected both, or neither"
                )
        return _padded(episodes, slots)

    @classmethod
    def collected(
        cls,
        batch: TokenBatch,
        merges: Int64[Tensor, "B M 2"],
        behaviour_log_prob: Float[Tensor, "B M"],
        *,
        policy_version: int,
        source: str = "policy",
        tree_log_prob: Float[Tensor, "B"] | None = None,
        candidates: CandidatePairs | None = None,
    ) -> Trajectories:
        """The episodes that one policy has just made of ``batch``."""
        version = merges.new_full((len(merges),), policy_version)
        if tree_log_prob is None:
            tree_log_prob = behaviour_log_prob.new_full((len(merges),), math.nan)
        return cls(
            batch.tokens,
            batch.present,
            merges,
            behaviour_log_prob,
            tree_log_prob,
            version,
            torch.zeros_like(version),
            (source,),
            candidates,
            batch.sample,
        )


COLUMNS = Trajectories._fields[:-3]
"""The fields with one row for each episode, whatever they hold."""


def _padded(episodes: Sequence[Trajectory], slots: int) -> Trajectories:
    """The batch without any check: an error in an episode is one in the batch."""
    batch, token_dim = len(episodes), episodes[0].tokens.shape[1]
    sources = tuple(dict.fromkeys(episode.source for episode in episodes))
    tokens = torch.zeros(batch, slots, token_dim)
    merges = torch.full((batch, slots - 1, 2), NONE)
    log_prob = torch.zeros(batch, slots - 1)
    for row, episode in enumerate(episodes):
        tokens[row, : len(episode.tokens)] = episode.tokens
        merges[row, : len(episode.merges)] = episode.merges
        log_prob[row, : len(episode.merges)] = episode.behaviour_log_prob
    num_tokens = torch.tensor([len(episode.tokens) for episode in episodes])
    pairs = [episode.candidates for episode in episodes if episode.candidates is not None]
    counts = [len(each) for each in pairs]
    return Trajectories(
        tokens,
        torch.arange(slots) < num_tokens[:, None],
        merges,
        log_prob,
        torch.tensor([episode.tree_log_prob for episode in episodes], dtype=torch.float32),
        torch.tensor([episode.policy_version for episode in episodes], dtype=torch.int64),
        torch.tensor([sources.index(episode.source) for episode in episodes]),
        sources,
        CandidatePairs.listed(torch.cat(pairs), counts, slots - 1) if pairs else None,
    )


def _check(batch: Trajectories, name: Callable[[int], str]) -> None:
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
    check_merges(batch.merges, num_tokens, name)
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

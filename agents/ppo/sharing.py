"""The policy network on states that share tokens, without evaluating a token twice.

A merge changes two slots, and a pair scorer gives a token the same features whatever else is there.

* :func:`shared_forward`, with gradients, on rows of states that follow one another. These are
  gathered into runs; a run has each of its tokens (its *nodes*) once, and all scores of its states
  are entries of one table of pairs of nodes. Where there are candidates, only those are scored,
  each once while it stays where it is in the lists.
* :class:`RecentStates`, without gradients, on the states of one call after another: features hold
  until their token goes, and the score of a candidate until either of the two does. Where every
  pair is an action, all scores are one product of the features, computed anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from agents.networks.base import MergePolicy, action_logits
from agents.rollouts.pair_scores import ILLEGAL, Features, PairScorer, bounded


@dataclass(frozen=True)
class Runs:
    """``B`` states as ``R`` runs of at most ``S`` steps and ``N`` nodes each."""

    run: Int64[Tensor, "B"]
    step: Int64[Tensor, "B"]
    """The run of each state, and its place in the run."""
    node: Int64[Tensor, "B P"]
    """The node in each slot, counted within the run; 0 in empty slots."""
    tokens: Float[Tensor, "R N D"]
    leaf_counts: Int[Tensor, "R N"]
    """The nodes; zeros where a run has fewer."""
    members: Float[Tensor, "R S N"]
    """1 where the node is active in the state."""

    @classmethod
    def of(
        cls,
        tokens: Float[Tensor, "B P D"],
        counts: Int[Tensor, "B P"],
        active: Bool[Tensor, "B P"],
    ) -> Runs:
        """A run goes on while a state has a token where the state before had the same one."""
        stays = active[1:] & active[:-1] & (counts[1:] == counts[:-1])
        stays &= (tokens[1:] == tokens[:-1]).all(dim=2)
        is_new = active.clone()
        is_new[1:] &= ~stays
        begins = torch.ones_like(active[:, 0])
        begins[1:] = ~stays.any(dim=1)

        row = torch.arange(len(active), device=active.device)
        run = begins.cumsum(0) - 1
        step = row - row[begins][run]
        before = (is_new.sum(1).cumsum(0) - is_new.sum(1))[begins]  # new tokens before each run
        node = ((_latest(is_new) - 1 - before[run][:, None]) * active).clamp(min=0)

        size = (int(run[-1]) + 1, int(node.max()) + 1)
        at = (run[:, None].expand_as(node)[is_new], node[is_new])
        run_tokens = tokens.new_zeros(*size, tokens.shape[2]).index_put_(at, tokens[is_new])
        run_counts = counts.new_zeros(size).index_put_(at, counts[is_new])
        members = tokens.new_zeros(size[0], int(step.max()) + 1, size[1])
        where = (run[:, None].expand_as(node)[active], step[:, None].expand_as(node)[active])
        members[(*where, node[active])] = 1.0
        return cls(run, step, node, run_tokens, run_counts, members)


def shared_forward(
    network: MergePolicy, observation: dict[str, Tensor]
) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B"]]:
    """The result of ``network(observation)``, several times cheaper where rows follow one another.

    Networks without a pair scorer, because a token's features depend on other tokens, evaluate the
    observation themselves.
    """
    scorer = network.pair_scorer
    if scorer is None:
        return network(observation)
    active = observation["active"].bool()
    runs = Runs.of(observation["tokens"].float(), observation["leaf_counts"], active)
    features = scorer.features(runs.tokens, runs.leaf_counts)  # of (R, N) nodes
    values = scorer.values(features.pooled, runs.members)[runs.run, runs.step]
    if "candidates" in observation:  # then a table of all pairs of nodes is too large
        scores = _listed_scores(scorer, runs, features, observation["candidates"].long())
    else:
        scores = _pair_scores(scorer, runs, features)
    return action_logits(scores, observation), values


def _pair_scores(scorer: PairScorer, runs: Runs, features: Features) -> Float[Tensor, "B P P"]:
    needed = (runs.members.transpose(1, 2) @ runs.members) > 0
    table = bounded(scorer.node_scores(features.first, features.second, lambda: needed))
    batch, slots = runs.node.shape
    rows = runs.run[:, None] * table.shape[1] + runs.node
    scores = table.flatten(0, 1).index_select(0, rows.flatten()).view(batch, slots, -1)
    return scores.gather(2, runs.node[:, None].expand(-1, slots, -1))


def _listed_scores(
    scorer: PairScorer, runs: Runs, features: Features, candidates: Int64[Tensor, "B P k"]
) -> Float[Tensor, "B P k"]:
    partner = runs.node.gather(1, candidates.clamp(min=0).flatten(1)).view_as(candidates)
    first = runs.node[:, :, None].expand_as(partner)
    there = candidates >= 0
    stays = there[1:] & there[:-1] & (first[1:] == first[:-1]) & (partner[1:] == partner[:-1])
    stays &= (runs.run[1:] == runs.run[:-1])[:, None, None]
    is_new = there.clone()
    is_new[1:] &= ~stays

    before = runs.run * runs.tokens.shape[1]  # nodes before those of each state's run
    state = is_new.nonzero()[:, 0]
    scores = scorer.paired_scores(
        features.first.flatten(0, 1).index_select(0, before[state] + first[is_new]),
        features.second.flatten(0, 1).index_select(0, before[state] + partner[is_new]),
    )
    empty = scores.new_full((1,), ILLEGAL)  # of places where nothing has been yet
    return torch.cat([empty, bounded(scores)])[_latest(is_new)]


def _latest(is_new: Bool[Tensor, "B *places"]) -> Int64[Tensor, "B *places"]:
    """The latest new thing at each place, counted from 1 in reading order; 0 where none was yet."""
    number = is_new.flatten().cumsum(0).view_as(is_new) * is_new
    return number.cummax(dim=0).values


class _Seen:
    """The latest ``B`` populations, and what the network made of them."""

    tokens: Float[Tensor, "B P D"]
    counts: Int64[Tensor, "B P"]
    candidates: Int64[Tensor, "B P k"] | None

    def __init__(self, network: PairScorer) -> None:
        self.network = network
        self.weights = [weight.clone() for weight in network.parameters()]
        self.features: Features | None = None
        self.scores: Float[Tensor, "B P k"] | None = None
        """Scores of the candidates; anything finite in empty places."""

    def fits(self, network: PairScorer, tokens: Tensor, candidates: Tensor | None) -> bool:
        """True <--> these are as many populations, and the network has not changed."""
        lists = None if self.candidates is None else self.candidates.shape
        return (
            (tokens.shape, tokens.device) == (self.tokens.shape, self.tokens.device)
            and (None if candidates is None else candidates.shape) == lists
            and network is self.network
            and all(map(torch.equal, self.weights, network.parameters()))
        )

    def follow(
        self,
        tokens: Float[Tensor, "B P D"],
        counts: Int64[Tensor, "B P"],
        candidates: Int64[Tensor, "B P k"] | None,
    ) -> Features:
        """Evaluate the tokens and the candidates that are new; returns the features of all."""
        known = self.features
        if known is None:
            is_new = torch.ones_like(counts, dtype=torch.bool)
        else:
            is_new = (tokens != self.tokens).any(2) | (counts != self.counts)
        made = self.network.features(tokens[is_new], counts[is_new])
        if known is None:  # copies: they are written to, and may be one tensor
            first, second = (
                x.unflatten(0, counts.shape).clone() for x in (made.first, made.second)
            )
            hidden = made.hidden
            hidden = None if hidden is None else hidden.unflatten(0, counts.shape).clone()
            known = self.features = Features(first, second, hidden)
        else:
            known.first[is_new], known.second[is_new] = made.first, made.second
            if known.hidden is not None and made.hidden is not None:
                known.hidden[is_new] = made.hidden
        if candidates is not None:
            self._score(known, candidates, is_new)
        self.tokens, self.counts, self.candidates = tokens, counts, candidates
        return known

    def _score(
        self, features: Features, candidates: Int64[Tensor, "B P k"], is_new: Bool[Tensor, "B P"]
    ) -> None:
        partner = candidates.clamp(min=0)
        to_score = is_new.gather(1, partner.flatten(1)).view_as(partner) | is_new[:, :, None]
        if self.scores is None:
            self.scores = features.first.new_zeros(candidates.shape)
        else:
            to_score |= candidates != self.candidates
        row, slot, place = (to_score & (candidates >= 0)).nonzero(as_tuple=True)
        second = features.second[row, partner[row, slot, place]]
        scores = self.network.paired_scores(features.first[row, slot], second)
        self.scores[row, slot, place] = bounded(scores)


class RecentStates:
    """Gives what ``network(observation)`` gives, without gradients.

    What was made of the latest populations is kept, and compared with the next ones: of those of a
    rollout, one merge later, only new tokens are evaluated. Any others may come as well.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def __reduce__(self) -> tuple[type[RecentStates], tuple[()]]:
        """Copies, and what is written to files, begin with nothing."""
        return RecentStates, ()

    @torch.inference_mode(False)  # else what is kept could not be written to
    @torch.no_grad()
    def __call__(
        self, network: MergePolicy, observation: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B"]]:
        active = observation["active"].bool()
        mixed = torch.is_autocast_enabled(active.device.type)  # of one type here, of another there
        scorer = network.pair_scorer
        if mixed or scorer is None:
            return network(observation)
        # Copies, since the environment may write to what it showed.
        tokens = observation["tokens"].float().masked_fill(~active[..., None], 0.0)
        counts = observation["leaf_counts"].to(torch.int64, copy=True)
        candidates = observation.get("candidates")
        if candidates is not None:
            candidates = candidates.to(torch.int64, copy=True)
        seen, self._seen = self._seen, None  # an interrupted call leaves nothing
        if seen is None or not seen.fits(scorer, tokens, candidates):
            seen = _Seen(scorer)
        features = seen.follow(tokens, counts, candidates)
        self._seen, scores = seen, seen.scores
        if scores is None:
            scores = bounded(scorer.scores(features.first, features.second))
        values = scorer.values(features.pooled, active[:, None].float())[:, 0]
        return action_logits(scores, observation), values

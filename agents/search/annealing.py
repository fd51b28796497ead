"""Annealing over trees whose merges have known costs, and the best tree of all merges evaluated.

A proposal exchanges a subtree with its parent's sibling (nearest-neighbour interchange), so that
two merges of the tree change, or, where an embedding depends on the tree under it, all merges above
as well. The cost of every merge that was evaluated is kept. The temperature follows from them: it
rises while the proposals lead to merges that are known, and falls while they lead to new ones, so
that it needs no unit and no end (Kirkpatrick, Gelatt and Vecchi 1983 lower it by a schedule).

Under an associative merger, merges of different trees fit together. Then the last step is dynamic
programming over all merges that were evaluated, a sparse form of the trellis of Macaluso et al.
2021, "Cluster Trellis": its tree is at least as good as the best one visited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import pad

from agents.fixed.search import mixed
from agents.search.base import Found, Numbers
from htm_env.autoencoder import TreeEncoder
from htm_env.types import NONE, TokenBatch

PROPOSALS = 2
"""For each evaluation of the budget, at most; those that lead to known merges cost nothing."""
NEW = 0.15
"""Share of the merges of a proposal that are to be new: chosen on validation jets from 0.1 to 0.2,
whose trees differ little."""
RATE = 0.05
"""How fast the logarithm of the temperature follows."""
FIRST, LEAST, MOST = 0.1, 0.01, 10.0
"""The first, least and greatest temperature, in units of the mean size of the first costs."""
BLOCK = 64
"""Proposals whose random numbers are drawn together."""
WORST = 1e30
"""Replaces a cost that is not finite: worst of all, but still a merge."""


@dataclass(frozen=True)
class Annealing:
    """Improves trees under a model whose merges have known costs."""

    model: TreeEncoder
    evaluations: int
    """Costs of merges that are asked for, at most, for each sample; those of the given tree are
    the first. A merge that is met again is asked for once."""

    @torch.no_grad()
    def __call__(
        self, batch: TokenBatch, starts: Int64[Tensor, "B S M 2"], numbers: Numbers
    ) -> Found:
        """Trees of at most the cost of the given ones; more evaluations never end worse.

        A sample's result depends on its own row alone. Trees that take more evaluations than the
        budget has are left as they are, and their costs are NaN. Raises ``ValueError`` for more
        than one tree a sample.
        """
        if starts.shape[1] != 1:
            raise ValueError(
                f"{starts.shape[1]} trees of each sample to start from; annealing expected one"
            )
        merges = starts[:, 0]
        merges_made = (merges[..., 0] >= 0).sum(1)
        whole = (merges_made == batch.num_tokens - 1) & (merges_made > 0)
        rows = (whole & (merges_made <= self.evaluations)).nonzero()[:, 0]
        found = merges.clone()
        costs = merges.new_full((len(merges), 2), torch.nan, dtype=torch.float64)
        costs[batch.num_tokens < 2] = 0.0
        if len(rows):
            walk = _Walk(self.model, batch.rows(rows), merges[rows], self.evaluations)
            walk.run(lambda count: numbers(count).to(merges.device)[rows])
            costs[rows, 1] = walk.start.double()
            for row, (cost, better) in zip(rows.tolist(), walk.best_trees(), strict=True):
                costs[row, 0] = cost
                if better is not None:
                    found[row, : len(better)] = torch.from_numpy(better).to(merges.device)
        return Found(found, costs[:, 0], costs[:, 1:])


class _Walk:
    """A tree of each sample, moved by proposals.

    Nodes have numbers of the whole batch: node ``i`` of sample ``b`` is ``b N + i``, leaves first,
    the root at ``2 n - 2`` of its sample. The place above all roots has the number ``B N``.
    """

    def __init__(
        self, model: TreeEncoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"], budget: int
    ) -> None:
        assert model.merge_costs is not None
        self.model, self.budget, self.costs_of = model, budget, model.merge_costs
        samples, slots = batch.present.shape
        num_nodes, device = 2 * slots - 1, merges.device
        self.num_leaves, self.offset = batch.num_tokens, torch.arange(samples, device=device)
        self.offset = self.offset * num_nodes
        self.root = self.offset + 2 * self.num_leaves - 2
        self.above_roots = samples * num_nodes
        leaves = model.lifter(model.standardise(batch.tokens.double()))  # (B, P, D)
        self.leaf_keys = mixed(torch.arange(1, slots + 1, device=device), 1)
        embedding = leaves.new_zeros(samples, num_nodes, leaves.shape[2])
        key = self.leaf_keys.new_zeros(samples, num_nodes)
        embedding[:, :slots], key[:, :slots] = leaves, self.leaf_keys
        self.embedding = pad(embedding.flatten(0, 1), (0, 0, 0, 1))
        self.key, self.cost = pad(key.flatten(), (0, 1)), leaves.new_zeros(self.above_roots + 1)
        self.children = torch.full((self.above_roots + 1, 2), self.above_roots, device=device)
        self.parent = self.children[:, 0].clone()
        self.known = _Known(samples, budget, device)

        for step in range(slots - 1):
            rows = (merges[:, step, 0] >= 0).nonzero()[:, 0]
            node = self.offset[rows] + self.num_leaves[rows] + step
            self.children[node] = self.offset[rows, None] + merges[rows, step]
            self.parent[self.children[node]] = node[:, None]
            merge = self._merge(node)
            self.embedding[node], self.key[node] = merge.merged, merge.key
            self.cost[node] = self._costs(rows, [(node, merge)])[0][0]
        costs = self.cost[:-1].view(samples, -1)
        self.start = costs.sum(1)
        self.total, self.best = self.start.clone(), self.start.clone()
        self.best_children = self.children[:-1].view(samples, -1, 2).clone()
        size = costs.abs().sum(1) / (self.num_leaves - 1)
        size = size.clamp(torch.finfo(size.dtype).tiny / LEAST, WORST)
        self.temperature, self.coldest, self.hottest = FIRST * size, LEAST * size, MOST * size

    def run(self, numbers: Numbers) -> None:
        """Make proposals until every sample has used its budget, or knows all merges there are."""
        enough = self._all_merges().clamp(max=self.budget)
        exchanges = 2 * (self.num_leaves - 2)
        choices = exchanges if self.model.commutative else exchanges + self.num_leaves - 1
        live = (choices > 0).nonzero()[:, 0]
        for proposal in range(PROPOSALS * self.budget):
            if not len(live):
                break
            if proposal % BLOCK == 0:
                drawn = numbers(2 * BLOCK)
            where, accept = drawn[live, 2 * (proposal % BLOCK) :][:, :2].unbind(1)
            choice = (where * choices[live]).long()
            self._propose(live, choice, exchanges[live], accept)
            over = self.known.counts[live] >= enough[live]
            if over.any():
                live = live[~over]

    def _all_merges(self) -> Int64[Tensor, "B"]:
        """How many merges the tokens allow, or a number above every budget."""
        sets = self.num_leaves.clamp(max=30)
        number = (3**sets + 1) // 2 - 2**sets  # ways to split a set in two, over all sets
        number = number if self.model.commutative else 2 * number
        return number if self.model.associative else torch.full_like(number, self.budget)

    def _propose(
        self,
        rows: Int64[Tensor, "R"],
        choice: Int64[Tensor, "R"],
        exchanges: Int64[Tensor, "R"],
        accept: Float[Tensor, "R"],
    ) -> None:
        """Move the trees, or leave them as they are."""
        first_merge = self.offset[rows] + self.num_leaves[rows]
        turn = choice - exchanges
        turned = turn >= 0
        node = first_merge + torch.where(turned, turn, choice // 2)
        above = self.parent[node]
        one = 2 * node + torch.where(turned, 0, choice % 2)  # places in the flat children
        sibling = 2 * above + (self.children[above, 0] == node)
        other = torch.where(turned, 2 * node + 1, sibling)
        self._exchange(one, other)

        path = [(node, self._merge(node))]
        before = [(node, self.embedding[node], self.key[node])]
        self.embedding[node], self.key[node] = path[0][1].merged, path[0][1].key
        node = self.parent[node]
        if self.model.associative:  # what is above has the same leaves as before
            path.append((node, self._merge(node, same=True)))
        while not self.model.associative and (node < self.above_roots).any():
            path.append((node, self._merge(node)))
            before.append((node, self.embedding[node], self.key[node]))
            self.embedding[node], self.key[node] = path[-1][1].merged, path[-1][1].key
            self.embedding[-1] = 0.0
            node = self.parent[node]
        costs, new = self._costs(rows, path)  # (L, R)
        nodes = torch.stack([node for node, _ in path])
        change = (costs - self.cost[nodes]).sum(0)

        temperature = self.temperature[rows]
        moved = accept < (-change / temperature).exp()  # False where a cost was refused
        self.cost[nodes[:, moved]] = costs[:, moved]
        stay = (~moved).nonzero()[:, 0]
        self._exchange(one[stay], other[stay])
        for node, embedding, key in before:
            self.embedding[node[stay]], self.key[node[stay]] = embedding[stay], key[stay]
        self.total[rows] += change.where(moved, 0.0)
        better = rows[self.total[rows] < self.best[rows]]
        if len(better):
            self.best[better] = self.total[better]
            children = self.children[:-1].view(len(self.best), -1, 2)
            self.best_children[better] = children[better]
        asked = (nodes < self.above_roots).sum(0)
        temperature = temperature * (RATE * (NEW - new.sum(0) / asked)).exp()
        self.temperature[rows] = temperature.clamp(self.coldest[rows], self.hottest[rows])

    def _exchange(self, one: Int64[Tensor, "R"], other: Int64[Tensor, "R"]) -> None:
        """Put what is in two places of the flat children into each other's."""
        children = self.children.view(-1)
        here, there = children[one], children[other]
        children[one], children[other] = there, here
        self.parent[there], self.parent[here] = one // 2, other // 2

    def _merge(self, node: Int64[Tensor, "R"], *, same: bool = False) -> _Merge:
        """The merges at these nodes; ``same``: True <--> of the same leaves as before."""
        children = self.children[node]
        first, second = self.embedding[children].unbind(1)
        keys = self.key[children]
        if self.model.commutative:
            keys = keys.sort(dim=1).values
        if same:
            return _Merge(first, second, self.embedding[node], keys, self.key[node])
        one, other = keys.unbind(1)
        key = one + other if self.model.associative else mixed(one, other)
        return _Merge(first, second, self.model.merger(torch.cat([first, second], 1)), keys, key)

    def _costs(
        self, rows: Int64[Tensor, "R"], path: list[tuple[Tensor, _Merge]]
    ) -> tuple[Float[Tensor, "L R"], Bool[Tensor, "L R"]]:
        """The costs of merges on the way up, and which of them are new and were evaluated.

        NaN where the budget does not suffice, 0 above the root.
        """
        nodes = torch.stack([node for node, _ in path])  # (L, R)
        first, second, merged, keys = (
            torch.stack(parts) for parts in list(zip(*(m for _, m in path), strict=True))[:4]
        )
        costs = self.known.find(rows.expand_as(nodes), keys)
        costs = costs.masked_fill(nodes == self.above_roots, 0.0)
        new = costs.isnan()
        number = self.known.counts[rows] + new.cumsum(0)
        new &= number <= self.budget
        if new.any():
            number, rows = number[new], rows.expand_as(nodes)[new]
            last = nodes[new] == self.root[rows]
            found = self.costs_of(first[new], second[new], merged[new], last).to(costs.dtype)
            found = found.nan_to_num(nan=WORST, posinf=WORST)
            costs[new] = found
            self.known.store(rows, number, keys[new], found)
        return costs, new

    def best_trees(self) -> list[tuple[float, Int64[np.ndarray, "K 2"] | None]]:
        """The cost and the merges of the best tree of each sample; no merges where no tree is
        better than the given one."""
        return [self._best_tree(row) for row in range(len(self.start))]

    def _best_tree(self, row: int) -> tuple[float, Int64[np.ndarray, "K 2"] | None]:
        num_leaves, start = int(self.num_leaves[row]), float(self.start[row])
        best, enough = float(self.best[row]), 1e-12 * max(1.0, abs(start))
        if self.model.associative:
            leaves = self.leaf_keys[:num_leaves].cpu().numpy()
            children, root, total = best_of(leaves, *self.known.of_sample(row))
            if total < min(best, start - enough):
                return total, in_order(children, root, num_leaves)
        if best >= start - enough:
            return start, None
        children = (self.best_children[row] - self.offset[row]).cpu().numpy()
        return best, in_order(children, 2 * num_leaves - 2, num_leaves)


class _Merge(NamedTuple):
    """Merges of a step."""

    first: Float[Tensor, "R D"]
    second: Float[Tensor, "R D"]
    merged: Float[Tensor, "R D"]
    keys: Int64[Tensor, "R 2"]
    """Of the pair, sorted where its order means nothing."""
    key: Int64[Tensor, "R"]
    """Of what it becomes."""


class _Known:
    """The merges of every sample whose costs were evaluated, in that order, and a table of hashes.

    The table has buckets of two. What does not fit into its bucket is evaluated again.
    """

    def __init__(self, samples: int, budget: int, device: torch.device) -> None:
        self.counts = torch.zeros(samples, dtype=torch.int64, device=device)
        self._keys = torch.zeros(samples, budget + 1, 2, dtype=torch.int64, device=device)
        self._costs = self._keys.new_full((samples, budget + 1), torch.nan, dtype=torch.float64)
        self._buckets = 1 << (2 * budget // 3).bit_length()
        # Numbers of merges, from 1; 0 <--> none, whose cost is NaN.
        self._table = self._keys.new_zeros((samples * self._buckets, 2))

    def find(self, rows: Int64[Tensor, "*R"], keys: Int64[Tensor, "*R 2"]) -> Float64[Tensor, "*R"]:
        """The costs; NaN where they are not known."""
        number, rows = self._table[self._bucket(rows, keys)], rows[..., None]  # (*R, 2)
        same = (self._keys[rows, number] == keys[..., None, :]).all(-1)
        return self._costs[rows[..., 0], (number * same).amax(-1)]

    def store(
        self,
        rows: Int64[Tensor, "R"],
        number: Int64[Tensor, "R"],
        keys: Int64[Tensor, "R 2"],
        costs: Float64[Tensor, "R"],
    ) -> None:
        """Keep these merges; ``number``, from 1: of each among those of its sample."""
        self._keys[rows, number], self._costs[rows, number] = keys, costs
        self.counts.index_add_(0, rows, torch.ones_like(rows))
        bucket = self._bucket(rows, keys)
        full, place = self._table[bucket].min(1)
        free = full == 0
        self._table[bucket[free], place[free]] = number[free]

    def of_sample(self, row: int) -> tuple[Int64[np.ndarray, "I 2"], Float64[np.ndarray, "I"]]:
        """All merges of a sample."""
        some = slice(1, int(self.counts[row]) + 1)
        return self._keys[row, some].cpu().numpy(), self._costs[row, some].cpu().numpy()

    def _bucket(self, rows: Tensor, keys: Tensor) -> Int64[Tensor, "*R"]:
        hashes = mixed(keys[..., 0], keys[..., 1])
        return rows * self._buckets + (hashes & (self._buckets - 1))


def best_of(
    leaves: Int64[np.ndarray, "n"], keys: Int64[np.ndarray, "I 2"], costs: Float64[np.ndarray, "I"]
) -> tuple[Int64[np.ndarray, "N 2"], int, float]:
    """The tree of least cost that is made of some of these merges: children of nodes of which the
    leaves are the first, the root, and the cost.

    Merges are pairs of keys; the key of a set is the sum of those of its leaves. Every set is a
    leaf or made by one of the merges, one of them the set of all leaves.
    """
    sets, whole = np.unique(keys.sum(axis=1), return_inverse=True)
    nodes = np.concatenate([leaves, sets])
    rising = nodes.argsort()
    parts = rising[np.searchsorted(nodes, keys, sorter=rising)]  # (I, 2)
    value = np.full(len(nodes), np.inf)
    value[: len(leaves)] = 0.0
    by_set = whole.argsort(kind="stable")
    starts = np.searchsorted(whole[by_set], np.arange(len(sets)))
    while True:
        totals = costs + value[parts].sum(axis=1)
        least = np.minimum.reduceat(totals[by_set], starts)
        if np.array_equal(least, value[len(leaves) :]):
            break
        value[len(leaves) :] = least
    (chosen,) = np.nonzero(totals == least[whole])
    children = np.full((len(nodes), 2), NONE)
    children[len(leaves) + whole[chosen]] = parts[chosen]
    root = len(leaves) + int(np.searchsorted(sets, leaves.sum()))
    return children, root, float(value[root])


def in_order(
    children: Int64[np.ndarray, "N 2"], root: int, num_leaves: int
) -> Int64[np.ndarray, "K 2"]:
    """The merges of a tree, each after those that it needs, in node ids."""
    wanted, downwards = [root], []
    while wanted:
        node = wanted.pop()
        if node >= num_leaves:
            downwards.append(node)
            wanted.extend(children[node])
    upwards = downwards[::-1]
    names = {node: num_leaves + time for time, node in enumerate(upwards)}
    merges = [[names.get(child, child) for child in children[node]] for node in upwards]
    return np.array(merges, dtype=np.int64)

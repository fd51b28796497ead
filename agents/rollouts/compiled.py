"""Whole episodes in one compiled call: what ``ArrayRollout`` does, for pointer policies.

Needs numba (the extra ``fast``), and is imported where a rollout first asks for it. Functions are
compiled when they are first called, and kept in numba's cache.

A few episodes are merged at a time, so that their tables stay in the processor's cache while the
networks still take several rows at once. A merge costs O(P) beside the networks: sums of the rows
of a table of weights, and for the best pair their maxima, are kept from step to step. Sums are of
64 bits, and made anew before what has been subtracted could be seen in them.

All is in one file, since numba compiles a function anew when its own file changes and no other:
whoever changes ``PackedWeights``, ``PointerWeights`` or ``FARTHEST`` has to touch this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from agents.rollouts.pair_scores import PointerWeights
from htm_env.autoencoder import PackedWeights
from htm_env.candidates import FARTHEST as _FARTHEST

GROUP = 8
"""Episodes that are merged together."""
FADED, MOST = 1e-7, 1e25
"""The sum of a sample's weights, of which the best was 1 at first, over the largest that it was, at
least; and itself, at most. Beyond them the weights are computed anew."""
RAREST = np.float32(1e-35)
"""Weights below it are 0: numbers too small to be normal ones make all that follows slow."""
BOUND = np.float32(1e8)
"""Scores lie between this and its negative; see ``pair_scores.bounded``."""
SHIFT, PEAK, SPREAD = range(3)
"""What an episode's state holds: the score whose weight is 1, the largest sum of weights since they
were computed, and the sum of ``w log(w)``, of which entropies are made."""
FARTHEST = np.float32(_FARTHEST)
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)

# Sums may be taken in any order, but NaN and infinities are kept, and nothing is raised.
_options: dict[str, Any] = {"fastmath": {"contract", "reassoc"}, "error_model": "numpy"}
_compiled = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_options)
"""Of functions that compiled ones call."""


def _kept(function: Any) -> Any:
    """A function that is compiled once on a machine."""
    try:
        return njit(cache=True, **_options)(function)
    except RuntimeError:  # there is no folder that can be written to
        return njit(**_options)(function)


# ``no_type_check``: a function that checks its shapes cannot be compiled.


@_compiled
@no_type_check
def _exp(value):
    """``2^n e^r`` with ``|r| <= log(2) / 2`` and a polynomial (Cephes, ``expf``), within 1e-7.

    Without a branch, so that several are computed at once, which those of libraries are not here.
    """
    value = np.float32(-87) if value < np.float32(-87) else value  # NaN stays
    value = np.float32(88) if value > np.float32(88) else value
    n = np.floor(value * np.float32(1.44269504) + HALF)
    r = value - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * np.int32((np.int32(n) + 127) * 8388608).view(np.float32)


@_compiled
@no_type_check
def _silu(value):
    return value / (ONE + _exp(-value))


@_compiled
@no_type_check
def _affine(rows, weight, bias, made):
    np.dot(rows, weight, made)
    for r in range(len(made)):
        for j in range(made.shape[1]):
            made[r, j] += bias[j]


@_compiled
@no_type_check
def _merged(pairs, merger, made, hidden, outputs):
    """Rows of two embeddings side by side, through a gated residual network."""
    rows, units = len(pairs), hidden.shape[1]
    _affine(pairs, merger.weight, merger.bias, made[:rows])
    for r in range(rows):
        row, into = made[r], hidden[r]
        for j in range(units):
            gate = ONE - TWO / (ONE + _exp(TWO * row[units + j]))
            into[j] = _silu(row[j]) * gate
    np.dot(hidden[:rows], merger.last, outputs[:rows])
    for r in range(rows):
        for j in range(outputs.shape[1]):
            outputs[r, j] += made[r, 2 * units + j]


@_compiled
@no_type_check
def _features(inputs, scorer, hidden, again, head, skip, new):
    """Features of tokens, each ``(embedding, log2 of its leaves)``; see ``PointerPolicy``."""
    rows, places = len(inputs), skip.shape[1]
    keys = (head.shape[1] - places - 1) // 2
    scale = np.float32(1 / np.sqrt(keys))
    _affine(inputs, scorer.body, scorer.body_bias, hidden[:rows])
    for r in range(rows):
        for j in range(hidden.shape[1]):
            hidden[r, j] = _silu(hidden[r, j])
    _affine(hidden[:rows], scorer.residual, scorer.residual_bias, again[:rows])
    for r in range(rows):
        for j in range(hidden.shape[1]):
            hidden[r, j] += _silu(again[r, j])
    _affine(hidden[:rows], scorer.head, scorer.head_bias, head[:rows])
    np.dot(inputs, scorer.skip, skip[:rows])
    for r in range(rows):
        first, second, near = new[r, 0], new[r, 1], np.float32(0)
        for j in range(keys):
            first[j] = head[r, j] * scale
            second[j] = head[r, keys + j]
        for j in range(places):
            place = head[r, 2 * keys + j] + skip[r, j]
            near += place * place
            first[keys + j] = place + place
            second[keys + j] = place
        order = head[r, 2 * keys + places]
        first[-2], first[-1] = order - near, ONE
        second[-2], second[-1] = ONE, -near - order


@_compiled
@no_type_check
def _bounded(score):
    score = score if score == score else np.float32(0)
    score = score if score < BOUND else BOUND
    return score if score > -BOUND else -BOUND


@_compiled
@no_type_check
def _weight(score, shift):
    weight = _exp(_bounded(score) - shift)
    return weight if weight > RAREST else np.float32(0)


@_compiled
@no_type_check
def _weigh(table, width, sums, best, state, how):
    """Make weights of the scores of an episode, 1 for the best pair, and what is kept of them."""
    shift, total, spread = -BOUND, 0.0, 0.0
    for i in range(width):
        for j in range(width):
            if i != j:
                shift = max(shift, _bounded(table[i, j]))
    for i in range(width):
        row, summed, most = table[i], 0.0, np.float32(0)
        for j in range(width):
            row[j] = _weight(row[j], shift)
        row[i] = np.float32(0)
        for j in range(width):
            summed += row[j]
            most = max(most, row[j])
        sums[i], best[i] = summed, most
        total += summed
    if how.measured:
        for i in range(width):
            spread += _spread_at(table, width, i, how.ordered) / 2
    state[SHIFT], state[PEAK], state[SPREAD] = shift, total, spread


@_compiled
@no_type_check
def _spread_of(weight, turned, ordered):
    """What a pair and the same turned add to the sum of ``w log(w)`` over choices."""
    one, other = np.float64(weight), np.float64(turned)
    if not ordered:
        return (one + other) * np.log(one + other) if one + other > 0 else 0.0
    spread = one * np.log(one) if one > 0 else 0.0
    return spread + other * np.log(other) if other > 0 else spread


@_compiled
@no_type_check
def _spread_at(table, width, at, ordered):
    """What all pairs of one position add to it."""
    spread = 0.0
    for j in range(width):
        spread += _spread_of(table[at, j], table[j, at], ordered)
    return spread


@_compiled
@no_type_check
def _drawn(weights, width, draw):
    """The position whose weight takes the running total beyond this share of the whole; the last
    with a weight, where rounding leaves the total below it."""
    total, summed, last = 0.0, 0.0, 0
    for j in range(width):
        total += weights[j]
    for j in range(width):
        summed += weights[j]
        if summed > draw * total:
            return j
        if weights[j] > 0:
            last = j
    return last


@_compiled
@no_type_check
def _largest(weights, width):
    found = 0
    for j in range(1, width):
        if weights[j] > weights[found]:
            found = j
    return found


@_compiled
@no_type_check
def _forget(table, width, low, high, sums, best):
    """Take two positions out of a table, whose last one moves to ``high``; rows whose maximum goes
    with them have -1 for it."""
    last = width - 1
    for i in range(width):
        gone, other = table[i, low], table[i, high]
        sums[i] -= np.float64(gone) + np.float64(other)
        if best[i] == gone or best[i] == other:
            best[i] = -ONE
        table[i, high] = table[i, last]
    for j in range(width):  # an assignment to a slice would take seconds to compile
        table[high, j] = table[last, j]
    table[high, high] = np.float32(0)
    sums[high], best[high] = sums[last], best[last]


@_compiled
@no_type_check
def _take_up(table, width, low, as_first, as_second, shift, sums, best, how):
    """The scores of the new token at ``low`` with all others, as first and as second."""
    row, summed = table[low], 0.0
    for j in range(width):
        row[j], as_second[j] = _weight(as_first[j], shift), _weight(as_second[j], shift)
    row[low], as_second[low] = np.float32(0), np.float32(0)
    for j in range(width):
        summed += row[j]
    for i in range(width):
        table[i, low] = as_second[i]
        sums[i] += as_second[i]
    sums[low] = summed
    table[low, low] = np.float32(0)
    if how.greedy:
        best[low] = -ONE
        for i in range(width):
            if best[i] >= 0:
                best[i] = max(best[i], as_second[i])
            else:
                best[i] = table[i, _largest(table[i], width)]


@_compiled
@no_type_check
def _choose(table, sums, best, state, first, second, draws, how):
    """The positions of the pair that is merged, and the sum of all weights; ``first`` and
    ``second`` are the features of the active tokens."""
    width, total = len(first), 0.0
    one, other = -1, -1
    while one < 0 or not table[one, other] > 0:
        total = 0.0
        for i in range(width):
            total += sums[i]
        state[PEAK] = max(state[PEAK], total)
        if one >= 0 or not FADED * state[PEAK] < total < MOST:
            for i in range(width):
                np.dot(second, first[i], table[i, :width])
            _weigh(table, width, sums, best, state, how)
            total = state[PEAK]
        if how.greedy:
            one = _largest(best, width)
            other = _largest(table[one], width)
        else:
            one = _drawn(sums, width, draws[0])
            other = _drawn(table[one], width, draws[1])
    return one, other, total


@_compiled
@no_type_check
def _note(table, state, one, other, width, total, found, how):
    """What is to be known of a choice, before its pair leaves the table."""
    found[0], found[1], found[2] = table[one, other], table[other, one], total
    found[3] = state[SHIFT]
    if how.measured:
        found[4] = np.log(total) - state[SPREAD] / total
        both = _spread_of(table[one, other], table[other, one], how.ordered)
        for at in (one, other):
            state[SPREAD] -= _spread_at(table, width, at, how.ordered)
        state[SPREAD] += both


@_compiled
@no_type_check
def _place(here, active, merge, one, other, width, parent):
    """The parent takes the lower position, the last node the higher one."""
    for j in range(width):
        active[j] = here[j]
    merge[0], merge[1] = here[one], here[other]
    here[max(one, other)] = here[width - 1]
    here[width - 1] = -1
    here[min(one, other)] = parent


@_compiled
@no_type_check
def _join(nodes, counts, merge, parent, pair, row):
    """Count the parent's leaves, and place it where nodes have coordinates; ``pair`` is what the
    merger reads, ``row`` what the scorer will."""
    left, right, inner, wide = merge[0], merge[1], len(pair) // 2, nodes.shape[1]
    count = counts[left] + counts[right]
    share = np.float32(counts[left] / count)
    for j in range(inner):
        pair[j], pair[inner + j] = nodes[left, j], nodes[right, j]
    for j in range(inner, wide - 1):
        row[j] = nodes[parent, j] = share * nodes[left, j] + (ONE - share) * nodes[right, j]
    counts[parent], row[wide] = count, np.log2(count)
    if wide > inner:
        row[wide - 1] = nodes[parent, wide - 1] = row[wide]


@_compiled
@no_type_check
def _follow(table, sums, best, state, low, high, first, second, new, scores, how):
    """The table after a merge: what was last moves, and the parent's row and column are new."""
    last = len(first) - 1
    _forget(table, last + 1, low, high, sums, best)
    for features, own in ((first, new[0]), (second, new[1])):
        for j in range(len(own)):
            features[high, j] = features[last, j]
            features[low, j] = own[j]
    np.dot(second[:last], new[0], scores[0, :last])
    np.dot(first[:last], new[1], scores[1, :last])
    _take_up(table, last, low, scores[0], scores[1], np.float32(state[SHIFT]), sums, best, how)
    if how.measured:
        state[SPREAD] += _spread_at(table, last, low, how.ordered)


@_kept
@no_type_check
def _run(e, how, merger, scorer, room):
    group = len(room.pairs)
    for begin in range(0, len(e.here), group):
        for time in range(len(e.running)):
            rows = min(e.running[time] - begin, group)
            if rows <= 0:
                break
            for s in range(rows):
                r = begin + s
                width, parent = e.num_leaves[r] - time, e.num_leaves[r] + time
                table, sums, best, state = e.table[r], room.sums[s], room.best[s], room.states[s]
                if time == 0:
                    _weigh(table, width, sums, best, state, how)
                one, other, total = _choose(
                    table,
                    sums,
                    best,
                    state,
                    e.first[r, :width],
                    e.second[r, :width],
                    e.draws[:, time, r],
                    how,
                )
                _note(table, state, one, other, width, total, e.found[:, r, time], how)
                merge = e.merges[r, time]
                _place(e.here[r], e.active[r, time], merge, one, other, width, parent)
                _join(e.nodes[r], e.counts[r], merge, parent, room.pairs[s], room.inputs[s])
                room.places[s, 0], room.places[s, 1] = min(one, other), max(one, other)

            _merged(room.pairs[:rows], merger, room.made, room.gated, room.merged)
            for s in range(rows):
                merged, node = room.merged[s], e.nodes[begin + s, e.num_leaves[begin + s] + time]
                for j in range(len(merged)):
                    room.inputs[s, j] = node[j] = merged[j]

            rows = min(e.running[time + 1] - begin, group) if time + 1 < len(e.running) else 0
            if rows <= 0:
                break
            _features(
                room.inputs[:rows], scorer, room.hidden, room.again, room.head, room.skip, room.new
            )
            for s in range(rows):
                r = begin + s
                width = e.num_leaves[r] - time
                _follow(
                    e.table[r],
                    room.sums[s],
                    room.best[s],
                    room.states[s],
                    room.places[s, 0],
                    room.places[s, 1],
                    e.first[r, :width],
                    e.second[r, :width],
                    room.new[s],
                    room.scores,
                    how,
                )


# ---------------------------------------------------------------- among candidates


@_compiled
@no_type_check
def _score(lists, one, other):
    score = np.float32(0)
    for j in range(lists.first.shape[1]):
        score += lists.first[one, j] * lists.second[other, j]
    return _bounded(score)


@_compiled
@no_type_check
def _forget_listed(lists, parent, gone, changed):
    """Empty the places in which two tokens are listed, and the lists of both."""
    for c in range(lists.partners.shape[0]):
        partners, distances, scores = lists.partners[c], lists.distances[c], lists.scores[c]
        for j in range(len(partners)):
            if partners[j] == parent or partners[j] == gone:
                partners[j], distances[j], scores[j] = -1, np.inf, -np.inf
                lists.farthest[j], changed[j] = np.inf, True
        for token in (parent, gone):
            partners[token], distances[token], scores[token] = -1, np.inf, -np.inf
            changed[token] = True


@_compiled
@no_type_check
def _list_parent(lists, parent, near, apart_of, changed):
    """The parent's list, and the parent in those of others that have a place or something farther;
    ``near`` and ``apart_of`` are room for its ``k`` nearest."""
    most, found = len(near), 0
    for j in range(len(lists.node)):
        if not lists.alive[j] or j == parent:
            continue
        apart = np.float32(0)
        for d in range(lists.places.shape[1]):
            away = lists.places[j, d] - lists.places[parent, d]
            apart += away * away
        apart = apart if apart < FARTHEST else FARTHEST
        if found < most or apart < apart_of[most - 1]:
            found = min(found + 1, most)
            at = found - 1
            while at > 0 and apart_of[at - 1] > apart:
                near[at], apart_of[at] = near[at - 1], apart_of[at - 1]
                at -= 1
            near[at], apart_of[at] = j, apart
        if apart < lists.farthest[j]:
            spot = _largest(lists.distances[:, j], most)
            lists.partners[spot, j], lists.distances[spot, j] = parent, apart
            lists.scores[spot, j], changed[j] = _score(lists, j, parent), True
    for c in range(found):
        lists.partners[c, parent], lists.distances[c, parent] = near[c], apart_of[c]
        lists.scores[c, parent] = _score(lists, parent, near[c])


@_kept
@no_type_check
def _run_listed(lists, next_node, merges, merger, scorer, room, near, apart_of, changed):
    k, inner = lists.partners.shape[0], merger.last.shape[1]
    for time in range(len(merges)):
        parent = _largest(lists.best, len(lists.best))
        gone = np.int64(lists.partners[_largest(lists.scores[:, parent], k), parent])
        merges[time, 0], merges[time, 1] = lists.node[parent], lists.node[gone]
        room.places[0, 0], room.places[0, 1] = parent, gone
        share = np.float32(lists.counts[parent] / (lists.counts[parent] + lists.counts[gone]))
        for j in range(lists.centroid.shape[1]):
            here, other = lists.centroid[parent, j], lists.centroid[gone, j]
            lists.centroid[parent, j] = share * here + (ONE - share) * other
        _join(lists.embedding, lists.counts, room.places[0], parent, room.pairs[0], room.inputs[0])
        _merged(room.pairs, merger, room.made, room.gated, room.merged)
        for j in range(inner):
            room.inputs[0, j] = lists.embedding[parent, j] = room.merged[0, j]
        lists.node[parent], lists.alive[gone] = next_node + time, False
        _features(room.inputs, scorer, room.hidden, room.again, room.head, room.skip, room.new)
        for j in range(lists.first.shape[1]):
            lists.first[parent, j], lists.second[parent, j] = room.new[0, 0, j], room.new[0, 1, j]
        _forget_listed(lists, parent, gone, changed)
        _list_parent(lists, parent, near, apart_of, changed)
        for j in range(len(changed)):
            if changed[j]:
                changed[j] = False
                lists.farthest[j] = lists.distances[_largest(lists.distances[:, j], k), j]
                lists.best[j] = lists.scores[_largest(lists.scores[:, j], k), j]
        lists.farthest[gone] = -np.inf


# ---------------------------------------------------------------- what is called


class Running(NamedTuple):
    """Episodes in progress, on arrays that are written to; the first axis is the episode."""

    nodes: np.ndarray
    counts: np.ndarray
    """(B, N) leaves of every node."""
    here: np.ndarray
    """(B, P) the node at each position; -1 where there is none."""
    merges: np.ndarray
    active: np.ndarray
    """(B, M, P) gets the nodes before each merge."""
    num_leaves: np.ndarray
    running: np.ndarray
    """(steps,) episodes that make each merge, which are the first ones."""
    first: np.ndarray
    """(B, P, H) features of the token at each position as first of a pair."""
    second: np.ndarray
    """(B, P, H) the same as second."""
    table: np.ndarray
    """(B, P, P) the scores of pairs."""
    draws: np.ndarray
    """(2, M, B) numbers in [0, 1), two for each merge."""
    found: np.ndarray
    """(5, B, M) gets the weight of each choice, of the same turned, and of all choices, the score
    whose weight is 1, and the entropy in nats."""


class How(NamedTuple):
    """How merges are chosen, and what is measured."""

    greedy: bool
    """The best pairs, and not those that are drawn."""
    measured: bool
    """Entropies are measured."""
    ordered: bool
    """The order within a pair is a choice."""


class Lists(NamedTuple):
    """The tokens of a sample and their candidates, on arrays that are written to."""

    node: np.ndarray
    embedding: np.ndarray
    counts: np.ndarray
    centroid: np.ndarray
    places: np.ndarray
    """(n, D) points between which distances are measured: embeddings or centroids themselves."""
    alive: np.ndarray
    """True <--> not merged yet."""
    first: np.ndarray
    """(n, H) features as first of a pair."""
    second: np.ndarray
    partners: np.ndarray
    """(k, n) candidates of every token; -1 where a place is empty."""
    distances: np.ndarray
    """Infinite where a place is empty."""
    scores: np.ndarray
    """Minus infinity where a place is empty."""
    farthest: np.ndarray
    """(n,) the largest of each token's distances; minus infinity of tokens that are gone."""
    best: np.ndarray
    """(n,) the largest of each token's scores."""


class _Room(NamedTuple):
    """Where some merges are made at a time."""

    sums: np.ndarray
    best: np.ndarray
    states: np.ndarray
    places: np.ndarray
    pairs: np.ndarray
    made: np.ndarray
    gated: np.ndarray
    merged: np.ndarray
    inputs: np.ndarray
    hidden: np.ndarray
    again: np.ndarray
    head: np.ndarray
    skip: np.ndarray
    new: np.ndarray
    scores: np.ndarray


def _room(
    rows: int, slots: int, merger: PackedWeights, scorer: PointerWeights, features: int
) -> _Room:
    def numbers(*columns: int) -> np.ndarray:
        return np.zeros((rows, *columns), np.float32)

    return _Room(
        sums=np.zeros((rows, slots)),
        best=numbers(slots),
        states=np.zeros((rows, 3)),
        places=np.zeros((rows, 2), np.int64),
        pairs=numbers(len(merger.weight)),
        made=numbers(merger.weight.shape[1]),
        gated=numbers(len(merger.last)),
        merged=numbers(merger.last.shape[1]),
        inputs=numbers(len(scorer.body)),
        hidden=numbers(len(scorer.residual)),
        again=numbers(len(scorer.residual)),
        head=numbers(scorer.head.shape[1]),
        skip=numbers(scorer.skip.shape[1]),
        new=numbers(2, features),
        scores=np.zeros((2, slots), np.float32),
    )


def merge_all(
    merger: PackedWeights,
    scorer: PointerWeights,
    *,
    greedy: bool,
    measured: bool,
    ordered: bool,
    **arrays: np.ndarray,
) -> None:
    """Make the merges of all episodes; ``arrays`` are those of :class:`Running`.

    Embeddings wider than the merger's end in the centroid of their leaves and the logarithm of how
    many these are, as those of ``Placed`` do.
    """
    episodes = Running(**arrays)
    size, slots = episodes.here.shape
    room = _room(min(GROUP, size), slots, merger, scorer, episodes.first.shape[2])
    _run(episodes, How(greedy, measured, ordered), merger, scorer, room)


def merge_listed(
    merger: PackedWeights,
    scorer: PointerWeights,
    next_node: int,
    count: int,
    **arrays: np.ndarray,
) -> np.ndarray:
    """Make so many merges of the best candidates, ``(count, 2)``, the first of which makes
    ``next_node``; ``arrays`` are those of :class:`Lists`."""
    lists = Lists(**arrays)
    k, tokens = lists.partners.shape
    merges = np.empty((count, 2), np.int64)
    room = _room(1, 1, merger, scorer, lists.first.shape[1])
    near, apart_of = np.empty(k, np.int64), np.empty(k, np.float32)
    changed = np.zeros(tokens, bool)
    _run_listed(lists, next_node, merges, merger, scorer, room, near, apart_of, changed)
    return merges

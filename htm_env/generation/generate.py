"""From root embeddings to token sets and their trees: the leaf classifier says where to stop."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from htm_env.autoencoder import HTMAutoencoder
from htm_env.checks import at_least, check_finite
from htm_env.measures.metrics import nmse_per_sample
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE

MAX_TOKENS, MAX_DEPTH = 64, 32


@dataclass(frozen=True)
class Generated:
    """Decoded token sets, each with its tree; ``P`` is the largest of them."""

    tokens: Float[Tensor, "B P T"]
    """Raw coordinates; zeros in empty slots. A tree's leaves are in order, from left to right."""
    present: Bool[Tensor, "B P"]
    """True <--> a token is here; the tokens of a sample fill its slots ``0 .. n-1``."""
    merges: Int64[Tensor, "B M 2"]
    """The tree, as for any sample: the deepest merges first; -1 pads. None for a single token."""
    depth_limited: Bool[Tensor, "B"]
    """True <--> a node became a leaf only because no deeper one was allowed."""
    token_limited: Bool[Tensor, "B"]
    """True <--> a node became a leaf only because no more tokens were allowed."""

    @property
    def num_tokens(self) -> Int64[Tensor, "B"]:
        """Number of tokens of each sample."""
        return self.present.sum(dim=1)

    @property
    def truncated(self) -> Bool[Tensor, "B"]:
        """True <--> the classifier wanted more of the sample than a limit allowed."""
        return self.depth_limited | self.token_limited

    def rows(self, index: Tensor) -> Generated:
        """The samples that ``index`` selects, in the same slots."""
        return Generated(*(getattr(self, field.name)[index] for field in fields(self)))

    def in_slots(self, slots: int) -> Generated:
        """The same in so many slots: empty ones are added or cut off at the end."""
        more = slots - self.present.shape[1]
        return replace(
            self,
            tokens=pad(self.tokens, (0, 0, 0, more)),
            present=pad(self.present, (0, more)),
            merges=pad(self.merges, (0, 0, 0, more), value=NONE),
        )

    def with_rows(self, index: Int64[Tensor, "K"], others: Generated) -> Generated:
        """The same with ``others`` in the places that ``index`` names."""
        slots = max(self.present.shape[1], others.present.shape[1])
        here, there = self.in_slots(slots), others.in_slots(slots)
        return Generated(
            *(
                getattr(here, field.name).index_copy(0, index, getattr(there, field.name))
                for field in fields(self)
            )
        )

    def tree(self, row: int) -> MergeTree:
        """The tree of one sample."""
        return MergeTree(self.merges[row].cpu().numpy(), int(self.present[row].sum()))


class _Layer(NamedTuple):
    """All nodes of one depth; those of a sample are neighbours, from left to right."""

    sample: Int64[Tensor, "K"]
    internal: Bool[Tensor, "K"]
    """True <--> the node's two children are neighbours in the next layer."""


@torch.no_grad()
def generate(
    autoencoder: HTMAutoencoder,
    roots: Float[Tensor, "B D"],
    *,
    threshold: float = 0.5,
    max_depth: int = MAX_DEPTH,
    max_tokens: int = MAX_TOKENS,
) -> Generated:
    """Unmerge whatever the classifier calls internal, keep whatever it calls a leaf, unlift.

    A node is a leaf where its probability of being one is at least ``threshold``. Works level by
    level over the whole batch, so in as many network calls as the highest tree has levels. Nothing
    is deeper than ``max_depth`` merges below its root, and no sample has more than ``max_tokens``
    tokens: where not all nodes of a level can be unmerged, those on the left are. The samples that
    a limit changed are marked.

    Raises ``ValueError`` without roots, for roots of another dimension or that are not finite, and
    for a threshold or limit that makes no sense.
    """
    _check(autoencoder, roots, threshold, max_depth, max_tokens)
    batch = len(roots)
    state, sample = roots, torch.arange(batch, device=roots.device)
    num_tokens = torch.ones_like(sample)
    depth_limited = torch.zeros_like(sample, dtype=torch.bool)
    token_limited = depth_limited.clone()
    layers: list[_Layer] = []
    leaves: list[Tensor] = []
    while len(sample):
        wanted = autoencoder.classifier(state).squeeze(1).sigmoid() < threshold  # (K,)
        if len(layers) == max_depth:
            depth_limited[sample[wanted]] = True
            internal = torch.zeros_like(wanted)
        else:
            room = max_tokens - num_tokens  # each unmerging adds one
            internal = wanted & (_rank(wanted, sample, batch) < room[sample])
            token_limited[sample[wanted & ~internal]] = True
        num_tokens = num_tokens + torch.bincount(sample[internal], minlength=batch)
        layers.append(_Layer(sample, internal))
        leaves.append(state[~internal])
        state = autoencoder.unmerge(state[internal])
        sample = sample[internal].repeat_interleave(2)

    rows, slots, merges = _number(layers, num_tokens)
    values = autoencoder.to_tokens(autoencoder.unlifter(torch.cat(leaves)))
    present = torch.arange(int(num_tokens.max()), device=roots.device) < num_tokens[:, None]
    tokens = roots.new_zeros(*present.shape, autoencoder.token_dim)
    tokens = tokens.index_put((rows, slots), values)
    return Generated(tokens, present, merges, depth_limited, token_limited)


@torch.no_grad()
def refine(
    autoencoder: HTMAutoencoder,
    generated: Generated,
    rounds: int,
    *,
    enough: float = 0.0,
    threshold: float = 0.5,
    max_depth: int = MAX_DEPTH,
    max_tokens: int = MAX_TOKENS,
) -> Generated:
    """Encode what was generated along its own trees, and decode it again, at most ``rounds`` times.

    A mixture covers the curved surface that roots lie on with flat pieces, so that what it draws
    lies beside the surface. An autoencoder pulls what is near its training samples towards them,
    and each round brings the samples nearer (the walk of Bengio et al. 2013, "Generalized denoising
    auto-encoders as generative models", without its noise). A round also adds what an autoencoder
    does to any sample, so it is left out where it would change the sample by an ``nmse`` of at most
    ``enough``: with that of real samples, there is nothing left to gain. No data is looked at.

    Raises ``ValueError`` for a negative number of rounds or a negative ``enough``, and as
    :func:`generate` does.
    """
    at_least(0, rounds=rounds, enough=enough)
    left = torch.arange(len(generated.tokens), device=generated.tokens.device)
    for _ in range(rounds):
        if not len(left):
            break
        before = generated.rows(left)
        roots = autoencoder.encode(before.tokens, before.present, before.merges).roots
        after = generate(
            autoencoder, roots, threshold=threshold, max_depth=max_depth, max_tokens=max_tokens
        )
        # Once cut, always marked: the sample is not what its root asked for.
        after = replace(
            after,
            depth_limited=after.depth_limited | before.depth_limited,
            token_limited=after.token_limited | before.token_limited,
        )
        moved = _change(autoencoder, before, after) > enough
        left = left[moved]
        generated = generated.with_rows(left, after.rows(moved))
    return generated.in_slots(int(generated.num_tokens.max()))


def _change(autoencoder: HTMAutoencoder, before: Generated, after: Generated) -> Float[Tensor, "B"]:
    """The ``nmse`` between the two; infinite where they have different numbers of tokens."""
    slots = max(before.present.shape[1], after.present.shape[1])
    before, after = before.in_slots(slots), after.in_slots(slots)
    error = nmse_per_sample(after.tokens, before.tokens, before.present, autoencoder.token_std)
    return error.masked_fill(before.num_tokens != after.num_tokens, torch.inf)


def interpolate(
    autoencoder: HTMAutoencoder,
    first: Float[Tensor, "D"],
    second: Float[Tensor, "D"],
    steps: int,
    *,
    threshold: float = 0.5,
    max_depth: int = MAX_DEPTH,
    max_tokens: int = MAX_TOKENS,
) -> Generated:
    """Decode ``steps`` roots on the way from one root to another, both ends included.

    The way is straight. Spherical interpolation (White 2016, "Sampling generative networks") keeps
    the norm that a standard normal prior concentrates on; these roots have no such prior: their
    origin and norm mean nothing.

    Raises ``ValueError`` for fewer than two steps, and as :func:`generate` does.
    """
    at_least(2, steps=steps)  # the two ends
    share = torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype)[:, None]
    roots = (1 - share) * first + share * second  # exact at both ends
    return generate(
        autoencoder, roots, threshold=threshold, max_depth=max_depth, max_tokens=max_tokens
    )


def _rank(chosen: Bool[Tensor, "K"], sample: Int64[Tensor, "K"], batch: int) -> Int64[Tensor, "K"]:
    """The number of chosen nodes of the same sample to the left of each; ``sample`` is sorted."""
    per_sample = torch.bincount(sample[chosen], minlength=batch)
    earlier_samples = per_sample.cumsum(0) - per_sample
    return chosen.cumsum(0) - chosen.long() - earlier_samples[sample]


def _number(
    layers: list[_Layer], num_tokens: Int64[Tensor, "B"]
) -> tuple[Int64[Tensor, "L"], Int64[Tensor, "L"], Int64[Tensor, "B M 2"]]:
    """The sample and slot of every leaf, layer by layer, and the merges.

    Leaves are numbered from left to right; merges from the deepest layer up, each layer from left
    to right, so that children come before their parents.
    """
    sizes: list[Tensor] = []  # by depth: the leaves under every node
    for layer in reversed(layers):
        size = torch.ones_like(layer.sample)
        if sizes:
            size[layer.internal] = sizes[0].view(-1, 2).sum(1)
        sizes.insert(0, size)
    slots = [torch.zeros_like(num_tokens)]  # by depth: the first leaf under every node
    for layer, below in zip(layers[:-1], sizes[1:], strict=True):
        first = slots[-1][layer.internal]
        slots.append(torch.stack([first, first + below[0::2]], dim=1).flatten())

    merges = num_tokens.new_full((len(num_tokens), int(num_tokens.max()) - 1, 2), NONE)
    made = torch.zeros_like(num_tokens)  # merges below this layer
    nodes = num_tokens[:0]  # of the layer below
    for layer, slot in zip(reversed(layers), reversed(slots), strict=True):
        step = made[layer.sample] + _rank(layer.internal, layer.sample, len(num_tokens))
        inner = layer.internal
        merges[layer.sample[inner], step[inner]] = nodes.view(-1, 2)
        nodes = torch.where(inner, num_tokens[layer.sample] + step, slot)
        made = made + torch.bincount(layer.sample[inner], minlength=len(num_tokens))
    rows = torch.cat([layer.sample[~layer.internal] for layer in layers])
    leaves = [slot[~layer.internal] for layer, slot in zip(layers, slots, strict=True)]
    return rows, torch.cat(leaves), merges


def _check(
    autoencoder: HTMAutoencoder, roots: Tensor, threshold: float, max_depth: int, max_tokens: int
) -> None:
    if len(roots) == 0 or roots.shape[1] != autoencoder.embedding_dim:
        raise ValueError(
            f"roots have shape {tuple(roots.shape)}; expected at least one, of "
            f"{autoencoder.embedding_dim} numbers each"
        )
    check_finite(roots)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability")
    at_least(0, max_depth=max_depth)
    at_least(1, max_tokens=max_tokens)

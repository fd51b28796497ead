"""Bits that a sample costs under an autoencoder: tree, root, and what is left of its tokens.

A two-part code (Rissanen 1978, "Modeling by shortest data description"). Sent are the root, the
tree, and what the tokens differ from those that the root decodes to along the tree, all as numbers
of finite precision under probabilities that sender and receiver have from the training split. The
tokens are known to a stated precision afterwards, whatever the trees: what differs is the price.
Bits that the freedom of choosing one of many trees could carry (bits back) are not subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from htm_env.autoencoder import HTMAutoencoder
from htm_env.checks import check_finite
from htm_env.forest import forest_levels
from htm_env.types import TokenBatch

PRECISION = 0.05
"""Step of the tokens' numbers, in standard deviations: an ``nmse`` of ``0.05 ** 2 / 12``."""
LEAST_PROBABILITY = 1e-3
"""Of what a node is, and of the value of a category; so that no error costs more than 10 bits."""
AT_ONCE = 256
"""Samples that are decoded together."""
DISTURBED = 128
"""Samples on which the influence of the root's numbers on the tokens is measured, at most."""
MOST_CHANGES = 2**25
"""And numbers of their tokens, times those of a root."""
DISTURBANCE = 0.1
"""Change of a root for that, in standard deviations."""
SMALLEST_SHARE = 1e-9
"""Of the largest variance of roots; directions with less are constant."""
LEAST_SPREAD = 1 / 8
"""Of a Laplace distribution, in steps: a number that is always right costs 0.03 bits."""
STEPS = tuple(2.0**power for power in range(-3, 10))
"""Steps of the root's numbers that are tried: what one of them changes the tokens by together, in
steps of the tokens."""

Decode = Callable[[Float[Tensor, "B D"]], Float[Tensor, "B F"]]
"""From roots to the numbers of all tokens of each sample, in steps."""


class Bits(NamedTuple):
    """Bits of every sample."""

    tree: Float64[Tensor, "B"]
    """What every decoded node is, leaf or inner node, by the leaf classifier."""
    root: Float64[Tensor, "B"]
    residual: Float64[Tensor, "B"]
    """Of the tokens: their numbers to the stated precision, and their categories."""

    @property
    def total(self) -> Float64[Tensor, "B"]:
        """All that is sent."""
        return self.tree + self.root + self.residual


@dataclass(frozen=True)
class RootCode:
    """Roots as whole numbers, each the more precise the more the tokens depend on it.

    A root minus the mean is written in directions in which roots do not correlate and have variance
    1, and errors of the decoded tokens add up. With steps that disturb the tokens alike no bit is
    better spent on another number (reverse water-filling, Cover and Thomas 2006, section 10.3).
    Probabilities are those of a standard normal distribution.
    """

    mean: Float64[Tensor, "D"]
    into: Float64[Tensor, "D K"]
    """From roots to ``K`` numbers."""
    back: Float64[Tensor, "K D"]
    steps: Float64[Tensor, "K"]

    @classmethod
    def fit(
        cls, roots: Float[Tensor, "S D"], decode: Decode, disturbed: int = DISTURBED
    ) -> RootCode:
        """The code each of whose steps changes the tokens by 1 together; see :meth:`coarser`.

        ``decode`` gets the first ``disturbed`` roots, or as many as there are, each time changed a
        little. Raises ``ValueError`` for a single root, and for roots that are not finite.
        """
        if len(roots) < 2:
            raise ValueError("one root has no variance; expected at least 2 roots")
        check_finite(roots)
        values = roots.detach().double().cpu()
        mean = values.mean(dim=0)
        variances, axes = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        varies = variances > max(SMALLEST_SHARE * float(variances[-1]), torch.finfo().tiny)
        deviations, axes = variances[varies].sqrt(), axes[:, varies]
        into, back = axes / deviations, deviations[:, None] * axes.T
        influence = _influence(roots[:disturbed], back, decode)
        squares, turn = torch.linalg.eigh(influence)
        steps = squares.clamp(min=torch.finfo().tiny).rsqrt()
        return cls(mean, into @ turn, turn.T @ back, steps)

    def coarser(self, factor: float) -> RootCode:
        """The same with steps that are ``factor`` times as large."""
        return RootCode(self.mean, self.into, self.back, self.steps * factor)

    def numbers(self, roots: Float[Tensor, "B D"]) -> Int64[Tensor, "B K"]:
        """What is sent."""
        values = (roots.detach().double().cpu() - self.mean) @ self.into
        return (values / self.steps).round().long()

    def roots(self, numbers: Int64[Tensor, "B K"]) -> Float64[Tensor, "B D"]:
        """What is received."""
        return self.mean + (numbers * self.steps) @ self.back

    def bits(self, numbers: Int64[Tensor, "B K"]) -> Float64[Tensor, "B"]:
        """Bits of every root."""
        size = numbers.abs()
        below, above = (size - 0.5) * self.steps, (size + 0.5) * self.steps
        mass = torch.special.ndtr(-below) - torch.special.ndtr(-above)
        bits: Tensor = -mass.clamp(min=torch.finfo(mass.dtype).tiny).log2().sum(dim=1)
        return bits


def _influence(
    roots: Float[Tensor, "S D"], directions: Float64[Tensor, "K D"], decode: Decode
) -> Float64[Tensor, "K K"]:
    """Products of what the tokens' numbers change by along two directions, a mean over samples."""
    unchanged = decode(roots)
    changes = [
        (decode(roots + DISTURBANCE * direction.to(roots)) - unchanged).double().cpu() / DISTURBANCE
        for direction in directions
    ]
    found = torch.stack(changes) if changes else torch.zeros(0, *unchanged.shape).double()
    return torch.einsum("ibf,jbf->ij", found, found) / len(unchanged)


def tree_bits(
    autoencoder: HTMAutoencoder,
    roots: Float[Tensor, "B D"],
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
) -> Float64[Tensor, "B"]:
    """Bits of the trees for a receiver that has the roots.

    From the root down the classifier gives a probability of being a leaf to every node, and
    ``-log2`` of that of what the node is are its bits. Nothing says which token is where: a set has
    no order. A sample of one token has one node, which is a leaf.
    """
    return _decoded(autoencoder, roots, batch, merges)[0]


@torch.no_grad()
def _decoded(
    autoencoder: HTMAutoencoder,
    roots: Float[Tensor, "B D"],
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
) -> tuple[Float64[Tensor, "B"], Float[Tensor, "B P T"]]:
    """Bits of every tree, and the tokens, in the data's own units; both on the processor."""
    trees, tokens = [], []
    parts = zip(roots.split(AT_ONCE), batch.parts(AT_ONCE), merges.split(AT_ONCE), strict=True)
    for root, part, tree in parts:
        size, slots = part.present.shape
        levels = forest_levels(tree, part.num_tokens)
        states = autoencoder.decode_levels(root, levels)
        nodes = torch.cat([level.nodes for level in levels])
        sample, node = nodes // (2 * slots - 1), nodes % (2 * slots - 1)
        logits = autoencoder.classifier(torch.cat(states)).squeeze(1)
        right = torch.where(node < part.num_tokens[sample], logits, -logits).double().sigmoid()
        bits = -right.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY).log2()
        trees.append(bits.new_zeros(size).index_add(0, sample, bits).cpu())
        ids, decoded = autoencoder.unlift_leaves(states, levels)
        values = decoded.new_zeros(size, slots, autoencoder.token_dim)
        place = ids // (2 * slots - 1), ids % (2 * slots - 1)
        tokens.append(values.index_put(place, autoencoder.to_tokens(decoded)).cpu())
    return torch.cat(trees), torch.cat(tokens)


@torch.no_grad()
def _roots(
    autoencoder: HTMAutoencoder, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
) -> Float[Tensor, "B D"]:
    parts = zip(batch.parts(AT_ONCE), merges.split(AT_ONCE), strict=True)
    encode = autoencoder.encode
    return torch.cat([encode(part.tokens, part.present, tree).roots for part, tree in parts])


def laplace_bits(
    steps: Int64[Tensor, "*rows T"], spread: Float64[Tensor, "T"]
) -> Float64[Tensor, "*rows T"]:
    """Bits of whole numbers of steps under a Laplace distribution around 0.

    ``spread`` is the mean absolute value of the distribution in steps.
    """
    size = steps.abs().double()
    zero = -torch.expm1(-0.5 / spread)
    other = (size - 0.5) / spread / math.log(2) + 1 - (-torch.expm1(-1 / spread)).log2()
    return torch.where(size == 0, -zero.log2(), other)


class _Sent(NamedTuple):
    """Roots as they are sent, and what they are decoded to."""

    numbers: Int64[Tensor, "B K"]
    trees: Float64[Tensor, "B"]
    """Bits of every tree."""
    tokens: Float[Tensor, "B P T"]
    """In the data's own units."""


@dataclass(frozen=True)
class DescriptionCode:
    """What sender and receiver have: the autoencoder, and probabilities of the training split."""

    autoencoder: HTMAutoencoder
    root: RootCode
    spread: Float64[Tensor, "numbers"]
    """Mean absolute difference of each number of a token, in steps; categories left out."""
    step: Float64[Tensor, "numbers"]
    """Step of each number of a token, in the data's own units."""

    @classmethod
    def fit(
        cls,
        autoencoder: HTMAutoencoder,
        batch: TokenBatch,
        merges: Int64[Tensor, "B M 2"],
        std: Float[Tensor, "T"],
        precision: float = PRECISION,
    ) -> DescriptionCode:
        """The code of the fewest bits on these training samples and their trees.

        ``std`` is the unit of each number of a token (:attr:`htm_env.datasets.Dataset.std`), and
        ``precision`` the step of the numbers in these units.

        Raises ``ValueError`` for a single sample, trees that have several roots, and a precision
        that is not above 0.
        """
        if not 0 < precision < math.inf:
            raise ValueError(f"precision is {precision}; expected a number above 0")
        roots = _roots(autoencoder, batch, merges)
        of_all = roots.shape[1] * batch.tokens[0].numel()
        disturbed = max(1, min(DISTURBED, MOST_CHANGES // of_all))
        some, trees = next(batch.parts(disturbed)), merges[:disturbed]
        numbers = autoencoder.token_dim - sum(autoencoder.categories)
        step = precision * std[:numbers].double().cpu()

        def decode(changed: Tensor) -> Tensor:
            tokens = _decoded(autoencoder, changed, some, trees)[1][..., :numbers]
            present: Tensor = tokens / step * some.present[..., None].cpu()
            return present.flatten(1)

        finest = RootCode.fit(roots, decode, disturbed)
        best, fewest = None, math.inf
        for factor in STEPS:
            code = cls(autoencoder, finest.coarser(factor), torch.ones_like(step), step)
            sent = code._sent(roots, batch, merges)
            steps = code._steps(batch, sent.tokens)[batch.present.cpu()].double()
            code = replace(code, spread=steps.abs().mean(dim=0).clamp(min=LEAST_SPREAD))
            total = float(code._bits(sent, batch).total.mean())
            if best is None or total < fewest:
                best, fewest = code, total
        assert best is not None
        return best

    def bits(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Bits:
        """Bits of every sample, on the processor.

        Raises ``ValueError`` for trees that have several roots.
        """
        return self._bits(self._sent(_roots(self.autoencoder, batch, merges), batch, merges), batch)

    def _sent(
        self, roots: Float[Tensor, "B D"], batch: TokenBatch, merges: Int64[Tensor, "B M 2"]
    ) -> _Sent:
        numbers = self.root.numbers(roots)
        received = self.root.roots(numbers).to(roots)
        return _Sent(numbers, *_decoded(self.autoencoder, received, batch, merges))

    def _bits(self, sent: _Sent, batch: TokenBatch) -> Bits:
        each = laplace_bits(self._steps(batch, sent.tokens), self.spread).sum(dim=2)
        each = each + self._category_bits(batch, sent.tokens)
        residual = (each * batch.present.cpu()).sum(dim=1)
        return Bits(sent.trees, self.root.bits(sent.numbers), residual)

    def _steps(
        self, batch: TokenBatch, decoded: Float[Tensor, "B P T"]
    ) -> Int64[Tensor, "B P numbers"]:
        """What the tokens' numbers differ from the decoded ones by."""
        differences = (batch.tokens.cpu() - decoded)[..., : len(self.step)].double()
        return (differences / self.step).round().long()

    def _category_bits(
        self, batch: TokenBatch, decoded: Float[Tensor, "B P T"]
    ) -> Float64[Tensor, "B P"]:
        """Cross-entropy of the decoded categories, whose coordinates are probabilities."""
        right = (decoded * batch.tokens.cpu())[..., len(self.step) :].double()
        bits = right.new_zeros(right.shape[:2])
        categories = list(self.autoencoder.categories)
        for each in right.split(categories, dim=-1) if categories else ():
            bits -= each.sum(dim=-1).clamp(min=LEAST_PROBABILITY).log2()
        return bits

"""Views of samples: other samples that say the same, of which parts may be hidden, and the losses
that an autoencoder has on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from htm_env.autoencoder import Hidden, HTMAutoencoder, seeded_initialisation
from htm_env.checks import whole_number
from htm_env.datasets.kinds import place_columns
from htm_env.forest import Level, active_nodes, children_table, descend
from htm_env.losses import (
    BeginMean,
    Counts,
    covariance_loss,
    invariance_loss,
    reconstruction_loss,
    variance_loss,
)
from htm_env.types import TokenBatch

WIDEST_PROJECTOR = 8192


@dataclass(frozen=True)
class ViewConfig:
    """Losses on views of every sample, and how a view differs from it; no views by default.

    Views are encoded along the trees of their samples. A node that is hidden enters its merge as a
    learned vector. Masking removes what reconstruction pays most for and meaning has no use for;
    additive noise does not (Balestriero and LeCun 2024, "Learning by Reconstruction Produces
    Uninformative Features For Perception", arXiv 2402.11337).
    """

    masked: float = 0.0
    """Weight of the reconstruction of all tokens of a view, the hidden ones too, from its root (He
    et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"; Zhang et al. 2022,
    "Point-M2AE", on several scales)."""
    variance: float = 0.0
    """Weight of the variance of roots over a batch. This and the next two agree on two views of
    every sample (VICReg, Bardes et al. 2022, whose weights are 25, 25 and 1)."""
    invariance: float = 0.0
    """Weight of the squared distance between the roots of both views."""
    covariance: float = 0.0
    """Weight of the covariances between the numbers of a root."""
    projector: int = 0
    """Width of two layers through which roots are compared; 0 compares the roots themselves."""
    inner: bool = False
    """The inner nodes below the roots agree too, each with the same node of the other view."""
    hidden_nodes: float = 0.0
    """Probability that an inner node below the roots is hidden, with all that is under it."""
    hidden_tokens: float = 0.0
    """Probability that a token is hidden."""
    translation: float = 0.0
    """Largest shift, in standard deviations of the coordinates."""
    scale: float = 0.0
    """Largest factor, less one, by which each axis grows or shrinks."""
    shear: float = 0.0
    """Largest shift of one axis for each unit of the other."""
    rotation: float = 0.0
    """Largest angle, in degrees."""
    jitter: float = 0.0
    """Standard deviation of Gaussian noise on the numbers of a token, in theirs."""

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a number that is out of range."""
        whole_number("projector", self.projector, 0, WIDEST_PROJECTOR)
        most = {"hidden_nodes": 1.0, "hidden_tokens": 1.0, "rotation": 180.0}
        numbers = {name: value for name, value in vars(self).items() if name != "inner"}
        for name, value in numbers.items():
            limit = most.get(name, math.inf)
            if not 0 <= value <= limit or value == math.inf:
                words = "0 or more" if limit == math.inf else f"0 to {limit:g}"
                raise ValueError(f"{name} of views is {value}; expected {words}")

    @property
    def agree(self) -> bool:
        """True <--> two views of every sample are compared."""
        return bool(self.variance or self.invariance or self.covariance)

    @property
    def on(self) -> bool:
        """True <--> there are views."""
        return bool(self.masked) or self.agree

    @property
    def hides(self) -> bool:
        """True <--> nodes or tokens may be hidden."""
        return bool(self.hidden_nodes or self.hidden_tokens)

    @property
    def moves(self) -> bool:
        """True <--> the places of tokens change."""
        return bool(self.translation or self.scale or self.shear or self.rotation)


class ViewNetworks(nn.Module):
    """What is learned for views and needed nowhere else: the vector of hidden nodes, zeros at
    first, and the projector.

    Args:
        embedding_dim: ``D``.
        config: the views.
        generator: draws the projector's initial weights; torch's global generator if None.
    """

    def __init__(
        self, embedding_dim: int, config: ViewConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.hidden = nn.Parameter(torch.zeros(embedding_dim)) if config.hides else None
        self.projector: nn.Module = nn.Identity()
        if config.projector and config.agree:
            with seeded_initialisation(generator):
                self.projector = nn.Sequential(
                    nn.Linear(embedding_dim, config.projector),
                    nn.SiLU(),
                    nn.Linear(config.projector, config.projector),
                )


# ---------------------------------------------------------------- views


def moved(
    kind: str,
    tokens: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    std: Float[Tensor, "T"],
    config: ViewConfig,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B P T"]:
    """Each sample under an affine map of its own, in the data's units.

    A map leaves the centre of the sample's points where it is, but for the shift. Points of space
    turn and shear in the plane of their first two axes. Patches whose places are whole numbers are
    an image, which is sampled again under the map; other patches move as they are.

    Raises ``ValueError`` for a kind of token that has no place.
    """
    count, width = place_columns(kind, tokens.shape[-1])
    unit = std[:count].square().mean().sqrt()
    maps, shifts = affine_maps(len(tokens), width, config, tokens, generator)
    shifts = shifts * unit
    if kind == "patches":
        corners = tokens[present][:, :2]
        if len(corners) and (corners == corners.round()).all() and (corners >= 0).all():
            return _sampled_again(tokens, present, maps, shifts)
    points = tokens[..., :count].unflatten(-1, (-1, width))  # (B, P, K, width)
    there = present[:, :, None, None].to(tokens.dtype)
    total = (there.sum(dim=(1, 2), keepdim=True) * points.shape[2]).clamp(min=1)
    centre = (points * there).sum(dim=(1, 2), keepdim=True) / total  # (B, 1, 1, width)
    points = (points - centre) @ maps.transpose(1, 2)[:, None] + centre + shifts[:, None, None]
    changed = torch.cat([points.flatten(-2), tokens[..., count:]], dim=-1)
    return torch.where(present[..., None], changed, tokens)


def affine_maps(
    batch: int,
    width: int,
    config: ViewConfig,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "B W W"], Float[Tensor, "B W"]]:
    """Matrices (rotation times shear times scale) and shifts, drawn evenly within the bounds."""

    def draw(*shape: int) -> Tensor:
        return 2 * torch.rand(*shape, generator=generator, device=like.device) - 1

    factors = torch.exp(draw(batch, width) * math.log1p(config.scale))
    slant = draw(batch) * config.shear
    angle = draw(batch) * math.radians(config.rotation)
    shifts = draw(batch, width) * config.translation
    maps = torch.diag_embed(factors).to(like.dtype)
    if width > 1:
        turn = torch.eye(width, device=like.device).repeat(batch, 1, 1)
        turn[:, 0, 0], turn[:, 0, 1] = angle.cos(), -angle.sin()
        turn[:, 1, 0], turn[:, 1, 1] = angle.sin(), angle.cos()
        sheared = torch.eye(width, device=like.device).repeat(batch, 1, 1)
        sheared[:, 0, 1] = slant
        maps = turn.to(like.dtype) @ sheared.to(like.dtype) @ maps
    return maps, shifts.to(like.dtype)


def _sampled_again(
    tokens: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    maps: Float[Tensor, "B 2 2"],
    shifts: Float[Tensor, "B 2"],
) -> Float[Tensor, "B P T"]:
    """Patches at the same places, cut out of the image that is mapped; dark where nothing was."""
    side = math.isqrt(tokens.shape[-1] - 2)
    rows, slots = present.nonzero(as_tuple=True)
    x, y = tokens[rows, slots, :2].long().unbind(1)
    across, up = int(x.max()) + 1, int(y.max()) + 1
    blocks = tokens.new_zeros(len(tokens), up, across, side, side)
    blocks[rows, y, x] = tokens[rows, slots, 2:].unflatten(1, (side, side))
    images = blocks.permute(0, 1, 3, 2, 4).reshape(len(tokens), 1, up * side, across * side)
    # A pixel of the new image is looked up where the inverse map takes it. The library measures
    # from -1 to 1 along each axis, the map in patches.
    half = tokens.new_tensor([across / 2, up / 2])
    inverse = torch.linalg.inv(maps)
    turned = inverse * half / half[:, None]
    back = -(inverse @ shifts[:, :, None]) / half[:, None]
    grid = nn.functional.affine_grid(
        torch.cat([turned, back], dim=2), list(images.shape), align_corners=False
    )
    images = nn.functional.grid_sample(images, grid, align_corners=False)
    blocks = images.view(len(tokens), up, side, across, side).permute(0, 1, 3, 2, 4)
    changed = tokens.clone()
    changed[rows, slots, 2:] = blocks[rows, y, x].flatten(1)
    return changed


def jittered(
    tokens: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    numbers: int,
    share: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B P T"]:
    """Standardised tokens with Gaussian noise of this size on their first ``numbers``."""
    noise = torch.empty_like(tokens[..., :numbers]).normal_(generator=generator)
    changed = tokens.clone()
    changed[..., :numbers] += share * noise * present[..., None]
    return changed


def hidden_nodes(
    merges: Int64[Tensor, "B M 2"],
    num_tokens: Int64[Tensor, "B"],
    config: ViewConfig,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B N"]:
    """True <--> the node is hidden where it is merged; never a root."""
    num_nodes = 2 * merges.shape[1] + 1
    nodes = torch.arange(num_nodes, device=merges.device)
    leaf = nodes < num_tokens[:, None]
    below = nodes < (num_tokens + (merges[..., 0] >= 0).sum(1))[:, None]
    below = below & ~active_nodes(merges, num_tokens)
    draw = torch.rand(len(merges), num_nodes, generator=generator, device=merges.device)
    limit = torch.full_like(draw, config.hidden_nodes).masked_fill(leaf, config.hidden_tokens)
    return (draw < limit) & below


# ---------------------------------------------------------------- losses


def _seen_twice(
    states: Float[Tensor, "K D"], level: Level, hidden: Hidden | None
) -> tuple[Float[Tensor, "I D"], Float[Tensor, "I D"]]:
    """The states of the inner nodes of a level in two views, where neither hides the node.

    A level has the nodes of one view and then, in the same order, those of the other.
    """
    one, other = states[level.internal].chunk(2)
    if hidden is None:
        return one, other
    first, second = hidden.nodes[level.nodes[level.internal]].chunk(2)
    shown = ~(first | second)
    return one[shown], other[shown]


def view_losses(
    autoencoder: HTMAutoencoder,
    networks: ViewNetworks,
    batch: TokenBatch,
    merges: Int64[Tensor, "B M 2"],
    config: ViewConfig,
    kind: str = "vectors",
    *,
    generator: torch.Generator | None = None,
    begin_mean: BeginMean | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The losses on views that have a weight, by name, and their weighted sum as ``total``.

    The masked reconstruction is that of one view. Of several trees, or of the trees of a partial
    forest, every root counts for itself; variances and covariances are those over the roots (and
    inner nodes) of one process.

    Args:
        autoencoder: encodes and decodes the views.
        networks: the learned vector and the projector.
        batch, merges: samples, and whole trees or partial forests of them.
        config: the weights, and how views differ from samples.
        kind: of the tokens, which says which coordinates are places.
        generator: draws the views.
        begin_mean: see :func:`htm_env.losses.autoencoder_losses`.

    Raises ``ValueError`` where places are to change and the tokens have none.
    """
    views = 2 if config.agree else 1
    tokens, present = batch.tokens.repeat(views, 1, 1), batch.present.repeat(views, 1)
    merges, num_tokens = merges.repeat(views, 1, 1), present.sum(1)
    if config.moves:
        tokens = moved(kind, tokens, present, autoencoder.token_std, config, generator)
    clean = autoencoder.standardise(tokens)
    seen = clean
    if config.jitter:
        numbers = autoencoder.token_dim - sum(autoencoder.categories)
        seen = jittered(clean, present, numbers, config.jitter, generator)
    hidden = None
    if networks.hidden is not None:
        which = hidden_nodes(merges, num_tokens, config, generator)
        hidden = Hidden(which.flatten(), networks.hidden)

    children = children_table(merges, num_tokens)
    starts = active_nodes(merges, num_tokens).flatten().nonzero().squeeze(1)
    levels = descend(children, starts)
    states = autoencoder.encode_levels(seen, present, levels, hidden=hidden)
    roots, own = states[0], len(starts) // views  # (views R, D)
    compared = [roots.chunk(views)]
    if config.agree and config.inner:
        compared += [
            _seen_twice(state, level, hidden)
            for state, level in zip(states[1:], levels[1:], strict=True)
        ]
    counts = Counts({"samples": len(batch.present), "roots": own}, begin_mean, roots)
    losses: dict[str, Float[Tensor, ""]] = {}
    if config.masked:
        size, num_nodes = len(batch.present), children.shape[1]
        walk = descend(children, starts[:own])
        decoded = autoencoder.decode_levels(roots[:own], walk)
        leaves, predicted = autoencoder.unlift_leaves(decoded, walk)
        sample, slot = leaves // num_nodes, leaves % num_nodes
        share = 1 / (num_tokens * size).to(clean.dtype)
        losses |= counts.weighted(
            "masked",
            "samples",
            lambda: reconstruction_loss(
                autoencoder, predicted.to(clean.dtype), clean[sample, slot], share[sample]
            ),
        )
    if config.agree:
        one, other = (
            networks.projector(torch.cat(view)).to(clean.dtype)
            for view in zip(*compared, strict=True)
        )
        terms: dict[str, Callable[[], Tensor]] = {
            "variance": lambda: (variance_loss(one) + variance_loss(other)) / 2,
            "invariance": lambda: invariance_loss(one, other),
            "covariance": lambda: covariance_loss(one) + covariance_loss(other),
        }
        for name, loss in terms.items():
            if getattr(config, name):
                losses |= counts.weighted(name, "roots", loss)
    losses["total"] = torch.stack(
        [getattr(config, name) * loss for name, loss in losses.items()]
    ).sum()
    return losses

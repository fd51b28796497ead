"""Embeddings of a pose and of a content in its own frame, and the networks that keep them apart.

A pose is a centre, ``W`` numbers, and the logarithm of a size; an embedding is a pose and then
content. A part that lies elsewhere, or is larger, has another pose and the same content (Hinton,
Krizhevsky and Wang 2011, "Transforming Auto-encoders"; the pose of a whole follows from those of
its parts, and content sees no pose but relative ones).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_SIZE = 0.05
"""Size of a point, in standard deviations of the places."""
LARGEST_PART = 0.5
"""Logarithm of the most that a part is larger than the whole; that of half of the root of 2 is."""


def split_pose(
    embeddings: Float[Tensor, "*rows D"], width: int
) -> tuple[Float[Tensor, "*rows W"], Float[Tensor, "*rows 1"], Float[Tensor, "*rows C"]]:
    """Centre, logarithm of the size, and content."""
    return embeddings[..., :width], embeddings[..., width : width + 1], embeddings[..., width + 1 :]


class PosedLifter(nn.Module):
    """From a standardised token to pose and content.

    Args:
        network: from all coordinates, places in the token's own frame, to content.
        places: leading coordinates that are places, and how many a single place has.
    """

    def __init__(self, network: nn.Module, places: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.count, self.width = places

    def forward(self, tokens: Tensor) -> Tensor:
        points = tokens[..., : self.count].unflatten(-1, (-1, self.width))
        centre = points.mean(dim=-2)
        off = points - centre[..., None, :]
        size = (off.square().mean(dim=(-2, -1)) + SMALLEST_SIZE**2).log()[..., None] / 2
        own = (off / size.exp()[..., None]).flatten(-2)
        content = self.network(torch.cat([own, tokens[..., self.count :]], dim=-1))
        return torch.cat([centre, size, content], dim=-1)


class PosedUnlifter(nn.Module):
    """From pose and content to a standardised token.

    Args:
        network: from content to all coordinates, places in the token's own frame.
        places: leading coordinates that are places, and how many a single place has.
    """

    def __init__(self, network: nn.Module, places: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.count, self.width = places

    def forward(self, embeddings: Tensor) -> Tensor:
        centre, size, content = split_pose(embeddings, self.width)
        decoded = self.network(content)
        own = decoded[..., : self.count].unflatten(-1, (-1, self.width))
        points = centre[..., None, :] + size.exp()[..., None] * own
        return torch.cat([points.flatten(-2), decoded[..., self.count :]], dim=-1)


class PosedMerger(nn.Module):
    """From the embeddings of two parts to that of the whole.

    The centre of the whole is between those of the parts, its squared size the mean of theirs and
    of the squared distance to its centre.

    Args:
        network: from the parts' relative poses (half their distance in units of the whole, and
            their sizes in it) and contents to the whole's content.
        width: numbers of a place.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, pairs: Tensor) -> Tensor:
        first, second = pairs.chunk(2, dim=-1)
        one, one_size, one_content = split_pose(first, self.width)
        other, other_size, other_content = split_pose(second, self.width)
        centre, half = (one + other) / 2, (one - other) / 2
        squares = ((2 * one_size).exp() + (2 * other_size).exp()) / 2
        size = (squares + half.square().mean(dim=-1, keepdim=True)).log() / 2
        relative = [half / size.exp(), one_size - size, other_size - size]
        content = self.network(torch.cat([*relative, one_content, other_content], dim=-1))
        return torch.cat([centre, size, content], dim=-1)


class PosedUnmerger(nn.Module):
    """From the embedding of the whole to those of two parts, whose poses it composes.

    Args:
        network: from content to the parts' relative poses and contents.
        width: numbers of a place.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, embeddings: Tensor) -> Tensor:
        centre, size, content = split_pose(embeddings, self.width)
        decoded = self.network(content)
        half = decoded[..., : self.width] * size.exp()
        sizes = decoded[..., self.width : self.width + 2]
        sizes = size + LARGEST_PART - nn.functional.softplus(-sizes)
        contents = decoded[..., self.width + 2 :].chunk(2, dim=-1)
        parts = [
            torch.cat([centre + half, sizes[..., :1], contents[0]], dim=-1),
            torch.cat([centre - half, sizes[..., 1:], contents[1]], dim=-1),
        ]
        return torch.cat(parts, dim=-1)


def common_units(
    mean: Float[Tensor, "T"], std: Float[Tensor, "T"], places: Sequence[int]
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """Statistics under which all places of a token have one mean an axis, and one unit in all, so
    that a shift or a growth in the data's units is one in standardised coordinates."""
    count, width = places
    mean, std = mean.clone(), std.clone()
    mean[:count] = mean[:count].view(-1, width).mean(dim=0).repeat(count // width)
    std[:count] = std[:count].square().mean().sqrt()
    return mean, std

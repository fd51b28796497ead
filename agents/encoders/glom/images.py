"""Images as tokens: patches in rows, one after another, and where they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def patches_of(images: Float[Tensor, "B C H W"], size: int) -> Float[Tensor, "B P N"]:
    """The patches of ``size`` x ``size`` pixels, row by row; ``N = C * size^2`` numbers each."""
    return nn.functional.unfold(images, size, stride=size).mT


def images_of(
    patches: Float[Tensor, "B P N"], size: int, rows: int, columns: int
) -> Float[Tensor, "B C H W"]:
    """The images of so many rows and columns of patches: :func:`patches_of` undone."""
    sides = (rows * size, columns * size)
    return nn.functional.fold(patches.mT, sides, size, stride=size)


def grid(rows: int, columns: int) -> Float[Tensor, "P 2"]:
    """The places ``(x, y)`` of patches, row by row, from one to the next 1; their mean is 0."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], dim=1).float()
    return places - places.mean(dim=0)

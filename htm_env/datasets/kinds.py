"""Kinds of tokens: how a token's numbers are drawn, how many numbers each kind has, where the
things are that the tokens stand for, and how far apart."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Literal, NamedTuple, cast

from jaxtyping import Float
from torch import Tensor

from htm_env.checks import check_choice

Kind = Literal["points", "segments", "strokes", "patches", "items", "particles", "vectors"]


MOST_PIXELS = 64
"""Rows and columns of a patch, at most."""


class TokenDims(NamedTuple):
    """The token dimensions that a kind has."""

    allowed: Container[int]
    words: str
    """The same in words."""


TOKEN_DIMS = {
    "points": TokenDims(range(2, 4), "2 numbers (x, y) or 3 (x, y, z)"),
    "segments": TokenDims(range(4, 5), "4 numbers (x1, y1, x2, y2)"),
    "strokes": TokenDims(range(4, 2**31, 2), "an even number of 4 or more (x1, y1, x2, y2, ...)"),
    "patches": TokenDims(
        frozenset(2 + side**2 for side in range(1, MOST_PIXELS + 1)),
        "x, y and the intensities of a square, row by row: 3, 6, 11, 18, ... numbers",
    ),
    "items": TokenDims(range(5, 6), "5 numbers"),
    "particles": TokenDims(range(4, 5), "4 numbers (E, px, py, pz)"),
    "vectors": TokenDims(range(1, 2**31), "any number"),
}
"""Of every kind by name: points of the plane or of space, segments, polylines, square grey images,
the items of ``HTM-Keys-v0``, and anything else."""


def _ends_of_pieces(tokens: Tensor) -> Tensor:
    ends: Tensor = tokens.unflatten(-1, (-1, 2))
    return ends


POLYLINES: dict[str, Callable[[Tensor], Tensor]] = {
    "points": lambda tokens: tokens[..., None, :],
    "segments": _ends_of_pieces,
    "strokes": _ends_of_pieces,
    "patches": lambda tokens: tokens[..., None, :2],
}
"""``(*rows, T) -> (*rows, K, 2 or 3)``: the points that a token's line goes through, in the data's
units, of every kind that is a thing in the plane or in space. A patch is its centre."""


def place_columns(kind: str, token_dim: int) -> tuple[int, int]:
    """How many leading coordinates of a token are places, and how many a single place has.

    Raises ``ValueError`` for a kind that is no thing in the plane or in space.
    """
    if kind not in POLYLINES:
        raise ValueError(
            f"tokens of kind {kind!r} have no places; expected one of the kinds {list(POLYLINES)}"
        )
    if kind == "points":
        return token_dim, token_dim
    return (2 if kind == "patches" else token_dim), 2


OWN_KINDS = ("points", "segments", "strokes", "patches", "particles", "vectors")
"""What the user's own tokens may be."""


def own_kind(kind: str | None, token_dim: int) -> Kind:
    """The kind of the user's tokens: as given, else points of the plane or vectors.

    Raises ``ValueError`` for an unknown kind, and for one that does not fit ``token_dim``.
    """
    if kind is None:
        return "points" if token_dim == 2 else "vectors"
    check_choice("kind", kind, OWN_KINDS)
    if token_dim not in TOKEN_DIMS[kind].allowed:
        raise ValueError(
            f"kind {kind!r} does not fit tokens of {token_dim} numbers: expected "
            f"{TOKEN_DIMS[kind].words}"
        )
    return cast(Kind, kind)


def polyline_distances(lines: Float[Tensor, "B P K C"]) -> Float[Tensor, "B P P"]:
    """The least distance between any two of the polylines of a sample, exact: points in any space,
    lines of two points or more in the plane, where those that cross are at 0.

    Of two pieces that do not cross, an end of one is nearest to the other.
    """
    pieces = max(1, lines.shape[2] - 1)
    starts, ends = lines[:, :, :pieces], lines[:, :, -pieces:]
    along = (ends - starts)[:, None, :, None]  # (B, 1, P, 1, K - 1, C)
    to_corner = lines[:, :, None, :, None] - starts[:, None, :, None]  # (B, P, P, K, K - 1, C)
    length = along.square().sum(-1).clamp(min=1e-300)
    share = ((to_corner * along).sum(-1) / length).clamp(0, 1)
    squared = (to_corner - share[..., None] * along).square().sum(-1).amin(dim=(3, 4))  # (B, P, P)
    distances = squared.minimum(squared.mT).sqrt()
    if lines.shape[2] > 1:
        side = along[..., 0] * to_corner[..., 1] - along[..., 1] * to_corner[..., 0]
        # (B, P, P, K - 1, K - 1): the ends of a piece of the first lie on two sides of the second's
        parted = side[:, :, :, 1:] * side[:, :, :, :-1] < 0
        crossing = (parted & parted.transpose(1, 2).mT).any(-1).any(-1)
        distances = distances.masked_fill(crossing, 0.0)
    return distances

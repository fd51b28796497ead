"""Appearance of tokens in the plane and in words, by *kind*.

``points`` (of the plane or of space), ``segments``, ``strokes`` (polylines), ``patches`` (small
grey images), ``items`` (of a colour and a shape, with their key), ``particles`` (four-momenta) and
``vectors`` (anything else); see :data:`KINDS`. Tokens are numpy arrays ``(n, T)`` in raw units,
without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import hsv_to_rgb, to_rgba_array
from numpy.typing import NDArray

from htm_env.datasets.kinds import TOKEN_DIMS

Tokens = NDArray[np.floating[Any]]

INK, FAINT = "#333333", "#c4c4c4"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, "Color universal design", without the yellow that is lost on white."""
BLUE, VERMILION = COLOURS[:2]
MANY = 32  # tokens, above which lines and dots get thin
GREY_SCALES = (1.0, 16.0, 255.0)
"""Usual intensities of black, of which a sample's patches get the least that holds them."""
OVERSHOOT = 1.25  # times black, up to which intensities count as held: generated ones go beyond
AZIMUTH, ELEVATION = np.deg2rad(-60.0), np.deg2rad(25.0)  # of the eye that looks at space
RIGHT = np.array([-np.sin(AZIMUTH), np.cos(AZIMUTH), 0.0])
UP = np.array(
    [
        -np.sin(ELEVATION) * np.cos(AZIMUTH),
        -np.sin(ELEVATION) * np.sin(AZIMUTH),
        np.cos(ELEVATION),
    ]
)
"""Directions of space that point to the right and upwards in a picture."""
ITEM_SATURATION, ITEM_BRIGHTNESS = 0.79, 0.83  # of its fill; the hue is the item's own
ITEM_MARKS: tuple[Any, ...] = tuple(
    (corners, style, 0) for style in (0, 1) for corners in (3, 4, 5, 6)
)
"""Polygons, then stars: matplotlib's markers for the eighths of a turn that a shape can be in."""
PARTICLE = 500
"""Square points of a particle that has all of the energy."""
KEY_PLACE = (-0.1, 0.5)  # beside the items, which are between 0 and 1


class Kind(NamedTuple):
    """Appearance of tokens of one kind."""

    positions: Callable[[Tokens], Tokens]
    """(n, T) tokens --> (n, 2) places in the plane, whose means are the forest's nodes."""
    draw: Callable[..., None]
    """(axes, tokens, colours, alpha, reference): the tokens, sized as those of the reference."""
    describe: Callable[[Tokens], str]
    """One token (T,) in a few characters."""
    in_the_plane: bool
    """True <--> both axes have the same unit: drawn to scale, without ticks."""
    dots: bool = False
    """True <--> tokens are dots, small enough to be joined by lines."""
    image: bool = False
    """True <--> the tokens are parts of a grey image: y grows downwards, nothing shows under it."""
    outline: Callable[[Tokens], Tokens] | None = None
    """(n, T) tokens --> (m, 2) places that a picture has to hold; None: the positions."""
    anchors: Callable[[Tokens], Tokens] | None = None
    """(n, T) tokens --> (n, 2) places of their numbers; None: the positions."""
    backdrop: Callable[[Tokens], Tokens] | None = None
    """(n, T) tokens --> lines (k, 2, 2) behind all tokens; None: there are none."""
    on_page: Callable[[Tokens], Tokens] | None = None
    """(n, T) tokens --> (n, K) numbers that the page of ``htm view`` draws; None: the tokens."""


def _plane(tokens: Tokens) -> Tokens:
    """The first two coordinates; a single one is drawn over the token's index."""
    if tokens.shape[1] == 1:
        return np.column_stack([np.arange(len(tokens)), tokens[:, 0]])
    return tokens[:, :2]


def _corners(tokens: Tokens) -> Tokens:
    """(n, T/2, 2) the points of polylines."""
    return tokens.reshape(len(tokens), -1, 2)


def _middles(tokens: Tokens) -> Tokens:
    middles: Tokens = _corners(tokens).mean(axis=1)
    return middles


def _line_points(tokens: Tokens) -> Tokens:
    return tokens.reshape(-1, 2)


def _first_corners(tokens: Tokens) -> Tokens:
    return tokens[:, :2]


def _projected(tokens: Tokens) -> Tokens:
    """Space as it is seen from far away: parallels stay parallel, and means stay means."""
    places: Tokens = tokens @ np.stack([RIGHT, UP], axis=1)
    return places


def _box(tokens: Tokens) -> Tokens:
    """(8, 3) the corners of the box around points of space, numbered in binary."""
    low, high = tokens.min(axis=0), tokens.max(axis=0)
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    corners: Tokens = np.where(bits == 1, high, low)
    return corners


def _box_outline(tokens: Tokens) -> Tokens:
    return _projected(_box(tokens))


def _box_edges(tokens: Tokens) -> Tokens:
    corners = _box_outline(tokens)
    edges = [(one, one | 1 << axis) for one in range(8) for axis in range(3) if not one >> axis & 1]
    lines: Tokens = corners[np.array(edges)]
    return lines


def _patch_side(tokens: Tokens) -> float:
    """Patches tile a grid, so their side is the smallest step between two columns or rows."""
    steps = [np.diff(np.unique(tokens[:, axis])) for axis in (0, 1)]
    return float(min((step.min() for step in steps if len(step)), default=1.0))


def _draw_dots(axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens) -> None:
    x, y = _plane(tokens).T
    size = 26 if len(tokens) <= MANY else 9
    axes.scatter(x, y, s=size, c=colours, alpha=alpha, linewidths=0, zorder=4)


def _draw_points_of_space(
    axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens
) -> None:
    """Dots, the larger the nearer they are."""
    x, y = _projected(tokens).T
    towards = np.cross(RIGHT, UP)
    low, high = np.sort(reference @ towards)[[0, -1]]
    share = (tokens @ towards - low) / (high - low) if high > low else np.full(len(tokens), 0.5)
    size = (26 if len(tokens) <= MANY else 9) * (0.5 + share.clip(0, 1))
    axes.scatter(x, y, s=size, c=colours, alpha=alpha, linewidths=0, zorder=4)


def _draw_lines(axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens) -> None:
    style: dict[str, Any] = {"linewidths": 2.4, "capstyle": "round", "alpha": alpha}
    style["joinstyle"] = "round"
    lines = LineCollection(list(_corners(tokens)), colors=colours, **style)
    axes.add_collection(lines, autolim=False)


def _draw_patches(
    axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens
) -> None:
    """Patches are grey whatever the colours."""
    side = int(np.sqrt(tokens.shape[1] - 2))
    pixel = _patch_side(reference) / side
    row, column = np.divmod(np.arange(side**2), side)
    corners = pixel * (np.column_stack([column, row]) - side / 2)  # of the pixels, row by row
    square = pixel * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    pixels = tokens[:, None, None, :2] + corners[:, None] + square  # (n, side**2, 4, 2)
    greys = PolyCollection(
        list(pixels.reshape(-1, 4, 2)),
        array=tokens[:, 2:].ravel(),
        cmap="Greys",
        alpha=alpha,
        linewidths=0,
        antialiased=False,  # else the background shines through the seams
    )
    greys.set_clim(*grey_range(reference[:, 2:]))
    axes.add_collection(greys, autolim=False)


def grey_range(intensities: Tokens) -> tuple[float, float]:
    """The intensities of white and of black for patches with these intensities."""
    most = float(intensities.max(initial=0.0))
    black = next((scale for scale in GREY_SCALES if most <= OVERSHOOT * scale), most)
    return min(0.0, float(intensities.min(initial=0.0))), black


def _turns(angles: Tokens) -> Tokens:
    """(n, 2) cosines and sines as shares of a turn, from 0 to 1."""
    return np.arctan2(angles[:, 1], angles[:, 0]) / (2 * np.pi) % 1.0


def _is_key(tokens: Tokens) -> NDArray[np.bool_]:
    return np.abs(tokens[:, 0]) > 0.5


def _colour_and_shape(tokens: Tokens) -> Tokens:
    """Colour to the right, shape upwards, so that matching items share a column or a row."""
    items = np.column_stack([_turns(tokens[:, 1:3]), _turns(tokens[:, 3:5])])
    return np.where(_is_key(tokens)[:, None], KEY_PLACE, items)


def _draw_items(axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens) -> None:
    """Items are filled with their own colour, and the colours go to their rims.

    The key is an arrow along what matches: up the columns for colours, along the rows for shapes.
    """
    rims = np.broadcast_to(to_rgba_array(colours), (len(tokens), 4))
    places, is_key = _colour_and_shape(tokens), _is_key(tokens)
    look = np.broadcast_to([ITEM_SATURATION, ITEM_BRIGHTNESS], (len(tokens), 2))
    fills = hsv_to_rgb(np.column_stack([places[:, 0] % 1.0, look]))
    size = 60 if len(tokens) <= MANY else 20
    style: dict[str, Any] = {"alpha": alpha, "zorder": 4}
    marks = (places[:, 1] * len(ITEM_MARKS)).astype(int) % len(ITEM_MARKS)
    for mark, marker in enumerate(ITEM_MARKS):
        here = ~is_key & (marks == mark)
        x, y = places[here].T
        axes.scatter(x, y, s=size, c=fills[here], edgecolors=rims[here], marker=marker, **style)
    for sign, arrow in ((1, r"$\updownarrow$"), (-1, r"$\leftrightarrow$")):
        here = is_key & (np.sign(tokens[:, 0]) == sign)
        x, y = places[here].T
        axes.scatter(x, y, s=2 * size, c=rims[here], marker=arrow, linewidths=0, **style)


def _directions(tokens: Tokens) -> Tokens:
    """Angles, in radians, between the particles' directions and that of all of them together: its
    distance from the middle is a particle's angle, whichever way it flies.

    To the right is what leans most to the first axis of space, or to the second where the whole
    flies along the first.
    """
    momenta = tokens[:, 1:].astype(np.float64)
    ahead = _unit(momenta.sum(axis=0))
    lean = np.eye(3)[int(abs(ahead[0]) > 0.9)]
    right = _unit(lean - ahead * (lean @ ahead))
    up = np.cross(ahead, right)
    across = np.column_stack([momenta @ right, momenta @ up])
    sizes = np.linalg.norm(across, axis=1)
    angles = np.arctan2(sizes, momenta @ ahead)
    places: Tokens = across * (angles / np.where(sizes > 0, sizes, 1.0))[:, None]
    return places


def _unit(vector: Tokens) -> Tokens:
    length = np.linalg.norm(vector)
    unit: Tokens = vector / length if length > 0 else np.array([0.0, 0.0, 1.0])
    return unit


def _energy_shares(tokens: Tokens) -> Tokens:
    energies = tokens[:, 0].astype(np.float64).clip(min=0.0)
    shares: Tokens = energies / max(float(energies.sum()), 1e-300)
    return shares


def _draw_particles(
    axes: Axes, tokens: Tokens, colours: Any, alpha: float, reference: Tokens
) -> None:
    """Dots whose area grows with the share of the energy."""
    x, y = _directions(tokens).T
    sizes = PARTICLE * _energy_shares(tokens) + 6
    axes.scatter(x, y, s=sizes, c=colours, alpha=0.85 * alpha, linewidths=0, zorder=4)


def _directions_and_shares(tokens: Tokens) -> Tokens:
    return np.column_stack([_directions(tokens), _energy_shares(tokens)])


def _particle_words(token: Tokens) -> str:
    energy, *momentum = token
    return f"E {energy:.4g}, p {_numbers(np.array(momentum))}"


def _numbers(token: Tokens) -> str:
    shown = ", ".join(f"{value:.4g}" for value in token[:6])
    return f"({shown}{', ...' if len(token) > 6 else ''})"


def _segment_words(token: Tokens) -> str:
    return f"{_numbers(token[:2])}-{_numbers(token[2:])}"


def _stroke_words(token: Tokens) -> str:
    points = len(token) // 2
    return f"{_numbers(token[:2])}-{_numbers(token[-2:])}, {points} points"


def _patch_words(token: Tokens) -> str:
    side = int(np.sqrt(len(token) - 2))
    if side > 2:
        return f"{_numbers(token[:2])} [{side}x{side}, mean {token[2:].mean():.3g}]"
    rows = token[2:].reshape(side, side)
    digits = ".0f" if rows.max() > GREY_SCALES[0] else ".2g"
    shown = " / ".join(" ".join(f"{value:{digits}}" for value in row) for row in rows)
    return f"{_numbers(token[:2])} [{shown}]"


def _item_words(token: Tokens) -> str:
    if _is_key(token[None])[0]:
        return "key: colours match" if token[0] > 0 else "key: shapes match"
    colour, shape = (360 * float(_turns(token[None, i : i + 2])[0]) for i in (1, 3))
    return f"colour {colour:.0f}°, shape {shape:.0f}°"


def _of_lines(describe: Callable[[Tokens], str]) -> Kind:
    return Kind(
        _middles,
        _draw_lines,
        describe,
        in_the_plane=True,
        outline=_line_points,
        anchors=_first_corners,
    )


KINDS = {
    "points": Kind(_plane, _draw_dots, _numbers, in_the_plane=True, dots=True),
    "segments": _of_lines(_segment_words),
    "strokes": _of_lines(_stroke_words),
    "patches": Kind(_plane, _draw_patches, _patch_words, in_the_plane=True, image=True),
    "items": Kind(_colour_and_shape, _draw_items, _item_words, in_the_plane=True, dots=True),
    "particles": Kind(
        _directions,
        _draw_particles,
        _particle_words,
        in_the_plane=True,
        dots=True,
        on_page=_directions_and_shares,
    ),
    "vectors": Kind(_plane, _draw_dots, _numbers, in_the_plane=False, dots=True),
}
"""The kinds of tokens by name; points of the plane."""
POINTS_OF_SPACE = Kind(
    _projected,
    _draw_points_of_space,
    _numbers,
    in_the_plane=True,
    dots=True,
    outline=_box_outline,
    backdrop=_box_edges,
)
_BACKDROP = "backdrop"


def kind_named(name: str, token_dim: int) -> Kind:
    """Raises ``ValueError`` for an unknown kind, or one that has no such token dimension."""
    if name not in KINDS:
        raise ValueError(f"there is no kind {name!r}: choose from {', '.join(KINDS)}.")
    if token_dim not in TOKEN_DIMS[name].allowed:
        raise ValueError(f"tokens of dimension {token_dim} cannot be drawn as {name}.")
    return POINTS_OF_SPACE if name == "points" and token_dim == 3 else KINDS[name]


def token_anchors(tokens: Tokens, kind: str) -> Tokens:
    """(n, 2) where the number of a token belongs: at an end of a line, else on the token.

    The segments of a cross share their midpoint, but no end.
    """
    look = kind_named(kind, tokens.shape[1])
    return (look.anchors or look.positions)(tokens)


def draw_tokens(
    axes: Axes,
    tokens: Tokens,
    kind: str,
    *,
    colours: Any = INK,
    alpha: float = 1.0,
    reference: Tokens | None = None,
) -> None:
    """Add tokens (n, T) to the axes, in one colour or n; the limits of the axes stay.

    Patches are grey, and get the patch size of the reference (by default their own).
    """
    look = kind_named(kind, tokens.shape[1])
    look.draw(axes, tokens, colours, alpha, tokens if reference is None else reference)


def frame_axes(axes: Axes, tokens: Tokens, kind: str) -> None:
    """Fit the limits to these tokens alone, so that they stay while an episode goes on."""
    look = kind_named(kind, tokens.shape[1])
    places = (look.outline or look.positions)(tokens)
    low, high = places.min(axis=0), places.max(axis=0)
    if look.in_the_plane:
        low, high = (low + high) / 2 + np.array([[-0.5], [0.5]]) * (high - low).max()
    extent = np.where(high > low, high - low, 1.0)
    margin = 0.12 * extent + (_patch_side(tokens) / 2 if look.image else 0.0)
    (left, lower), (right, upper) = low - margin, high + margin
    axes.set_xlim(left, right)
    axes.set_ylim(*((upper, lower) if look.image else (lower, upper)))
    axes.tick_params(labelsize=6, length=2, color=FAINT, labelcolor=INK)
    axes.spines[:].set_color(FAINT)
    for old in [shown for shown in axes.collections if shown.get_gid() == _BACKDROP]:
        old.remove()  # of an earlier frame
    if look.backdrop is not None:
        lines = LineCollection(
            list(look.backdrop(tokens)), colors=FAINT, linewidths=0.6, zorder=0, gid=_BACKDROP
        )
        axes.add_collection(lines, autolim=False)
    if look.in_the_plane:
        axes.set_aspect("equal")
        no_ticks(axes)
    else:
        axes.locator_params(nbins=3)  # every tick label costs drawing time


def no_ticks(axes: Axes) -> None:
    """Take the ticks off both axes."""
    axes.set_xticks([])
    axes.set_yticks([])

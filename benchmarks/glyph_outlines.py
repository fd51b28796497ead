"""Outlines of the letters and digits in matplotlib's own fonts, as data that nothing is tuned on:
``python -m benchmarks.glyph_outlines glyphs.npz``.

A set is the outline of a glyph, a token is a point of it ``(x, y)``; the points are equally far
apart along the outline, 4 to 20 of them by its length. The split is by fonts, so that no glyph of a
tested font is trained on.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.textpath import TextPath

LETTERS = string.ascii_letters + string.digits
SYMBOLS = ("LastResortHE-Regular", "cmex10", "cmsy10")
"""Fonts that have other signs in the places of letters."""
SPACING = 2.5
"""Length of outline for which there is a point, in tenths of the font's size."""
FEWEST, MOST = 4, 20
SPLITS = ("train",) * 8 + ("validation", "test")
"""Of every ten fonts in the order of their names."""


def outline(path: Path, letter: str) -> Float[np.ndarray, "n 2"] | None:
    """Points of a glyph's outline, around its middle; None where the font does not have it."""
    if not get_font(path).get_char_index(ord(letter)):
        return None
    font = FontProperties(fname=str(path))
    polygons = [np.array(each) for each in TextPath((0, 0), letter, 10, prop=font).to_polygons()]
    lengths = [np.hypot(*np.diff(each, axis=0).T).sum() for each in polygons]
    total = int(np.clip(round(sum(lengths) / SPACING), FEWEST, MOST))
    counts = np.maximum(1, np.floor(total * np.array(lengths) / sum(lengths)).astype(int))
    joined = np.concatenate(
        [along(each, count) for each, count in zip(polygons, counts, strict=True)]
    )
    return joined - (joined.min(axis=0) + joined.max(axis=0)) / 2


def along(polygon: Float[np.ndarray, "k 2"], count: int) -> Float[np.ndarray, "count 2"]:
    """Points that divide a closed polygon into parts of equal length."""
    passed = np.concatenate([[0], np.hypot(*np.diff(polygon, axis=0).T).cumsum()])
    wanted = np.arange(count) * passed[-1] / count
    return np.stack([np.interp(wanted, passed, axis) for axis in polygon.T], axis=1)


def glyphs() -> Iterator[tuple[str, str, str, Float[np.ndarray, "n 2"]]]:
    """Font, split, letter and outline of every glyph."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for number, path in enumerate(sorted(folder.glob("*.ttf"))):
        for letter in LETTERS if path.stem not in SYMBOLS else "":
            points = outline(path, letter)
            if points is not None:
                yield path.stem, SPLITS[number % len(SPLITS)], letter, points


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the file to write, .npz")
    out = parser.parse_args(arguments).out
    fonts, splits, letters, outlines = zip(*glyphs(), strict=True)
    lengths = np.array([len(points) for points in outlines])
    names = [f"{letter} of {font}" for letter, font in zip(letters, fonts, strict=True)]
    np.savez(
        out,
        values=np.concatenate(outlines).astype(np.float32),
        lengths=lengths,
        labels=np.array(letters),
        names=np.array(names),
        split=np.array(splits),
    )
    print(f"{len(names)} glyphs of {len(set(fonts))} fonts, {lengths.sum()} points: {out}")


if __name__ == "__main__":
    main()

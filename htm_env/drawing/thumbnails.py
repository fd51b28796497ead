"""Small square pictures of token sets, for maps and for TensorBoard's projector."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from htm_env.drawing.glyphs import draw_tokens, frame_axes

PIXELS = 48
RIM = 0xC4
"""Grey of the outermost pixels, so that thumbnails beside each other can be told apart."""


def thumbnails(
    tokens: Float[np.ndarray, "N P T"],
    present: Bool[np.ndarray, "N P"],
    kind: str,
    pixels: int = PIXELS,
) -> UInt8[np.ndarray, "N pixels pixels 3"]:
    """One picture a sample, each fitted to its own tokens, dark on white, within a grey rim.

    Raises ``ValueError`` for an unknown kind, or one that has no such token dimension.
    """
    figure = Figure(figsize=(1, 1), dpi=pixels)  # an inch: dots and lines keep a thumbnail's size
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    made = np.empty((len(tokens), pixels, pixels, 3), dtype=np.uint8)
    for row, (sample, here) in enumerate(zip(tokens, present, strict=True)):
        axes.clear()
        frame_axes(axes, sample[here], kind)
        axes.set_axis_off()
        draw_tokens(axes, sample[here], kind)
        canvas.draw()
        made[row] = RIM
        made[row, 1:-1, 1:-1] = np.asarray(canvas.buffer_rgba())[1:-1, 1:-1, :3]
    return made

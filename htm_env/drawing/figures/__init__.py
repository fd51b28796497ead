"""Figures of one episode for a paper, each made from a :class:`htm_env.drawing.trace.Trace`.

All have an Agg canvas of their own, and colours that colour-blind readers tell apart: viridis for
the order of merges, shades of blue for probabilities, and Okabe and Ito's vermilion and blue.
Originals beside their reconstructions are in :func:`htm_env.drawing.rendering.samples_figure`.
"""

from htm_env.drawing.figures.charges import charges_figure
from htm_env.drawing.figures.filmstrip import filmstrip_figure, merges_gif
from htm_env.drawing.figures.probabilities import least_certain_step, probabilities_figure
from htm_env.drawing.figures.tree import charged_heights, tree_figure

__all__ = [
    "charged_heights",
    "charges_figure",
    "filmstrip_figure",
    "least_certain_step",
    "merges_gif",
    "probabilities_figure",
    "tree_figure",
]

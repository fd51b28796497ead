"""``docs/hierarchical_transformer.png`` and ``docs/hierarchy_reduction.png``."""

import re
import sys
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from agents import HierarchicalTransformer, HierarchyReduction, ReductionLevel
from agents.evaluation.figures import write_figure

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs")
torch.manual_seed(0)


def reaches(model: HierarchicalTransformer, length: int) -> torch.Tensor:
    """True <--> the logits of a row's token depend on a column's token, by the gradient."""
    embedded = model.embed(torch.zeros(1, length, dtype=torch.long)).detach().requires_grad_()
    logits = model.logits(model.read(embedded))
    rows = [
        torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)[0]
        for t in range(length)
    ]
    return torch.cat(rows).abs().sum(2) > 0


def draw_rates(axes: Axes, length: int, rates: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """The tokens of every vector that does not begin before the first token."""
    for level, (rate, stride) in enumerate(zip(rates, strides, strict=True)):
        for end in range(0, length, stride):
            first = max(end - rate + 1, 0)
            row = 3 * level + (end // stride % 2 if rate > stride else 0.5)
            width = end + 1 - first
            axes.barh(row, width - 0.1, left=first, height=0.9, color=f"C{level}", alpha=0.8)
        axes.text(-0.6, 3 * level + 0.5, f"rate {rate}", ha="right", va="center")
    axes.set_xlim(-0.2, length)
    axes.axis("off")


length, rates, strides = 24, (1, 2, 8), (1, 1, 8)
words = {"num_tokens": 2, "dim": 16, "depth": 1, "dim_head": 4, "heads": 4}
flat = HierarchicalTransformer(**words, window_sizes=4)
coarse = HierarchicalTransformer(
    **words, hierarchies=rates, hierarchical_stride=strides, window_sizes=(4, 4, None)
)
figure = Figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
draw_rates(left, length, rates, strides)
left.set_title("vectors, and the tokens that each is made of")
for axes, model, title in (
    (middle, flat, "rate 1, a window of 4"),
    (right, coarse, "the same with rates 2 and 8"),
):
    axes.imshow(reaches(model, length), cmap="Greys", vmax=1.4)
    axes.set(title=title, xlabel="may depend on token", ylabel="the prediction after token")
write_figure(folder / "hierarchical_transformer.png", figure)

# ---------------------------------------------------------------- reduction

text = "a merge joins two. one root is left."
spans = [word.span() for word in re.finditer(r"\w+", text)]
points = [point.start() for point in re.finditer(r"\.", text)]
ends = [0, *(sum(end <= point for _, end in spans) for point in points)]  # of sentences
levels = [spans, list(pairwise(ends)), [(0, len(points))]]
letters = nn.Embedding(128, 8)
kinds = [ReductionLevel("mean", "transformer", positions="sinusoidal")] * 3
with torch.no_grad():
    characters = letters(torch.tensor([ord(letter) for letter in text]))
    reduced = HierarchyReduction(8, kinds)(characters, levels)
    vectors = [characters, *reduced]

figure = Figure(figsize=(11, 3.6), layout="constrained")
axes = figure.subplots()
extents = [[(at, at + 1) for at in range(len(text))]]
for level in levels:
    below = extents[-1]
    extents.append([(below[start][0], below[end - 1][1]) for start, end in level])
for height, (places, rows) in enumerate(zip(extents, vectors, strict=True)):
    for (start, end), vector in zip(places, rows, strict=True):
        if height:
            box = {"left": start + 0.1, "height": 1.5, "align": "edge"}
            axes.barh(2 * height, end - start - 0.2, color="0.93", edgecolor="0.6", **box)
        middle_of = (start + end) / 2
        extent = (middle_of - 0.3, middle_of + 0.3, 2 * height + 0.1, 2 * height + 1.4)
        axes.imshow(
            vector[:, None], extent=extent, cmap="RdBu", vmin=-2, vmax=2, aspect="auto", zorder=3
        )
for at, letter in enumerate(text):
    axes.text(at + 0.5, -0.4, letter, ha="center", va="center", family="monospace")
for height, name in enumerate(("characters", "words", "sentences", "text")):
    axes.text(-0.3, 2 * height + 0.7, name, ha="right", va="center")
axes.set(xlim=(-0.2, len(text)), ylim=(-0.8, 7.8))
axes.axis("off")
write_figure(folder / "hierarchy_reduction.png", figure)

"""``docs/nested_lists.png``: trees of a run as nested lists, side by side and over its training."""

import sys
import tempfile
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents import Reinforce
from agents.evaluation.figures import write_figure
from agents.runs.directory import RunDirectory
from htm_env.drawing.glyphs import draw_tokens, frame_axes

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs")
budget = int(sys.argv[2]) if len(sys.argv) > 2 else 60_000
SHOWN, ROWS = 4, 7

agent = Reinforce("HTM-Crosses-v0", env_kwargs={"num_crosses": (3,)}, seed=0)
with tempfile.TemporaryDirectory() as runs:
    agent.train(merges=budget, out=Path(runs) / "run")
    course = RunDirectory(Path(runs) / "run").load_trees()
dataset = agent.task.dataset("validation")
batch = dataset.fixed(SHOWN)
# Two segments that cross have one colour.
colours = [
    [f"C{int(pairs[:, token].int().argmax())}" for token in range(batch.tokens.shape[1])]
    for pairs in batch.clades
]


def write(axes: Axes, x: float, y: float, nested: str, sample: int) -> None:
    """A nested list in letters of one width, its tokens in their colours; lengths in letters."""
    for at, letter in enumerate(nested):
        token = letter.isdigit()
        style = {"color": colours[sample][int(letter)], "weight": "bold"} if token else {}
        axes.text(
            x + at, y, letter, family="monospace", fontsize=9, ha="center", va="center", **style
        )


figure = Figure(figsize=(11, 5.2))
grid = figure.add_gridspec(2, SHOWN, height_ratios=(1.1, 1), hspace=0.12, wspace=0.08)
for sample in range(SHOWN):
    axes = figure.add_subplot(grid[0, sample])
    tokens = batch.tokens[sample].numpy()
    frame_axes(axes, tokens, dataset.kind)
    draw_tokens(axes, tokens, dataset.kind, colours=colours[sample])
    for token, (x1, y1, x2, y2) in enumerate(tokens):
        x, y = x1 + 0.12 * (x1 - x2), y1 + 0.12 * (y1 - y2)  # beyond an end
        axes.text(x, y, str(token), ha="center", va="center", color=colours[sample][token])
    axes.set_title(f"sample {sample}", fontsize=10)
    below = axes.inset_axes((0, -0.14, 1, 0.1), xlim=(-2, 32), ylim=(-1, 1))
    below.axis("off")
    write(below, 0, 0, course.lists[-1][sample], sample)

rows = [round(step * (len(course.merges) - 1) / (ROWS - 1)) for step in range(ROWS)]
table = figure.add_subplot(grid[1, :], xlim=(4, 146), ylim=(ROWS - 0.2, -1.6))
table.axis("off")
table.text(20, -1, "merges made", ha="right", va="center", fontsize=10)
for sample in range(SHOWN):
    table.text(24 + 30 * sample, -1, f"sample {sample}", va="center", fontsize=10)
for height, row in enumerate(rows):
    table.text(20, height, f"{course.merges[row]:,}", ha="right", va="center", family="monospace")
    for sample in range(SHOWN):
        write(table, 24 + 30 * sample, height, course.lists[row][sample], sample)
figure.subplots_adjust(left=0.01, right=0.99, top=0.95, bottom=0.01)
write_figure(folder / "nested_lists.png", figure, dpi=130)

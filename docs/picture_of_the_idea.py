"""One sample from tokens to its root and back, as a picture: ``docs/idea.png``."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from agents.evaluation.figures import write_figure
from agents.fixed import fixed_policy
from htm_env import make_dataset
from htm_env.drawing.rendering import draw_forest, draw_reconstruction
from htm_env.weights import pretrained_autoencoder

target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/idea.png")
autoencoder = pretrained_autoencoder("HTM-Crosses-v0")
dataset = make_dataset("HTM-Crosses-v0", split="test", num_crosses=(3,))
batch = dataset.fixed(5).rows(torch.tensor([4]))

# The search that keeps the four forests which the autoencoder reconstructs best.
generator = torch.Generator().manual_seed(0)
merges = fixed_policy("beam", autoencoder).plan(batch, generator, greedy=True)
with torch.no_grad():
    roots = autoencoder.encode(batch.tokens, batch.present, merges).roots
    decoded = autoencoder.decode(roots, merges, batch.present)
tokens, tree, root = batch.tokens[0].numpy(), merges[0].numpy(), roots[0].numpy()

figure = Figure(figsize=(11, 2.4))
panels = figure.subplots(1, 5)
for axes, made in zip(panels, (0, 3, 5), strict=False):
    draw_forest(axes, tokens, tree[:made], dataset.kind)
panels[3].bar(range(len(root)), root, color="0.3")
panels[3].set_box_aspect(1)
panels[3].spines[:].set_color("0.77")
draw_reconstruction(panels[4], tokens, decoded[0].numpy(), dataset.kind)
titles = (
    f"{len(tokens)} tokens",
    "after 3 merges",
    "after 5 merges: one root",
    f"the root: {len(root)} numbers",
    "unmerged again",
)
for axes, title in zip(panels, titles, strict=True):
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
figure.subplots_adjust(left=0.005, right=0.995, bottom=0.03, top=0.88, wspace=0.04)
write_figure(target, figure)
print(f"picture {target}")

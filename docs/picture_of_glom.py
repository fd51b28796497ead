"""``docs/glom.png`` and ``glom.gif``: islands of a Glom of digits, a column for every pixel."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from agents import (
    Glom,
    GlomTrainer,
    GlomTrainingConfig,
    OptimizerConfig,
    find_islands,
    islands_figure,
    islands_gif,
)
from agents.evaluation.figures import write_figure
from htm_env.files import atomic_write_bytes

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs")
updates = int(sys.argv[2]) if len(sys.argv) > 2 else 200
TOLERANCE, SHOWN = 0.04, [0, 3, 7]
torch.manual_seed(0)
drawn = torch.Generator().manual_seed(0)

images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
model = Glom.from_image(8, 1, 1, dim=32, levels=3, expansion=2, iterations=6)
soap = OptimizerConfig("soap", learning_rate=1e-2, warm_up_updates=20)
trainer = GlomTrainer(model, drawn, GlomTrainingConfig(1.0, 0.15, contrastive_weight=0.0), soap)
for update in range(updates):
    chosen = torch.randint(len(images), (32,), generator=drawn)
    losses = trainer.update(update / updates, images[chosen])
print({tag: round(loss, 3) for tag, loss in losses.items()})

with torch.no_grad():
    states = model(images[SHOWN], return_all=True)  # (7, 3, 64, 3, 32)
present = torch.ones(len(SHOWN), 64, dtype=torch.bool)
places = model.places.numpy()
islands = [find_islands(columns, present, TOLERANCE).labels.numpy() for columns in states]
pixels = images[SHOWN, 0].numpy()
scenes = [(places, labels, image) for labels, image in zip(islands[-1], pixels, strict=True)]
write_figure(folder / "glom.png", islands_figure(scenes))
course = [labels[0] for labels in islands]
atomic_write_bytes(folder / "glom.gif", islands_gif(places, course, pixels[0]))

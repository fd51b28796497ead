"""GLOM on images of digits and on rows and columns of points: losses, islands, and a probe."""

import sys

import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import agents
from agents import Glom, GlomTrainingConfig, find_islands

updates = int(sys.argv[1]) if len(sys.argv) > 1 else 400
torch.manual_seed(0)
drawn = torch.Generator().manual_seed(0)


def learn(name, model, training, scenes):
    soap = agents.OptimizerConfig("soap", learning_rate=1e-2, warm_up_updates=50)
    trainer = agents.GlomTrainer(model, drawn, training, soap)
    for update in range(updates):
        chosen = torch.randint(len(scenes[0]), (64,), generator=drawn)
        losses = trainer.update(update / updates, *(part[chosen] for part in scenes))
        if update % 100 == 0 or update == updates - 1:
            print(f"{name} {update}:", {tag: f"{loss:.3f}" for tag, loss in losses.items()})


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
train, test = train_test_split(range(len(images)), test_size=0.1, random_state=0)
model = Glom.from_image(8, 2, 1, dim=32, levels=2, expansion=2)  # 16 columns of two levels
learn("digits", model, GlomTrainingConfig(1.0, 0.15, contrastive_weight=0.0), [images[train]])
with torch.no_grad():
    columns = model(images)
counts = find_islands(columns[:5], torch.ones(5, 16, dtype=torch.bool), 0.2).counts
print("islands of five digits at both levels:", counts.tolist())
found = {
    "top level": columns[:, :, -1].mean(dim=1).numpy(),  # 32 numbers an image
    "components": PCA(32).fit(digits.data[train]).transform(digits.data),
    "pixels": digits.data,
}
for name, rows in found.items():
    rows = (rows - rows[train].mean(axis=0)) / (rows[train].std(axis=0) + 1e-3)
    probe = LogisticRegression(max_iter=2000).fit(rows[train], digits.target[train])
    score = probe.score(rows[test], digits.target[test])
    print(f"digits told from the {name}, {rows.shape[1]} numbers: {score:.3f}")

# Three rows or columns of five points: within a line they are a little nearer than the next line.
place = torch.arange(15)
lines = torch.stack([16 * (place % 5), 24 * (place // 5)], dim=1) + 3 * torch.rand(1000, 15, 2)
lines = torch.where(torch.rand(1000, 1, 1) < 0.5, lines, lines.flip(2))
lines = (lines - lines.mean(dim=(0, 1))) / 21
there = torch.ones(1000, 15, dtype=torch.bool)
config = agents.GlomConfig(iterations=16, sharpness=0.0, radius=20 / 21)
points = agents.TokenGlom(2, config)
learn("lines", points, GlomTrainingConfig(contrastive_weight=0.0), [lines, there])
labels = find_islands(points(lines[:2], there[:2]), there[:2], 0.02).labels
print("islands of two sets at the top level:", labels[:, -1].tolist())

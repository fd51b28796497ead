"""What the top level of a Glom knows of digits: ``python -m benchmarks.glom_probe``.

A Glom of images learns from the training split of Digits without labels. Of the mean of its top
level over the columns, 32 numbers an image, labels are read by the probes of
``htm_env.measures.semantics``, beside 32 principal components of the pixels and the pixels
themselves. Settings were chosen with ``--validate``, which scores the validation split and chooses
the probe's penalty on a tenth of the training split, which nothing else is fitted to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import process_time

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from agents import Glom, GlomTrainer, GlomTrainingConfig, ImageGlom, OptimizerConfig
from agents.encoders.glom.images import images_of
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.autoencoder import seeded_initialisation
from htm_env.datasets import make_dataset
from htm_env.measures.semantics import Labelled, principal_components, semantic_scores

WIDTH = 32
COLUMNS = {"dim": WIDTH, "levels": 2, "expansion": 2, "iterations": 4}
LEARNING = GlomTrainingConfig(hidden_tokens=0.15, contrastive_weight=0.0)
OPTIMIZER = OptimizerConfig(method="soap", learning_rate=1e-2, warm_up_updates=50)
BATCH = 64


def digits(split: str) -> tuple[Float32[Tensor, "N 1 8 8"], np.ndarray]:
    """The images of a split, intensities of 0 to 16, and what they show."""
    dataset = make_dataset("HTM-Digits-v0", split=split)
    keys = np.arange(dataset.size, dtype=np.int64)
    tokens = dataset.episodes(keys).tokens
    order = (tokens[..., 0] + 4 * tokens[..., 1]).argsort(dim=1)  # row by row
    patches = tokens[..., 2:].gather(1, order[..., None].expand(-1, -1, 4))
    return images_of(patches, 2, 4, 4), dataset.labels(keys)


def train(
    images: Float32[Tensor, "N 1 8 8"], updates: int, seed: int, agreement_decay: float
) -> ImageGlom:
    """A Glom that has learned from so many batches of standardised images."""
    generator = torch.Generator().manual_seed(seed)
    with seeded_initialisation(generator):
        model = Glom.from_image(8, 2, 1, **COLUMNS, agreement_decay=agreement_decay)
    trainer = GlomTrainer(model, generator, LEARNING, OPTIMIZER)
    for update in range(updates):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        trainer.update(update / updates, images[chosen])
    return model


@torch.no_grad()
def top_level(model: ImageGlom, images: Float32[Tensor, "N 1 8 8"]) -> np.ndarray:
    """The mean of the top level over the columns, (N, d)."""
    tops = [model(part)[:, :, -1].mean(dim=1) for part in images.split(256)]
    return torch.cat(tops).double().numpy()


def rows_of(updates: int, seeds: range, validate: bool, agreement_decay: float) -> list[Row]:
    """A row for every Glom, and for what is had without learning."""
    splits = [digits(split) for split in ("train", "validation", "test")]
    if validate:
        images, labels = splits[0]
        part = len(images) // 10
        splits = [(images[part:], labels[part:]), (images[:part], labels[:part]), splits[1]]
    mean, std = splits[0][0].mean(), splits[0][0].std()
    standardised = [(images - mean) / std for images, _ in splits]
    flat = [images.flatten(1).double().numpy() for images in standardised]

    def row(name: str, embeddings: list[np.ndarray], seconds: float | None = None) -> Row:
        labelled = (
            Labelled(found, labels) for found, (_, labels) in zip(embeddings, splits, strict=True)
        )
        scores = semantic_scores(*labelled)
        return {
            "embedding": name,
            "numbers": embeddings[0].shape[1],
            "linear probe": scores["linear_probe"],
            "five nearest": scores["five_nearest"],
            "CPU s": seconds,
        }

    rows = []
    for seed in seeds:
        started = process_time()
        model = train(standardised[0], updates, seed, agreement_decay)
        seconds = process_time() - started
        embeddings = [top_level(model, images) for images in standardised]
        rows.append(row(f"top level, seed {seed}", embeddings, seconds))
        print(rows[-1], flush=True)
    rows.append(row("principal components", principal_components(flat, WIDTH)))
    return [*rows, row("pixels", flat)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000, help="of each Glom")
    parser.add_argument("--seeds", type=int, default=3, help="Gloms")
    parser.add_argument("--first-seed", type=int, default=0, help="that of the first")
    parser.add_argument("--validate", action="store_true", help="score the validation split")
    parser.add_argument(
        "--agreement-decay", type=float, default=0.0, help="agreement further up that counts"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = rows_of(options.updates, seeds, options.validate, options.agreement_decay)
    made_by = origin("benchmarks.glom_probe", sys.argv[1:])
    report("glom_probe", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()

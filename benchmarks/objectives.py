"""What objectives make of embeddings: ``python -m benchmarks.objectives``.

An autoencoder learns on the trees of ``balanced_sorted``, the same for every row, with and without
the objectives of ``docs/objectives.md``, for as many merges. Labels that it never sees are read
from the roots, and from the mean of the inner nodes, which is as wide: a linear probe with all
labels of the training split, logistic regressions with five labels a class, and five nearest.
Beside them are as many principal components of the tokens in sorted order, a set autoencoder as
large, and ``untrained``, initial weights, since random networks along a tree keep much. Of Kanji,
radicals with at least twenty training characters count. Settings were chosen on the validation
split with seed 0.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64

from agents.inspection.parts import labelled_trees
from agents.learners.base import Learner
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import algorithm
from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.datasets import SPLITS, Dataset, make_dataset
from htm_env.datasets.width import sorted_tokens
from htm_env.losses import LossWeights
from htm_env.measures.parts import retrieval_scores
from htm_env.measures.semantics import (
    Labelled,
    few_shot_scores,
    principal_components,
    semantic_scores,
)
from htm_env.views import ViewConfig

WIDTH = 32
ORDER = "balanced_sorted"
BATCH = 64
SHOTS = 5
CHUNK = 1024
AS_IT_IS = ViewConfig()
FLAT = "flat"
UNTRAINED = "untrained"


class Problem(NamedTuple):
    """Data with labels, and how views of it differ."""

    env_id: str
    merges: int
    least: int
    """Training samples that a label has, to count."""
    views: ViewConfig
    """Maps and dropped tokens, without weights."""


PROBLEMS = {
    "digits": Problem(
        "HTM-Digits-v0",
        480_000,
        1,
        ViewConfig(hidden_tokens=0.2, rotation=15.0, scale=0.15, shear=0.2, translation=0.25),
    ),
    "kanji": Problem(
        "HTM-Kanji-v0",
        1_000_000,
        20,
        ViewConfig(hidden_tokens=0.1, rotation=8.0, scale=0.2, shear=0.15, translation=0.3),
    ),
}


def objectives(views: ViewConfig) -> dict[str, AutoencoderConfig]:
    """The autoencoders that are compared, by name."""
    masked = replace(AS_IT_IS, masked=1.0, hidden_tokens=0.3)
    agreeing = replace(views, variance=1.0, invariance=1.0, covariance=0.04)
    inner = replace(agreeing, inner=True)
    return {
        UNTRAINED: AutoencoderConfig(),
        "reconstruction": AutoencoderConfig(),
        "masking": AutoencoderConfig(views=masked),
        "contrast": AutoencoderConfig(loss=LossWeights(contrast=0.1)),
        "agreement": AutoencoderConfig(views=agreeing),
        "agreement of inner nodes": AutoencoderConfig(views=inner),
        "posed": AutoencoderConfig(architecture="posed"),
        "posed, agreement of inner nodes": AutoencoderConfig(
            architecture="posed", views=replace(inner, projector=256, translation=0.0)
        ),
    }


def trained(problem: Problem, objective: str, seed: int) -> Learner:
    """The fixed order with the autoencoder of this objective; ``flat`` is a set autoencoder, and
    ``untrained`` has its initial weights."""
    if objective == FLAT:
        entry = algorithm(FLAT)
        options = replace(entry.config, batch_size=BATCH)
    else:
        entry = algorithm(ORDER)
        config = objectives(problem.views)[objective]
        options = replace(entry.config, autoencoder=config, batch_size=BATCH)
    learner = entry.learner(problem.env_id, options, embedding_dim=WIDTH, seed=seed)
    if objective != UNTRAINED:
        learner.train(merges=problem.merges)
    return learner


@torch.no_grad()
def embeddings(learner: Learner, dataset: Dataset) -> dict[str, Float[np.ndarray, "N D"]]:
    """Roots of a split, and of trees the mean of every sample's inner nodes, the root among
    them."""
    roots, means = [], []
    for part in dataset.episodes(np.arange(dataset.size, dtype=np.int64)).parts(CHUNK):
        merges = learner.greedy_trees(part, torch.Generator().manual_seed(0))
        roots.append(learner.encode(part, merges).roots)
        if not learner.fixed_trees:
            continue
        nodes = learner.autoencoder.encode(part.tokens, part.present, merges).nodes
        node = torch.arange(nodes.shape[1])
        count = part.num_tokens[:, None]
        inner = ((node >= count) & (node < 2 * count - 1))[..., None]  # (B, N, 1)
        means.append((nodes * inner).sum(dim=1) / (count - 1))
    found = {"root": roots} | ({"mean of inner nodes": means} if means else {})
    return {kind: torch.cat(parts).double().numpy() for kind, parts in found.items()}


def labelled(
    problem: Problem, splits: Sequence[np.ndarray], labels: Sequence[Int64[np.ndarray, "_"]]
) -> list[Labelled]:
    """The samples of every split whose label counts."""
    classes, counts = np.unique(labels[0], return_counts=True)
    classes = classes[counts >= problem.least]
    return [
        Labelled(rows[np.isin(own, classes)], own[np.isin(own, classes)])
        for rows, own in zip(splits, labels, strict=True)
    ]


def scores(
    problem: Problem,
    splits: Sequence[np.ndarray],
    labels: Sequence[Int64[np.ndarray, "_"]],
    held_out: str,
) -> Row:
    """What is read from embeddings of the splits, on the one that is held out."""
    train, validation, test = labelled(problem, splits, labels)
    scored = test if held_out == "test" else validation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regressions that need more steps
        found = semantic_scores(train, validation, scored)
        shots = few_shot_scores(train, scored, (SHOTS,))[SHOTS].mean
    return {
        "linear probe": found["linear_probe"],
        f"{SHOTS}-shot": shots,
        "five nearest": found["five_nearest"],
    }


def retrieved(learner: Learner, dataset: Dataset) -> float | None:
    """Mean average precision of finding a part in other samples by its node; None without parts."""
    if dataset.clade_label_names is None or not learner.fixed_trees:
        return None
    trees = labelled_trees(learner, dataset, dataset.fixed_keys(10_000))
    assert trees is not None  # a fixed order makes trees
    return retrieval_scores(trees.as_nodes(), trees.as_clades())[0]


def rows_of(name: str, seeds: Sequence[int], held_out: str, only: Sequence[str]) -> Iterator[Row]:
    """A row for every objective and embedding, the median over seeds; principal components last."""
    problem = PROBLEMS[name]
    datasets = [make_dataset(problem.env_id, split=split) for split in SPLITS]
    labels = [dataset.labels(np.arange(dataset.size, dtype=np.int64)) for dataset in datasets]
    for objective in only or (*objectives(problem.views), FLAT):
        found: dict[str, list[Row]] = {}
        for seed in seeds:
            learner = trained(problem, objective, seed)
            scored = datasets[SPLITS.index(held_out)]
            error = learner.evaluate(scored, CHUNK, sampled=False)["nmse"]
            splits = [embeddings(learner, dataset) for dataset in datasets]
            for kind in splits[0]:
                own = scores(problem, [of_split[kind] for of_split in splits], labels, held_out)
                own |= {"nmse": error, "parts": retrieved(learner, scored)}
                found.setdefault(kind, []).append(own)
                print(name, objective, seed, kind, own, flush=True)
        for kind, own_rows in found.items():
            medians = {
                column: None if value is None else median(row[column] for row in own_rows)
                for column, value in own_rows[0].items()
            }
            yield {"data": name, "objective": objective, "embedding": kind, **medians}
    flat = []
    for dataset in datasets:
        batch = dataset.episodes(np.arange(dataset.size, dtype=np.int64))
        tokens = sorted_tokens(batch.tokens.numpy(), batch.present.numpy())
        flat.append(tokens.reshape(len(tokens), -1).astype(np.float64))
    components = principal_components(flat, WIDTH)
    own = scores(problem, components, labels, held_out)
    known = {"data": name, "objective": "none", "embedding": "principal components", "nmse": None}
    yield {**known, **own, "parts": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--objectives", nargs="+", default=[], help="all if not given")
    parser.add_argument("--seeds", type=int, default=3, help="autoencoders of each")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--validate", action="store_true", help="score the validation split")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    held_out = "validation" if options.validate else "test"
    made_by = origin("benchmarks.objectives", sys.argv[1:])
    for name in options.data:
        rows = list(rows_of(name, seeds, held_out, options.objectives))
        report(f"objectives_{name}", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()

"""Agreement of trees that are not learned with the groups of strokes that experts made:
``python -m benchmarks.kanji_parts``; ``--facts`` prints the counts of the data instead.

``recall`` is the share of a character's groups that the tree has, ``compatible`` the share of the
tree's clades that contradict no group, both as means over all characters; ``± of recall`` is the
standard error of the former, ``F1`` the harmonic mean of the two. ``tree_f1`` is what runs report:
the mean of each character's own. The last columns are of some characters alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from agents.evaluation.evaluate import tree_scores
from agents.fixed import fixed_policy
from agents.fixed.linkage import average_update, linked, ward_update
from benchmarks.table import RESULTS, origin, report
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import Dataset, make_dataset
from htm_env.datasets.kanjivg import Characters, load_characters
from htm_env.forest import leaf_sets, pad_merges
from htm_env.types import TokenBatch

POLICIES = (
    "recurrent",
    "closest",
    "closest_single",
    "nearest",
    "average",
    "ward",
    "even",
    "balanced_hilbert",
    "balanced_sorted",
    "random",
)
"""Fixed policies, none of which knows groups or order of writing; ``recurrent`` knows the strokes
of the training split, and has no row there."""
AT_ONCE = 256
"""Characters whose distances are held at a time."""
FEW = ("recall", "compatible", "F1")
"""Scores that are also given of some characters."""

Distances = Callable[[Dataset, TokenBatch], Tensor]
Trees = Callable[[TokenBatch, Tensor], Tensor]
"""``trees(batch, places (B, P)) -> merges (B, M, 2)``: one a character. Only places tell the order
of writing."""


def point_distances(dataset: Dataset, batch: TokenBatch) -> Float[Tensor, "B P P K K"]:
    """Distances of every point of a stroke to every point of another."""
    points = dataset.polylines(batch.tokens.double())  # (B, P, K, 2)
    return (points[:, :, None, :, None] - points[:, None, :, None]).norm(dim=-1)


def least_distances(dataset: Dataset, batch: TokenBatch) -> Float[Tensor, "B P P"]:
    """The least distance between points of two strokes."""
    return point_distances(dataset, batch).amin(dim=(3, 4))


def mean_distances(dataset: Dataset, batch: TokenBatch) -> Float[Tensor, "B P P"]:
    """The mean distance of all points of two strokes."""
    return point_distances(dataset, batch).mean(dim=(3, 4))


def centre_distances(dataset: Dataset, batch: TokenBatch) -> Float[Tensor, "B P P"]:
    """The squared distance of the means of two strokes' points, as Ward's update takes it."""
    centres = dataset.polylines(batch.tokens.double()).mean(dim=2)
    return (centres[:, :, None] - centres[:, None]).square().sum(-1)


def adjacent_trees(
    distances: Float[Tensor, "B P P"], places: Int64[Tensor, "B P"]
) -> Int64[Tensor, "B M 2"]:
    """Of all neighbours in the order of ``places`` the two clusters with the least mean distance
    are joined, until one is left; -1 marks empty slots."""
    slots = places.shape[1]
    trees = []
    for table, place in zip(distances, places.tolist(), strict=True):
        leaves = sorted((slot for slot in range(slots) if place[slot] >= 0), key=place.__getitem__)
        clusters, nodes, merges = [[slot] for slot in leaves], list(leaves), []
        while len(clusters) > 1:
            apart = [float(table[one][:, next_one].mean()) for one, next_one in pairwise(clusters)]
            at = apart.index(min(apart))
            merges.append([nodes[at], nodes[at + 1]])
            clusters[at : at + 2] = [clusters[at] + clusters[at + 1]]
            nodes[at : at + 2] = [len(leaves) + len(merges) - 1]
        trees.append(pad_merges(torch.tensor([merges]).view(1, -1, 2), slots))
    return torch.cat(trees)


def compatible(batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B"]:
    """The share of a tree's clades of 2 to ``n - 1`` tokens that contradict no clade of the data:
    they hold it, lie in it, or share nothing with it."""
    sets = leaf_sets(merges, batch.num_tokens)
    sizes = sets.sum(dim=2)
    counted = (sizes >= 2) & (sizes < batch.num_tokens[:, None])
    shared = sets.double() @ batch.clades.double().mT  # (B, N, C)
    within = shared == sizes[:, :, None]
    around = shared == batch.clades.sum(dim=2)[:, None]
    agreeing: Bool[Tensor, "B N"] = ((shared == 0) | within | around).all(dim=2)
    return (agreeing & counted).sum(dim=1) / counted.sum(dim=1)


def agreement(batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> dict[str, float]:
    """Scores over the characters that have a group at all."""
    scores = tree_scores(batch, merges)
    known = ~scores["tree_recall"].isnan()
    recall, share = scores["tree_recall"][known].double(), compatible(batch, merges)[known].mean()
    return {
        "recall": float(recall.mean()),
        "± of recall": float(recall.std(correction=0)) / len(recall) ** 0.5,
        "compatible": float(share),
        "F1": float(2 * recall.mean() * share / (recall.mean() + share)),
        "tree_f1": float(scores["tree_f1"][known].mean()),
    }


def facts(every: Characters) -> dict[str, float]:
    """Counts of the characters, their groups and their labels."""
    binary = 0
    masks = np.split(every.groups, np.cumsum(every.group_counts)[:-1])
    for count, groups in zip(every.stroke_counts.tolist(), masks, strict=True):
        parts = [1 << stroke for stroke in range(count)]
        for group in groups.tolist():  # smaller ones first
            own = [part for part in parts if part & group]
            parts = [part for part in parts if not part & group] + [group]
            binary += len(own) == 2
    _, uses = np.unique(every.group_names[every.group_names != ""], return_counts=True)
    return {
        "characters": len(every.codes),
        "groups": len(every.groups),
        "share of binary groups": binary / max(len(every.groups), 1),
        "names of groups": len(uses),
        "names of 20 groups or more": int((uses >= 20).sum()),
        "radicals": len(np.unique(every.radicals)),
        "types of strokes": len(np.unique(every.types[every.types != ""])),
    }


def rows_of_trees(dataset: Dataset) -> dict[str, Trees]:
    """What makes the trees of each row, by the row's name."""
    autoencoder = HTMAutoencoder(dataset.token_dim, 2, 8)
    autoencoder.set_statistics(dataset.mean, dataset.std)

    def by_policy(name: str) -> Trees:
        policy = fixed_policy(name, autoencoder, dataset)
        return lambda batch, _: policy.plan(batch, torch.Generator().manual_seed(0))

    def by_linkage(distances: Distances, update: Callable) -> Trees:
        return lambda batch, _: linked(distances(dataset, batch), batch.present, update)

    return {
        "adjacent in the order of writing, least mean distance": (
            lambda batch, places: adjacent_trees(mean_distances(dataset, batch), places)
        ),
        "least distance of points, average linkage": by_linkage(least_distances, average_update),
        "mean distance of points, average linkage": by_linkage(mean_distances, average_update),
        "centroids, Ward": by_linkage(centre_distances, ward_update),
        **{
            f"`{name}`": by_policy(name)
            for name in POLICIES
            if dataset.split != "train" or name != "recurrent"
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--characters", type=int, default=800, help="some, the first of the split")
    parser.add_argument("--strokes", type=int, nargs=2, default=[4, 20], help="fewest and most")
    parser.add_argument("--points", type=int, default=8, help="of a stroke")
    parser.add_argument("--split", default="train", help="of the characters")
    parser.add_argument("--split-by", default="characters", help="or components")
    parser.add_argument("--facts", action="store_true", help="print the counts of the data")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    if options.facts:
        for name, value in facts(load_characters()).items():
            print(f"{name}: {value:,}")
        return
    torch.set_num_threads(1)
    dataset = make_dataset(
        "HTM-Kanji-v0",
        options.split,
        strokes=tuple(options.strokes),
        points=options.points,
        split_by=options.split_by,
    )
    keys = dataset.fixed_keys(2**31)  # all of them
    batch, places = dataset.episodes(keys), torch.from_numpy(dataset.places(keys))
    some = slice(options.characters)
    rows = []
    for name, trees in rows_of_trees(dataset).items():
        parts = zip(batch.parts(AT_ONCE), places.split(AT_ONCE), strict=True)
        merges = torch.cat([trees(*part) for part in parts])
        every, few = agreement(batch, merges), agreement(batch.rows(some), merges[some])
        few = {f"{score}, {options.characters}": few[score] for score in FEW}
        rows.append({"tree": name, "characters": len(keys)} | every | few)
    given = sys.argv[1:] if arguments is None else arguments
    names = ["kanji"]
    names += [options.split] if options.split != "train" else []
    names += [options.split_by] if options.split_by != "characters" else []
    report("_".join(names), rows, options.out, made_by=origin("benchmarks.kanji_parts", given))


if __name__ == "__main__":
    main()

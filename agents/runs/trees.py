"""Trees as nested lists: several samples side by side, and one sample over its training."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int64
from torch import Tensor

from agents.runs.records import TreeCourse
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import TokenBatch


def nested_lists(batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> list[str]:
    """The tree of every sample as in ``((0, 1), 2)``; none where there is no merge at all."""
    if not (merges >= 0).any():
        return []
    rows = zip(merges.cpu().numpy(), batch.num_tokens.tolist(), strict=True)
    return [str(MergeTree(made, count)) for made, count in rows]


def side_by_side(lists: Sequence[str]) -> str:
    """A table in Markdown with a column for each sample."""
    names = [f"sample {number}" for number in range(len(lists))]
    return _table(names, [lists])


def over_training(course: TreeCourse, sample: int = 0) -> str:
    """A table in Markdown with a row for each time that this sample's tree was written."""
    rows = zip(course.merges, course.lists, strict=True)
    return _table(
        ["merges made", f"sample {sample}"], [(f"{made:,}", lists[sample]) for made, lists in rows]
    )


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

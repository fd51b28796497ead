"""The best trees known for the fixed test episodes of every frozen environment.

They are what a score of 1 means (:meth:`BestKnown.score`), and a bound for nothing but the episodes
whose best tree is ``proven``. ``htm best-known --improve`` searches on, and writes a file where
it finds better ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from htm_env.files import check_tensors, read_tensors, reading, write_tensors
from htm_env.types import NONE

FOLDER = Path(__file__).parent
KEY = "htm_best_known"
"""The key of the description in a file."""
TENSORS = {
    "merges": (torch.int16, 3),
    "errors": (torch.float64, 1),
    "proven": (torch.bool, 1),
    "random_errors": (torch.float64, 1),
    "source": (torch.int16, 1),
}
"""The tensors of a file: their types and numbers of dimensions."""


class Score(NamedTuple):
    """How far a policy is from the best trees known."""

    regret: float
    """Its mean error less the best known one; of returns, the best known return less its own."""
    score: float | None
    """0 as good as random merges, 1 as the best known trees; below 0 and above 1 where it is worse
    and better than they are. None where random merges are as good as the best known trees."""


@dataclass(frozen=True)
class BestKnown:
    """The best known tree of each of the first fixed test episodes of an environment."""

    env: str
    weights_hash: str
    """Of the autoencoder, or the known merger, whose errors these are."""
    merges: Int64[Tensor, "E M 2"]
    errors: Float64[Tensor, "E"]
    """The ``nmse`` of each, or the cost where nothing is decoded, in double precision."""
    proven: Bool[Tensor, "E"]
    """True <--> no tree is better: all were evaluated, or left out by dynamic programming."""
    random_errors: Float64[Tensor, "E"]
    """Those of the fixed order ``random``, as ``htm evaluate`` draws it."""
    source: Int64[Tensor, "E"]
    """Which of the ``sources`` found each tree."""
    sources: tuple[Mapping[str, str], ...]
    """``command`` and ``version`` of those that found trees."""

    def score(self, error: float, episodes: int) -> Score:
        """The score of a mean error over the first ``episodes``: ``(random - error) / (random -
        best)``, each the mean over these episodes.

        Raises ``ValueError`` for more episodes than there are best trees.
        """
        if not 1 <= episodes <= len(self.errors):
            raise ValueError(
                f"{episodes} episodes of {self.env}; best trees are known of the first "
                f"{len(self.errors)}"
            )
        best = float(self.errors[:episodes].mean())
        chance = float(self.random_errors[:episodes].mean())
        score = None if chance == best else (chance - error) / (chance - best)
        return Score(error - best, score)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, all or nothing."""
        tensors = {
            "merges": self.merges.short(),
            "errors": self.errors,
            "proven": self.proven,
            # Where nothing better is known yet, these are the errors, and no file shares memory.
            "random_errors": self.random_errors.clone(),
            "source": self.source.short(),
        }
        about = {"env": self.env, "weights_hash": self.weights_hash, "sources": self.sources}
        write_tensors(path, KEY, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> BestKnown:
        """Read what :meth:`save` wrote; ``FileNotFoundError`` or ``ValueError`` naming the file."""
        with reading(path, "file of best known trees"):
            tensors, about = read_tensors(path, KEY)
            _check(tensors, about)
            columns: dict[str, Any] = dict(tensors)
            columns |= {name: tensors[name].long() for name in ("merges", "source")}
            sources = tuple(about["sources"])
            return cls(about["env"], about["weights_hash"], sources=sources, **columns)


def _check(tensors: Mapping[str, Tensor], about: Any) -> None:
    """Raise ``ValueError`` for what no :meth:`BestKnown.save` writes."""
    check_tensors(tensors, TENSORS)
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"it has {lengths}; expected as many episodes of each")
    merges = tensors["merges"]
    if merges.shape[2] != 2 or merges.min() < NONE or merges.max() > 2 * merges.shape[1]:
        raise ValueError(f"merges {tuple(merges.shape)} have no pairs of tokens and subtrees")
    texts = {"env", "weights_hash"}
    if not (_has_texts(about, texts, {"sources"}) and isinstance(about["sources"], list)):
        raise ValueError(f"its description is {about!r}; expected env, weights_hash and sources")
    if not all(_has_texts(source, {"command", "version"}) for source in about["sources"]):
        raise ValueError("its sources are not each a command and a version")
    source, count = tensors["source"], len(about["sources"])
    if source.min() < 0 or source.max() >= count:
        raise ValueError(f"source is {source.min()} to {source.max()}; there are {count} sources")


def _has_texts(values: Any, texts: set[str], other: Iterable[str] = ()) -> bool:
    """True <--> an object of these texts, and of other fields."""
    fields = isinstance(values, dict) and values.keys() == texts.union(other)
    return fields and all(isinstance(values[name], str) for name in texts)


def best_known_path(env_id: str) -> Path:
    """Where the package has, or would have, the best trees of an id."""
    return FOLDER / f"{env_id}.safetensors"


def best_known(env_id: str, env_kwargs: Mapping[str, Any], weights_hash: str) -> BestKnown | None:
    """The best trees that ship for this data with these weights; None where there are none.

    Their episodes are those of the id with its default arguments.
    """
    path = best_known_path(env_id)
    if env_kwargs or path.parent != FOLDER or not path.is_file():
        return None
    found = BestKnown.load(path)
    return found if found.weights_hash == weights_hash else None

"""The options of ``htm compare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CompareOptions:
    """Train every algorithm on every problem for every seed, and report which is better.

    Each run is a process of its own under OUT/runs, trained with the same budget and tested on the
    same held-out samples. The same command again resumes: what is finished stays, what was
    interrupted continues. More algorithms, problems or seeds can be added to a folder later.
    Without options: the default comparison, in under fifteen minutes on two cores.
    """

    envs: str = "crosses10,trees7"
    """Problems, with commas: trees7 (Trees of 7 tokens, D=6), crosses10 (five Crosses, D=24),
    trees15 (Trees of 15 tokens, D=8), digits (D=32), keys (D=16), or environment ids."""
    algos: str | None = None
    """Algorithms, with commas, as for htm train; eight well-known ones if not given. One may stand
    there twice, with other options under a label: replay,replay:control."""
    encoders: str | None = None
    """Context encoders, with commas, such as none,attention: every algorithm with a policy network
    runs once with each, reported as reinforce and reinforce:attention."""
    seeds: int = 3
    """Runs of each algorithm on each problem."""
    first_seed: int = 0
    """Of its first run: another machine's seeds can continue where this one's end."""
    seconds: float | None = None
    """Budget of a run: seconds of training, evaluations included; 22 if no budget is given."""
    merges: int | None = None
    """Budget of a run: merges made for learning."""
    jobs: int | None = None
    """Runs at a time; one a core if not given."""
    out: Path | None = None
    """Folder of runs, results.csv, report.md and figures; runs/compare if not given. --report needs
    one."""
    mode: Literal["joint", "frozen"] = "joint"
    """As for htm train."""
    env_kwargs: str | None = None
    """Arguments of the data by environment id, such as '{"HTM-Trees-v0": {"heights": [3]}}'."""
    embedding_dim: str | None = None
    """Width of an embedding for all environment ids, such as 6, or by id:
    '{"HTM-Trees-v0": 6}'."""
    algo_options: str | None = None
    """Options by algorithm, such as '{"reinforce": {"policy": {"learning_rate": 0.001}}}' or
    '{"replay:control": {"max_staleness": 0}}'."""
    retrain: bool = False
    """Also freeze every learned policy and train a fresh autoencoder on its trees, for the same
    budget: how good are the trees by themselves?"""
    cross_play: bool = False
    """Also put every policy's trees through every other run's autoencoder: how far did the two
    only learn each other?"""
    report: tuple[Path, ...] = ()
    """Train nothing: make the report of these results.csv files, or folders of comparisons."""

    @property
    def folder(self) -> Path:
        """Where a comparison is that is trained."""
        return Path("runs/compare") if self.out is None else self.out

"""What each command of ``htm`` may be told; the command line and its help are made from this."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from agents.evaluation import TEST_EPISODES


class UsageError(Exception):
    """The command line asks for something that cannot be meant."""


@dataclass(frozen=True)
class TrainOptions:
    """Train an algorithm, write its run to a folder, and evaluate it on held-out data.

    The algorithm's own options depend on --algo: `htm train --algo NAME --help` lists them.
    """

    env: str | None = None
    """Environment id: HTM-Trees-v0, HTM-Crosses-v0, HTM-Digits-v0, or HTM-v0 (your own data)."""
    algo: str | None = None
    """Algorithm: reinforce, original, original_policy, or a fixed merge order such as nearest."""
    env_kwargs: str | None = None
    """Arguments of the data as JSON, such as '{"heights": [3]}' or '{"dataset": "mine.npz"}'."""
    embedding_dim: int | None = None
    """Width of an embedding; the environment's default if not given."""
    mode: Literal["joint", "frozen"] = "joint"
    """joint: an untrained autoencoder learns too; frozen: the pretrained one stays as it is."""
    seconds: float | None = None
    """Budget: seconds of training, evaluations included; 100 if no budget is given."""
    merges: int | None = None
    """Budget: merges made for learning."""
    seed: int = 0
    """Of all random numbers."""
    out: Path | None = None
    """Folder of the run; by default a new one under runs/."""
    resume: Path | None = None
    """Folder of a run to continue from its last checkpoint; it keeps all its settings."""
    device: str = "cpu"
    """Where to run: cpu, cuda, ..."""
    threads: int = 1
    """Threads of one operation; these networks are small, and one is fastest."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate the last checkpoint of a run on the held-out test split."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    env_kwargs: str | None = None
    """Arguments of other data as JSON; what is left out stays as in training."""
    episodes: int = TEST_EPISODES
    """Test episodes; finite data gives each of its rows once at most."""
    json: bool = False
    """Print JSON instead of a table."""
    threads: int = 1
    """Threads of one operation."""


@dataclass(frozen=True)
class PretrainOptions:
    """Remake the weights that ship with the package."""

    env: str | None = None
    """Environment id; all that have pretrained weights if not given."""
    merges: int = 4_000_000
    """Merges that an id's autoencoder learns from; the same number gives the same weights."""
    out: Path | None = None
    """Folder of the weights; the package's own if not given."""
    threads: int = 1
    """Threads of one operation."""


def set_threads(count: int) -> None:
    """Let one operation of torch use so many threads; raises :class:`UsageError` below one."""
    if count < 1:
        raise UsageError(f"--threads is {count}; expected at least 1")
    torch.set_num_threads(count)


def train_options(config: Any, **defaults: Any) -> Any:
    """``TrainOptions`` with the fields of an algorithm's ``config`` beside them, and its values.

    The field is called ``config``; on the command line its fields carry no prefix. ``defaults``
    replace those of ``TrainOptions``.
    """
    options = make_dataclass(
        "Train",
        [("config", Annotated[type(config), tyro.conf.arg(name="")], config)],
        bases=(TrainOptions,),
        frozen=True,
        namespace={"__doc__": TrainOptions.__doc__},
    )
    return options(**defaults)

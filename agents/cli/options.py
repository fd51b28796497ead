"""What each command of ``htm`` may be told; the command line and its help are made from this."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.config.options import TEST_EPISODES, PictureFormat, Split


@dataclass(frozen=True)
class TrainOptions:
    """Train an algorithm, write its run to a folder, and evaluate it on held-out data.

    The algorithm's own options depend on --algo: `htm train --algo NAME --help` lists them.
    """

    env: str | None = None
    """Environment id: HTM-Trees-v0, HTM-Crosses-v0, HTM-Digits-v0, HTM-Keys-v0, or HTM-v0 (your
    own data)."""
    algo: str | None = None
    """Algorithm: reinforce, replay, ppo, maskable_ppo, original, original_policy, flat, glom, or a
    fixed merge order such as nearest."""
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
    merge_rounds: bool = False
    """Merge a matching of disjoint pairs at a time, in about log P rounds: each token with its best
    partner, where the choice is mutual."""
    json: bool = False
    """Print JSON instead of a table."""
    threads: int = 1
    """Threads of one operation."""


@dataclass(frozen=True)
class PlotOptions:
    """Draw what a trained run does with held-out samples: figures for a paper.

    For each sample its merge tree with the dendrogram, the merges one by one (also as an animated
    GIF), what else the policy considered, and the error charged to each merge; for all of them
    together originals and reconstructions.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the figures; figures/ in the folder of the run if not given."""
    samples: int = 3
    """Samples to draw."""
    first: int = 0
    """The first of them, counted from 0; those after it follow."""
    split: Split = "test"
    """Data to draw from; test and validation are held out."""
    format: PictureFormat = "png"
    """Of all figures but the animated ones."""
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


@dataclass(frozen=True)
class ViewOptions:
    """Write one HTML page that steps through the merges of a run; it needs no network."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    samples: str = "8"
    """How many samples, or which ones, with commas: 0,3,5 (a single one: 3,)."""
    split: Split = "test"
    """Where the samples come from."""
    out: Path | None = None
    """The page, or a folder for it; by default the folder of the run, as view.html."""
    open: bool = False
    """Show it in a web browser as well."""
    threads: int = 1
    """Threads of one operation."""


@dataclass(frozen=True)
class EmbedOptions:
    """Write the root embeddings of a run: arrays, a map, and a log for TensorBoard's projector."""

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path | None = None
    """Folder of the files; DIR/embeddings if not given."""
    samples: int = TEST_EPISODES
    """Samples of the split; finite data gives each of its rows once at most."""
    split: Split = "test"
    """Which samples."""
    merge_rounds: bool = False
    """Merge a matching of disjoint pairs at a time, as in ``htm evaluate``."""
    format: PictureFormat = "png"
    """Of the map."""
    threads: int = 1
    """Threads of one operation."""


@dataclass(frozen=True)
class BenchOptions:
    """Run benchmarks of the repository: each prints tables, and writes them to runs/benchmarks, as
    NAME.json and NAME.md.

    Without names: the throughput benchmarks, one after the other.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which ones; --list says which there are."""
    list: bool = False
    """List the benchmarks and run none."""
    quick: bool = False
    """A first look, in minutes."""
    json: Path | None = None
    """File for the tables of this run, all in one JSON object by their names."""
    device: str = "cpu"
    """Where to run: cpu, cuda, ...; those that learn or time run anywhere, the others on cpu."""


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

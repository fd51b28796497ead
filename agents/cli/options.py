"""What each command of ``htm`` may be told; the command line and its help are made from this."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.evaluation.evaluate import TEST_EPISODES

PictureFormat = Literal["png", "pdf", "svg"]


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
    split: Literal["train", "validation", "test"] = "test"
    """Data to draw from; test and validation are held out."""
    format: PictureFormat = "png"
    """Of all figures but the animated ones."""
    threads: int = 1
    """Threads of one operation."""


@dataclass(frozen=True)
class GenerateOptions:
    """Draw new samples from a trained run, and measure how good they are.

    A Gaussian mixture is fitted to the root embeddings of training samples, roots are drawn from
    it, and unmerged until the leaf classifier calls everything a leaf; what the autoencoder does
    not know well is encoded and decoded a few times more, which brings it nearer. Writes
    samples.npz, metrics.json, mixture.safetensors and pictures. Rows beside the generated samples:
    the same before any refinement, other real samples (the ceiling), reconstructions, tokens of a
    Gaussian and an untrained autoencoder.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of the run."""
    n: int = 1000
    """Samples to generate."""
    out: Path | None = None
    """Folder to write to; "generated" in the run's folder if not given."""
    seed: int = 0
    """Of all random numbers."""
    temperature: float = 1.0
    """Factor of the mixture's covariances; 0 draws the means of its components."""
    refinements: int = 3
    """How often a generated sample is encoded along its own tree and decoded again at most, as long
    as the autoencoder reconstructs it worse than nine in ten real samples; 0 for never."""
    threshold: float = 0.5
    """Probability of being a leaf from which a node is one."""
    components: tuple[int, ...] | None = None
    """Numbers of components to try; powers of two up to 128, and to a twentieth of the roots, if
    not given."""
    covariance_types: tuple[str, ...] = ("full", "tied", "diag")
    """Covariance types to try: full, tied, diag, spherical."""
    roots: int = 10_000
    """Training samples whose roots are fitted; finite data gives each of its rows once at most."""
    real: int = 500
    """Held-out samples to compare with, where the data has twice as many."""
    max_depth: int | None = None
    """Merges between a root and a leaf at most; the data's largest number of tokens if not
    given."""
    max_tokens: int | None = None
    """Tokens of a sample at most; twice the data's largest number if not given."""
    noise_std: float = 0.1
    """Noise to be removed, in standard deviations of each coordinate."""
    format: PictureFormat = "png"
    """Of the pictures."""
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
    split: Literal["train", "validation", "test"] = "test"
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
    split: Literal["train", "validation", "test"] = "test"
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

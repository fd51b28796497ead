"""The options of each command of ``htm``; the command line and its help are made from them.

Importing this loads no torch. Numbers that are out of range raise :class:`UsageError` here, before
a command loads anything.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import tyro

from agents.config.errors import UsageError, check_at_least
from agents.config.options import TEST_EPISODES, OfRun, PictureFormat, Split, Threads


def _flag(kind: str, default: str = "") -> Any:
    """The help of a flag that is None where it is not given."""
    shown = f"(default: {default})" if default else ""
    return tyro.conf.arg(metavar=kind, help_behavior_hint=shown)


_Integer = Annotated[int | None, _flag("INT")]
_Number = Annotated[float | None, _flag("FLOAT")]
_Name = Annotated[str | None, _flag("NAME")]
_Json = Annotated[str | None, _flag("JSON")]
_Folder = Annotated[Path | None, _flag("DIR")]
_File = Annotated[Path | None, _flag("FILE")]


@dataclass(frozen=True)
class RunOptions(Threads):
    """The options of ``htm train`` that every algorithm has."""

    env: _Name = None
    """HTM-Trees-v0, ...; HTM-v0 for own data; trees7, ...; module:Id-v0."""
    algo: _Name = None
    """reinforce, ppo, ...; a fixed order as nearest; sb3:DQN; module:Class."""
    data: _File = None
    """Own data, with HTM-v0; with --resume, where it is now."""
    allow_changed_data: Annotated[bool, _flag("")] = False
    """With --resume: go on where the data is not what the run began with."""
    env_kwargs: _Json = None
    """Of the data, as '{"heights": [3]}' or '{"dataset": "mine.npz"}'."""
    embedding_dim: Annotated[int | Literal["auto"] | None, _flag("INT|auto")] = None
    """Width of an embedding; the default of the data if not given."""
    mode: Annotated[Literal["joint", "frozen"] | None, _flag("joint|frozen", "joint")] = None
    """Autoencoder: untrained and learning too, or as it is."""
    merger: _Name = None
    """module:name of a known merger, in the place of an autoencoder."""
    seconds: _Number = None
    """Budget: seconds, evaluations included; 100 without any budget."""
    merges: _Integer = None
    """Budget: merges made for learning."""
    seed: Annotated[int | None, _flag("INT", "0")] = None
    """Of all random numbers."""
    out: _Folder = None
    """Folder of the run; a new one under runs/ if not given."""
    resume: _Folder = None
    """Continue the run in this folder, with all its settings."""
    device: Annotated[str | None, _flag("NAME", "cpu")] = None
    """Where to run: cpu, cuda, ..."""
    calibrate: Annotated[bool, _flag("")] = False
    """Time this machine's products of matrices, 2 s a day, as htm compare does."""
    rank_timeout: Annotated[float, _flag("SECONDS", "1800")] = 1800.0
    """Under torchrun: how long a process waits for another, validation included."""
    config: _File = None
    """TOML or JSON to start from, as a run's config.json; flags win."""
    save_config: _File = None
    """Write the configuration to a JSON file, and train nothing."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, _flag("PATH=VALUE")] = ()
    """Any option of the algorithm: --set policy.weight_decay=0.1 ..."""
    help_all: Annotated[bool, _flag("")] = False
    """Show all options of the algorithm, and exit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, seed=self.seed)
        if self.resume is not None and self.save_config is not None:
            raise UsageError("--save-config is for new runs; a run to resume has its config.json")
        if not 0 < self.rank_timeout < 1e8:
            raise UsageError(f"--rank-timeout is {self.rank_timeout}; expected seconds above 0")
        if self.allow_changed_data and self.resume is None:
            raise UsageError("--allow-changed-data is for a run that --resume continues")
        if self.help_all:
            raise UsageError("--help-all needs the algorithm: htm train --algo NAME --help-all")


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Train an algorithm, write its run to a folder, and evaluate it on held-out data.
    The options used most; with `--algo NAME`, those of that algorithm. `--help-all` lists the rest.
    """

    batch_size: _Integer = None
    """Samples an update; steps of a minibatch for ppo."""
    trees_per_sample: _Integer = None
    """Trees that the policy makes of every sample."""
    learning_rate: _Number = None
    """Of the policy."""
    policy_hidden_dim: _Integer = None
    """Width of the policy's hidden layers."""
    encoder: _Name = None
    """none, attention, glom, hierarchical or spans."""
    candidates: _Name = None
    """Pairs to choose from: all or knn."""
    k: _Integer = None
    """knn: partners of a token at most."""
    reward: _Name = None
    """incremental, terminal, one_step, right_merges, recurring or module:function."""
    discount: _Number = None
    """Of a reward one merge later."""
    baseline: _Name = None
    """none, value, greedy, leave_one_out, ..."""
    demonstrations: Annotated[tuple[str, ...] | None, _flag("STR ...")] = None
    """Fixed orders that are cloned at first."""
    replays: _Integer = None
    """Updates on stored episodes after each on fresh ones."""
    n_envs: _Integer = None
    """Copies of the environment."""

    @property
    def changes(self) -> dict[str, Any]:
        """The options of the algorithm that flags and ``--set`` change, by their dotted paths.

        Raises :class:`UsageError` for a ``--set`` without a value.
        """
        flags = {path: getattr(self, flag) for flag, path in ALGORITHM_FLAGS.items()}
        changes = {path: value for path, value in flags.items() if value is not None}
        for setting in self.set:
            path, equals, text = setting.partition("=")
            if not (path and equals):
                raise UsageError(f"--set has {setting!r}; expected path=value, such as discount=1")
            changes[path.replace("-", "_")] = _value(text)
        return changes


ALGORITHM_FLAGS = {name: name for name in TrainOptions.__annotations__}
ALGORITHM_FLAGS["learning_rate"] = "policy.learning_rate"
"""Paths in an algorithm's configuration of the options that are flags of their own."""


def _value(text: str) -> Any:
    """JSON, a number such as ``inf``, or the text itself."""
    from htm_env.files import parse_json  # loads torch

    for read in (parse_json, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def shown_options(config: dict[str, Any]) -> type[TrainOptions]:
    """``TrainOptions`` whose help shows the options that an algorithm has, and its defaults.

    Args:
        config: the algorithm's configuration, flat, by dotted paths.
    """
    hints = get_type_hints(TrainOptions, include_extras=True)
    changed: list[tuple[str, Any, Any]] = [
        ("calibrate", Annotated[bool, tyro.conf.Suppress], False),  # for comparisons
        ("rank_timeout", Annotated[float, tyro.conf.Suppress], 1800.0),  # for torchrun
    ]
    for flag, path in ALGORITHM_FLAGS.items():
        kind, shown = get_args(hints[flag])
        value = config.get(path)
        default = " ".join(value) if isinstance(value, tuple) else str(value or "")
        hint = _flag(shown.metavar, default) if path in config else tyro.conf.Suppress
        changed.append((flag, Annotated[kind, hint], None))
    about = {"__doc__": inspect.getdoc(TrainOptions)}  # is not inherited
    return make_dataclass("Train", changed, bases=(TrainOptions,), frozen=True, namespace=about)


@dataclass(frozen=True)
class EvaluateOptions(OfRun):
    """Evaluate the last checkpoint of a run on the held-out test split."""

    env_kwargs: str | None = None
    """Arguments of other data as JSON; what is left out stays as in training."""
    episodes: int = TEST_EPISODES
    """Test episodes; finite data gives each of its rows once at most."""
    merge_rounds: bool = False
    """Merge a matching of disjoint pairs at a time, in about log P rounds: each token with its best
    partner, where the choice is mutual. Gives other trees; saves time with a context encoder, or
    without numba."""
    flat_merges: Annotated[int | None, _flag("INT")] = None
    """Also train a set autoencoder without trees, of the same width, as one more yardstick: on so
    many merges, of which a sample of n tokens counts n - 1 (a run's own are in its result.json)."""
    bits: bool = False
    """Also measure the bits that a sample costs (tree, root, and what is left of the tokens), and
    the error where the decoder is not told the tree."""
    semantics: bool = False
    """Also measure what roots, inner nodes and trees mean: few-shot accuracy, effective rank,
    retrieval of parts, agreement and stability of trees. Writes semantics.json, semantics.md and
    pictures to the folder of the run."""
    against: Annotated[tuple[Path, ...], _flag("DIR ...")] = ()
    """Further runs to measure beside it, with --semantics: fixed orders, flat, ..."""
    json: bool = False
    """Print JSON instead of a table."""

    least: ClassVar = {"episodes": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against and not self.semantics:
            raise UsageError("--against is for runs to measure with --semantics")
        if self.semantics and self.search:
            raise UsageError(
                f"--semantics measures the trees of the policy alone, not those of --search "
                f"{self.search}; expected one of the two"
            )


@dataclass(frozen=True)
class PlotOptions(OfRun):
    """Draw what a trained run does with held-out samples: figures for a paper.

    For each sample its merge tree with the dendrogram, the merges one by one (also as an animated
    GIF), what else the policy considered, and the error charged to each merge; for all of them
    together originals and reconstructions.
    """

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

    least: ClassVar = {"samples": 1, "first": 0}


@dataclass(frozen=True)
class PretrainOptions(Threads):
    """Remake the weights that ship with the package."""

    env: str | None = None
    """Environment id; all that have pretrained weights if not given."""
    merges: int = 4_000_000
    """Merges that an id's autoencoder learns from; the same number gives the same weights."""
    out: Path | None = None
    """Folder of the weights; the package's own if not given."""


@dataclass(frozen=True)
class BestKnownOptions(Threads):
    """Print the best trees known of the fixed test episodes of frozen environments, or search on.

    A score of 1 is as good as they are, and 0 as good as random merges. --improve starts from them,
    from the trees of all fixed orders, and from those of a run if one is given, and writes a file
    where it finds better ones.
    """

    env: _Name = None
    """Environment id; all that have such trees if not given."""
    improve: bool = False
    """Search for better ones."""
    seconds: float = 60.0
    """How long after the first pass over the fixed orders, in seconds of the processor."""
    search: int = 1000
    """Budget of one pass, for each episode: trees that are evaluated, or where the merger is known
    merges."""
    orders: _Name = None
    """Fixed orders to start from, with commas; all if not given."""
    from_run: Annotated[Path | None, _flag("DIR")] = None
    """A run on the frozen environment whose trees are searched too."""
    seed: int = 0
    """Of the random numbers of this search."""
    out: _File = None
    """The file that is read and written; the package's own if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, search=self.search)
        check_at_least(0, seed=self.seed)
        if not 0 <= self.seconds < math.inf:
            raise UsageError(f"--seconds is {self.seconds}; expected a finite number of at least 0")
        if self.improve and self.env is None:
            raise UsageError("--improve needs --env, the environment whose trees are searched")
        if self.out is not None and self.env is None:
            raise UsageError("--out needs --env, the environment that the file is about")


@dataclass(frozen=True)
class ViewOptions(OfRun):
    """Write one HTML page that steps through the merges of a run; it needs no network."""

    samples: str = "8"
    """How many samples, or which ones, with commas: 0,3,5 (a single one: 3,)."""
    split: Split = "test"
    """Where the samples come from."""
    out: Path | None = None
    """The page, or a folder for it; by default the folder of the run, as view.html."""
    open: bool = False
    """Show it in a web browser as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.chosen  # noqa: B018  # raises for a text that names no samples

    @property
    def chosen(self) -> int | tuple[int, ...]:
        """A count, or sample numbers where there is a comma; ``UsageError`` for anything else."""
        try:
            numbers = [int(part) for part in self.samples.split(",") if part.strip()]
        except ValueError:
            numbers = []
        counted = "," not in self.samples
        if not numbers or min(numbers) < (1 if counted else 0) or len(set(numbers)) < len(numbers):
            raise UsageError(
                f"--samples is {self.samples!r}; expected a count, such as 8, or different sample "
                "numbers with commas, such as 0,3,5"
            )
        return numbers[0] if counted else tuple(numbers)


@dataclass(frozen=True)
class EmbedOptions(OfRun):
    """Write what a run makes of its data, row by row, in the data's own row numbers and token
    indices: roots and errors, trees as Newick and as merges, and reconstructions.
    """

    out: Path | None = None
    """Folder of the files; DIR/embeddings if not given."""
    split: Literal["train", "validation", "test", "all"] = "test"
    """Which rows."""
    samples: _Integer = None
    """Most rows of a split; all of finite data and 1,000 generated ones if not given."""
    pictures: bool = False
    """Also draw a map of the roots, and write a log for TensorBoard's projector; the thumbnail of a
    sample takes 28 ms."""
    merge_rounds: bool = False
    """Merge a matching of disjoint pairs at a time, as in ``htm evaluate``."""
    format: PictureFormat = "png"
    """Of the map."""

    least: ClassVar = {"samples": 1}


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

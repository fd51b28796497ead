"""The options of ``htm compare``."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from agents.config.dataclasses_json import config_from_dict
from agents.config.errors import UsageError, as_usage_error, check_at_least
from agents.config.files import read_file
from agents.config.options import check_environment
from agents.engines.options import EngineOptions
from agents.registry import check_algorithm

PROBLEM_NAMES = ("trees7", "crosses10", "trees15", "digits", "keys", "jets")
"""Names of the problems; what they are is in :mod:`agents.comparison.problems`."""


@dataclass(frozen=True)
class CompareOptions(EngineOptions):
    """Train every algorithm on every problem for every seed, and report which is better.

    Each run is a process of its own under OUT/runs, trained with the same budget and tested on the
    same held-out samples. The same command again resumes: what is finished stays, what was
    interrupted continues. More algorithms, problems or seeds can be added to a folder later.
    Without options: the default comparison, in under fifteen minutes on two cores.
    """

    envs: str = "crosses10,trees7"
    """Problems, with commas: trees7 (Trees of 7 tokens, D=6), crosses10 (five Crosses, D=24),
    trees15 (Trees of 15 tokens, D=8), digits (D=32), keys (D=16), jets (its merger is known), or
    environment ids, also module:Id-v0."""
    algos: str = "reinforce,replay,ppo,maskable_ppo,original,random,nearest,structure"
    """Algorithms, with commas, as for htm train; module:Class is one of your own. One may be named
    twice, with other options under a label: replay,replay:control."""
    encoders: str | None = None
    """Context encoders, with commas, such as none,attention: every algorithm with a policy network
    runs once with each, reported as reinforce and reinforce:attention."""
    seeds: int = 3
    """Runs of each algorithm on each problem."""
    first_seed: int = 0
    """Seed of the first run: another machine's seeds can continue where this one's end."""
    seconds: float | None = None
    """Budget of a run: seconds of training, evaluations included; 22 if no budget is given."""
    merges: int | None = None
    """Budget of a run: merges made for learning."""
    out: Path | None = None
    """Folder of runs, results.csv, report.md and figures; runs/compare if not given. --report needs
    one."""
    mode: Literal["joint", "frozen"] | None = None
    """As for htm train."""
    device: str = "cpu"
    """Where all runs train: cpu, cuda, ... On a cluster the engine has to be asked for GPUs too."""
    env_kwargs: str | None = None
    """Arguments of the data by environment id, such as '{"HTM-Trees-v0": {"heights": [3]}}'."""
    embedding_dim: str | None = None
    """Width of an embedding for all environment ids, such as 6 or auto, or by id:
    '{"HTM-Trees-v0": 6}'."""
    dims: str | None = None
    """Widths of an embedding, with commas, such as 4,8,auto: every problem is run at each, and the
    report draws error against width."""
    algo_options: str | None = None
    """Options by algorithm, such as '{"reinforce": {"policy": {"learning_rate": 0.001}}}' or
    '{"replay:control": {"max_staleness": 0}}'."""
    retrain: bool = False
    """Also freeze every learned policy and train a fresh autoencoder on its trees, for the same
    budget: how good are the trees by themselves?"""
    cross_play: bool = False
    """Also put every policy's trees through every other run's autoencoder: how far did the two
    only learn each other?"""
    search: int = 0
    """Also test every run with its trees searched on with this budget (see htm evaluate), as a row
    of its own: reinforce:search100."""
    report: tuple[Path, ...] = ()
    """Train nothing: make the report of these results.csv files, or folders of comparisons."""

    config: Path | None = None
    """TOML or JSON file of these options to start from; flags win. Names may be a list there,
    arguments an object."""
    save_config: Path | None = None
    """Write the options to this JSON file, and train nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, seeds=self.seeds)
        check_at_least(0, first_seed=self.first_seed, search=self.search)
        if (self.retrain or self.cross_play) and self.mode == "frozen":
            raise UsageError("--retrain and --cross-play examine joint training; --mode is frozen")
        if self.dims is not None:
            if self.embedding_dim is not None:
                raise UsageError("--dims and --embedding-dim: give one of them")
            for name in names_in("--dims", self.dims):
                if name != "auto" and not (name.isdecimal() and int(name) > 0):
                    raise UsageError(
                        f"--dims has {name!r}; expected whole numbers above 0, or auto"
                    )
        with as_usage_error("--envs: "):
            for name in names_in("--envs", self.envs):
                check_environment(name, PROBLEM_NAMES)
        with as_usage_error("--algos: "):
            for name in names_in("--algos", self.algos):
                check_algorithm(name)

    @property
    def folder(self) -> Path:
        """The folder of a comparison that is trained."""
        return Path("runs/compare") if self.out is None else self.out

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not the defaults, by name; without the files of options."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("config", "save_config")
            and getattr(self, field.name) != field.default
        }


def names_in(flag: str, text: str) -> list[str]:
    """The names between the commas, each once; :class:`UsageError` for none."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{flag} is {text!r}; expected names with commas between them")
    return names


def options_from_file(path: Path, *, with_budget: bool = True) -> CompareOptions:
    """The options in a TOML or JSON file.

    Without ``with_budget`` the file's budget is left out, for flags that give another. Raises
    :class:`UsageError` naming the file, and the option that does not exist or is of another type.
    """
    values = read_file(path)
    for name in ("config", "save_config"):
        if name in values:
            raise UsageError(f"--config {path}: {name} is for the command line only")
    for name, value in values.items():
        if name in ("envs", "algos", "encoders", "dims") and isinstance(value, list):
            values[name] = ",".join(map(str, value))
        elif name in ("env_kwargs", "embedding_dim", "algo_options", "engine_options"):
            values[name] = value if isinstance(value, str) else json.dumps(value)
    if not with_budget:
        values = {name: value for name, value in values.items() if name not in BUDGETS}
    with as_usage_error(f"--config {path}: "):
        return config_from_dict(CompareOptions, values)


BUDGETS = ("seconds", "merges")

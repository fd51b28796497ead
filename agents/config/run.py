"""The configuration of a run: its task, its algorithm, the algorithm's options and the budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from agents.config.budget import Budget

if TYPE_CHECKING:
    from htm_env.datasets import Dataset

    ObjectName = Any
else:  # in a dataclass that a file or a command line may fill, which hold names only
    ObjectName = str

MODES = ("joint", "frozen")


@dataclass(frozen=True)
class Task:
    """A learning task: an environment, the autoencoder's size, the seed and the device."""

    env: str
    """Environment id, perhaps with the module that registers it: ``module:Id-v0``."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the dataset, as ``gym.make`` takes them."""
    embedding_dim: int | Literal["auto"] | None = None
    """``D``; ``auto``: as the data suggests; None: the environment's default, ``auto`` for
    HTM-v0."""
    mode: str | None = None
    """``joint``: the autoencoder learns too, from scratch; ``frozen``: pretrained, untouched. None:
    frozen where the merger is known, since there is none to train then, else joint."""
    seed: int = 0
    """Seed of all random numbers."""
    device: str = "cpu"
    """Device to run on: cpu, cuda, ..."""
    merger: ObjectName | None = None
    """A known merger (see ``htm_env/known.py``), as ``module:name`` in files; None: the data's own,
    if it has one."""

    def knows_merger(self, dataset: Dataset) -> bool:
        """True <--> merges of this data have known results, so that no autoencoder is needed."""
        return self.merger is not None or dataset.default_merger is not None

    def dataset(self, split: str) -> Dataset:
        """One split of the data; ``ValueError`` where its arguments name a split themselves."""
        from htm_env.datasets import make_dataset

        if "split" in self.env_kwargs:
            raise ValueError("env_kwargs has 'split': training and evaluation take their own")
        if "reward" in self.env_kwargs:
            raise ValueError("env_kwargs has 'reward', an option of the algorithm: --reward NAME")
        if "merger" in self.env_kwargs:
            raise ValueError("env_kwargs has 'merger', an option of its own: --merger module:name")
        return make_dataset(self.env, split=split, **self.env_kwargs)


@dataclass(frozen=True)
class RunConfig(Task):
    """The content of ``config.json``, and of the file behind ``htm train --config``."""

    algo: str = field(kw_only=True)
    """Algorithm, perhaps with a label: ``replay``, ``replay:control``, ``module:Class``."""
    config: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Options of the algorithm, nested as its configuration is; its defaults where left out."""
    budget: Budget | None = field(default=None, kw_only=True)
    """None for an agent that was saved without a run."""

    @property
    def task(self) -> dict[str, Any]:
        """The fields of the :class:`Task` by name."""
        return {field.name: getattr(self, field.name) for field in fields(Task)}

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON; arrays among ``env_kwargs`` are not copied."""
        return vars(self) | {"budget": None if self.budget is None else asdict(self.budget)}

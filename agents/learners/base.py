"""The base class of every algorithm: update, plan, state and restore."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from agents.config.budget import Budget
from agents.config.dataclasses_json import LARGEST, check_bounds, config_from_dict
from agents.config.options import TEST_EPISODES
from agents.config.plug_ins import SCRIPT, found_object, imported_name, names_object, saved_name
from agents.config.run import MODES, RunConfig, Task
from agents.evaluation.encoded import Encoded
from agents.evaluation.evaluate import evaluate, planned, root_errors
from agents.evaluation.sets import EncodedSets, PlacedSets, encode_sets
from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer
from agents.optim.ranks import Processes, Ranks
from htm_env.autoencoder import (
    NOTHING_DECODED,
    POSED,
    HTMAutoencoder,
    Policy,
    TreeEncoder,
    merge_with,
)
from htm_env.checks import at_least, check_choice, whole_number
from htm_env.datasets import Dataset, environment_id
from htm_env.datasets.kinds import place_columns
from htm_env.datasets.sets import as_list
from htm_env.files import load_weights
from htm_env.forest import tree_height
from htm_env.population import start_population
from htm_env.rewards import Reward, RewardName, known_costs
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import TokenBatch
from htm_env.weights import embedding_dim_of, make_autoencoder, usable_device

LearnerType = TypeVar("LearnerType", bound="Learner")


@dataclass(frozen=True)
class LearnerConfig:
    """The least options of an algorithm; one of your own adds fields in a frozen subclass."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    batch_size: int = 32
    """Samples an update."""
    reward: RewardName | None = None
    """See :func:`htm_env.rewards.reward_on`; the environment's own if not given."""

    def __post_init__(self) -> None:
        check_bounds(self, batch_size=(1, LARGEST))


class Learner(ABC):
    """An algorithm that makes merges, and learns from them.

    An algorithm defines ``update`` and ``plan``; where it has more to remember than an autoencoder,
    also ``state`` and ``restore``, which add to those here. What else there is follows from these:
    training, evaluation, checkpoints, resuming, comparison. All randomness comes from
    ``self.generator``, so that a saved state continues bit for bit.

    It is given ``self.config``, ``self.task``, ``self.dataset``, ``self.autoencoder``,
    ``self.generator`` and ``self.device``, and may use :meth:`sample`, :meth:`merge`,
    :meth:`errors` and :meth:`finish_update`, with which an update may end:

    Example::

        class Mine(Learner):
            def update(self, progress):
                batch = self.sample(self.config.batch_size)
                merges = self.plan(batch, self.generator, greedy=False)
                ...  # learn from them
                return self.finish_update(batch, merges, progress)

            def plan(self, batch, generator, *, greedy):
                return self.merge(batch, self.choose, generator)

    ``htm train --algo my_module:Mine`` trains it.

    Args:
        env_id: an environment id (see :func:`htm_env.make_dataset`).
        config: the algorithm's frozen configuration; its defaults if None.
        task: the other fields of :class:`Task`: ``env_kwargs``, ``embedding_dim``, ``mode``,
            ``seed``, ``device``, ``merger``.

    Raises ``ValueError`` for an unknown id, mode or device, for a seed below 0, and for data that
    cannot be read.
    """

    algo: str
    """The name under which results are reported; ``module:Class`` where a class gives none."""
    algorithms: tuple[str, ...] = ()
    """All names of algorithms that are of this class; ``algo`` alone if empty."""
    fixed_trees: bool = False
    """True <--> its trees are given, not learned: the autoencoder alone is trained."""
    given_names: Mapping[str, Any] = {}
    """``module:name`` of the reward and of the merger, where these were given by such names."""
    data_parallel: bool = False
    """True <--> several processes may learn one model together, see :meth:`join`."""
    config_class: type = LearnerConfig
    """The frozen dataclass that configures it; its field ``autoencoder`` is used here."""
    unnamed_options: Mapping[str, Any] = {}
    """Options as they were in runs of earlier versions, which do not name them."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not {"algo", "algorithms"} & set(vars(cls)):
            cls.algo = f"{imported_name(cls.__module__)}:{cls.__qualname__}"

    def __init__(self, env_id: str, config: Any = None, **task: Any) -> None:
        self.config = self.config_class() if config is None else config
        self.task = Task(environment_id(env_id), **task)
        if self.task.mode is not None:
            check_choice("mode", self.task.mode, MODES)
        whole_number("seed", self.task.seed, 0, 2**63 - 1)
        self.device = usable_device(self.task.device)
        self.generator = torch.Generator(self.device).manual_seed(self.task.seed)
        self.ranks = Ranks()
        """The processes that learn this model together; this one alone until :meth:`join`."""
        self.dataset = self.task.dataset("train")
        self.std = self.dataset.std.to(self.device)
        if self.task.mode is None:
            known = self.task.knows_merger(self.dataset)
            self.task = replace(self.task, mode="frozen" if known else "joint")
        self.reward: Reward
        """The reward that it learns from, if it learns from any."""
        self.reward, self._costs = known_costs(
            self.dataset, getattr(self.config, "reward", None), self.task.merger, None
        )
        self.autoencoder = self.new_autoencoder().to(self.device)
        self.merges_made = 0
        """Merges made in the environment for learning, a greedy baseline's included."""
        self.updates = 0
        self.saved_with: dict[str, Any] = {}
        """What whoever made the learner saves with it, nested as a state is; none by itself."""

    @property
    def learns(self) -> bool:
        """False <--> an update changes nothing: given trees, and a frozen autoencoder."""
        return self.task.mode == "joint" or not self.fixed_trees

    def new_autoencoder(self) -> TreeEncoder:
        known = self.task.knows_merger(self.dataset)
        if self.task.mode == "frozen":
            return make_autoencoder(
                self.task.env,
                self.dataset,
                None if known else "pretrained",
                self.task.embedding_dim,
                self.task.merger,
                self._costs,
            )
        if known:
            raise ValueError(
                f"the merger of {self.task.env} is known, so there is no autoencoder to train; "
                "expected --mode frozen"
            )
        dim = embedding_dim_of(self.task.env, self.dataset, self.task.embedding_dim)
        autoencoder = HTMAutoencoder(
            self.dataset.token_dim,
            dim,
            self.config.autoencoder.hidden_dim,
            self.config.autoencoder.architecture,
            categories=self.dataset.categories,
            places=self.places(),
            generator=self.generator,
        )
        autoencoder.set_statistics(self.dataset.mean, self.dataset.std)
        return autoencoder

    def places(self) -> tuple[int, ...]:
        """Where the tokens have their places, for an architecture that keeps poses; else none."""
        if self.config.autoencoder.architecture not in POSED:
            return ()
        return place_columns(self.dataset.kind, self.dataset.token_dim)

    # ------------------------------------------------------------ what an algorithm does

    @abstractmethod
    def update(self, progress: float) -> dict[str, float]:
        """Learn once; ``progress`` in [0, 1] is the share of the budget already used.

        Adds 1 to ``updates``, and to ``merges_made`` the merges that were made to learn from, or
        lets :meth:`finish_update` do so. Returns the update's scalars under their TensorBoard tags
        (``train/return``, ``loss/...``). Raises ``FloatingPointError`` when losses or gradients
        stay non-finite.
        """

    @abstractmethod
    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """The merges that the current policy makes of these samples (no learning, no noise).

        ``greedy``: the best ones, else drawn. A tree for every sample, -1 in padding; all random
        numbers come from ``generator``.
        """

    # ------------------------------------------------------------ what an algorithm may use

    @cached_property
    def trainer(self) -> AutoencoderTrainer:
        """The optimizers of the autoencoder, made when they are first used."""
        model = self.autoencoder.decoding()
        return AutoencoderTrainer(
            model, self.config.autoencoder, self.generator, self.ranks, self.dataset.kind
        )

    def join(self, processes: Processes) -> None:
        """Learn from now on together with the same learner in other processes.

        All begin with the same weights, and average the gradient of every step over
        :attr:`ranks`; each makes episodes of its own, from its own random numbers, and of data in
        shards that are read part by part each reads its own (``Dataset.of_rank``). What a learner
        computes of a whole batch goes through :attr:`ranks` too, and so does every draw that
        decides what an update does. Raises ``ValueError`` for an algorithm that does not do so.
        """
        if not self.data_parallel:
            raise ValueError(
                f"{self.algo} learns in one process; expected htm train without torchrun, or "
                "reinforce, rloo, replay, flat, glom or a fixed order"
            )
        self.ranks.join(processes)
        self.ranks.diverge(self.generator)
        self.dataset = self.dataset.of_rank(processes.index, processes.count)

    def advice(self) -> str | None:
        """One line for a person before training, where another option would cost far less."""
        return None

    def sample(self, count: int) -> TokenBatch:
        """Fresh samples of the training split."""
        return self.dataset.sample(count, self.generator).to(self.device)

    @torch.no_grad()
    def merge(
        self, batch: TokenBatch, policy: Policy, generator: torch.Generator
    ) -> Int64[Tensor, "B M 2"]:
        """The trees that a policy makes of these samples, one merge at a time.

        ``policy(observation, generator)`` gives an action for every sample, ``(B,)``
        (:func:`htm_env.pair_to_action`), from tensors under the environment's keys: ``tokens``
        ``(B, P, D)``, ``active`` and ``leaf_counts`` ``(B, P)``. The action of a sample that is
        merged to one root is not used. Raises ``ValueError`` for an illegal one.
        """
        model = self.autoencoder
        tokens = model.standardise(batch.tokens)
        return merge_with(
            policy, tokens, batch.present, model.lifter, model.merger, generator
        ).merges

    def errors(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Float[Tensor, "B"]:
        """The ``nmse`` of every sample, decoded from the root of its tree; of a known merger the
        cost of its merges."""
        return root_errors(self.autoencoder, batch, merges, self.std)

    def finish_update(
        self,
        batch: TokenBatch,
        merges: Int64[Tensor, "B M 2"],
        progress: float,
        rows: Int64[Tensor, "R"] | None = None,
    ) -> dict[str, float]:
        """Train the autoencoder on the trees of an update, unless it is frozen, and count them.

        All merges count; the autoencoder learns the trees of ``rows``, all if None. Returns what
        every learner reports of these: return, error and height, and the losses.
        """
        self.merges_made += int((merges[..., 0] >= 0).sum())
        if rows is not None:
            batch, merges = batch.rows(rows), merges[rows]
        heights = tree_height(merges, batch.num_tokens)
        scalars = {"train/tree_height": float(heights.float().mean())}
        before = float(start_population(self.autoencoder, batch, self.std).initial_error.mean())
        if self.task.mode == "joint":
            scalars |= self.trainer.update(batch, merges, progress)
            error = scalars["loss/reconstruction"]
        else:
            error = float(self.errors(batch, merges).mean())
        scalars[f"train/{self.autoencoder.error_name}"] = error
        scalars["train/return"] = before - error
        self.updates += 1
        return scalars

    # ------------------------------------------------------------ what follows for every algorithm

    def merge_in_rounds(self) -> None:
        """Let greedy plans merge a whole matching of disjoint pairs at a time from now on.

        Raises ``ValueError`` for a learner without a policy network.
        """
        raise ValueError(
            f"{self.algo} has no policy network, whose scores merge rounds would be made by; "
            "expected a learned policy"
        )

    def greedy_trees(self, batch: TokenBatch, generator: torch.Generator) -> Int64[Tensor, "B M 2"]:
        """The best merges for these samples; nothing but -1 where the algorithm makes no trees."""
        return planned(self, batch, generator, greedy=True)

    def other_trees(
        self, count: int, batch: TokenBatch, seeds: Int64[Tensor, "B"]
    ) -> Int64[Tensor, "B S M 2"]:
        """At most ``count`` trees of every sample beside the greedy one, which its own seed draws:
        what a search starts from too. None unless an algorithm has several."""
        return batch.merges[:, None][:, :0]

    def encode(self, batch: TokenBatch, merges: Int64[Tensor, "B M 2"]) -> Encoded:
        """Roots of samples along given trees, and what these decode to."""
        return Encoded.along(self.autoencoder, batch, merges)

    def pair_probabilities(
        self, batch: TokenBatch, merges: Int64[Tensor, "1 M 2"]
    ) -> list[tuple[Tensor, Tensor]]:
        """Before each merge of one sample: the active nodes ``(k,)``, in ascending order, and the
        policy's probabilities ``(k, k)`` of their ordered pairs; nothing without a policy network.
        """
        return []

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs: nested dicts and lists of tensors, numbers, strings.

        Here what every learner has; an algorithm adds its own: ``{**super().state(), ...}``.
        """
        state = {
            "autoencoder": copy.deepcopy(self.autoencoder.state_dict()),
            "generator": self.generator.get_state(),
            "merges_made": self.merges_made,
            "updates": self.updates,
        }
        if "trainer" in vars(self):  # it has been used
            state["trainer"] = self.trainer.state()
        if self.saved_with:
            state["saved_with"] = self.saved_with
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state` gave; an algorithm restores its own part beside this."""
        load_weights(self.autoencoder, state["autoencoder"])
        self.generator.set_state(state["generator"])
        self.merges_made, self.updates = (
            whole_number(name, state[name], 0, 2**62) for name in ("merges_made", "updates")
        )
        if "trainer" in state:
            self.trainer.restore(state["trainer"])
        self.saved_with = state.get("saved_with", {})

    # ------------------------------------------------------------ token sets in, arrays out

    def embed(
        self, sets: Any, *, lengths: Any = None, present: Any = None, search: int = 0
    ) -> Float[np.ndarray, "N D"]:
        """The root embedding of every set; it may be new to the learner, and of any size.

        A set gets the same whatever the order of its tokens and whatever sets are beside it, but
        for rounding: the slots are filled in an order that is drawn from the set itself.

        Args:
            sets: an array (N, P, T), or a list of arrays (n_i, T), in the data's own units.
            lengths: the number of tokens of each row (N,), its first ones; all if None.
            present: (N, P), True <--> there is a token; instead of ``lengths``.
            search: trees that are evaluated for each set to find one with a smaller reconstruction
                error than the greedy tree has; where the merger is known, merges whose reward is
                evaluated for that.

        Raises ``ValueError`` for tokens of another dimension than in training, for sets that cannot
        be read, and where the learner needs a hierarchy, or fewer tokens, than the sets have.
        """
        return self.encode_sets(sets, lengths, present, search).roots

    def trees(
        self, sets: Any, *, lengths: Any = None, present: Any = None, search: int = 0
    ) -> list[MergeTree]:
        """The greedy merge tree of every set; its leaves are the indices of the set's tokens: rows
        of a ragged set, columns of an array. Arguments and errors are those of :meth:`embed`; also
        raises ``ValueError`` where the algorithm makes no trees."""
        encoded = self.encode_sets(sets, lengths, present, search)
        return [encoded.tree(row) for row in range(len(encoded.roots))]

    def reconstruct(
        self, sets: Any, *, lengths: Any = None, present: Any = None, search: int = 0
    ) -> Float[np.ndarray, "N P T"] | list[np.ndarray]:
        """What the root of every set decodes to along its tree, token by token.

        In the form of the sets, an array or a list, with zeros where there is no token. Arguments
        and errors are those of :meth:`embed`; also raises ``ValueError`` where the merger is known,
        and nothing is decoded.
        """
        sets = as_list(sets)
        decoded = self.encode_sets(sets, lengths, present, search).reconstruction
        if decoded is None:
            raise ValueError(NOTHING_DECODED)
        if not isinstance(sets, list | tuple):
            return decoded
        return [tokens[: len(one)] for tokens, one in zip(decoded, sets, strict=True)]

    def encode_sets(
        self, sets: Any, lengths: Any = None, present: Any = None, search: int = 0
    ) -> EncodedSets:
        """Roots, trees, reconstructions and errors of sets at once (see :meth:`embed`)."""
        at_least(0, search=search)
        placed = PlacedSets.read(sets, self.dataset, lengths, present)
        return encode_sets(self, placed, search)

    # ------------------------------------------------------------ scores and pictures

    def evaluate(
        self, dataset: Dataset, count: int = TEST_EPISODES, *, sampled: bool = True
    ) -> dict[str, float | None]:
        """Scores of policy and autoencoder together (see :func:`agents.evaluation.evaluate`)."""
        reward = self.reward
        return evaluate(self, self.autoencoder, dataset, count, sampled=sampled, reward=reward)

    def figure(self, dataset: Dataset) -> Any:
        """A matplotlib figure: some samples of ``dataset``, their merge trees, reconstructions."""
        from agents.evaluation.figures import learner_figure

        return learner_figure(self, self.autoencoder, dataset)

    def use_data(self, task: Task, dataset: Dataset) -> None:
        """Evaluate, draw and embed other data from now on, with tokens of the same dimension.

        ``task`` gives its splits, ``dataset`` is its training split.
        """
        self.task = replace(self.task, env=task.env, env_kwargs=task.env_kwargs)
        self.dataset = dataset
        self.std = dataset.std.to(self.device)

    # ------------------------------------------------------------ train, save and load

    def train(
        self,
        seconds: float | None = None,
        merges: int | None = None,
        out: str | Path | None = None,
        progress_bar: bool = False,
    ) -> None:
        """Learn until the budget, seconds or merges, is used; a later call starts a new budget.

        With ``out``, everything that ``htm train`` writes goes to that folder, and Ctrl-C stops
        after a checkpoint. Raises ``ValueError`` unless exactly one budget is given, and with
        ``out`` for a class or a reward that is defined in the script itself,
        ``FileExistsError`` where ``out`` already holds a run, and ``FloatingPointError`` when
        learning does not stay finite.
        """
        from agents.runs.loop import Training
        from agents.runs.progress import shown
        from agents.runs.session import start_run

        budget = Budget(seconds, merges)
        self.dataset.fixed(1)  # raises where the data of a loaded run is not there
        if out is not None:
            start_run(self, budget, out, progress_bar=progress_bar)
            return
        for _ in shown(Training(self, budget), f"{self.task.env} {self.algo}", progress_bar):
            pass

    def run_config(self, budget: Budget | None = None) -> RunConfig:
        """The configuration that :meth:`from_run` makes the same untrained learner of.

        Raises ``ValueError`` for a class or a reward that no module has, so that no run could find
        it again.
        """
        if self.algo.startswith(f"{SCRIPT}:"):
            raise ValueError(
                f"the learner {type(self).__qualname__} is defined in the script itself, where no "
                "run finds it again; move it to a module, and import it from there"
            )
        given = self.given_names
        task = {
            **vars(self.task),
            "embedding_dim": self.autoencoder.embedding_dim,
            "merger": saved_name(self.task.merger, "merger", given.get("merger")),
        }
        config = asdict(self.config)
        if "reward" in config:
            config["reward"] = saved_name(self.config.reward, "reward", given.get("reward"))
        return RunConfig(**task, algo=self.algo, config=config, budget=budget)

    @classmethod
    def from_run(cls: type[LearnerType], run: RunConfig) -> LearnerType:
        """The untrained learner of a configuration.

        A reward or a merger ``module:name`` is imported. Raises ``ValueError`` for an option that
        does not exist or is out of range.
        """
        task = run.task
        config: Any = config_from_dict(cls.config_class, {**cls.unnamed_options, **run.config})
        names = {"reward": getattr(config, "reward", None), "merger": run.merger}
        task["merger"] = found_object(run.merger, "merger")
        if names["reward"] is not None:
            config = replace(config, reward=found_object(config.reward, "reward"))
        learner = cls(task.pop("env"), config, **task)
        learner.given_names = {what: name for what, name in names.items() if names_object(name)}
        learner.algo = run.algo
        return learner

    def save(self, directory: str | Path) -> None:
        """Write the agent to a folder, as JSON and safetensors.

        An earlier state of the same agent is replaced, at once. Raises ``FileExistsError`` for a
        folder that holds a run or another agent, and ``ValueError`` for ``env_kwargs`` that JSON
        cannot hold, for a class or a reward that is defined in the script itself, and for a folder
        that another process writes to.
        """
        from agents.runs.data import recorded_data
        from agents.runs.directory import RunDirectory

        folder = RunDirectory(directory)
        with folder.locked():
            run, data = self.run_config(), recorded_data(self.dataset)
            folder.check_same_agent(run, data)
            folder.save_config(run, data)
            folder.save_checkpoint(self.state(), self.autoencoder)

    @classmethod
    def load(
        cls: type[LearnerType], directory: str | Path, data: str | Path | None = None
    ) -> LearnerType:
        """The agent that :meth:`save` or a training run left in a folder.

        ``data`` is a file to take for its data. Where neither is there, a warning says so, and the
        agent can embed sets that it is given, and nothing else. It continues bit for bit, on the
        device that it had; where there is no such device it comes to the processor, with a warning
        and other random numbers. Raises ``FileNotFoundError``
        where there is none, ``ValueError`` for files that cannot be read and for an agent of
        another class; ``agents.load`` returns an agent of any class.
        """
        from agents.runs.directory import RunDirectory
        from agents.runs.session import open_agent

        name = RunDirectory(directory).load_config().algo
        own = (*cls.algorithms, f"{cls.__module__}:{cls.__qualname__}")
        own += (getattr(cls, "algo", own[0]),)
        if not any(f"{name}:".startswith(f"{known}:") for known in own):
            raise ValueError(f"{directory} holds a run of {name}; expected a {cls.__name__}")
        return open_agent(directory, cls.from_run, data)

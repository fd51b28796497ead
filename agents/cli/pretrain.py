"""``htm pretrain``: the weights that ship with the package, trained to favour no merge order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from agents.cli.options import PretrainOptions
from agents.cli.tables import print_table
from agents.config.budget import Budget
from agents.config.errors import UsageError, as_usage_error, set_threads
from agents.config.files import quoted
from agents.evaluation.evaluate import VALIDATION_EPISODES, Planner, evaluate
from agents.fixed import FIXED_POLICIES, FixedRule, fixed_policy
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from agents.runs.loop import Training
from agents.runs.progress import shown
from htm_env.autoencoder import TreeEncoder
from htm_env.datasets import Dataset, dataset_class, environment_id
from htm_env.files import check_writable
from htm_env.losses import LossWeights
from htm_env.types import NONE, TokenBatch
from htm_env.weights import EMBEDDING_DIMS, FOLDER, SHIPPED

_ADAM = OptimizerConfig(learning_rate=1e-2)
RECIPE = AutoencoderConfig(loss=LossWeights(classifier_detached=True), lifter=_ADAM, merger=_ADAM)
"""How the shipped weights were made: the frozen task stays the same while the learners get better,
so that its results stay comparable."""
SEED = 0
BATCH_SIZE = 128
ORDERS = (
    "random",
    "chain",
    "balanced",
    "nearest",
    "average",
    "ward",
    "structure",
    "nearest_sorted",
    "structure_sorted",
)
"""The merge orders of the mixture, all equally likely. None takes the generator's own order, and
none depends on the autoencoder, which would learn what it already does well."""


class Mixture:
    """Draws a fixed policy for every sample."""

    def __init__(self, policies: Sequence[Planner]) -> None:
        self.policies = list(policies)

    def plan(
        self, batch: TokenBatch, generator: torch.Generator, *, greedy: bool
    ) -> Int64[Tensor, "B M 2"]:
        """One complete tree for each sample, in node ids; -1 pads."""
        samples, slots = batch.present.shape
        drawn = torch.randint(
            len(self.policies), (samples,), generator=generator, device=generator.device
        ).to(batch.tokens.device)
        merges = batch.merges.new_full((samples, slots - 1, 2), NONE)
        for index, policy in enumerate(self.policies):
            rows = (drawn == index).nonzero().squeeze(1)
            if len(rows):
                merges[rows] = policy.plan(batch.rows(rows), generator, greedy=greedy)
        return merges


class MixedOrders(FixedOrder):
    """Trains the autoencoder on the trees of a mixture of fixed policies."""

    def __init__(self, env_id: str) -> None:
        config = FixedOrderConfig(autoencoder=RECIPE, batch_size=BATCH_SIZE)
        super().__init__(env_id, config, seed=SEED)
        self.algo = "mixture"
        names = _usable(ORDERS, self.dataset, self.autoencoder)
        self.policy = Mixture(
            [fixed_policy(name, self.autoencoder, self.dataset) for name in names]
        )


def pretrain(options: PretrainOptions) -> None:
    """Train and write the weights of one id or of all; prints their ``nmse`` under every policy.

    Raises :class:`UsageError` for an id that has no pretrained weights, or a budget of nothing.
    """
    set_threads(options.threads)
    if options.env is not None and options.env not in EMBEDDING_DIMS:
        with as_usage_error():
            data = dataset_class(environment_id(options.env))
        if data.default_merger is not None:
            raise UsageError(
                f"the merger of {options.env} is known, so there is no autoencoder to pretrain"
            )
        raise UsageError(
            f"{options.env} has no pretrained weights; choose from {', '.join(EMBEDDING_DIMS)}"
        )
    if options.env is not None and options.env not in SHIPPED and options.out is None:
        raise UsageError(
            f"the weights of {options.env} do not belong to the package: give a folder with --out"
        )
    with as_usage_error():
        budget = Budget(merges=options.merges)
    folder = FOLDER if options.out is None else options.out
    check_writable(folder)
    for env_id in SHIPPED if options.env is None else [options.env]:
        learner = MixedOrders(env_id)
        for _ in shown(Training(learner, budget), f"{env_id} pretraining"):
            pass
        path = folder / f"{env_id}.safetensors"
        learner.autoencoder.save(path)
        _print_report(learner, path)


def _usable(
    names: Sequence[str] | dict[str, FixedRule], dataset: Dataset, autoencoder: TreeEncoder
) -> list[str]:
    """Those that have what they need: without a hierarchy there is no structure to follow."""
    return [name for name in names if FIXED_POLICIES[name].suits(dataset, autoencoder)]


def _print_report(learner: MixedOrders, path: Path) -> None:
    """The ``nmse`` of validation samples under every fixed policy that the data allows."""
    print(f"{learner.task.env}, validation data")
    autoencoder, dataset = learner.autoencoder, learner.task.dataset("validation")
    rows = []
    for name in _usable(FIXED_POLICIES, dataset, autoencoder):
        policy = fixed_policy(name, autoencoder, dataset)
        scores = evaluate(policy, autoencoder, dataset, VALIDATION_EPISODES, sampled=False)
        rows.append({"merges chosen by": name, "nmse": f"{scores['nmse']:.5g}"})
    print_table(rows)
    print(f"weights   {quoted(path)}  ({learner.autoencoder.weights_hash()})")

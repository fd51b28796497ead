"""How near training is to what its matrix products need: ``python -m benchmarks.limit``.

The limit is the time of the products of the autoencoder's layers, forward and backward, for all
rows that a layer sees in one step, as one large product a layer: no activations, no trees, no
optimizer. Beside it is the same with whole networks, activations included. What is compared
runs by turns with it, on one thread: losses and gradients alone, whole updates with the shipped
optimizer and with Adam. Below: the whole joint step (rollout, rewards, policy, autoencoder) against
the autoencoder's part of it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from agents import Reinforce, ReinforceConfig
from agents.config.schedules import piecewise_linear
from agents.fixed import fixed_policy
from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer
from agents.optim.optimizers import OptimizerConfig
from benchmarks.matrix_products import Rows, Work, key_of, products, rows_seen
from benchmarks.measuring import Row, add_device, own_process, seconds_by_turns
from benchmarks.table import report
from htm_env import HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.losses import autoencoder_losses

SECONDS = 20.0
ENV, GEOMETRY, TREES, EMBEDDING_DIM = "HTM-Trees-v0", {"heights": (4,)}, 256, 64
PROGRESS = 0.5
"""Of the schedules: halfway through training."""
SHARE_TARGET, STEP_TARGET = 0.7, 1.6
_ADAM = OptimizerConfig()


def rows_of(seen: dict[tuple[int, torch.Size], Rows], network: nn.Module) -> int:
    """How many rows a whole network saw."""
    keys = [key_of(weight) for weight in network.parameters()]
    return max((seen[key].forward for key in keys if key in seen), default=0)


def networks(autoencoder: HTMAutoencoder, seen: dict[tuple[int, torch.Size], Rows]) -> Work:
    """Every network once forward and backward, activations included."""
    inputs = {}
    for network in autoencoder.children():
        weight = next(network.parameters())
        values = torch.randn(rows_of(seen, network), weight.shape[1], device=weight.device)
        inputs[network] = values.requires_grad_(network is not autoencoder.lifter)

    def run() -> None:
        for network, values in inputs.items():
            values.grad = None
            network(values).sum().backward()

    return run


def losses_and_gradients(trainer: AutoencoderTrainer, batch: object, merges: Tensor) -> None:
    """An update without its optimizers."""
    config = trainer.config
    losses = autoencoder_losses(
        trainer.autoencoder,
        batch,
        merges,
        config.loss,
        subtree_share=piecewise_linear(config.subtree_share, PROGRESS),
        generator=trainer.generator,
    )
    trainer.autoencoder.zero_grad()
    losses["total"].backward()


def shares(seconds: float, trees: int, device: str = "cpu") -> list[Row]:
    """Autoencoder training on random merges against the limit."""
    torch.set_num_threads(1)
    generator = torch.Generator(device).manual_seed(0)
    dataset = make_dataset(ENV, split="train", **GEOMETRY)
    autoencoder = HTMAutoencoder(dataset.token_dim, EMBEDDING_DIM, generator=generator)
    autoencoder.set_statistics(dataset.mean, dataset.std)
    autoencoder.to(device)
    batch = dataset.sample(trees, generator).to(device)
    merges = fixed_policy("random", autoencoder).plan(batch, generator)
    adam = AutoencoderConfig(lifter=_ADAM, merger=_ADAM)
    shipped = AutoencoderTrainer(autoencoder, AutoencoderConfig(), generator)
    plain = AutoencoderTrainer(autoencoder, adam, generator)
    bare = partial(losses_and_gradients, shipped, batch, merges)
    seen = rows_seen(bare)
    times = seconds_by_turns(
        {
            "matrix products": products(seen),
            "whole networks": networks(autoencoder, seen),
            "losses and gradients": bare,
            "update, Adam": lambda: plain.update(batch, merges, PROGRESS),
            "update, as shipped": lambda: shipped.update(batch, merges, PROGRESS),
        },
        seconds,
        device,
    )
    made = int((merges[..., 0] >= 0).sum())
    return [
        {
            "what": name,
            "milliseconds": taken * 1e3,
            "merges/s": made / taken,
            "share of products": times["matrix products"] / taken,
            "share of networks": times["whole networks"] / taken,
            "target": SHARE_TARGET if name.startswith("update") else None,
        }
        for name, taken in times.items()
    ]


def joint_steps(seconds: float, trees: int, device: str = "cpu") -> list[Row]:
    """A whole update of REINFORCE against the autoencoder's part, on trees of the same policy."""
    torch.set_num_threads(1)
    rows = []
    for trees_per_step in dict.fromkeys((trees, ReinforceConfig.trees_per_step)):
        config = replace(
            ReinforceConfig(),
            batch_size=trees // 2,
            batch_growth=0.0,
            trees_per_step=trees_per_step,
            demonstration_share=((0.0, 0.0),),
            failure=0.0,
        )
        learner = Reinforce(
            ENV, config, env_kwargs=GEOMETRY, embedding_dim=EMBEDDING_DIM, device=device
        )
        batch = learner.dataset.sample(trees, learner.generator).to(device)
        merges = learner.plan(batch, learner.generator, greedy=False)
        train = learner.trainer.update_in_parts
        times = seconds_by_turns(
            {
                "whole": partial(learner.update, PROGRESS),
                "autoencoder": partial(train, batch, merges, trees_per_step, PROGRESS),
            },
            seconds,
            device,
        )
        rows.append(
            {
                "trees": trees,
                "trees a step of the autoencoder": trees_per_step,
                "joint step, ms": times["whole"] * 1e3,
                "autoencoder, ms": times["autoencoder"] * 1e3,
                "joint / autoencoder": times["whole"] / times["autoencoder"],
                "target, at most": STEP_TARGET,
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each comparison")
    parser.add_argument("--trees", type=int, default=TREES, help="of a step")
    add_device(parser)
    options = parser.parse_args(arguments)
    for name, measure in (("limit", shares), ("joint_step", joint_steps)):
        rows = own_process(measure, options.seconds, options.trees, options.device)
        report(name, rows, device=options.device)


if __name__ == "__main__":
    main()

"""What merging in rounds costs and saves: ``python -m benchmarks.merge_rounds``.

A policy learns on Trees of 7, 15 and 31 points among the candidates of each. Then it merges larger
and larger held-out trees, one pair at a time and a matching a round, with the same autoencoder: the
error of both, how high their trees are, and how long they take, encoding and decoding included.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from agents import Reinforce, ReinforceConfig
from agents.evaluation.evaluate import root_errors
from agents.rollouts.greedy_search import merge_greedily, merge_matchings
from benchmarks.measuring import add_device, settle
from benchmarks.table import report
from htm_env import make_dataset
from htm_env.forest import tree_height

TRAINED_ON = (3, 4, 5)
HEIGHTS = (4, 5, 6, 7, 8, 9, 10)
EPISODES = {4: 500, 5: 500, 6: 200, 7: 100, 8: 40, 9: 20, 10: 10}


def learned(seconds: float, k: int, seed: int, device: str = "cpu") -> Reinforce:
    """A policy and an autoencoder that have learned together for so long."""
    config = ReinforceConfig(candidates="knn", k=k)
    learner = Reinforce(
        "HTM-Trees-v0",
        config,
        env_kwargs={"heights": TRAINED_ON},
        embedding_dim=16,
        seed=seed,
        device=device,
    )
    learner.train(seconds=seconds)
    return learner


@torch.no_grad()
def row(learner: Reinforce, height: int, split: str, most: int) -> dict[str, Any]:
    """Both ways of merging on at most so many Trees of one height."""
    dataset = make_dataset("HTM-Trees-v0", split=split, heights=(height,))
    batch = dataset.fixed(min(most, EPISODES[height])).to(learner.device)
    nearest, autoencoder = learner.config.nearest, learner.autoencoder
    assert nearest is not None
    found: dict[str, Any] = {"tokens": 2**height - 1, "samples": len(batch.tokens)}
    errors = {}
    for name, merge in (("one at a time", merge_greedily), ("in rounds", merge_matchings)):
        started = time.perf_counter()
        merges = merge(autoencoder, learner.policy, batch, nearest)
        error = root_errors(autoencoder, batch, merges, learner.std)
        settle(learner.device.type)
        seconds = (time.perf_counter() - started) / len(batch.tokens)
        errors[name] = float(error.mean())
        found |= {
            f"nmse, {name}": errors[name],
            f"height, {name}": float(tree_height(merges, batch.num_tokens).float().mean()),
            f"ms a sample, {name}": 1000 * seconds,
        }
    return found | {"nmse, ratio": errors["in rounds"] / errors["one at a time"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="of joint training")
    parser.add_argument("--k", type=int, default=8, help="candidates of a token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=HEIGHTS[-1], help="height of the largest trees")
    parser.add_argument("--split", default="test", help="of the trees that are merged")
    parser.add_argument("--episodes", type=int, default=500, help="of each height, at most")
    add_device(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    learner = learned(options.seconds, options.k, options.seed, options.device)
    rows = [row(learner, h, options.split, options.episodes) for h in HEIGHTS if h <= options.most]
    report("merge_rounds", rows, device=options.device)


if __name__ == "__main__":
    main()

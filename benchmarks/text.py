"""Real text: hierarchies against a flat model and against bigrams: ``python -m benchmarks.text``.

The bytes of the standard library's ``pydoc_data/topics.py``; the last tenth is held out. Every
model is trained with the same optimizer on the same batches. The flat models have as many
parameters as the hierarchies (their feed-forward networks are as wide as that takes), one with
attention, one with the token shift alone; they are trained for as many steps, and once more for as
many as they can do in the hierarchies' time. Learning rate and sizes were chosen with
``--validate --first-seed 100``, which holds out the last tenth of the training bytes instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from agents.config.schedules import cosine_decay, warm_up
from agents.encoders.config import HierarchyConfig
from agents.encoders.hierarchical.config import HierarchicalTransformerConfig
from agents.encoders.hierarchical.objectives import token_loss
from agents.encoders.hierarchical.transformer import HierarchicalTransformer
from agents.optim.optimizers import soap
from benchmarks.table import RESULTS, origin, report

LENGTH, BATCH, BYTES = 128, 8, 256
HIERARCHIES = HierarchicalTransformerConfig(
    hierarchies=(
        HierarchyConfig(window=0),
        HierarchyConfig(rate=2, window=0, expansion=1.0),
        HierarchyConfig(rate=8, stride=8, expansion=4.0),
    )
)
"""Pairs at every token; attention, and most parameters, where the sequence is an eighth as long."""
FLAT = {"flat": None, "flat, token shift only": 0}
"""The windows of the flat models."""
LEARNING_RATE, WARM_UP = 3e-2, 10


@dataclass(frozen=True)
class Text:
    """Bytes to fit and bytes to score."""

    fit: Tensor
    held_out: Tensor

    @staticmethod
    def load(validate: bool) -> Text:
        """The last tenth is held out; with ``validate`` the last tenth of what comes before it."""
        from pydoc_data import topics

        content = torch.tensor(list(Path(topics.__file__).read_bytes()))
        fit, held_out = _split(content)
        return Text(*_split(fit)) if validate else Text(fit, held_out)

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Windows of ``LENGTH`` bytes, and the byte after each, without end: (BATCH, LENGTH + 1)"""
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self.fit) - LENGTH, (BATCH,), generator=generator)
            yield self.fit[starts[:, None] + torch.arange(LENGTH + 1)]

    def scored(self) -> Tensor:
        """Every held-out byte but the first of a window is scored once, (windows, LENGTH + 1)."""
        return self.held_out.unfold(0, LENGTH + 1, LENGTH)


def _split(content: Tensor) -> tuple[Tensor, Tensor]:
    first = len(content) * 9 // 10
    return content[:first], content[first:]


def bigram(text: Text, added: float) -> float:
    """Held-out nats a byte of the pair counts, ``added`` to each (Laplace, at 1)."""
    counts = torch.full((BYTES, BYTES), added, dtype=torch.double)
    pairs = (text.fit[:-1], text.fit[1:])
    counts.index_put_(pairs, torch.ones(len(pairs[0]), dtype=torch.double), accumulate=True)
    log_probs = (counts / counts.sum(1, keepdim=True)).log()
    windows = text.scored()
    return -log_probs[windows[:, :-1], windows[:, 1:]].mean().item()


class Training:
    """One model on its way."""

    def __init__(
        self, config: HierarchicalTransformerConfig, text: Text, seed: int, steps: int
    ) -> None:
        self.text, self.steps = text, steps
        generator = torch.Generator().manual_seed(seed)
        self.model = HierarchicalTransformer(config, generator=generator)
        self.batches = text.batches(seed)
        self.optimizer = soap(
            self.model.parameters(),
            lr=LEARNING_RATE,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            precondition_frequency=5,
            max_precondition_dim=64,
        )
        self.done, self.seconds = 0, 0.0

    def step(self) -> None:
        """One update, its processor time added to ``seconds``."""
        start = time.process_time()
        scale = warm_up(self.done, WARM_UP) * cosine_decay(self.done / self.steps)
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * scale
        loss = torch.stack(list(self.model.losses(next(self.batches)).values())).sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        self.seconds += time.process_time() - start

    def finish(self) -> Training:
        while self.done < self.steps:
            self.step()
        return self

    @torch.no_grad()
    def nats(self) -> float:
        """Held-out cross-entropy a byte."""
        windows = self.text.scored()
        total = sum(
            len(part) * token_loss(self.model(part[:, :-1]), part[:, 1:]).item()
            for part in windows.split(64)
        )
        return total / len(windows)


def parameters(config: HierarchicalTransformerConfig) -> int:
    return sum(each.numel() for each in HierarchicalTransformer(config).parameters())


def flat_of_equal_size(
    config: HierarchicalTransformerConfig, window: int | None
) -> HierarchicalTransformerConfig:
    """Rate 1 alone, its feed-forward networks so wide that the parameters are as many."""

    def flat(hidden: int) -> HierarchicalTransformerConfig:
        width = config.hierarchies[0].width
        return replace(
            config, hierarchies=(HierarchyConfig(expansion=hidden / width, window=window),)
        )

    return min(
        (flat(hidden) for hidden in range(16, 1024)),
        key=lambda each: abs(parameters(each) - parameters(config)),
    )


def row(name: str, config: HierarchicalTransformerConfig, runs: list[Training]) -> dict:
    nats = [run.nats() for run in runs]
    return {
        "model": name,
        "parameters": parameters(config),
        "steps": runs[0].steps,
        "seconds": statistics.mean(run.seconds for run in runs),
        "nats, mean": statistics.mean(nats),
        "nats, each seed": " ".join(f"{each:.4f}" for each in nats),
    }


def bigram_row(text: Text, added: float) -> dict:
    return {
        "model": f"bigram, {added:g} added to each count",
        "parameters": BYTES**2,
        "steps": 0,
        "seconds": 0.0,
        "nats, mean": bigram(text, added),
        "nats, each seed": "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="updates of each model")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model")
    parser.add_argument("--first-seed", type=int, default=0, help="the others follow")
    parser.add_argument("--validate", action="store_true", help="score training bytes held out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = Text.load(options.validate)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    configs = {"rates 1, 2, 8": HIERARCHIES} | {
        name: flat_of_equal_size(HIERARCHIES, window) for name, window in FLAT.items()
    }
    runs: dict[str, list[Training]] = {name: [] for name in configs}
    for seed in seeds:
        together = [Training(config, text, seed, options.steps) for config in configs.values()]
        for _ in range(options.steps):  # by turns, so that all meet the same machine
            for training in together:
                training.step()
        for name, training in zip(configs, together, strict=True):
            runs[name].append(training)
    seconds = {name: sum(run.seconds for run in trained) for name, trained in runs.items()}
    rows = [row(name, configs[name], trained) for name, trained in runs.items()]
    for name in FLAT:
        steps = round(options.steps * seconds["rates 1, 2, 8"] / seconds[name])
        trained = [Training(configs[name], text, seed, steps).finish() for seed in seeds]
        rows.append(row(f"{name}, equal time", configs[name], trained))
    rows += [bigram_row(text, added) for added in (1.0, 0.1)]
    report("text", rows, options.out, made_by=origin("benchmarks.text", sys.argv[1:]))


if __name__ == "__main__":
    main()

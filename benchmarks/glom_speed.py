"""Time and memory of a Glom of images beside ``glom-pytorch``: ``python -m benchmarks.glom_speed``.

The sizes are that package's defaults (images of 224 pixels, patches of 14, six levels, twelve
iterations), with levels of 32 and of 128 numbers. A step is one image forward and backward, on one
thread. Each measurement is a process of its own; the two take turns, and a row is the median of
the rounds. Memory is the most that a process holds, beyond what it held with everything imported.

``glom-pytorch`` 0.0.14 is installed into an environment of its own by ``benchmarks.originals``, and
computes with the same PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time

import torch

from benchmarks.measuring import Row, peak_gigabytes
from benchmarks.originals import python_with
from benchmarks.table import origin, report

PACKAGES = ("glom-pytorch==0.0.14", "einops==0.8.2")
STEPS = 5


def step(model: torch.nn.Module, images: torch.Tensor) -> float:
    """The processor's seconds of one image forward and backward."""
    model.zero_grad(set_to_none=True)
    started = process_time()
    model(images).square().mean().backward()
    return process_time() - started


def measure(original: bool, width: int, steps: int) -> Row:
    """One process's median step and memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if original:
        from glom_pytorch import Glom
    else:
        from agents import ImageGlom as Glom
    before = peak_gigabytes()
    model, images = Glom(dim=width), torch.randn(1, 3, 224, 224)
    step(model, images)
    seconds = statistics.median(step(model, images) for _ in range(steps))
    return {"seconds": seconds, "memory, MB": 1024 * (peak_gigabytes() - before)}


def measured(original: bool, width: int, steps: int) -> Row:
    """The same in a process of its own."""
    python = python_with(*PACKAGES) if original else sys.executable
    code = (
        "import json; from benchmarks.glom_speed import measure; "
        f"print(json.dumps(measure({original}, {width}, {steps})))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    found: Row = json.loads(done.stdout)
    return found


def rows_of(
    width: int, rounds: int, steps: int = STEPS, run: Callable[..., Row] = measured
) -> list[Row]:
    """A row for each of the two, which take turns; the ratios are to the original."""
    rounds_of: dict[bool, list[Row]] = {True: [], False: []}
    for _ in range(rounds):
        for original, found in rounds_of.items():
            found.append(run(original, width, steps))
    rows = [
        {
            "Glom": "glom-pytorch" if original else "ours",
            "width of a level": width,
            **{name: statistics.median(each[name] for each in found) for name in found[0]},
        }
        for original, found in rounds_of.items()
    ]
    for row in rows:
        row["speed, times the original"] = rows[0]["seconds"] / row["seconds"]
        row["memory, times the original"] = row["memory, MB"] / rows[0]["memory, MB"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128], help="of a level")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a process")
    options = parser.parse_args()
    rows = [
        row for width in options.widths for row in rows_of(width, options.rounds, options.steps)
    ]
    report("glom_speed", rows, made_by=origin("benchmarks.glom_speed", sys.argv[1:]))


if __name__ == "__main__":
    main()

"""Every learner and fixed policy on Trees, Crosses and Digits, five seeds: joint training with both
diagnoses, and the frozen environments: ``python -m benchmarks.full_comparison``.

It is a sequence of ``htm compare``, printed as they are run. It takes about a day and a half on two
cores, and can be stopped (Ctrl-C) and started again at any moment: finished runs stay, interrupted
ones go on. ``--share 0.1`` gives every run a tenth of its time. Seeds can be spread over machines,
one ``--first-seed`` each; ``htm compare --report A B --out C`` joins what they made.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from agents.cli import main as htm
from agents.comparison.table import is_fixed
from agents.registry import ALGORITHMS
from benchmarks.table import RESULTS

JOINT_SECONDS = {"trees7": 300.0, "crosses10": 300.0, "trees15": 600.0, "digits": 300.0}
"""Training time of a run on each problem."""
FROZEN = ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0")
FROZEN_SECONDS = 300.0
"""Of a learner; a fixed policy has nothing to learn there, and is only tested."""
NOT_FROZEN = ("flat", "original")
"""Their autoencoder is their own."""
SEEDS = 5


def commands(
    out: Path, share: float, jobs: int, seeds: int, first_seed: int = 0
) -> list[list[str]]:
    """The arguments of ``htm``, in the order in which they are run."""
    algos = [name for name in ALGORITHMS if name != "retrained"]
    common = ["--first-seed", str(first_seed), "--seeds", str(seeds), "--jobs", str(jobs)]
    made = [
        [
            *("compare", "--envs", problem, "--algos", ",".join(algos), "--retrain"),
            *("--cross-play", "--seconds", f"{seconds * share:g}", *common),
            *("--out", str(out / problem)),
        ]
        for problem, seconds in JOINT_SECONDS.items()
    ]
    kept = [name for name in algos if name not in NOT_FROZEN]
    learned = [name for name in kept if not is_fixed(name)]
    fixed = [name for name in kept if is_fixed(name)]
    budgets = {"frozen-learned": f"{FROZEN_SECONDS * share:g}", "frozen-fixed": "1"}
    for folder, names in (("frozen-learned", learned), ("frozen-fixed", fixed)):
        made.append(
            [
                *("compare", "--envs", ",".join(FROZEN), "--algos", ",".join(names)),
                *("--mode", "frozen", "--seconds", budgets[folder], *common),
                *("--out", str(out / folder)),
            ]
        )
    made += [
        ["compare", "--report", *(str(out / name) for name in names), "--out", str(out / into)]
        for into, names in (("joint", list(JOINT_SECONDS)), ("frozen", list(budgets)))
    ]
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "full_comparison")
    parser.add_argument("--share", type=float, default=1.0, help="of every run's training time")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    options = parser.parse_args()
    worst = 0
    asked = options.share, options.jobs, options.seeds, options.first_seed
    for arguments in commands(options.out, *asked):
        print(f"htm {shlex.join(arguments)}", flush=True)
        status = htm(arguments)
        if status not in (0, 1):  # 1: some runs failed, and all others are worth having
            return status
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())

"""Held-out errors after 100 s of joint training on one thread: ``python -m benchmarks.held_out``.

Every run is ``htm train``, as a user would start it. Runs whose result exists are not repeated, so
that the benchmark can be stopped and resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agents.comparison.problems import PROBLEMS as NAMED
from agents.comparison.problems import Problem
from benchmarks.table import RESULTS, report

PROBLEMS = {NAMED[name].title: NAMED[name] for name in ("trees7", "crosses10", "trees15")}
FIXED = ["structure", "structure_sorted", "structure_canonical", "nearest", "nearest_sorted"]
LEARNED = ["reinforce", "original", "original_policy"]


def train(problem: Problem, algo: str, seed: int, seconds: float, out: Path) -> dict:
    """The result of one run; runs it only where there is none."""
    result = out / "result.json"
    if not result.exists():
        resumed = ["train", "--resume", str(out)] if (out / "config.json").exists() else None
        command = (
            [sys.executable, "-m", "agents.cli", *resumed]
            if resumed
            else [
                *(
                    sys.executable,
                    "-m",
                    "agents.cli",
                    "train",
                    "--env",
                    problem.env,
                    "--algo",
                    algo,
                ),
                *("--env-kwargs", json.dumps(problem.env_kwargs)),
                *("--embedding-dim", str(problem.embedding_dim), "--seed", str(seed)),
                *("--seconds", str(seconds), "--out", str(out)),
            ]
        )
        subprocess.run(command, check=True, capture_output=True)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0, help="training time of a run")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the learned rows")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--rows", nargs="*", default=FIXED + LEARNED, help="which algorithms")
    parser.add_argument("--out", type=Path, default=RESULTS / "held_out", help="folder of the runs")
    options = parser.parse_args()
    jobs = [
        (name, algo, seed)
        for algo in options.rows
        for name in PROBLEMS
        for seed in range(options.seeds if algo in LEARNED else 1)
    ]

    def run(job: tuple[str, str, int]) -> dict:
        name, algo, seed = job
        out = options.out / f"{name}-{algo}-{seed}".replace(", ", "-").replace(" ", "-")
        result = train(PROBLEMS[name], algo, seed, options.seconds, out)
        print(f"{name}  {algo}  seed {seed}  nmse {result['test']['nmse']:.6f}", flush=True)
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    rows = []
    for algo in options.rows:
        for name in PROBLEMS:
            tests = [r["test"] for (n, a, _), r in results.items() if (n, a) == (name, algo)]
            rows.append(
                {
                    "merges chosen by": algo,
                    "data": name,
                    "seeds": len(tests),
                    "nmse, median": statistics.median(test["nmse"] for test in tests),
                    "nmse, worst": max(test["nmse"] for test in tests),
                    "clades found": statistics.median(test["tree_recall"] for test in tests),
                }
            )
    report("held_out", rows)


if __name__ == "__main__":
    main()

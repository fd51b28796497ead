"""`make demo`: learn to merge patches of handwritten digits, beside fixed merge orders."""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

CLONED = "balanced_sorted"
"""The fixed order that REINFORCE imitates in the first part of its budget."""
MERGES = 200_000
EXPECTED = {
    "reinforce": (0.0196, 0.0280),
    CLONED: (0.0154, 0.0178),
    "nearest_sorted": (0.143,),
    "nearest": (0.190,),
    "random": (0.395,),
}
"""Held-out errors after MERGES merges by row of the table: least and largest of three seeds for
REINFORCE, of two for the order it imitates, and one seed for the others."""


def train(algo: str, options: argparse.Namespace) -> tuple[dict[str, float], bool]:
    """Joint training from scratch; the test scores, and whether the cap of seconds ended it.

    Every row trains an autoencoder of its own on as many merges. REINFORCE shows its progress; what
    the others print goes to a log.
    """
    htm, out = [sys.executable, "-m", "agents.cli"], options.out / algo
    arguments = [
        *(*htm, "train", "--env", "HTM-Digits-v0", "--algo", algo),
        *("--merges", str(options.merges), "--seed", str(options.seed), "--out", str(out)),
        *(("--demonstrations", CLONED) if algo == "reinforce" else ()),
    ]
    with (options.out / f"{algo}.log").open("w") as log:
        shown = None if algo == "reinforce" else log
        process = subprocess.Popen(arguments, stdout=log, stderr=shown)
        try:
            status = process.wait(options.cap)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it writes its checkpoint, and stops
            process.wait()
            if not (out / "checkpoint").exists():
                raise SystemExit(f"{algo} began no training in {options.cap:g} s") from None
            scores = subprocess.check_output([*htm, "evaluate", str(out), "--json"], stderr=log)
            with (out / "metrics.csv").open() as file:
                logged = [int(row["merges"]) for row in csv.DictReader(file)]
            return json.loads(scores) | {"merges": max(logged, default=0)}, True
    if status != 0:
        raise SystemExit(f"{algo} failed: {log.name}")
    result = json.loads((out / "result.json").read_text())
    return result["test"] | {"merges": result["merges"]}, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--merges", type=int, default=MERGES, help="budget of each row")
    parser.add_argument("--cap", type=float, default=120.0, help="seconds of a row at most")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    default = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    parser.add_argument("--out", type=Path, default=default, help="where everything is written")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # one row a core
        rows = dict(
            zip(EXPECTED, pool.map(lambda algo: train(algo, options), EXPECTED), strict=True)
        )

    table = Table(title=f"HTM-Digits-v0, {options.merges:,} merges of joint training, test split")
    for column in ("merges chosen by", "nmse", "expected", "tree height", "merges learned from"):
        table.add_column(column, justify="left" if column.startswith("merges c") else "right")
    for algo, (scores, cut) in rows.items():
        name = f"{algo} *" if algo == CLONED else algo
        expected = " to ".join(f"{error:.4f}" for error in EXPECTED[algo])
        table.add_row(
            name,
            f"{scores['nmse']:.4f}",
            expected if options.merges == MERGES and not cut else "-",
            f"{scores['mean_height']:.1f}",
            f"{scores['merges']:,}" + " (cut)" * cut,
        )
    Console().print(table)
    print(f"* the order that reinforce imitates at first: {CLONED}")
    if any(cut for _, cut in rows.values()):
        print(
            f"cut: the cap of {options.cap:g} s ended these rows before their {options.merges:,} "
            "merges; they learned less than expected (--cap raises it)"
        )
    print("pictures of merge trees and reconstructions:")
    for picture in sorted(options.out.glob("*/figures/*.png")):
        print(f"  {picture}")
    print(f"logs: .venv/bin/tensorboard --logdir {options.out}")


if __name__ == "__main__":
    main()

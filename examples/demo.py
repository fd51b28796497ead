"""`make demo`: learn to merge patches of handwritten digits, beside fixed merge orders."""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

ROWS = ["reinforce", "nearest", "nearest_sorted", "random"]


def command(algo: str, seconds: float, out: Path) -> list[str]:
    """Joint training from scratch: every row trains an autoencoder of its own, equally long."""
    return [
        *(sys.executable, "-m", "agents.cli", "train", "--env", "HTM-Digits-v0"),
        *("--algo", algo, "--seconds", str(seconds), "--out", str(out / algo)),
    ]


def run_all(algos: list[str], options: argparse.Namespace, log: TextIO) -> None:
    """One after the other, until one fails; what they print goes to the log."""
    for algo in algos:
        arguments = command(algo, options.seconds, options.out)
        subprocess.run(arguments, stdout=log, stderr=log, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="training time of each row")
    default = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    parser.add_argument("--out", type=Path, default=default, help="where everything is written")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    # The learner on one core, with its progress bar; the fixed orders on the other, in the log.
    with (options.out / "fixed_orders.log").open("w") as log, ThreadPoolExecutor(1) as pool:
        others = pool.submit(run_all, ROWS[1:], options, log)
        subprocess.run(command(ROWS[0], options.seconds, options.out), check=True)
        print("waiting for the fixed merge orders, which train on the other core ...", flush=True)
        others.result()

    table = Table(title=f"HTM-Digits-v0, {options.seconds:.0f} s of joint training, test split")
    for column in ("merges chosen by", "nmse", "tree height", "merges learned from"):
        table.add_column(column, justify="left" if column.startswith("merges c") else "right")
    for algo in ROWS:
        result = json.loads((options.out / algo / "result.json").read_text())
        test = result["test"]
        table.add_row(
            algo, f"{test['nmse']:.4f}", f"{test['mean_height']:.1f}", f"{result['merges']:,}"
        )
    Console().print(table)
    print("pictures of merge trees and reconstructions:")
    for picture in sorted(options.out.glob("*/figures/*.png")):
        print(f"  {picture}")
    print(f"logs: .venv/bin/tensorboard --logdir {options.out}")


if __name__ == "__main__":
    main()

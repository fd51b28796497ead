"""The command line answers without loading torch until a command runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agents.comparison.options import PROBLEM_NAMES
from agents.comparison.problems import PROBLEMS
from agents.config.options import ENVIRONMENTS
from htm_env.datasets import DATASETS

ASK = """
import sys
from agents.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as exit_:
    status = exit_.code or 0
heavy = {"torch", "numpy", "gymnasium", "htm_env"} & set(sys.modules)
sys.exit(f"{heavy} loaded" if heavy else status)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "generate"),
        (["--version"], 0, "htm "),
        (["train", "--help"], 0, "--save-config"),
        (["--tyro-print-completion", "bash"], 0, "complete"),
        (["nothing"], 2, "nothing"),
        (["train", "--env", "HTM-Trees-v0", "--algo", "chain", "--no-such", "1"], 2, "--no-such"),
        (
            ["train", "--algo", "replay", "--clip-range", "0.1"],
            2,
            "as --set clip_range=0.1 (htm train",
        ),
        (["train", "--batch-sise=4"], 2, "no flag of htm train (did you mean '--batch-size'?)"),
        (["train", "--env", "HTM-Trees-v0"], 2, "--algo"),
        (["train"], 2, "needs --env NAME"),
        (["train"], 2, "and --algo NAME"),
        (["train", "--env", "HTM-v0"], 2, "your data"),
        (["train", "--algo", "reinfroce"], 2, "did you mean 'reinforce'"),
        (["train", "--env", "trees8"], 2, "did you mean 'trees"),
        (["train", "--algo", "sb3:DQN"], 2, "--env"),
        (["train", "--algo", "no_module:Mine"], 2, "no module 'no_module'"),
        (["compare", "--envs", "no_module:Mine-v0"], 2, "no module 'no_module'"),
        (["train", "--algo", "magic"], 2, "unknown algorithm 'magic'"),
        (["train", "--mode", "both"], 2, "both"),
        (["train", "--algo", "replay", "--set", "discount"], 2, "expected path=value"),
        (["evaluate", "run", "--episodes", "0"], 2, "--episodes is 0"),
        (["train", "--env", "HTM-Treez-v0", "--algo", "chain"], 2, "unknown id 'HTM-Treez-v0'"),
        (["compare", "--envs", "X"], 2, "or one of the problems trees7"),
        (["compare", "--algos", "magic"], 2, "unknown algorithm 'magic'"),
        *(
            ([command, "nowhere"], 1, "nowhere holds no run: there is no nowhere/config.json")
            for command in ("evaluate", "plot", "view", "embed", "generate")
        ),
    ],
)
def test_help_and_wrong_usage_load_no_torch(arguments, status, says):
    process = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == status, process.stderr
    assert says in process.stdout + process.stderr


def test_importing_the_package_loads_no_agent():
    code = "import sys, agents; sys.exit(str({'torch', 'agents.registry'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stderr.strip() == "set()"


def test_names_that_are_checked_without_torch_are_all_there_are():
    assert tuple(name for name, data in DATASETS.items() if isinstance(data, str)) == ENVIRONMENTS
    assert tuple(PROBLEMS) == PROBLEM_NAMES

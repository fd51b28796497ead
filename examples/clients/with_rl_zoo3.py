"""The zoo of Stable-Baselines3: a YAML file of options, and MaskablePPO beside the zoo's own.

Needs `rl_zoo3`. All other arguments are the zoo's, such as `--eval-freq 10000`.
"""

import argparse
import sys
from pathlib import Path

import rl_zoo3
import rl_zoo3.train
from sb3_contrib import MaskablePPO

import htm_env  # noqa: F401  # registers the ids

# The zoo evaluates MaskablePPO without masks, which `remap` makes harmless.
rl_zoo3.ALGOS["ppo_mask"] = MaskablePPO
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--algo", default="ppo", help="ppo, a2c, dqn or ppo_mask")
parser.add_argument("--env", default="HTM-Trees-Flat-v0")
parser.add_argument("--steps", type=int, default=100_000)
args, others = parser.parse_known_args()
options = Path(__file__).with_name("rl_zoo3.yml")
sys.argv = ["train", "--algo", args.algo, "--env", args.env, "-n", str(args.steps)]
# The zoo's evaluation does not take the environment's arguments from the YAML.
sys.argv += ["--conf-file", str(options), "--eval-env-kwargs", "invalid_action:'remap'", *others]
rl_zoo3.train.train()

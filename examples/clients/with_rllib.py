"""RLlib: PPO with RLlib's own module for action masks, on the form of observation that it expects.

Needs `ray[rllib]`.
"""

import argparse

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
from ray.tune.registry import register_env

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="HTM-Trees-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--copies", type=int, default=8)
args = parser.parse_args()


def masked(config: dict) -> gym.Env:
    from htm_env.wrappers import Masked  # in the process of the environment: registers the ids

    return Masked(gym.make(args.env, **config), "rllib")


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
register_env("masked", masked)
batch = min(2048, args.steps)
config = (
    PPOConfig()
    .environment("masked", env_config={"invalid_action": "raise"})  # no illegal action comes
    .env_runners(num_env_runners=0, num_envs_per_env_runner=args.copies)
    .training(
        lr=3e-4, gamma=0.9, train_batch_size_per_learner=batch, minibatch_size=min(256, batch)
    )
    .rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    .debugging(seed=args.seed)
)
algorithm = config.build_algo()
made, mean = 0, np.nan
while made < args.steps:
    result = algorithm.train()["env_runners"]
    made = int(result["num_env_steps_sampled_lifetime"])
    mean = result.get("episode_return_mean", mean)
    print(f"{made} steps, mean return {mean:.4f}", flush=True)
algorithm.stop()
ray.shutdown()

"""sb3-contrib: MaskablePPO with this project's policy network, which scores pairs.

Needs nothing beside this package. The environment has `action_masks`, so it needs no wrapper, and
`MaskablePPO("MultiInputPolicy", make_vec_env("htm_env:HTM-Trees-v0"))` runs as well.
`agents.make_ppo(id, maskable=True)` makes such a model in one line.
"""

import argparse

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from agents.ppo import HTMVecEnv, MaskableMergeActorCriticPolicy

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="HTM-Trees-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--copies", type=int, default=32)
parser.add_argument("--episodes", type=int, default=256, help="evaluated at the end")
parser.add_argument("--split", default="test", help="whose episodes are evaluated")
args = parser.parse_args()
torch.set_num_threads(1)


def copies(number: int, split: str) -> VecMonitor:
    return VecMonitor(HTMVecEnv(args.env, number, invalid_action="raise", split=split))


model = MaskablePPO(
    MaskableMergeActorCriticPolicy,
    copies(args.copies, "train"),
    gamma=0.9,
    learning_rate=1e-3,
    n_steps=64,
    batch_size=256,
    seed=args.seed,
)
model.learn(args.steps)

mean, deviation = evaluate_policy(model, copies(32, args.split), n_eval_episodes=args.episodes)
print(f"mean return {mean:.4f}, standard deviation {deviation:.4f}")

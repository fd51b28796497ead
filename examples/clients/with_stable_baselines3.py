"""Stable-Baselines3: PPO, A2C or DQN without masks; `remap` makes a legal merge of every action.

Needs nothing beside this package. The copies are one batch, many times faster than copies made by
`make_vec_env("htm_env:HTM-Trees-v0", env_kwargs={"invalid_action": "remap"})`, which work as well.
"""

import argparse

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import nn

from agents.ppo import HTMVecEnv
from htm_env.wrappers import Sorting


class SortedCopies(VecEnvWrapper):
    """`htm_env.wrappers.Sorted` for all copies at once: slots in the order of a curve in space.

    A plain network can learn from it, since neighbours in space are mostly neighbours in the slots.
    Observed are the centroids, and which slots are active.
    """

    def __init__(self, copies: VecEnv) -> None:
        self.sorting = Sorting(copies.observation_space)
        seen = {key: copies.observation_space[key] for key in ("centroids", "active")}
        super().__init__(copies, spaces.Dict(seen))

    def shown(self, observation: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What is observed of the copies, and the environment's number of each of their actions."""
        seen, numbers = self.sorting(observation)
        return {key: seen[key] for key in self.observation_space}, numbers

    def reset(self) -> dict[str, np.ndarray]:
        self.seen, self.numbers = self.shown(self.venv.reset())
        return self.seen

    def step_async(self, actions: np.ndarray) -> None:
        actions = self.sorting.remapped(actions, self.seen["active"])
        self.venv.step_async(self.numbers[np.arange(len(actions)), actions])

    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, dones, infos = self.venv.step_wait()
        self.seen, self.numbers = self.shown(observation)
        for copy in np.flatnonzero(dones):
            last = infos[copy]["terminal_observation"]
            last, _ = self.shown({key: value[None] for key, value in last.items()})
            infos[copy]["terminal_observation"] = {key: value[0] for key, value in last.items()}
        return self.seen, rewards, dones, infos


class PairScores(BaseFeaturesExtractor):
    """One number for every ordered pair of slots, from the rows of the two by one function.

    The tokens lie in the slots in random order: what is learned of one pair has to hold for all,
    which a plain network does not know. A pair has the product of a query and a key, less a learned
    distance, and less where one of its slots is empty.
    """

    def __init__(self, space: spaces.Dict, width: int = 64, empty: float = -5.0) -> None:
        slots, numbers = space["tokens"].shape
        super().__init__(space, slots * (slots - 1))
        self.net = nn.Sequential(nn.Linear(numbers + 2, width), nn.Tanh())
        self.net.append(nn.Linear(width, 2 * width))
        self.place = nn.Linear(numbers + 2, 16, bias=False)
        for layer in (self.net[2], self.place):
            nn.init.orthogonal_(layer.weight, 0.1)
        self.empty = nn.Parameter(torch.tensor(empty))
        self.different = ~torch.eye(slots, dtype=torch.bool).flatten()

    def forward(self, observation: dict[str, torch.Tensor]) -> torch.Tensor:
        active, counts = observation["active"], observation["leaf_counts"]
        rows = torch.stack([active, counts / active.shape[1]], dim=2)
        rows = torch.cat([observation["tokens"], rows], dim=2)  # (B, P, D + 2)
        query, key = self.net(rows).chunk(2, dim=2)
        place = self.place(rows)
        pairs = query @ key.mT - (place[:, :, None] - place[:, None]).square().sum(3)
        pairs = pairs + self.empty * (1 - active[:, :, None] * active[:, None])
        return pairs.flatten(1)[:, self.different]  # (B, P * (P - 1))


OPTIONS = {
    "ppo": {"gamma": 0.9, "n_steps": 64, "batch_size": 256, "learning_rate": 1e-3},
    "a2c": {"gamma": 0.9, "n_steps": 8, "learning_rate": 1e-3},
    "dqn": {
        "gamma": 0.5,
        "learning_rate": 1e-3,
        "batch_size": 128,
        "learning_starts": 2000,
        "gradient_steps": 2,
        "target_update_interval": 1000,
    },
}
"""What differs from the library's defaults; chosen on the validation split."""
SORTED = {"gamma": 0.8, "n_steps": 32, "batch_size": 128, "n_epochs": 10, "learning_rate": 2e-3}
"""The same for PPO with the library's own network on sorted slots."""

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--algo", choices=sorted(OPTIONS), default="ppo")
parser.add_argument("--env", default="HTM-Trees-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--copies", type=int, default=32)
parser.add_argument("--plain", action="store_true", help="the library's own network and options")
parser.add_argument("--sorted", action="store_true", help="PPO's own network, sorted slots")
parser.add_argument("--episodes", type=int, default=256, help="evaluated at the end")
parser.add_argument("--split", default="test", help="whose episodes are evaluated")
args = parser.parse_args()
if args.sorted and args.algo != "ppo":
    parser.error(f"--sorted has options for ppo only, not for {args.algo}")
torch.set_num_threads(1)


def copies(number: int, split: str) -> VecEnv:
    observe = ("order", "centroids") if args.sorted else ()
    own = HTMVecEnv(args.env, number, invalid_action="remap", split=split, observe=observe)
    return SortedCopies(VecMonitor(own)) if args.sorted else VecMonitor(own)


algorithm = {"ppo": PPO, "a2c": A2C, "dqn": DQN}[args.algo]
envs = copies(args.copies, "train")
if args.plain:
    model = algorithm("MultiInputPolicy", envs, seed=args.seed)
elif args.sorted:
    network = {"net_arch": [128, 128]}
    model = PPO("MultiInputPolicy", envs, policy_kwargs=network, seed=args.seed, **SORTED)
else:
    layers = [] if args.algo == "dqn" else {"pi": [], "vf": [64]}
    network = {"features_extractor_class": PairScores, "net_arch": layers}
    if args.algo == "dqn":
        network["features_extractor_kwargs"] = {"empty": 0.0}
    else:
        network["share_features_extractor"] = False
    options = OPTIONS[args.algo]
    model = algorithm("MultiInputPolicy", envs, policy_kwargs=network, seed=args.seed, **options)
    # Behind the scores comes one linear layer of the library; it is to be the identity.
    last = model.policy.q_net.q_net[0] if args.algo == "dqn" else model.policy.action_net
    nn.init.eye_(last.weight.requires_grad_(False))
    if args.algo == "dqn":
        model.policy.q_net_target.load_state_dict(model.policy.q_net.state_dict())
model.learn(args.steps)

mean, deviation = evaluate_policy(model, copies(32, args.split), n_eval_episodes=args.episodes)
print(f"{args.algo}: mean return {mean:.4f}, standard deviation {deviation:.4f}")

"""TorchRL: a collector and clipped PPO on native copies; masks make illegal actions impossible.

Needs `torchrl`.
"""

import argparse

import gymnasium as gym
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import ActionMask, DTypeCastTransform, GymWrapper, RewardSum, TransformedEnv
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import htm_env  # noqa: F401  # registers the ids

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="HTM-Trees-v0")
parser.add_argument("--steps", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--copies", type=int, default=32)
args = parser.parse_args()

torch.manual_seed(args.seed)
# TorchRL resets the copies that have ended by itself, so Gymnasium must not.
copies = gym.make_vec(
    args.env, num_envs=args.copies, autoreset_mode="Disabled", observe=("action_mask",)
)
env = TransformedEnv(GymWrapper(copies, categorical_action_encoding=True), ActionMask())
env = env.append_transform(DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"]))
env = env.append_transform(RewardSum())
env.set_seed(args.seed)
slots, width = copies.single_observation_space["tokens"].shape
keys = ["tokens", "active", "leaf_counts"]
different = ~torch.eye(slots, dtype=torch.bool).flatten()


def rows(tokens: torch.Tensor, active: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(..., P, D + 2): embedding, activity and share of leaves of every slot."""
    return torch.cat([tokens, active[..., None], counts[..., None] / slots], dim=-1)


class PairScores(nn.Module):
    """Logits of all ordered pairs of slots: the product of a query and a key, less a distance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 2, 64), nn.Tanh(), nn.Linear(64, 128))
        self.place = nn.Linear(width + 2, 16, bias=False)
        for layer in (self.net[2], self.place):
            nn.init.orthogonal_(layer.weight, 0.1)

    def forward(self, *observed: torch.Tensor) -> torch.Tensor:
        found = rows(*observed)
        query, key = self.net(found).chunk(2, dim=-1)
        place = self.place(found)
        apart = (place.unsqueeze(-2) - place.unsqueeze(-3)).square().sum(-1)
        return (query @ key.mT - apart).flatten(-2)[..., different]  # (..., P * (P - 1))


class Value(nn.Module):
    """What the rows of a state promise, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width + 2, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, *observed: torch.Tensor) -> torch.Tensor:
        return self.net(rows(*observed)).sum(dim=-2)


actor = ProbabilisticActor(
    TensorDictModule(PairScores(), in_keys=keys, out_keys=["logits"]),
    in_keys={"logits": "logits", "mask": "action_mask"},
    distribution_class=MaskedCategorical,
    return_log_prob=True,
)
critic = ValueOperator(Value(), in_keys=keys)
advantage = GAE(gamma=0.9, lmbda=0.95, value_network=critic)
loss = ClipPPOLoss(actor, critic, entropy_coeff=0.001, normalize_advantage=True)
optimizer = torch.optim.Adam(loss.parameters(), 1e-3)

frames = min(2048, args.steps)
collector = Collector(
    env,
    actor,
    frames_per_batch=frames,
    total_frames=args.steps,
    auto_register_policy_transforms=True,
)
made = illegal = 0
for data in collector:
    chosen = data["action"].unsqueeze(-1)
    illegal += int((~data["action_mask"].gather(-1, chosen)).sum())
    for _ in range(4):
        advantage(data)
        for part in data.reshape(-1).split(min(512, frames)):
            optimizer.zero_grad()
            losses = loss(part)
            sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
            nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()
    made += data.numel()
    returns = data["next", "episode_reward"][data["next", "done"]]
    print(f"{made} steps, mean return {returns.mean():.4f}, {illegal} illegal actions", flush=True)
collector.shutdown()

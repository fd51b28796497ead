"""PPO in one file, in the style of CleanRL: a flat id, its own loop, illegal actions masked.

Needs nothing beside this package. `--steps` are those of all copies together.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--env", default="htm_env:HTM-Trees-Flat-v0")
parser.add_argument("--steps", type=int, default=200_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--copies", type=int, default=64)
parser.add_argument("--rollout", type=int, default=32, help="steps of a copy between updates")
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--minibatches", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=1e-3, help="falls to 0")
parser.add_argument("--gamma", type=float, default=0.9)
parser.add_argument("--gae-lambda", type=float, default=0.95)
parser.add_argument("--clip", type=float, default=0.2)
parser.add_argument("--entropy", type=float, default=0.001)
parser.add_argument("--episodes", type=int, default=100, help="evaluated at the end")
parser.add_argument("--split", default="test", help="whose fixed episodes are evaluated")
args = parser.parse_args()

torch.manual_seed(args.seed)
torch.set_num_threads(1)
generator = np.random.default_rng(args.seed)
# A copy that ends starts anew in the same step, so that every step is one of an episode.
envs = gym.make_vec(args.env, num_envs=args.copies, autoreset_mode="SameStep")
numbers = envs.single_observation_space.shape[0]
slots = round((int(envs.single_action_space.n) + 0.25) ** 0.5 + 0.5)  # n = P * (P - 1)
features = numbers // slots
different = ~torch.eye(slots, dtype=torch.bool).flatten()


class PairScores(nn.Module):
    """Logits of all ordered pairs of slots, from what the vector says about the two.

    One function scores every pair, so that what is learned of one holds for all: the tokens lie in
    the slots in random order, and a plain network would have to learn each slot by itself. A pair
    has the product of a query and a key, less a learned distance.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 2 * width))
        self.place = nn.Linear(features, 16, bias=False)
        for layer in (self.net[2], self.place):
            nn.init.orthogonal_(layer.weight, 0.1)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        rows = slot_features(observation)
        query, key = self.net(rows).chunk(2, dim=2)
        place = self.place(rows)
        apart = (place[:, :, None] - place[:, None]).square().sum(3)
        return (query @ key.mT - apart).flatten(1)[:, different]  # (B, P * (P - 1))


def slot_features(observation: torch.Tensor) -> torch.Tensor:
    """(B, P, D + 2): embedding, activity and share of leaves of every slot."""
    tokens = observation[:, : -2 * slots].unflatten(1, (slots, -1))
    return torch.cat([tokens, observation[:, -2 * slots :].unflatten(1, (2, slots)).mT], dim=2)


actor = PairScores()
critic = nn.Sequential(nn.Linear(numbers, 256), nn.Tanh(), nn.Linear(256, 1))
parameters = [*actor.parameters(), *critic.parameters()]
optimizer = torch.optim.Adam(parameters, args.learning_rate, eps=1e-5)


def policy(observation: torch.Tensor, mask: torch.Tensor) -> torch.distributions.Categorical:
    return torch.distributions.Categorical(logits=actor(observation).masked_fill(~mask, -1e8))


def tensors(observation: np.ndarray, info: dict) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(observation), torch.from_numpy(info["action_mask"]).bool()


updates = max(1, args.steps // (args.copies * args.rollout))
observation, mask = tensors(*envs.reset(seed=args.seed))
running, finished = np.zeros(args.copies), []
for update in range(updates):
    optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / updates)
    steps = []
    for _ in range(args.rollout):
        with torch.no_grad():
            choices = policy(observation, mask)
            action = choices.sample()
            value = critic(observation)[:, 0]
        found, reward, terminated, truncated, info = envs.step(action.numpy())
        ended = terminated | truncated
        running += reward
        finished += running[ended].tolist()
        running[ended] = 0.0
        earned, ends = torch.from_numpy(reward).float(), torch.from_numpy(ended).float()
        steps.append((observation, mask, action, choices.log_prob(action), value, earned, ends))
        observation, mask = tensors(found, info)
    columns = [torch.stack(column) for column in zip(*steps, strict=True)]
    observations, masks, taken, log_probs, values, rewards, ends = columns

    # Generalised advantage estimation; no episode is cut, so that its end has no value.
    advantages = torch.zeros_like(rewards)
    with torch.no_grad():
        next_value, advantage = critic(observation)[:, 0], torch.zeros(args.copies)
    for step in reversed(range(args.rollout)):
        goes_on = 1 - ends[step]
        error = rewards[step] + args.gamma * next_value * goes_on - values[step]
        advantage = error + args.gamma * args.gae_lambda * goes_on * advantage
        advantages[step], next_value = advantage, values[step]
    targets = advantages + values

    batch = [
        part.flatten(0, 1) for part in (observations, masks, taken, log_probs, advantages, targets)
    ]
    for _ in range(args.epochs):
        for rows in np.array_split(generator.permutation(len(batch[0])), args.minibatches):
            seen, legal, chosen, before, gained, target = (part[rows] for part in batch)
            choices = policy(seen, legal)
            ratio = (choices.log_prob(chosen) - before).exp()
            gained = (gained - gained.mean()) / (gained.std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
            policy_loss = -torch.min(ratio * gained, clipped * gained).mean()
            value_loss = (critic(seen)[:, 0] - target).square().mean() / 2
            loss = policy_loss + value_loss / 2 - args.entropy * choices.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
    if update % 10 == 9 or update == updates - 1:
        made = (update + 1) * args.copies * args.rollout
        print(f"{made} steps, mean return of the last 500 episodes {np.mean(finished[-500:]):.4f}")

# Fixed episodes of held-out data; the most probable legal action at each step.
held_out = gym.make_vec(args.env, num_envs=args.episodes, split=args.split)
keys = held_out.unwrapped.fixed_keys(args.episodes)
observation, mask = tensors(*held_out.reset(options={"key": keys}))
returns, going = np.zeros(args.episodes), np.ones(args.episodes, bool)
while going.any():
    with torch.no_grad():
        action = policy(observation, mask).probs.argmax(1)
    found, reward, terminated, truncated, info = held_out.step(action.numpy())
    returns += reward * going
    going &= ~(terminated | truncated)
    observation, mask = tensors(found, info)
print(f"mean return on {args.episodes} episodes of the {args.split} split {returns.mean():.4f}")

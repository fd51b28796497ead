"""One episode: merge random legal pairs of a tree's nodes until one root is left."""

import gymnasium as gym

import htm_env

env = gym.make("HTM-Trees-v0", heights=(3,))
observation, info = env.reset(seed=0)
print(f"{info['num_active']} tokens, embeddings {observation['tokens'].shape}")

total, finished = 0.0, False
while not finished:
    action = env.action_space.sample(info["action_mask"])  # a legal action
    first, second = htm_env.action_to_pair(action, env.observation_space["active"].shape[0])
    observation, reward, terminated, truncated, info = env.step(action)
    finished, total = terminated or truncated, total + reward
    print(f"slots {first:2d} + {second:2d}   reward {reward:+.4f}   error {info['error']:.4f}")

print(f"return {total:.4f}")
print(env.unwrapped.merge_tree())
env.close()

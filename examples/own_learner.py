"""An algorithm of one's own: the cross-entropy method over a linear scorer of pairs."""

import sys

import torch

from agents import Learner
from htm_env import pair_to_action

TRIED, BEST, SAMPLES = 8, 2, 4


class CrossEntropy(Learner):
    def __init__(self, env_id, config=None, **task):
        super().__init__(env_id, config, **task)
        self.mean = torch.zeros(2 * self.autoencoder.embedding_dim)
        self.spread = torch.ones_like(self.mean)

    def update(self, progress):
        weights, batch = self.scorers(TRIED, self.generator), self.sample(SAMPLES)
        batch = batch.rows(torch.arange(SAMPLES).repeat(TRIED))  # every scorer merges every sample
        merges = self.merged(batch, weights.repeat_interleave(SAMPLES, dim=0), self.generator)
        best = self.errors(batch, merges).view(TRIED, SAMPLES).mean(1).argsort()[:BEST]
        self.mean, self.spread = weights[best].mean(0), weights[best].std(0) + 0.05
        rows = (best[:, None] * SAMPLES + torch.arange(SAMPLES)).flatten()
        return self.finish_update(batch, merges, progress, rows)

    def plan(self, batch, generator, *, greedy):
        drawn = self.scorers(len(batch.tokens), generator)
        return self.merged(batch, self.mean.expand_as(drawn) if greedy else drawn, generator)

    def scorers(self, count, generator):  # (count, 2 D)
        return self.mean + self.spread * torch.randn(count, len(self.mean), generator=generator)

    def merged(self, batch, weights, generator):  # (B, 2 D): of squared and of plain differences
        near, order = weights[:, None, None].chunk(2, dim=-1)  # (B, 1, 1, D)

        def choose(observation, generator):
            tokens, active = observation["tokens"], observation["active"]
            apart = tokens[:, :, None] - tokens[:, None]  # (B, P, P, D)
            scores = (near * apart.square() + order * apart).sum(-1)
            legal = active[:, :, None] & active[:, None] & ~torch.eye(len(active[0])).bool()
            best = scores.masked_fill(~legal, -torch.inf).flatten(1).argmax(1)
            return pair_to_action(best // len(active[0]), best % len(active[0]), len(active[0]))

        return self.merge(batch, choose, generator)

    def state(self):
        return {**super().state(), "mean": self.mean, "spread": self.spread}

    def restore(self, state):
        super().restore(state)
        self.mean, self.spread = state["mean"], state["spread"]


if __name__ == "__main__":
    agent = CrossEntropy("HTM-Trees-v0", env_kwargs={"heights": [3]}, embedding_dim=6)
    agent.train(seconds=float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
    print("error", agent.evaluate(agent.task.dataset("test"), 100)["nmse"])

"""What a pair scorer has to know of the nodes of episodes: every node is looked at once."""

from __future__ import annotations

import torch

from agents.policy import Features, NodePolicy
from agents.rollout import Rollout
from htm_env.shared_nodes import SharedNodes
from htm_env.types import TokenBatch


class NodeFeatures:
    """Of all nodes of some episodes, with gradients; what does not exist is not looked at."""

    def __init__(self, policy: NodePolicy, batch: TokenBatch, episodes: Rollout) -> None:
        shared, counts = SharedNodes.of(batch), episodes.leaf_counts
        repeated = shared.repeated(episodes.merges, episodes.num_leaves)
        looked_at = (counts > 0) & ~repeated
        place = (looked_at.flatten().cumsum(0) - 1).view(counts.shape)
        nodes = looked_at.flatten().nonzero()[:, 0]
        self.place = torch.where(repeated, place[shared.same], place)
        """(B, N) which of the features are a node's; anybody's, where there is no node."""
        self.features = policy.features(
            episodes.nodes.flatten(0, 1)[nodes], counts.flatten()[nodes]
        )

    @property
    def table(self) -> Features:
        """Of every node (B, N); anything finite where there is none."""
        place = self.place.flatten()
        return Features(
            *(
                values.index_select(0, place).unflatten(0, self.place.shape)
                for values in self.features
            )
        )

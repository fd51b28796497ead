"""Actions for the observations of the environment, from a policy network alone."""

from __future__ import annotations

from typing import Any

import torch

from agents.policy import MergePolicy


@torch.no_grad()
def act(
    policy: MergePolicy,
    observation: dict[str, Any],
    generator: torch.Generator,
    deterministic: bool,
) -> Any:
    """An action for one observation, or ``(B,)`` of them for a batch; never an illegal one.

    ``deterministic`` takes the best pair. In a batch, an episode that has ended gets action 0,
    which the next reset ignores. Raises ``ValueError`` for another embedding dimension, for the
    observation of a single episode that has ended, and for one without a key that the policy reads.
    """
    keys = ("tokens", "active", "leaf_counts", *policy.observes)
    for key in keys:
        if key not in observation:
            raise ValueError(
                f"the observation has no {key!r}; make the environment with observe={keys[3:]}"
            )
    tensors = {key: torch.as_tensor(observation[key], device=generator.device) for key in keys}
    single = tensors["tokens"].ndim == 2
    if single:
        tensors = {key: value[None] for key, value in tensors.items()}
    if tensors["tokens"].shape[2] != policy.embedding_dim:
        raise ValueError(
            f"the observation has embeddings of {tensors['tokens'].shape[2]} numbers; this "
            f"agent expects {policy.embedding_dim}"
        )
    ended = tensors["active"].sum(1) < 2
    if single and ended.any():
        raise ValueError("the observation has fewer than two active slots: nothing to merge")
    logits, _ = policy(tensors)
    if deterministic:
        actions = logits.argmax(1)
    else:
        actions = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    actions = actions.masked_fill(ended, 0)
    return int(actions[0]) if single else actions.cpu().numpy()

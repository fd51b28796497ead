"""Actions for the observations of the environment, from a policy network alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.networks.base import MergePolicy, action_logits
from agents.networks.context import ContextPolicy
from htm_env.actions import action_slots


@torch.no_grad()
def act(
    policy: MergePolicy,
    observation: dict[str, Any],
    generator: torch.Generator,
    deterministic: bool,
    state: Tensor | None = None,
    starts: Any = None,
) -> tuple[Any, Tensor | None]:
    """An action for one observation, or ``(B,)`` of them for a batch; never an illegal one.

    And what a policy that carries a state goes on from in the next observation of the episode,
    ``(B, P, ...)``; None for all others. Rows of ``starts`` that are True begin anew.

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
    keys += ("candidates",) if "candidates" in observation else ()
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
    after = None
    if isinstance(policy, ContextPolicy) and policy.encoder.carries:
        scores, after = _carried(policy, tensors, state, starts)
        logits = action_logits(scores, tensors)
    else:
        logits, _ = policy(tensors)
    if deterministic:
        actions = logits.argmax(1)
    else:
        actions = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    actions = actions.masked_fill(ended, 0)
    if isinstance(policy, ContextPolicy) and after is not None:
        rows = torch.arange(len(actions), device=actions.device)
        active, candidates = tensors["active"].bool(), tensors.get("candidates")
        first, second, _ = action_slots(actions, active, candidates)
        after[rows, first] = policy.encoder.merged_state(after[rows, first], after[rows, second])
    return int(actions[0]) if single else actions.cpu().numpy(), after


def _carried(
    policy: ContextPolicy, tensors: dict[str, Tensor], state: Tensor | None, starts: Any
) -> tuple[Tensor, Tensor]:
    """Scores and state, from the state before where an episode goes on."""
    begins = torch.full((len(tensors["active"]),), state is None)
    if starts is not None:
        begins |= torch.as_tensor(starts).cpu().bool().reshape(-1)
    looks = [policy.look(tensors, state)] if not begins.all() else []
    looks += [policy.look(tensors)] if begins.any() else []
    scores, after = looks[0].scores, looks[0].state
    assert after is not None  # since the encoder carries one
    if len(looks) == 2:
        fresh = looks[1]
        assert fresh.state is not None
        begins = begins.to(scores.device)
        scores = torch.where(begins[:, None, None], fresh.scores, scores)
        after = torch.where(begins.view(-1, *(1 for _ in after.shape[1:])), fresh.state, after)
    return scores, after

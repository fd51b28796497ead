"""How stored episodes teach: by hand, at ``pi = mu``, and in expectation over all sequences."""

from __future__ import annotations

import math

import pytest
import torch
from tabular import ROWS, by_action, by_state, discounted, policy

from agents.learners.corrections import CORRECTIONS, Limits, Replayed

MU, PI = policy(1), policy(2)
STEPS = torch.ones(ROWS, 3, dtype=torch.bool)
UNLIMITED = Limits(0.7, math.inf, math.inf, 1.0)


def numbers(table, seed):
    generator = torch.Generator().manual_seed(seed)
    return table(lambda: float(torch.randn((), generator=generator)))


REWARDS, VALUES = numbers(by_action, 3), numbers(by_state, 4)


def replayed(target):
    return Replayed(MU, target, REWARDS, VALUES, STEPS)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_policy_nothing_is_corrected(name):
    found = CORRECTIONS[name](replayed(MU), Limits(0.7, 1.0, 1.0, 1.0))
    returns = discounted(REWARDS, 0.7)
    torch.testing.assert_close(found.advantages, returns - VALUES)
    torch.testing.assert_close(found.targets, returns)
    torch.testing.assert_close(found.weights, torch.ones_like(REWARDS))
    assert not found.clipped.any()


def gradient(weights, advantages, chance):
    """Of the expected return, with respect to the log-probability of every action of ``PI``.

    ``sum over episodes of chance * weight * advantage * d log pi(a) / d logits``, in the logits of
    the actions of every state.
    """
    logits = PI.clone().requires_grad_()
    (chance[:, None] * weights * advantages * logits).sum().backward()
    return logits.grad


@pytest.mark.parametrize("name", ["per_decision", "truncated"])
def test_uncut_weights_give_the_gradient_of_the_expected_return(name):
    """Summed over all 144 sequences, and over those that share an action, it is that of ``pi``."""
    found = CORRECTIONS[name](replayed(PI), UNLIMITED)
    off_policy = gradient(found.weights, found.advantages, MU.sum(1).exp())
    on_policy = gradient(
        torch.ones_like(REWARDS), discounted(REWARDS, 0.7) - VALUES, PI.sum(1).exp()
    )
    rewards = by_action(_distinct())
    for step in range(3):
        for action in rewards[:, step].unique():
            shared = rewards[:, step] == action
            torch.testing.assert_close(
                off_policy[shared, step].sum(), on_policy[shared, step].sum()
            )


def _distinct():
    count = iter(range(10**6))
    return lambda: float(next(count))


def test_vtrace_cuts_at_its_bound_by_hand():
    behaviour = torch.tensor([[0.5, 0.5]]).log()
    target = torch.tensor([[1.0, 0.25]]).log()
    episodes = Replayed(
        behaviour,
        target,
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[3.0, 4.0]]),
        torch.tensor([[True, True]]),
    )
    found = CORRECTIONS["vtrace"](episodes, Limits(1.0, 1.0, 1.0, 1.0))
    assert found.weights.tolist() == [[1.0, 0.5]]
    assert found.clipped.tolist() == [[True, False]]
    # v_1 = 4 + 0.5 (2 - 4) = 3; v_0 = 3 + 1 (1 + 4 - 3) + 1 (v_1 - 4) = 4
    assert found.targets.tolist() == [[4.0, 3.0]]
    assert found.advantages.tolist() == [[1.0, -2.0]]  # 1 + v_1 - 3, 2 - 4


def test_truncation_says_what_it_cut():
    behaviour = torch.tensor([[0.5, 0.5]]).log()
    target = torch.tensor([[0.75, 1.0]]).log()
    episodes = Replayed(
        behaviour, target, torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2).bool()
    )
    found = CORRECTIONS["truncated"](episodes, Limits(1.0, 2.0, 1.0, 1.0))
    torch.testing.assert_close(found.weights, torch.tensor([[1.5, 2.0]]))  # the second is 3
    assert found.clipped.tolist() == [[False, True]]


def test_truncation_leaves_no_large_ratio_anywhere_by_hand():
    """Ratios 1 and 10,000, cut at 1: the second does not reach the first through its return, and
    no correction lets it reach what the critic learns."""
    target = torch.tensor([[0.5, 1.0]]).log()
    behaviour = torch.tensor([[0.5, 1e-4]]).log()
    episodes = Replayed(
        behaviour,
        target,
        torch.tensor([[2.0, 3.0]]),
        torch.tensor([[1.0, 1.0]]),
        torch.ones(1, 2).bool(),
    )
    limits = Limits(1.0, 1.0, 1.0, 1.0)
    found = CORRECTIONS["truncated"](episodes, limits)
    torch.testing.assert_close(found.advantages, torch.tensor([[4.0, 2.0]]))  # 2 + 3 - 1, 3 - 1
    torch.testing.assert_close(found.weights, torch.ones(1, 2))
    assert found.clipped.tolist() == [[True, True]]
    for name in ("truncated", "per_decision", "self_normalised"):
        targets = CORRECTIONS[name](episodes, limits).targets
        torch.testing.assert_close(targets, torch.tensor([[5.0, 3.0]]))
    exact = CORRECTIONS["per_decision"](episodes, limits).advantages
    torch.testing.assert_close(exact, torch.tensor([[30_001.0, 2.0]]))


@pytest.mark.parametrize("name", CORRECTIONS)
def test_padding_counts_for_nothing(name):
    def seen(padding):
        steps = torch.tensor([[True, True, False], [True, True, True]])
        values = torch.tensor([[0.1, 0.2, padding], [0.3, 0.4, 0.5]])
        logs = torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.5, -0.1]])
        rewards = torch.tensor([[1.0, 2.0, 0.0], [1.0, 0.5, 0.25]])
        return CORRECTIONS[name](Replayed(logs, 0.7 * logs, rewards, values, steps), UNLIMITED)

    for one, other in zip(seen(7.0), seen(-3.0), strict=True):
        assert torch.equal(one, other)
        assert not one[0, 2]

"""Learning from stored episodes: how far a probability may move, and what is imitated."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.learners.corrections import (
    CORRECTIONS,
    Again,
    Limits,
    learn_sequences,
    learn_trees,
    trusted,
)
from agents.rollouts.rollout import MergeTerms


@pytest.mark.parametrize(
    ("ratio", "advantage", "may_move"),
    [
        (1.0, 1.0, True),
        (1.19, 1.0, True),
        (1.21, 1.0, False),  # already more likely than it may become
        (1.21, -1.0, True),  # but it may come back
        (0.81, -1.0, True),
        (0.79, -1.0, False),
        (0.79, 1.0, True),
        (0.0, 1.0, True),
        (0.0, -1.0, False),
    ],
)
def test_a_probability_moves_no_further_than_it_is_trusted(ratio, advantage, may_move):
    found = trusted(torch.tensor([ratio]).log(), torch.tensor([advantage]), 0.2)
    assert found.tolist() == [may_move]


@given(st.floats(-50, 50, width=32), st.floats(-1e6, 1e6, width=32), st.floats(0, 10, width=32))
def test_the_trust_region_is_that_of_the_clipped_objective(log_ratio, advantage, trust):
    """Its gradient is nonzero exactly where the probability may still move."""
    log_prob = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    ratio, factor = log_prob.exp(), torch.tensor([advantage], dtype=torch.float64)
    clipped = ratio.clamp(1 - trust, 1 + trust)
    torch.minimum(ratio * factor, clipped * factor).backward()
    moves = bool(trusted(log_prob.detach(), factor, trust))
    if advantage != 0 and ratio.item() not in (1 - trust, 1 + trust):
        assert (log_prob.grad != 0).item() == (moves and (ratio * factor).item() != 0)


def test_boundless_trust_lets_everything_move():
    log_ratio, advantages = torch.tensor([-40.0, 40.0, -40.0, 40.0]), torch.tensor([-1.0, 1, 1, -1])
    assert trusted(log_ratio, advantages, math.inf).all()


# ---------------------------------------------------------------- one update, by hand


class TableTerms:
    """Log-probabilities and values that are parameters themselves."""

    def __init__(self, log_prob: list[list[float]], values: list[list[float]]) -> None:
        self.log_prob = torch.tensor(log_prob, requires_grad=True)
        self.values = torch.tensor(values, requires_grad=True)

    def backward(self, measured, advantages, entropy_coefficient, ordered, generator):
        """The surrogate whose gradient is that of the policy, as the real ones accumulate it."""
        loss = -(advantages * self.log_prob).sum(1).mean()
        loss.backward()
        return {"policy": loss.detach(), "entropy": torch.zeros(())}

    def encoder_losses(self, generator):
        return {}


STEPS = torch.tensor([[True, True], [True, True], [True, False]])
REWARDS = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [3.0, 0.0]])
VALUES = [[0.5, 1.0], [0.0, -1.0], [1.0, 0.0]]
BEHAVIOUR = torch.tensor([[-1.0, -2.0], [-0.5, -0.1], [-0.7, 0.0]])


def again(terms, behaviour=BEHAVIOUR, imitated=(False, False, False), tree=None) -> Again:
    return Again(
        stored=SimpleNamespace(behaviour_log_prob=behaviour, tree_log_prob=tree),
        batch=None,
        episodes=SimpleNamespace(steps=STEPS),
        rewards=REWARDS,
        terms=terms,
        measured=MergeTerms(terms.log_prob.detach(), None, None),
        importance=torch.ones(3),
        imitated=torch.tensor(imitated),
    )


def as_they_are(advantages, steps):
    """In place of the learner's scale of a batch."""
    return advantages


def sequences(seen: Again, name: str = "vtrace", **limits: float):
    bounds = Limits(**{"discount": 0.5, "rho_bar": 1.0, "c_bar": 1.0, "lambda_": 1.0} | limits)
    return learn_sequences(
        seen, CORRECTIONS[name], bounds, as_they_are, False, torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("name", CORRECTIONS)
def test_at_the_behaviour_policy_it_is_reinforce(name):
    """The gradient is that of the returns less the values: 2 - 0.5, 2 - 1; -0.75, 1.5; 2, none."""
    terms = TableTerms(BEHAVIOUR.tolist(), VALUES)
    learned = sequences(again(terms), name, trust=0.2)
    expected = torch.tensor([[1.5, 1.0], [-0.75, 1.5], [2.0, 0.0]])
    torch.testing.assert_close(terms.log_prob.grad, -expected / 3)
    assert learned.weighed == {
        "effective_sample_share": pytest.approx(1.0),
        "clipped_share": 0.0,
        "untrusted_share": 0.0,
    }


def test_what_has_moved_too_far_teaches_nothing():
    """The first merge is 1.5 times as likely as it was and good, the second half as likely and
    good: only the second may move. The third episode's only merge stays where it was."""
    ratio = torch.tensor([[1.5, 0.5], [1.0, 1.0], [1.0, 1.0]])
    terms = TableTerms((BEHAVIOUR + ratio.log()).tolist(), VALUES)
    learned = sequences(again(terms), trust=0.2)
    gradient = terms.log_prob.grad
    assert gradient[0, 0] == 0.0
    assert gradient[0, 1] == pytest.approx(-0.5 * (2.0 - 1.0) / 3)  # by its ratio
    assert learned.weighed["untrusted_share"] == pytest.approx(1 / 5)
    assert learned.weighed["clipped_share"] == pytest.approx(1 / 5)
    free = TableTerms((BEHAVIOUR + ratio.log()).tolist(), VALUES)
    assert sequences(again(free), trust=math.inf).weighed["untrusted_share"] == 0.0
    assert free.log_prob.grad[0, 0] < 0.0


def test_imitated_episodes_become_likelier_whatever_they_earned():
    """And what is said of weights is said of the others: here of one, with a ratio of 1."""
    terms = TableTerms((BEHAVIOUR - torch.tensor([[9.0], [9.0], [0.0]])).tolist(), VALUES)
    learned = sequences(again(terms, imitated=(True, True, False)), trust=0.2)
    torch.testing.assert_close(terms.log_prob.grad[:2], torch.full((2, 2), -1 / 3))
    assert learned.weighed["effective_sample_share"] == pytest.approx(1.0)
    all_imitated = again(TableTerms(BEHAVIOUR.tolist(), VALUES), imitated=(True,) * 3)
    assert sequences(all_imitated).weighed == {}


def test_trees_are_weighed_by_their_own_ratios():
    """Ratios of 2 (cut at 1, and no further up: it is good), 0.5 and 1; returns less the values of
    the starts are 2.5, -0.5 and 2."""
    terms = TableTerms(BEHAVIOUR.tolist(), VALUES)
    behaviour = torch.tensor([-1.0, -2.0, -3.0])
    target = (behaviour + torch.tensor([2.0, 0.5, 1.0]).log()).requires_grad_()
    limits = Limits(1.0, 1.0, 1.0, 1.0, trust=0.6)
    learned = learn_trees(
        again(terms, tree=behaviour), target, limits, as_they_are, torch.Generator()
    )
    torch.testing.assert_close(target.grad, -torch.tensor([0.0, 0.5 * -0.5, 2.0]) / 3)
    # Of the square of 0.5 - (0.5 + 2.5), 0 - (0 + 0.5 * -0.5) and 1 - (1 + 2).
    torch.testing.assert_close(terms.values.grad[:, 0], 2 * torch.tensor([-2.5, 0.25, -2.0]) / 3)
    assert learned.weighed["clipped_share"] == pytest.approx(1 / 3)
    assert learned.weighed["untrusted_share"] == pytest.approx(1 / 3)
    # (2 + 0.5 + 1)^2 / (4 + 0.25 + 1), of three
    assert learned.weighed["effective_sample_share"] == pytest.approx(12.25 / 5.25 / 3)

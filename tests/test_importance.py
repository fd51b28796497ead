"""Off-policy corrections by hand, at ``pi = mu``, and over all merge sequences of four tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tabular import (
    ROWS,
    by_action,
    by_state,
    discounted,
    expectation,
    normalised,
    policy,
    state_means,
    true_values,
)
from torch import Tensor

from replay import (
    effective_sample_size,
    per_decision_returns,
    prefix_log_weights,
    self_normalised_returns,
    self_normalised_weights,
    truncated_log_weights,
    vtrace,
)

GAMMA = 0.7
MU, PI = policy(1), policy(2)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(table, seed: int) -> Tensor:
    generator = drawn(seed)
    return table(lambda: float(torch.randn((), generator=generator)))


REWARDS, VALUES = numbers(by_action, 3), numbers(by_state, 4)
NOTHING = torch.zeros(ROWS, dtype=torch.float64)


def close(found: Tensor, expected: Tensor | float | list) -> bool:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def logs(*ratios: float) -> Tensor:
    return torch.tensor([ratios], dtype=torch.float64).log()


# ---------------------------------------------------------------- V-trace


def by_hand(**kwargs):
    """Two steps; ratios 2 and 1/2, rewards 1 and 2, values 3 and 4, 5 behind the end, gamma 1/2."""
    behaviour, target = logs(0.25, 0.5), logs(0.5, 0.25)
    rewards, values = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0, 4.0]]).double()
    end = torch.tensor([5.0]).double()
    return vtrace(behaviour, target, rewards, values, end, gamma=0.5, **kwargs)


def test_vtrace_by_hand():
    # rho = (1, 1/2): delta_1 = 1/2 (2 + 5/2 - 4) = 1/4, v_1 = 4.25
    # delta_0 = 1 (1 + 4/2 - 3) = 0, v_0 = 3 + 0 + 1/2 * 1 * (4.25 - 4) = 3.125
    found = by_hand()
    assert close(found.targets, [[3.125, 4.25]])
    assert close(found.rho, [[1.0, 0.5]])
    # 1 + 4.25/2 - 3 and 2 + 5/2 - 4
    assert close(found.advantages, [[0.125, 0.5]])


def test_vtrace_without_clipping_by_hand():
    # rho = c = (2, 1/2): v_0 = 3 + 2 * 0 + 1/2 * 2 * (4.25 - 4) = 3.25
    found = by_hand(rho_bar=math.inf, c_bar=math.inf)
    assert close(found.targets, [[3.25, 4.25]])
    assert close(found.rho, [[2.0, 0.5]])
    # lambda 1/2 halves the trace: 3 + 1/2 * 1 * 1/4
    assert close(by_hand(rho_bar=math.inf, c_bar=math.inf, lambda_=0.5).targets, [[3.125, 4.25]])


def test_vtrace_at_the_same_policy_is_the_discounted_return():
    found = vtrace(MU, MU, REWARDS, VALUES, NOTHING, gamma=GAMMA)
    assert close(found.targets, discounted(REWARDS, GAMMA))
    assert close(found.advantages, discounted(REWARDS, GAMMA) - VALUES)
    assert close(found.rho, torch.ones_like(MU))


def test_vtrace_without_traces_is_one_step_of_temporal_differences():
    found = vtrace(MU, MU, REWARDS, VALUES, NOTHING, gamma=GAMMA, lambda_=0.0)
    following = torch.cat([VALUES[:, 1:], NOTHING[:, None]], dim=1)
    assert close(found.targets, REWARDS + GAMMA * following)


def test_vtrace_without_clipping_is_unbiased_whatever_the_values():
    truth = true_values(PI, REWARDS, GAMMA)
    found = vtrace(MU, PI, REWARDS, VALUES, NOTHING, gamma=GAMMA, rho_bar=math.inf, c_bar=math.inf)
    assert close(state_means(MU, found.targets), truth)


@pytest.mark.parametrize("rho_bar", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("c_bar", [0.3, 1.0])
def test_the_fixed_point_of_vtrace_is_the_value_of_the_papers_policy(rho_bar, c_bar):
    # Theorem 1: pi_rho_bar is proportional to min(rho_bar mu, pi), whatever c_bar is.
    between = normalised(torch.minimum(rho_bar * MU.exp(), PI.exp()))
    expected = true_values(between, REWARDS, GAMMA)

    def operator(values: Tensor) -> Tensor:
        found = vtrace(MU, PI, REWARDS, values, NOTHING, gamma=GAMMA, rho_bar=rho_bar, c_bar=c_bar)
        return state_means(MU, found.targets)

    assert close(operator(expected), expected)
    truth = true_values(PI, REWARDS, GAMMA)
    assert float((operator(truth) - truth).abs().max()) > 1e-3  # clipping is a bias
    values = torch.zeros_like(expected)
    for _ in range(80):
        values = operator(values)
    assert float((values - expected).abs().max()) < 1e-6  # and it contracts to it


def test_the_gradient_weighted_by_rho_is_that_of_the_target_policy():
    # With the true values and no clipping, E_mu[w rho A] is 0 in every state: A is an advantage.
    truth = true_values(PI, REWARDS, GAMMA)
    found = vtrace(MU, PI, REWARDS, truth, NOTHING, gamma=GAMMA, rho_bar=math.inf, c_bar=math.inf)
    assert close(state_means(MU, found.rho * found.advantages), torch.zeros_like(truth))
    # That of every action is how much better it is than the policy: r + gamma V(s') - V(s).
    behind = torch.cat([truth[:, 1:], NOTHING[:, None]], dim=1)
    expected = REWARDS + GAMMA * behind - truth
    assert float(expected.abs().min(0).values.max()) > 1e-3  # not all zeros
    known_one_step_later = torch.cat([NOTHING[:, None], found.advantages[:, :-1]], dim=1)
    assert close(state_means(MU, known_one_step_later)[:, 1:], expected[:, :-1])
    assert close(found.advantages[:, -1], expected[:, -1])


@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_masked_episodes_are_as_if_alone(lengths, seed):
    generator = drawn(seed)

    def table() -> Tensor:
        return torch.randn(len(lengths), 4, generator=generator, dtype=torch.float64)

    behaviour, target, rewards, values = -table().exp(), -table().exp(), table(), table()
    end = table()[:, 0]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    for tensor in (behaviour, target, rewards, values):
        tensor[~mask] = math.nan  # must not matter
    options = {"gamma": 0.9, "rho_bar": 1.5, "lambda_": 0.8}
    together = vtrace(behaviour, target, rewards, values, end, mask=mask, **options)
    decisions = per_decision_returns(behaviour, target, rewards, mask=mask, gamma=0.9)
    for row, n in enumerate(lengths):
        one = slice(row, row + 1)
        cut = [tensor[one, :n] for tensor in (behaviour, target, rewards, values)]
        alone = vtrace(*cut, end[one], **options)
        for found, expected in zip(together, alone, strict=True):
            assert close(found[one, :n], expected)
            assert (found[one, n:] == 0).all()
        assert close(decisions[one, :n], per_decision_returns(*cut[:3], gamma=0.9))
        assert (decisions[one, n:] == 0).all()


@pytest.mark.parametrize("name", ["gamma", "rho_bar", "c_bar", "lambda_"])
def test_vtrace_refuses_negative_numbers(name):
    with pytest.raises(ValueError, match=f"{name} is -1.0; expected at least 0"):
        vtrace(MU, PI, REWARDS, VALUES, NOTHING, **{name: -1.0})


def test_vtrace_carries_no_gradient():
    target = PI.clone().requires_grad_()
    assert not any(t.requires_grad for t in vtrace(MU, target, REWARDS, VALUES, NOTHING))


# ---------------------------------------------------------------- importance sampling


def test_per_decision_returns_by_hand():
    # Ratios 2, 1/2, 4; rewards 1, 2, 3; gamma 1/2: G_2 = 3, G_1 = 2 + 4 * 3 / 2 = 8,
    # G_0 = 1 + 1/2 * 8 / 2 = 3
    found = per_decision_returns(
        logs(0.25, 0.5, 0.125),
        logs(0.5, 0.25, 0.5),
        torch.tensor([[1.0, 2, 3]]).double(),
        gamma=0.5,
    )
    assert close(found, [[3.0, 8.0, 3.0]])


@pytest.mark.parametrize("returns", [per_decision_returns, self_normalised_returns])
def test_returns_at_the_same_policy_are_the_discounted_ones(returns):
    assert close(returns(MU, MU, REWARDS, gamma=GAMMA), discounted(REWARDS, GAMMA))


def test_per_decision_returns_are_unbiased():
    found = per_decision_returns(MU, PI, REWARDS, gamma=GAMMA)
    ratio = (PI - MU).exp()
    assert close(state_means(MU, ratio * found), true_values(PI, REWARDS, GAMMA))


def test_the_per_decision_policy_gradient_is_unbiased():
    # The gradient with respect to a number for each action, as a table: sum over t of
    # w_{0..t} d log pi_t Q_t under mu equals the on-policy one. d log pi_t is any function of the
    # state and the action here.
    direction = numbers(by_action, 5)
    weights = prefix_log_weights(MU, PI).exp()
    found = per_decision_returns(MU, PI, REWARDS, gamma=GAMMA)
    on_policy = expectation(PI, (direction * discounted(REWARDS, GAMMA)).sum(1))
    assert close(expectation(MU, (weights * direction * found).sum(1)), on_policy)


def test_weights_of_whole_episodes_are_unbiased():
    weights = prefix_log_weights(MU, PI)[:, -1].exp()
    earned = REWARDS.sum(1)
    assert close(expectation(MU, weights * earned), expectation(PI, earned))
    assert close(expectation(MU, weights), 1.0)


def test_self_normalised_returns_by_hand():
    # Two episodes of two steps. From step 0 the second reward has weights 3 and 1, of mean 2.
    behaviour = torch.zeros(2, 2).double()
    target = torch.tensor([[0.0, 3.0], [5.0, 1.0]]).double().log()
    rewards = torch.tensor([[1.0, 10.0], [2.0, 20.0]]).double()
    found = self_normalised_returns(behaviour, target, rewards, gamma=0.5)
    assert close(found, [[1 + 0.5 * 1.5 * 10, 10.0], [2 + 0.5 * 0.5 * 20, 20.0]])
    # The second episode has one step only: the first is then alone, with weight 1.
    mask = torch.tensor([[True, True], [True, False]])
    found = self_normalised_returns(behaviour, target, rewards, mask=mask, gamma=0.5)
    assert close(found, [[6.0, 10.0], [2.0, 0.0]])


def test_self_normalised_returns_converge_to_the_per_decision_ones():
    # Many episodes under mu: their estimate of V(s_0) comes within its standard error.
    rows = torch.multinomial(MU.sum(1).exp(), 20_000, replacement=True, generator=drawn())
    found = self_normalised_returns(MU[rows], PI[rows], REWARDS[rows], gamma=GAMMA)
    weights = self_normalised_weights((PI - MU)[rows, 0])
    estimates = weights * found[:, 0]
    truth = true_values(PI, REWARDS, GAMMA)[0, 0]
    error = float(estimates.std()) / math.sqrt(len(rows))
    assert abs(float(estimates.mean() - truth)) < 4 * error < 0.1


def test_self_normalised_weights_of_any_size():
    assert close(self_normalised_weights(logs(3, 1)[0] + 1e4), [1.5, 0.5])
    assert close(self_normalised_weights(logs(3, 1)[0] - 1e4), [1.5, 0.5])


def test_truncated_weights():
    # Nine weights of mean 1, one of them 8: the limit is sqrt(9) = 3 times the mean.
    weights = torch.tensor([8.0] + [0.125] * 8).double()
    found = truncated_log_weights(weights.log()).exp()
    assert close(found, [3.0] + [0.125] * 8)
    assert close(truncated_log_weights(weights.log() + 3).exp(), found * math.exp(3))
    assert close(truncated_log_weights(weights.log(), limit=2.0).exp()[0], 2.0)
    with pytest.raises(ValueError, match="limit is 0"):
        truncated_log_weights(weights.log(), limit=0.0)


@given(st.integers(1, 50), st.integers(0, 99))
def test_truncation_never_raises_a_weight_and_leaves_equal_ones(count, seed):
    log_weights = torch.randn(count, generator=drawn(seed)) * 3
    assert (truncated_log_weights(log_weights) <= log_weights).all()
    equal = torch.full((count,), 2.5)
    assert torch.allclose(truncated_log_weights(equal), equal)


# ---------------------------------------------------------------- effective sample size


def test_effective_sample_size_by_hand():
    assert close(effective_sample_size(logs(3, 1)[0]), 16 / 10)
    assert close(effective_sample_size(torch.full((7,), -1e5, dtype=torch.float64)), 7.0)
    assert close(effective_sample_size(torch.tensor([1e5, 0.0, -math.inf]).double()), 1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e5, 1e5))
def test_effective_sample_size_is_between_one_and_all(log_weights, shift):
    weights = torch.tensor(log_weights, dtype=torch.float64)
    found = float(effective_sample_size(weights))
    assert 1 <= found <= len(log_weights)
    assert abs(float(effective_sample_size(weights + shift)) - found) < 1e-5 * found


@pytest.mark.parametrize("bad", [[], [math.nan, 0.0], [math.inf], [-math.inf, -math.inf]], ids=str)
def test_effective_sample_size_refuses_what_has_none(bad):
    with pytest.raises(ValueError, match=r"log-weights is .*; expected at least one"):
        effective_sample_size(torch.tensor(bad))

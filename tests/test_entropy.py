"""What entropy is worth, by hand; a control has to push the entropy towards its target."""

from __future__ import annotations

import pytest
import torch
from episodes import generator, random_batch, random_policy

from agents.encoders import NO_ENCODER
from agents.learners.reinforce import PRICE_LIMITS, EntropyConfig, EntropyControl
from agents.networks.context import make_policy
from agents.rollouts.rollout import Episodes, MergeTerms, mean_entropy, rollout
from htm_env.candidates import Nearest


def episodes(*entropies: list[float]) -> tuple[Episodes, MergeTerms]:
    """Episodes of so many merges of four active nodes, with these entropies."""
    batch, steps = len(entropies), max(map(len, entropies))
    merges = torch.full((batch, steps, 2), -1)
    entropy = torch.zeros(batch, steps)
    active = torch.full((batch, steps, 4), -1)
    for row, values in enumerate(entropies):
        merges[row, : len(values)] = 0
        entropy[row, : len(values)] = torch.tensor(values)
        active[row, : len(values)] = torch.arange(4)
    nodes = 2 * steps + 1
    made = Episodes(
        merges, torch.zeros(batch, nodes, 2), torch.ones(batch, nodes, dtype=torch.int64), active
    )
    return made, MergeTerms(torch.zeros(batch, steps), torch.zeros(batch, steps), entropy)


def test_a_bonus_alone():
    control = EntropyControl(EntropyConfig(bonus=0.3, target=None))
    made = episodes([0.2, 0.4], [0.9])
    assert control.coefficient(*made, 0.5)[:, 0].tolist() == pytest.approx([-0.3, -0.3])
    assert control.target(0.5) is None
    assert control.price == 0.0


def test_distance_is_a_penalty_with_the_sign_of_the_distance():
    """Means 0.3 and 0.9, target 0.5: the first is to rise (the loss falls with it)."""
    control = EntropyControl(
        EntropyConfig(control="distance", weight=3.0, target=((0.0, 1.0), (1.0, 0.0)))
    )
    coefficient = control.coefficient(*episodes([0.2, 0.4], [0.9]), 0.5)
    assert coefficient[:, 0].tolist() == [-3.0, 3.0]
    assert control.target(0.25) == 0.75


def test_adaptive_by_hand():
    config = EntropyConfig(
        control="adaptive", bonus=0.5, weight=2.0, rate=0.1, target=((0.0, 0.8),)
    )
    control = EntropyControl(config)
    # Mean of all steps (0.2 + 0.4 + 0.9) / 3 = 0.5: the price rises by 0.1 x 0.3.
    coefficient = control.coefficient(*episodes([0.2, 0.4], [0.9]), 0.0)
    assert coefficient[:, 0].tolist() == pytest.approx([-0.5 - 0.03 - 0.6] * 2)
    assert control.price == pytest.approx(0.03)
    # Mean 1.0 is above: the price falls by 0.1 x 0.2, and the present distance pushes down.
    coefficient = control.coefficient(*episodes([1.0]), 0.0)
    assert coefficient.tolist() == [pytest.approx([-0.5 - 0.01 + 0.4])]


@pytest.mark.parametrize(("entropy", "limit"), [(0.0, PRICE_LIMITS[1]), (1.0, PRICE_LIMITS[0])])
def test_the_price_has_limits(entropy, limit):
    control = EntropyControl(EntropyConfig(rate=7.0, target=((0.0, 1.0 - entropy),)))
    for _ in range(20):
        control.coefficient(*episodes([entropy]), 0.0)
    assert control.price == limit


def test_a_restored_price():
    control, again = (EntropyControl(EntropyConfig(target=((0.0, 1.0),))) for _ in range(2))
    control.coefficient(*episodes([0.3]), 0.2)
    again.restore(control.state())
    assert again.price == control.price != 0.0


def test_an_unknown_control_lists_the_choices():
    with pytest.raises(ValueError, match=r"'fixed'; choose from \['adaptive', 'distance'\]"):
        EntropyControl(EntropyConfig(control="fixed"))


@pytest.mark.parametrize("network", ["pointer", "attention"])
@pytest.mark.parametrize("nearest", [None, Nearest(1), Nearest(4)])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_untrained_policy_has_an_entropy_of_one_at_most(autoencoder, network, nearest, ordered):
    """And nearly so: the order of the last two tokens is a choice or it is none, in the sum as in
    the number of choices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = make_policy("pointer", 5, 12, NO_ENCODER if network == "pointer" else network)
    for tokens in (3, 7):
        batch = random_batch([tokens] * 8)
        made, terms = rollout(
            autoencoder, policy, batch, generator(1), ordered_entropy=ordered, nearest=nearest
        )
        again = policy.terms(autoencoder, batch, made).measured(ordered)
        for seen in (terms, again):
            assert 0.8 < mean_entropy(made, seen, ordered) <= 1 + 1e-5


@pytest.mark.parametrize("control", ["adaptive", "distance"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("change", [-0.3, 0.3])
def test_a_policy_is_drawn_to_the_target(autoencoder, control, ordered, change):
    """No rewards at all, only the price of entropy, which draws it 0.3 away from where it was."""
    scale = 1.0 if change < 0 else 20.0  # scaled scores leave less entropy to begin with
    policy = random_policy("pointer", seed=4)
    with torch.no_grad():
        policy.head.weight.mul_(scale)
    batch, drawn = random_batch([5] * 12), generator(1)

    def roll() -> tuple[Episodes, MergeTerms]:
        return rollout(autoencoder, policy, batch, drawn, ordered_entropy=ordered)

    start = mean_entropy(*roll(), ordered)
    target = start + change
    assert 0.05 < target < 0.95
    price = EntropyControl(EntropyConfig(control=control, target=((0.0, target),), ordered=ordered))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    means = []
    for _ in range(220):
        made, terms = roll()
        means.append(mean_entropy(made, terms, ordered))
        optimizer.zero_grad()
        policy.terms(autoencoder, batch, made).backward(
            terms,
            torch.zeros_like(terms.log_prob),
            price.coefficient(made, terms, 0.0),
            ordered,
        )
        optimizer.step()
    assert abs(sum(means[-20:]) / 20 - target) < 0.1

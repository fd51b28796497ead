"""Whether a run has learned enough to be used, by its updates and by what costs nothing."""

from __future__ import annotations

from collections.abc import Mapping

from agents.config.options import TEST_EPISODES
from agents.evaluation.evaluate import sample_returns
from agents.evaluation.yardsticks import bounded, plain_yardsticks, tree_yardsticks
from agents.fixed import fixed_policy
from agents.learners.base import Learner

FEW_UPDATES = 20
"""Updates below which nothing has been learned that is worth using; one of ppo is a rollout of
thousands of merges, and with 54 of them its error was already small."""
NO_BETTER = 0.95
"""Share of another error above which an error is no better than it."""
MOST_CUT = 0.5
"""Share of generated samples cut off by depth or tokens above which the leaf classifier knows
nothing."""
NOT_TRAINED = "not trained enough to use: {}"


def why_not_trained(learner: Learner, nmse: float, yardsticks: Mapping[str, float]) -> str | None:
    """Why a run is not trained enough to use; None where nothing says so.

    It has few updates, or its autoencoder fewer steps than its learning rate takes to rise, its
    error is no better than that of predicting the ``mean``, or a policy that learns is no better
    than ``random`` merges through its own autoencoder. What is neither trained nor chosen, a frozen
    autoencoder or given trees, is not asked.

    Args:
        learner: the run's.
        nmse: its error.
        yardsticks: errors of the same samples by name; ``random`` may be missing.
    """
    reasons = _too_few_updates(learner)
    mean, random = yardsticks["mean"], yardsticks.get("random")
    if not nmse <= NO_BETTER * mean:  # also where it is not finite
        reasons.append(f"its nmse is {nmse:.3g}, that of predicting the mean {mean:.3g}")
    elif random is not None and not learner.fixed_trees and nmse > NO_BETTER * random:
        reasons.append(f"its nmse is {nmse:.3g}, that of random merges {random:.3g}")
    return "; ".join(reasons) or None


def why_not_trained_by_return(
    learner: Learner, earned: float, yardsticks: Mapping[str, float]
) -> str | None:
    """The same where the merger is known: few updates, or a policy that learns earns no more than
    ``random`` merges do."""
    reasons, random = _too_few_updates(learner), yardsticks["random"]
    if not learner.fixed_trees and not earned > random:
        reasons.append(f"its return is {earned:.5g}, that of random merges {random:.5g}")
    return "; ".join(reasons) or None


def _too_few_updates(learner: Learner) -> list[str]:
    if not learner.learns:
        return []
    if learner.updates < FEW_UPDATES:
        return [f"{learner.updates} updates, where at least {FEW_UPDATES} are expected"]
    if "trainer" not in vars(learner):  # its autoencoder is frozen, or another one
        return []
    steps, warm_up = learner.trainer.steps, learner.config.autoencoder.merger.warm_up_updates
    if steps >= warm_up:
        return []
    return [f"{steps} steps of its autoencoder, whose learning rate rises for {warm_up}"]


def why_not_trained_on_test(learner: Learner) -> str | None:
    """:func:`why_not_trained` by the samples of the test split that ``htm evaluate`` takes, or
    fewer of large sets."""
    dataset = learner.task.dataset("test")
    count = bounded(TEST_EPISODES, dataset)
    scores = learner.evaluate(dataset, count, sampled=False)
    earned = scores.get("return")
    if earned is not None:
        model = learner.autoencoder
        random = sample_returns(
            fixed_policy("random", model), model, dataset, count, reward=learner.reward
        )
        return why_not_trained_by_return(learner, earned, {"random": float(random.mean())})
    nmse, makes_trees = scores["nmse"], scores["mean_height"] is not None
    assert nmse is not None  # every learner has an error
    orders = ("random",) if makes_trees and not learner.fixed_trees else ()
    yardsticks = tree_yardsticks(learner.autoencoder, dataset, count, orders=orders)
    yardsticks |= plain_yardsticks(dataset, learner.task.dataset("train"), None, count)
    return why_not_trained(learner, nmse, yardsticks)


def say_if_not_trained(learner: Learner, cut: float = 0.0) -> None:
    """Print one line where :func:`why_not_trained_on_test` has a reason, or where more than half
    of its samples (the share ``cut``) did not end by themselves."""
    reasons = [f"{cut:.0%} of the samples were cut off"] if cut > MOST_CUT else []
    why = "; ".join(filter(None, [why_not_trained_on_test(learner), *reasons]))
    if why:
        print(NOT_TRAINED.format(why))

"""The replay learner: what it stores, what it replays, and that it can be resumed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from agents.demonstrations import Demonstrator
from agents.fixed import fixed_policy
from agents.learners.replay import CORRECTION_NAMES, ReplayConfig, ReplayReinforce
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.rollouts.rollout import follow
from agents.runs.checkpoint import load_state, save_state
from replay import number_of_sequences

TREES = {"env_kwargs": {"heights": (2, 3)}, "embedding_dim": 4}
TINY = ReplayConfig(
    autoencoder=AutoencoderConfig(hidden_dim=16),
    policy_hidden_dim=16,
    batch_size=4,
    replay_batch_size=6,
    demonstration_share=((0.0, 0.0),),
)


def made(**changes) -> ReplayReinforce:
    return ReplayReinforce("HTM-Trees-v0", replace(TINY, **changes), **TREES)


def test_fresh_episodes_are_followed_by_stored_ones():
    learner = made(replays=2)
    rows = [learner.update(0.0) for _ in range(7)]
    assert ["replay/staleness" in row for row in rows] == [False, True, True] * 2 + [False]
    # eight fresh episodes an update, six replayed ones
    assert [row["replay/fresh_share"] for row in rows[:4]] == [1, 8 / 14, 8 / 20, 16 / 28]
    assert [row["replay/ratio"] for row in rows[:4]] == [0, 6 / 8, 12 / 8, 12 / 16]
    assert [row["replay/stored"] for row in rows] == [8, 8, 8, 16, 16, 16, 24]
    stored = learner.buffer.trajectories()
    assert stored.policy_version.tolist() == [0] * 8 + [3] * 8 + [6] * 8
    assert learner.merges_made == int(stored.steps.sum())  # replays make none
    assert rows[1]["replay/staleness"] == 1.0
    assert rows[2]["replay/staleness"] == 2.0
    assert {
        "train/return",
        "train/nmse",
        "loss/policy",
        "loss/value",
        "loss/reconstruction",
        "gradient_norm/policy",
        "train/tree_height",
    } <= set(rows[1])


def test_behaviour_is_that_of_the_policy_which_made_the_merges():
    learner = made(replays=0)
    learner.update(0.0)
    twin = made(replays=0)  # the same before its first update
    stored = learner.buffer.trajectories()
    episodes = follow(twin.seen, stored.token_batch, stored.merges)
    seen = twin.policy.terms(twin.seen, stored.token_batch, episodes).measured(True)
    torch.testing.assert_close(seen.log_prob, stored.behaviour_log_prob, rtol=1e-4, atol=1e-4)


def test_the_latest_batch_alone_can_be_kept():
    learner = made(replays=1, max_staleness=0)
    for _ in range(5):
        learner.update(0.0)
    assert learner.buffer.trajectories().policy_version.tolist() == [4] * 8


def check_mixture(stored, epsilon):
    """An episode that follows a plan of turned pairs, or none, has one of two probabilities."""
    merges = stored.steps.sum(1).double()
    uniform = torch.tensor(
        [math.prod(1 / (k * (k - 1)) for k in range(2, n + 1)) for n in stored.num_tokens.tolist()],
        dtype=torch.float64,
    )
    follows = ((1 - epsilon) * 0.5**merges + epsilon * uniform).log()
    found = stored.behaviour_log_prob.sum(1).double()
    as_planned = (found - follows).abs() < 1e-4
    assert as_planned.any()
    assert (as_planned | ((found - (epsilon * uniform).log()).abs() < 1e-4)).all()
    sequences = number_of_sequences(stored.merges, stored.num_tokens)
    turned = (epsilon * sequences * uniform + (1 - epsilon) * 0.5**merges).log()
    torch.testing.assert_close(
        stored.tree_log_prob[as_planned].double(), turned[as_planned], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["nearest_sorted", "structure", "random"])
def test_demonstrations_are_stored_with_exact_probabilities(name):
    learner = made(
        demonstrations=(name,),
        demonstration_share=((0.0, 1.0),),
        seed_episodes=10,
        correction="tree",
        demonstration_epsilon=0.3,
    )
    learner.update(0.0)
    stored = learner.buffer.trajectories()
    assert len(learner.buffer) == 10 + 4
    assert set(stored.sources) == {name}
    assert learner.merges_made == int(stored.steps.sum())
    if name == "structure":
        check_mixture(stored, epsilon=0.3)  # its plans, drawn with the demonstration, are forgotten
        return
    twin = made()
    demonstrator = Demonstrator(fixed_policy(name, twin.autoencoder), epsilon=0.3)
    behaviour = demonstrator.behaviour(stored.token_batch, torch.Generator())
    torch.testing.assert_close(
        behaviour.log_prob(stored.merges), stored.behaviour_log_prob, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        behaviour.tree_log_prob(stored.merges, torch.Generator()),
        stored.tree_log_prob,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("correction", ["vtrace", "tree"])
def test_while_it_clones_stored_demonstrations_are_imitated_again(correction):
    """A policy that could hardly have made them learns them, faster than from their returns.

    All updates but the first are on the same four stored plans.
    """
    at_once = replace(TINY.policy, warm_up_updates=0, learning_rate=1e-2)

    def likelihoods(share: float) -> tuple[float, float, float]:
        learner = made(
            demonstrations=("balanced_sorted",),
            correction=correction,
            replays=20,
            policy=at_once,
            demonstration_share=((0.0, 1.0), (0.001, 1.0), (0.002, share)),
            max_staleness=None,
        )
        learner.update(0.0)
        stored = learner.buffer.trajectories()

        def likelihood() -> float:
            episodes = follow(learner.seen, stored.token_batch, stored.merges)
            seen = learner.policy.terms(learner.seen, stored.token_batch, episodes)
            return float(seen.log_probs.sum(1).mean().detach())

        before = likelihood()
        imitated = [learner.update(0.5)["replay/imitated_share"] for _ in range(20)]
        return before, likelihood(), sum(imitated) / 20

    before, after, imitated = likelihoods(1.0)
    assert imitated == 1.0
    assert after > before + 1.0
    _, weighed, imitated = likelihoods(0.0)
    assert imitated == 0.0
    assert after > weighed + 1.0


def test_the_policys_own_episodes_are_never_imitated():
    learner = made(
        demonstrations=("balanced_sorted",), demonstration_share=((0.0, 0.0), (1.0, 1.0))
    )
    learner.update(0.0)
    assert learner.buffer.trajectories().sources == ("policy",)
    assert learner.update(1.0)["replay/imitated_share"] == 0.0


@pytest.mark.parametrize("correction", CORRECTION_NAMES)
@pytest.mark.parametrize("sampler", ["uniform", "advantage", "return"])
def test_a_saved_state_continues_bit_for_bit(tmp_path, correction, sampler):
    learner = made(correction=correction, sampler=sampler, baseline="greedy")
    for _ in range(4):
        learner.update(0.0)
    save_state(tmp_path / "state.safetensors", learner.state())
    twin = made(correction=correction, sampler=sampler, baseline="greedy")
    twin.restore(load_state(tmp_path / "state.safetensors"))
    for _ in range(4):
        assert learner.update(0.5) == twin.update(0.5)
    assert learner.autoencoder.weights_hash() == twin.autoencoder.weights_hash()


class Weightless:
    """A buffer whose episodes weigh nothing."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __len__(self):
        return len(self.buffer)

    def sample(self, size):
        drawn = self.buffer.sample(size)
        return drawn._replace(weights=drawn.weights * 0)

    def update_priorities(self, *priorities):
        self.buffer.update_priorities(*priorities)


@pytest.mark.parametrize("correction", CORRECTION_NAMES)
def test_the_correction_for_prioritised_sampling_reaches_every_gradient(correction):
    """Policy and critic: with weights of zero neither moves."""
    learner = made(correction=correction, sampler="return")
    learner.update(0.0)
    buffer, learner.buffer = learner.buffer, Weightless(learner.buffer)
    scalars = learner.update(0.0)
    assert "replay/staleness" in scalars
    assert scalars["gradient_norm/policy"] == 0.0
    learner.buffer = buffer
    assert learner.update(0.0)["gradient_norm/policy"] > 0.0


@pytest.mark.parametrize("sampler", ["uniform", "advantage", "return"])
def test_a_bad_episode_is_skipped_and_keeps_its_priority(sampler):
    learner = made(sampler=sampler)
    learner.update(0.0)
    with torch.no_grad():
        learner.autoencoder.merger.skip.bias.fill_(math.nan)
    scalars = learner.update(0.0)
    assert "replay/staleness" in scalars
    assert scalars["train/skipped_updates"] > 0


def test_trees_of_any_size_can_be_demonstrated_and_replayed():
    """31 tokens: too many forests lead to such a tree for its exact probability."""
    config = replace(
        TINY,
        correction="tree",
        replays=2,
        demonstrations=("nearest_sorted",),
        demonstration_share=((0.0, 1.0), (1.0, 0.0)),
    )
    learner = ReplayReinforce("HTM-Trees-v0", config, env_kwargs={"heights": (5,)}, embedding_dim=4)
    learner.update(0.0)
    again = learner.update(0.0)
    assert again["replay/imitated_share"] == 1.0
    assert "replay/effective_sample_share" not in again  # nothing was weighed
    weighed = learner.update(1.0)  # without cloning
    assert 0 < weighed["replay/effective_sample_share"] <= 1
    assert math.isfinite(weighed["loss/policy"])


def test_on_policy_replays_weigh_every_merge_alike():
    """Nothing was learned since: with a learning rate of 0 the policy is still the same."""
    still = replace(TINY.policy, learning_rate=0.0)
    learner = made(policy=still, max_staleness=None)
    scalars = [learner.update(0.0) for _ in range(6)]
    again = [row for row in scalars if "replay/staleness" in row]
    # The autoencoder moves, and with it what the policy sees: hardly, in so few updates.
    assert all(row["replay/effective_sample_share"] > 0.9 for row in again)


def test_ragged_data_is_stored_in_the_slots_of_the_largest_sample():
    data = [
        torch.randn(n, 2, generator=torch.Generator().manual_seed(n)).numpy()
        for n in (2, 3, 4, 5) * 10
    ]
    learner = ReplayReinforce("HTM-v0", TINY, env_kwargs={"dataset": data}, embedding_dim=3)
    learner.update(0.0)
    stored = learner.buffer.trajectories()
    assert len(set(stored.num_tokens.tolist())) > 1
    assert stored.present.shape[1] == learner.dataset.max_tokens == 5


def test_the_buffer_draws_from_a_stream_of_its_own():
    learner = made()
    own = torch.rand(4, generator=learner.buffer.generator)
    learners = torch.rand(4, generator=torch.Generator().manual_seed(learner.task.seed))
    assert not torch.equal(own, learners)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"correction": "wishes"}, "unknown correction 'wishes'; choose from"),
        ({"sampler": "luck"}, "unknown sampler 'luck'; choose from"),
        ({"replays": -1}, "replays is -1; expected at least 0"),
        ({"replay_batch_size": 0}, "replay_batch_size is 0; expected at least 1"),
        ({"capacity": 0}, "capacity is 0; expected at least 1"),
        ({"demonstration_epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
    ],
)
def test_wrong_options_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        made(**changes)


def test_trees_and_a_critic_of_discounted_returns_do_not_go_together():
    with pytest.raises(ValueError, match="expected discount 1, or another baseline"):
        made(correction="tree", baseline="value", discount=0.8)
    made(correction="tree", baseline="value", discount=1.0)

"""PPO as one of this project's learners: it learns, resumes bit for bit, and reports the same."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_learning import FAST, SMALL, TREES, assert_learns, counting_autoencoder, held_out, train

from agents import PPOConfig, PPOLearner, Reinforce, ReinforceConfig
from agents.evaluation.evaluate import root_errors
from agents.learners.imitation import RANKS, failures
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import algorithm, load_learner
from agents.runs.checkpoint import load_state, save_state
from htm_env.datasets import make_dataset

TINY = PPOConfig(
    autoencoder=SMALL,
    policy=FAST,
    policy_hidden_dim=32,
    n_envs=16,
    batch_size=16,
    n_epochs=2,
    trees_per_step=8,
    demonstration_share=((0.0, 0.0),),
    policy_share=((0.0, 1.0),),
)
MIXED = {"env_kwargs": {"heights": (2, 3)}, "embedding_dim": 4}
"""Three or seven tokens: some episodes are in progress when a rollout ends."""
both = pytest.mark.parametrize("maskable", [False, True], ids=["ppo", "maskable_ppo"])


def weights(learner: PPOLearner) -> dict[str, torch.Tensor]:
    state = learner.state()
    return {
        f"{part}.{name}": value
        for part in ("autoencoder", "policy")
        for name, value in state[part].items()
    }


def assert_same(one: PPOLearner, other: PPOLearner) -> None:
    assert (one.updates, one.merges_made) == (other.updates, other.merges_made)
    expected = weights(other)
    for name, value in weights(one).items():
        assert torch.equal(value, expected[name]), name


# ---------------------------------------------------------------- it learns


def test_rewards_move_the_policy_to_the_best_merges():
    """Tokens ``x, x + 1, x + 2``: one of twelve merge sequences reconstructs them exactly."""
    start = np.random.default_rng(0).uniform(-0.3, 0.3, size=(200, 1, 1))
    data = start + np.arange(3)[None, :, None]
    config = replace(TINY, autoencoder=AutoencoderConfig(hidden_dim=2), discount=1.0)
    learner = PPOLearner("HTM-v0", config, env_kwargs={"dataset": data}, embedding_dim=1)
    learner.autoencoder.load_state_dict(counting_autoencoder().state_dict())
    learner.callback.trainer = None  # the autoencoder stays as it is
    before = held_out(learner)
    train(learner, 60)
    after = held_out(learner)
    assert after["sampled_nmse"] < 0.15 * before["sampled_nmse"]
    assert after["nmse"] < 0.02 * before["sampled_nmse"]


@both
def test_joint_learning_from_scratch(maskable):
    config = replace(TINY, n_envs=32, batch_size=64, n_epochs=1, maskable=maskable)
    assert_learns(PPOLearner("HTM-Trees-v0", config, **TREES), 100, 0.3)


def test_masks_from_the_environment_are_those_that_the_policy_reads_for_itself():
    """So both algorithms take the same course, to the last bit."""
    learners = [
        PPOLearner("HTM-Trees-v0", replace(TINY, maskable=maskable), **MIXED)
        for maskable in (False, True)
    ]
    for learner in learners:
        train(learner, 3)
    assert_same(*learners)


def test_cloning_reaches_the_demonstrators_merges():
    """Nearest centroids of seven points: most of their clades are the data's own."""
    config = replace(
        TINY,
        policy_hidden_dim=64,
        n_envs=64,
        trees_per_step=32,
        demonstrations=("nearest_sorted",),
        demonstration_share=((0.0, 1.0),),
    )
    task = {"env_kwargs": {"heights": (3,)}, "embedding_dim": 6}
    learner = PPOLearner("HTM-Trees-v0", config, **task)
    before = held_out(learner)["tree_recall"]
    scalars = train(learner, 25)
    assert before < 0.6 and held_out(learner)["tree_recall"] > 0.85
    assert all("loss/cloning" in row and "loss/policy" not in row for row in scalars)
    assert scalars[-1]["loss/value"] < 0.5 * scalars[0]["loss/value"]
    assert learner.merges_made == 25 * 64 * 6


def test_it_imitates_what_a_search_finds_better_where_it_fails():
    task = {"env_kwargs": {"heights": (3,)}, "embedding_dim": 4}
    searching = PPOLearner("HTM-Trees-v0", replace(TINY, failure=1.0), **task)
    plain = PPOLearner("HTM-Trees-v0", replace(TINY, failure=0.0), **task)
    for learner in (searching, plain):
        learner.search.much_better = math.inf
    scalars = searching.update(0.5)
    assert "loss/failures" not in plain.update(0.5)
    assert plain.merges_made == 16 * 6
    assert searching.merges_made == 16 * 6 + 4 * 6 * RANKS * 6  # what the search makes counts
    # Without its own step, it would be where the plain one is, and find there what it found.
    finished = plain.callback.finished
    errors = root_errors(plain.autoencoder, finished.batch, finished.merges, plain.std)
    failed = failures(errors, 1.0)
    found = plain.search.improvements(finished.batch.rows(failed), errors[failed])
    terms = searching.policy.terms(searching.autoencoder, found.batch, found.episodes)
    chosen = terms.log_probs.detach().gather(1, found.step[:, None])
    assert float(-chosen.sum() / len(chosen)) < scalars["loss/failures"]
    parameters = zip(plain.policy.parameters(), searching.policy.parameters(), strict=True)
    assert any(not torch.equal(*pair) for pair in parameters)
    steps = [learner.state()["gradient_steps"] for learner in (searching, plain)]
    assert steps[0] == steps[1] + 1  # clipped and counted too


def test_frozen_the_autoencoder_stays_as_it_is():
    config = replace(TINY, n_envs=8)
    learner = PPOLearner("HTM-Trees-v0", config, mode="frozen")
    before = learner.autoencoder.weights_hash()
    scalars = train(learner, 3)
    assert learner.autoencoder.weights_hash() == before
    assert all("loss/policy" in row and "loss/reconstruction" not in row for row in scalars)
    assert learner.merges_made == 3 * 8 * 14


# ---------------------------------------------------------------- the same again


@both
def test_a_restored_state_continues_bit_for_bit(maskable, tmp_path):
    """In memory and through a file, with every kind of update, noise and episodes in progress."""
    config = replace(
        TINY,
        autoencoder=replace(SMALL, noise_std=0.1),
        n_envs=8,
        maskable=maskable,
        demonstrations=("nearest_sorted",),
        demonstration_share=((0.0, 0.5),),
        policy_share=((0.0, 0.5),),
        failure=1.0,
    )

    def learner(seed: int) -> PPOLearner:
        return PPOLearner("HTM-Trees-v0", config, **MIXED, seed=seed)

    one = learner(0)
    scalars = [one.update(step / 8) for step in range(4)]
    assert (one.env.copies.population.forest.num_merges > 0).any()
    state = one.state()
    save_state(tmp_path / "state", state)
    scalars += [one.update(step / 8) for step in range(4, 8)]
    for tag in ("loss/cloning", "loss/policy"):
        assert {tag in row for row in scalars} == {True, False}
    for restored in (state, load_state(tmp_path / "state"), state):
        other = learner(1)
        other.restore(restored)
        for step in range(4, 8):
            other.update(step / 8)
        assert_same(other, one)


def test_frozen_too_it_continues_bit_for_bit():
    def learner(seed: int) -> PPOLearner:
        return PPOLearner("HTM-Trees-v0", replace(TINY, n_envs=8), mode="frozen", seed=seed)

    one, other = learner(0), learner(1)
    train(one, 2)
    other.restore(one.state())
    train(one, 2)
    train(other, 2)
    assert_same(other, one)


def test_saved_as_a_run_it_is_loaded_and_continues(tmp_path):
    one = PPOLearner("HTM-Trees-v0", replace(TINY, maskable=True), **MIXED)
    one.train(merges=300)
    one.save(tmp_path / "agent")
    other = load_learner(tmp_path / "agent")
    assert isinstance(other, PPOLearner) and other.algo == "maskable_ppo"
    one.update(0.5)
    other.update(0.5)
    assert_same(other, one)
    assert not list(tmp_path.rglob("*.zip")) and not list(tmp_path.rglob("*.pkl"))


def test_global_generators_play_no_part_and_are_left_alone():
    one, again, other = (PPOLearner("HTM-Trees-v0", TINY, **MIXED, seed=seed) for seed in (0, 0, 1))
    train(one, 3)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    train(again, 3)
    after = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    np.testing.assert_array_equal(before[1][1], after[1][1])
    assert_same(one, again)
    train(other, 3)
    assert not torch.equal(*(weights(learner)["policy.head.weight"] for learner in (one, other)))


def test_evaluating_does_not_touch_what_learning_draws():
    one, other = (PPOLearner("HTM-Trees-v0", TINY, **MIXED) for _ in range(2))
    train(one, 3)
    for update in range(3):
        held_out(other)
        other.update(update / 3)
    assert_same(one, other)


# ---------------------------------------------------------------- what it reports


@both
def test_it_reports_what_reinforce_reports(maskable):
    """Under the same tags, while it clones and while it learns from rewards."""
    for share in (0.0, 1.0):
        cloned = {"demonstrations": ("even",), "demonstration_share": ((0.0, share),)}
        reinforce = ReinforceConfig(autoencoder=SMALL, **cloned)
        ppo = replace(TINY, maskable=maskable, **cloned)
        expected = Reinforce("HTM-Trees-v0", reinforce, **TREES).update(0.0)
        found = PPOLearner("HTM-Trees-v0", ppo, **TREES).update(0.0)
        assert set(expected) <= set(found)
        assert all(np.isfinite(value) for value in found.values())
        own = {
            "loss/value",
            "policy/approximate_kl",
            "policy/clip_fraction",
            "policy/explained_variance",
        }
        assert set(found) - set(expected) <= own


def test_the_return_is_what_the_forest_loses():
    learner = PPOLearner("HTM-Trees-v0", TINY, **TREES)
    started = float(learner.env.copies.population.initial_error.mean())
    scalars = learner.update(0.0)
    assert started - scalars["train/nmse"] == pytest.approx(scalars["train/return"], rel=1e-4)
    assert learner.merges_made == 16 * 2 and learner.updates == 1


def test_the_learning_rate_follows_the_budget():
    learner = PPOLearner("HTM-Trees-v0", TINY, **TREES)
    rates = []
    for progress in (0.0, 0.5, 1.0):
        learner.optimizer.steps = 5 if progress else 0  # the warm-up is over after five
        learner.update(progress)
        rates.append(learner.model.policy.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 / 5, 1e-2 * 0.505, 1e-4])


def test_names_of_the_command_line():
    for name, maskable in (("ppo", False), ("maskable_ppo", True)):
        entry = algorithm(name)
        assert entry.learner is PPOLearner
        assert entry.config == replace(PPOConfig(), maskable=maskable)
        assert entry.decided == {"maskable": maskable}
        config = replace(TINY, maskable=maskable)
        assert PPOLearner("HTM-Trees-v0", config, **TREES).algo == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "no"}, "unknown reward 'no'"),
        ({"scorer": "no"}, "unknown scorer 'no'"),
        ({"demonstrations": ("no",)}, "'no'"),
        ({"n_envs": 0}, "n_envs is 0"),
        ({"trees_per_step": 0}, "trees_per_step is 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PPOLearner("HTM-Trees-v0", replace(TINY, **changes), **TREES)


def test_predict_is_masked_and_drawn_from_the_learners_own_generator():
    learner, again = (PPOLearner("HTM-Trees-v0", TINY, **MIXED) for _ in range(2))
    observation = learner.env.reset()
    masks = learner.env.action_masks()
    actions, state = learner.predict(observation)
    assert state is None and masks[np.arange(16), actions].all()
    np.testing.assert_array_equal(actions, again.predict(observation)[0])
    one = {key: value[3] for key, value in observation.items()}
    best, _ = learner.predict(one, deterministic=True)
    assert best == learner.predict(observation, deterministic=True)[0][3]


# ---------------------------------------------------------------- numbers that are not finite


def test_a_non_finite_rollout_is_skipped_counted_and_survived():
    learner = PPOLearner("HTM-Trees-v0", TINY, **TREES)
    train(learner, 2)
    sound = learner.autoencoder.state_dict()
    name = next(name for name in sound if name.startswith("merger."))
    kept = sound[name].clone()
    sound[name].fill_(torch.nan)
    policy = {key: value.clone() for key, value in learner.policy.state_dict().items()}
    assert (
        learner.update(0.5)["train/skipped_updates"] == 3
    )  # one of the policy, two of the autoencoder
    for key, value in learner.policy.state_dict().items():
        assert torch.equal(value, policy[key])
    sound[name].copy_(kept)
    scalars = learner.update(0.5)
    assert scalars["train/skipped_updates"] == 3 and np.isfinite(scalars["train/nmse"])
    sound[name].fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite in 20 updates in a row"):
        train(learner, 20)


def test_data_of_a_task_is_what_its_episodes_are_drawn_from():
    learner = PPOLearner("HTM-Trees-v0", TINY, **MIXED)
    assert learner.env.copies.simulator.dataset.split == "train"
    assert learner.env.copies.simulator.dataset.max_tokens == 7
    sizes = learner.env.copies.population.batch.num_tokens
    assert set(sizes.tolist()) == {3, 7}
    std = make_dataset("HTM-Trees-v0", heights=(2, 3)).std
    torch.testing.assert_close(learner.env.copies.simulator.std, std)

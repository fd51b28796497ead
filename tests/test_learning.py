"""Every learner learns something from scratch: scores before and after, on held-out data."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from episodes import generator

from agents.config.dataclasses_json import config_from_dict
from agents.evaluation.evaluate import evaluate
from agents.fixed import fixed_policy
from agents.learners.baselines import BASELINES
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.original import ORIGINAL, ORIGINAL_POLICY
from agents.learners.reinforce import EntropyConfig, Reinforce, ReinforceConfig
from agents.learners.replay import CORRECTION_NAMES, ReplayConfig, ReplayReinforce
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from agents.runs.checkpoint import load_state, save_state
from agents.search.exhaustive import best_of_all
from htm_env.autoencoder import HTMAutoencoder
from htm_env.datasets import make_dataset
from htm_env.forest import action_to_pair, leaf_sets, merges_to_actions
from htm_env.measures.metrics import clade_scores
from htm_env.population import merge_pairs, start_population
from htm_env.rewards import REWARDS

NAN = float("nan")
FAST = OptimizerConfig(learning_rate=1e-2, warm_up_updates=5)
SMALL = AutoencoderConfig(hidden_dim=32, lifter=FAST, merger=FAST, classifier=FAST)
TINY = ReinforceConfig(
    autoencoder=SMALL,
    policy=FAST,
    policy_hidden_dim=32,
    batch_size=8,
    batch_growth=0.0,
    trees_per_sample=4,
    trees_per_step=32,
    entropy=EntropyConfig(target=((0.0, 1.0), (1.0, 0.0))),
    demonstration_share=((0.0, 0.0),),
)
FREE = EntropyConfig(target=None)
"""Nothing is paid for entropy: the policy follows the rewards alone."""
TREES = {"env_kwargs": {"heights": (2,)}, "embedding_dim": 4}
"""Three points, six coordinates, through a root of four numbers."""


def train(learner, updates: int) -> list[dict[str, float]]:
    return [learner.update(update / updates) for update in range(updates)]


def held_out(learner) -> dict:
    return evaluate(learner, learner.autoencoder, learner.task.dataset("validation"), 100)


def assert_learns(learner, updates: int, share: float) -> None:
    """The held-out error falls below this share of the untrained one."""
    before = held_out(learner)["nmse"]
    train(learner, updates)
    assert held_out(learner)["nmse"] < share * before


# ---------------------------------------------------------------- an exact problem


def counting_autoencoder() -> HTMAutoencoder:
    """Merging keeps the first number, unmerging ``x`` gives ``(x, x + 1)``."""
    autoencoder = HTMAutoencoder(1, embedding_dim=1, hidden_dim=2)
    with torch.no_grad():
        for weight in autoencoder.parameters():
            weight.zero_()
        autoencoder.lifter.skip.weight.fill_(1.0)
        autoencoder.unlifter.skip.weight.fill_(1.0)
        autoencoder.merger.skip.weight.copy_(torch.tensor([[1.0, 0.0]]))
        autoencoder.unmerger.skip.weight.fill_(1.0)
        autoencoder.unmerger.skip.bias.copy_(torch.tensor([0.0, 1.0]))
    return autoencoder


def counting_learner(config: ReinforceConfig, learner_class: type = Reinforce) -> Reinforce:
    """Tokens ``x, x + 1, x + 2``: of twelve merge sequences one reconstructs them, the second two
    merged first, each smaller number first. The autoencoder is given and stays as it is."""
    start = np.random.default_rng(0).uniform(-0.3, 0.3, size=(200, 1, 1))
    data = start + np.arange(3)[None, :, None]
    config = replace(config, coordinates=False)  # of the autoencoder that it is made with
    learner = learner_class("HTM-v0", config, env_kwargs={"dataset": data}, embedding_dim=1)
    learner.autoencoder = learner.seen = counting_autoencoder()
    learner.task = replace(learner.task, mode="frozen")
    return learner


def test_the_exact_problem_has_one_best_sequence():
    learner = counting_learner(TINY)
    test = learner.task.dataset("test").fixed(20)

    def best(batch, generator, *, greedy):
        return best_of_all(learner.autoencoder, batch, learner.std)

    found = evaluate(
        SimpleNamespace(plan=best), learner.autoencoder, learner.task.dataset("test"), 20
    )
    assert found["nmse"] == pytest.approx(0, abs=1e-9)
    order = test.tokens[..., 0].argsort(1)  # the smallest, the middle one, the largest
    expected = torch.stack(
        [order[:, [1, 2]], torch.stack([order[:, 0], 0 * order[:, 0] + 3], 1)], 1
    )
    assert torch.equal(best(test, None, greedy=True), expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_rewards_move_the_policy_to_the_best_merges(baseline):
    config = replace(TINY, baseline=baseline, entropy=FREE, discount=1.0)
    learner = counting_learner(config)
    weights = learner.autoencoder.weights_hash()
    before = held_out(learner)
    scalars = train(learner, 40)
    after = held_out(learner)
    assert after["sampled_nmse"] < 0.15 * before["sampled_nmse"]
    assert after["nmse"] < 0.02 * before["sampled_nmse"]
    early, late = (
        sum(row["train/return"] for row in part) / 20 for part in (scalars[:20], scalars[-20:])
    )
    assert late > early
    assert learner.autoencoder.weights_hash() == weights


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": "terminal"},
        {"reward": "one_step"},
        {"scorer": "pair_mlp"},
        {"discount": 0.0, "reward": "one_step", "scale_advantages": False},
        {"merges_curriculum": 0.4},
        {"entropy": EntropyConfig(target=((0.0, 1.0), (0.5, 0.0)))},
        {"entropy": EntropyConfig(control="distance", target=((0.0, 1.0), (0.5, 0.0)))},
    ],
    ids=lambda changes: "-".join(f"{key}" for key in changes),
)
def test_every_way_of_learning_finds_better_merges(changes):
    learner = counting_learner(replace(TINY, **{"entropy": FREE, "discount": 1.0, **changes}))
    before = held_out(learner)
    train(learner, 50)
    after = held_out(learner)
    assert after["nmse"] < 0.3 * before["sampled_nmse"]
    assert after["sampled_nmse"] < 0.5 * before["sampled_nmse"]


def replaying(**changes) -> ReplayConfig:
    """As TINY, with replays."""
    config = ReplayConfig(**{field.name: getattr(TINY, field.name) for field in fields(TINY)})
    return replace(config, **changes)


@pytest.mark.parametrize("correction", CORRECTION_NAMES)
def test_stored_episodes_alone_teach_the_policy(correction):
    """Demonstrations at random, never cloned and none of them fresh: what they earned is all that
    there is to learn from, and the correction has to make the right thing of it.

    Nothing holds the policy near the random one that it is to leave."""
    config = replaying(
        correction=correction,
        entropy=FREE,
        discount=1.0,
        demonstrations=("random",),
        seed_episodes=1000,
        replay_batch_size=64,
        rho_bar=10.0,
        trust=math.inf,
    )
    learner = counting_learner(config, ReplayReinforce)
    before = held_out(learner)
    learner.seed_buffer()
    for update in range(80):
        batch, episodes, _ = learner.learn_from_stored(update / 80)
        learner.train_autoencoder(batch, episodes, update / 80)
    after = held_out(learner)
    assert learner.merges_made == 2000
    assert after["sampled_nmse"] < 0.5 * before["sampled_nmse"]
    assert after["nmse"] < 0.1 * before["sampled_nmse"]


# ---------------------------------------------------------------- jointly, from scratch


def test_joint_learning_with_replays():
    assert_learns(ReplayReinforce("HTM-Trees-v0", replaying(), **TREES), 120, 0.25)


@pytest.mark.parametrize("baseline", ["leave_one_out", "value"])
def test_joint_learning_with_and_without_a_critic(baseline):
    learner = Reinforce("HTM-Trees-v0", replace(TINY, baseline=baseline), **TREES)
    assert_learns(learner, 160, 0.25)


@pytest.mark.parametrize(
    ("changes", "heights", "share"),
    [
        ({"reward": "terminal"}, (2,), 0.2),
        ({"reward": "one_step"}, (2,), 0.3),
        ({"merges_curriculum": 0.5}, (2,), 0.2),
        ({"demonstration_share": ((0.0, 1.0), (0.5, 0.0))}, (2,), 0.2),
        ({"population_curriculum": 0.5}, (2, 3), 0.6),  # twelve more numbers through the root
    ],
    ids=["terminal", "one_step", "merges_curriculum", "cloning", "population_curriculum"],
)
def test_joint_learning_in_every_mode(changes, heights, share):
    learner = Reinforce(
        "HTM-Trees-v0",
        replace(TINY, **changes),
        env_kwargs={"heights": heights},
        embedding_dim=2 * len(heights) + 2,
    )
    assert_learns(learner, 160, share)


@pytest.mark.parametrize("preset", [ORIGINAL, ORIGINAL_POLICY], ids=["original", "original_policy"])
def test_the_published_recipes_learn(preset):
    config = replace(
        preset,
        autoencoder=replace(preset.autoencoder, hidden_dim=32, lifter=FAST, merger=FAST),
        policy_hidden_dim=32,
        batch_size=32,
    )
    assert_learns(Reinforce("HTM-Trees-v0", config, **TREES), 240, 0.4)


@pytest.mark.parametrize(
    ("policy", "share"),
    # A tree drawn anew each time tells the decoder nothing, so less gets through the root.
    [
        ("random", 0.4),
        ("cosine", 0.4),
        ("greedy", 0.25),
        ("ward", 0.5),
        ("structure_canonical", 0.2),
    ],
)
def test_the_autoencoder_learns_under_fixed_policies(policy, share):
    config = FixedOrderConfig(autoencoder=SMALL, policy=policy, batch_size=32)
    learner = FixedOrder("HTM-Trees-v0", config, **TREES)
    assert learner.algo == policy
    assert_learns(learner, 160, share)
    assert learner.merges_made == 160 * 32 * 2
    assert learner.updates == 160


# ---------------------------------------------------------------- cloning and curricula


def test_cloning_reaches_the_demonstrators_merges():
    """Nearest centroids of seven points: the tree has most of the demonstrator's clades."""
    config = replace(
        TINY,
        policy_hidden_dim=64,
        batch_size=32,
        demonstration_share=((0.0, 1.0),),
        entropy=FREE,
        demonstrations=("nearest_sorted",),
    )
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": (3,)}, embedding_dim=6)
    batch = learner.task.dataset("test").fixed(100)
    expected = fixed_policy("nearest", learner.autoencoder).plan(batch, generator())

    def agreement() -> float:
        merges = learner.plan(batch, generator(), greedy=True)
        sets = (leaf_sets(tree, batch.num_tokens) for tree in (merges, expected))
        return float(clade_scores(*sets, batch.present).recall.mean())

    assert agreement() < 0.6
    scalars = train(learner, 100)
    assert agreement() > 0.9
    assert all("loss/cloning" in row and "loss/policy" not in row for row in scalars)


@pytest.mark.parametrize(
    ("learner", "config"),
    [(Reinforce, TINY), (ReplayReinforce, ReplayConfig(**vars(TINY), replays=1))],
)
def test_on_keys_no_order_is_cloned_and_right_merges_pay(learner, config):
    """Random merges of nine tokens make three of the 36 pairs (a third of the tokens, as in every
    coalescent tree), so that a clade is found with probability 1/12."""
    config = replace(config, demonstration_share=((0.0, 1.0),), coordinates=False)
    learner = learner("HTM-Keys-v0", config)
    rows = [learner.update(0.0) for _ in range(8)]
    assert not any(tag.startswith("demonstrations/") for row in rows for tag in row)
    assert not any("loss/cloning" in row for row in rows)
    assert np.mean([row["train/return"] for row in rows]) == pytest.approx(1 / 12, abs=0.05)
    assert learner.reward is REWARDS["right_merges"]


def test_replay_cannot_begin_with_demonstrations_of_no_order():
    config = ReplayConfig(**vars(TINY) | {"seed_episodes": 8})
    with pytest.raises(ValueError, match="is 8, but there is no demonstrator on HTM-Keys"):
        ReplayReinforce("HTM-Keys-v0", config)


def test_a_learner_cannot_count_clades_where_there_are_none():
    with pytest.raises(ValueError, match="counts clades, but HTM-Digits-v0 has no hierarchy"):
        Reinforce("HTM-Digits-v0", replace(TINY, reward="right_merges"))


def test_a_demonstrator_may_be_given_by_its_name_alone():
    config = config_from_dict(ReinforceConfig, {"demonstrations": "nearest"})
    assert config.demonstrations == ("nearest",)


def test_joint_learning_with_the_default_autoencoder():
    learner = Reinforce("HTM-Trees-v0", replace(TINY, autoencoder=AutoencoderConfig()), **TREES)
    assert_learns(learner, 160, 0.1)


def test_batches_grow_with_every_update_up_to_their_limit():
    config = replace(TINY, batch_size=4, batch_growth=1.5, max_batch_size=7, trees_per_sample=2)
    learner = Reinforce("HTM-Trees-v0", config, **TREES)
    made = [0]
    for _ in range(4):
        learner.update(0.5)
        made.append(learner.merges_made)
    # Two merges a tree of three, two trees a sample: 4, 5, 7 and again 7 samples.
    assert [after - before for before, after in pairwise(made)] == [16, 20, 28, 28]


def test_the_demonstrator_whose_trees_are_learned_best_is_cloned():
    config = replace(
        TINY,
        demonstrations=("random", "nearest_sorted"),
        demonstration_race=0.5,
        demonstration_share=((0.0, 1.0),),
    )
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": (3,)}, embedding_dim=6)
    scalars = train(learner, 40)
    tags = "demonstrations/nmse_random", "demonstrations/nmse_nearest_sorted"
    assert all(tag in row for row in scalars[:20] for tag in tags)
    assert all(tags[0] not in row and tags[1] in row for row in scalars[20:])


def test_a_curriculum_makes_fewer_merges_at_first():
    learner = Reinforce("HTM-Trees-v0", replace(TINY, merges_curriculum=0.5), **TREES)
    learner.update(0.0)
    assert learner.merges_made == 8 * 4 * 1
    learner.update(0.6)
    assert learner.merges_made == 8 * 4 * (1 + 2)


def test_merges_of_a_greedy_baseline_count():
    learner = Reinforce("HTM-Trees-v0", replace(TINY, baseline="greedy"), **TREES)
    learner.update(0.0)
    assert learner.merges_made == 2 * 8 * 4 * 2


def test_the_reward_pays_what_the_forest_loses():
    """Whole episodes: the return is ``E_0 - E_final``, so the two add up to ``E_0``."""
    returns = {}
    for reward in ("incremental", "terminal"):
        learner = Reinforce("HTM-Trees-v0", replace(TINY, reward=reward), **TREES)
        scalars = learner.update(0.0)
        returns[reward] = scalars["train/return"], scalars["train/nmse"]
    assert returns["incremental"] == pytest.approx(returns["terminal"], rel=1e-5)


# ---------------------------------------------------------------- numbers that are not finite


def spoil(learner) -> None:
    with torch.no_grad():
        learner.autoencoder.merger.skip.bias.fill_(NAN)


def make(kind: str, seed: int = 0):
    if kind == "reinforce":
        return Reinforce("HTM-Trees-v0", TINY, **TREES, seed=seed)
    return FixedOrder("HTM-Trees-v0", FixedOrderConfig(autoencoder=SMALL), **TREES, seed=seed)


@pytest.mark.parametrize(("kind", "optimizers"), [("reinforce", 2), ("fixed", 1)])
def test_a_non_finite_loss_is_skipped_and_counted(kind, optimizers):
    learner = make(kind)
    train(learner, 3)
    sound = learner.autoencoder.merger.skip.bias.detach().clone()
    spoil(learner)
    state = learner.state()
    for count in (1, 2, 3):
        scalars = learner.update(0.5)
        assert scalars["train/skipped_updates"] == optimizers * count
    for part in {"autoencoder", "policy"} & state.keys():
        for name, value in learner.state()[part].items():
            torch.testing.assert_close(value, state[part][name], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        learner.autoencoder.merger.skip.bias.copy_(sound)
    before = learner.autoencoder.weights_hash()
    scalars = learner.update(0.5)
    assert scalars["train/skipped_updates"] == optimizers * 3
    assert learner.autoencoder.weights_hash() != before


@pytest.mark.parametrize("baseline", BASELINES)
def test_learning_goes_on_after_one_bad_update(baseline):
    learner = Reinforce("HTM-Trees-v0", replace(TINY, baseline=baseline), **TREES)
    sound = learner.autoencoder.merger.skip.bias.detach().clone()
    spoil(learner)
    learner.update(0.0)
    with torch.no_grad():
        learner.autoencoder.merger.skip.bias.copy_(sound)
    assert [learner.update(0.1)["train/skipped_updates"] for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("kind", ["reinforce", "fixed"])
def test_numbers_that_stay_non_finite_stop_the_run(kind):
    learner = make(kind)
    spoil(learner)
    with pytest.raises(FloatingPointError, match="not finite in 20 updates in a row"):
        train(learner, 20)
    assert learner.updates == 19


# ---------------------------------------------------------------- the same again


def weights(learner) -> dict[str, torch.Tensor]:
    state = learner.state()
    return {
        f"{part}.{name}": value
        for part in ("autoencoder", "policy")
        for name, value in state.get(part, {}).items()
    }


def assert_same(one, other) -> None:
    assert one.updates == other.updates
    assert one.merges_made == other.merges_made
    expected = weights(other)
    for name, value in weights(one).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", ["reinforce", "fixed"])
def test_the_same_seed_gives_the_same_weights(kind):
    one, again, other = make(kind), make(kind), make(kind, seed=1)
    train(one, 5)
    torch.rand(7)  # the global generator plays no part
    np.random.rand(7)  # noqa: NPY002
    train(again, 5)
    train(other, 5)
    assert_same(one, again)
    assert not torch.equal(
        weights(one)["autoencoder.lifter.skip.weight"],
        weights(other)["autoencoder.lifter.skip.weight"],
    )


@pytest.mark.parametrize("baseline", [*BASELINES, "fixed"])
def test_a_restored_state_continues_bit_for_bit(baseline, tmp_path):
    """In memory, and through a file; taking the state must not tie it to the learner."""

    def learner(seed):
        noisy = replace(SMALL, noise_std=0.1)
        if baseline == "fixed":
            config = FixedOrderConfig(autoencoder=noisy)
            return FixedOrder("HTM-Trees-v0", config, **TREES, seed=seed)
        config = replace(
            TINY,
            autoencoder=noisy,
            baseline=baseline,
            demonstration_share=((0.0, 0.4),),
            merges_curriculum=0.5,
            population_curriculum=0.5,
        )
        return Reinforce("HTM-Trees-v0", config, **TREES, seed=seed)

    one = learner(0)
    for step in range(3):
        one.update(step / 6)
    state = one.state()
    save_state(tmp_path / "state", state)
    for step in range(3, 6):
        one.update(step / 6)
    for restored in (state, load_state(tmp_path / "state"), state):
        other = learner(1)
        other.restore(restored)
        for step in range(3, 6):
            other.update(step / 6)
        assert_same(other, one)


def test_planning_does_not_touch_what_learning_draws():
    one, other = make("reinforce"), make("reinforce")
    train(one, 3)
    for update in range(3):
        held_out(other)
        other.update(update / 3)
    assert_same(one, other)


def test_datasets_of_a_task_are_its_splits():
    learner = make("fixed")
    here, there = (learner.task.dataset(split).fixed(5).tokens for split in ("train", "test"))
    assert not torch.equal(here, there)
    expected = make_dataset("HTM-Trees-v0", "test", heights=(2,)).fixed(5).tokens
    assert torch.equal(there, expected)


def test_an_id_means_the_same_with_its_module():
    config = FixedOrderConfig(autoencoder=SMALL)
    learner = FixedOrder("htm_env:HTM-Trees-v0", config)
    assert learner.task.env == "HTM-Trees-v0"
    assert learner.autoencoder.embedding_dim == 8
    with pytest.raises(ValueError, match=r"unknown id 'mine\.npz': expected one of HTM-Trees-v0"):
        FixedOrder("mine.npz", config)


@pytest.mark.parametrize("mode", ["joint", "frozen"])
def test_a_fixed_policy_reports_the_return_of_its_episodes(mode):
    """``E_0 - E_final``, as the environment pays it for the same merges."""
    config = FixedOrderConfig(autoencoder=SMALL, policy="structure_canonical", batch_size=8)
    task = {"mode": mode, "env_kwargs": {"heights": (2,)}, "seed": 3}
    learner, again = (FixedOrder("HTM-Trees-v0", config, **task) for _ in range(2))
    batch = again.dataset.sample(8, again.generator)
    population = start_population(again.autoencoder, batch, again.std)
    earned = torch.zeros(8)
    for action in merges_to_actions(batch.merges, batch.num_tokens).unbind(1):
        first, second = action_to_pair(action, 3)
        after = merge_pairs(again.autoencoder, population, first, second, again.std)
        earned, population = earned + population.error - after.error, after
    scalars = learner.update(0.0)
    assert scalars["train/return"] == pytest.approx(float(earned.mean()), rel=1e-4)
    assert scalars["train/nmse"] == pytest.approx(float(population.error.mean()), rel=1e-4)

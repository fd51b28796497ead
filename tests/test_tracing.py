"""Traces of a learner's episodes: every number again, from the environment and the definitions."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

import htm_env
from agents import Reinforce, ReinforceConfig
from agents.inspection.traces import traces_of
from agents.registry import algorithm
from htm_env.candidates import candidate_action

DATA = {"heights": [2, 3]}


@pytest.fixture(scope="module", params=["none", "spans"])
def learner(request):
    config = ReinforceConfig(encoder=request.param)
    return Reinforce("HTM-Trees-v0", config, env_kwargs=DATA, embedding_dim=6)


@pytest.fixture(scope="module")
def made(learner):
    return traces_of(learner, learner.task.dataset("test"), range(4))


def played(learner, key, trace):
    """The observations and rewards of the same merges in the environment."""
    env = gymnasium.make(
        "HTM-Trees-v0",
        split="test",
        autoencoder=learner.autoencoder,
        observe=learner.policy.observes,
        **DATA,
    )
    observation, info = env.reset(options={"key": key})
    assert trace.errors[0] == pytest.approx(info["error"], rel=1e-4)
    slot_of = dict(enumerate(range(trace.tree.num_leaves)))
    for parent, first, second in trace.tree.children():
        slots = slot_of[first], slot_of[second]
        slot_of[parent] = slots[0]
        action = htm_env.pair_to_action(*slots, observation["active"].size)
        before = observation
        observation, reward, *_ = env.step(action)
        yield slot_of, before, action, reward


def test_charges_are_minus_the_rewards_of_the_environment(learner, made):
    for key, trace in enumerate(made):
        rewards = [reward for *_, reward in played(learner, key, trace)]
        assert trace.charges == pytest.approx(-np.array(rewards), abs=1e-5)


def test_probabilities_are_those_of_the_policy_network(learner, made):
    for key, trace in enumerate(made):
        assert len(trace.considered) == len(trace.tree.merges)
        steps = zip(trace.considered, played(learner, key, trace), strict=True)
        for considered, (slot_of, before, action, _) in steps:
            assert considered.probabilities.sum() == pytest.approx(1.0)
            assert (considered.probabilities.diagonal() == 0).all()
            tensors = {name: torch.as_tensor(value)[None] for name, value in before.items()}
            expected = learner.policy(learner.read(tensors))[0].softmax(1)[0].detach()
            assert int(expected.argmax()) == action
            for i, first in enumerate(considered.nodes.tolist()):
                for j, second in enumerate(considered.nodes.tolist()):
                    if i != j:
                        places = slot_of[first], slot_of[second]
                        pair = htm_env.pair_to_action(*places, before["active"].size)
                        assert considered.probabilities[i, j] == pytest.approx(
                            float(expected[pair]), abs=1e-5
                        )


def test_reconstructions_have_the_errors_that_stand_beside_them(learner, made):
    batch = learner.task.dataset("test").fixed(4)
    for row, trace in enumerate(made):
        size = int(batch.num_tokens[row])
        assert np.array_equal(trace.tokens, batch.tokens[row, :size].numpy())
        difference = (trace.reconstructions - trace.tokens) / learner.std.numpy()
        assert trace.errors == pytest.approx(np.square(difference).mean((1, 2)), rel=1e-4)
        assert trace.charges.sum() == pytest.approx(trace.errors[-1] - trace.errors[0])
        merges = torch.tensor(trace.tree.merges)[None]
        tokens, present = batch.tokens[row : row + 1, :size], batch.present[row : row + 1, :size]
        roots = learner.autoencoder.encode(tokens, present, merges).roots
        decoded = learner.autoencoder.decode(roots, merges, present)[0].detach().numpy()
        assert trace.reconstruction == pytest.approx(decoded, abs=1e-3)


def test_samples_are_chosen_by_their_keys(learner, made):
    for key, chosen in zip(
        [3, 1], traces_of(learner, learner.task.dataset("test"), [3, 1]), strict=True
    ):
        assert np.array_equal(chosen.tokens, made[key].tokens)
        assert chosen.tree == made[key].tree
        assert chosen.errors == pytest.approx(made[key].errors, rel=1e-4)
    digits = Reinforce("HTM-Digits-v0")
    for key in (-1, 180):
        with pytest.raises(ValueError, match=f"no sample {key}: the test split has 0 to 179"):
            traces_of(digits, digits.task.dataset("test"), [0, key])


def test_a_policy_that_draws_has_the_same_tree_in_any_company():
    drawing = algorithm("random").learner("HTM-Crosses-v0", algorithm("random").config)
    dataset = drawing.task.dataset("test")
    together = traces_of(drawing, dataset, range(3))
    for key, trace in enumerate(together):
        assert traces_of(drawing, dataset, [key])[0].tree == trace.tree
    assert len({str(trace.tree) for trace in together}) == 3


def test_a_fixed_policy_has_no_probabilities_and_a_set_autoencoder_no_trees():
    def learner(name):
        return algorithm(name).learner("HTM-Trees-v0", algorithm(name).config, env_kwargs=DATA)

    nearest = learner("nearest")
    assert traces_of(nearest, nearest.task.dataset("test"), range(1))[0].considered == ()
    flat = learner("flat")
    with pytest.raises(ValueError, match="flat makes no trees"):
        traces_of(flat, flat.task.dataset("test"), range(1))


@pytest.mark.parametrize("k", [1, 3])
def test_only_candidates_have_a_probability(k):
    config = ReinforceConfig(candidates="knn", k=k)
    learner = Reinforce("HTM-Trees-v0", config, env_kwargs=DATA, embedding_dim=6)
    for key, trace in enumerate(traces_of(learner, learner.task.dataset("test"), range(3))):
        env = gymnasium.make(
            "HTM-Trees-v0",
            split="test",
            autoencoder=learner.autoencoder,
            candidates="knn",
            k=k,
            **DATA,
        )
        observation, _ = env.reset(options={"key": key})
        slot_of = dict(enumerate(range(trace.tree.num_leaves)))
        for considered, (parent, first, second) in zip(
            trace.considered, trace.tree.children(), strict=True
        ):
            slots = np.array([slot_of[node] for node in considered.nodes.tolist()])
            listed = observation["candidates"][slots]  # (nodes, k)
            expected = (listed[:, :, None] == slots).any(1)
            assert np.array_equal(considered.probabilities > 0, expected)
            assert considered.probabilities.sum() == pytest.approx(1.0)
            slot_of[parent] = slot_of[first]
            action = candidate_action(slot_of[first], slot_of[second], observation["candidates"])
            observation, *_ = env.step(action)

"""What every context encoder promises, and learners that have one."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from episodes import generator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import htm_env  # noqa: F401  # registers the ids
from agents.config.dataclasses_json import config_from_dict
from agents.encoders import ENCODERS, ContextConfig, ContextEncoder, Spans, make_encoder
from agents.encoders.base import masked_mean
from agents.encoders.config import HierarchicalConfig
from agents.networks.context import ContextPolicy, make_policy, observed_by
from agents.registry import algorithm
from agents.rollouts.rollout import follow
from agents.runs.checkpoint import load_state, save_state
from htm_env.autoencoder import seeded_initialisation

WIDTH, COORDINATES, SLOTS = 16, 3, 7
ALL = pytest.mark.parametrize("name", ENCODERS)
LEARNERS = ["reinforce", "replay", "ppo", "maskable_ppo"]


def test_an_encoder_is_imported_when_it_is_made():
    code = (
        "import sys\n"
        "def loaded():\n"
        "    return sorted(name.split('.')[2] for name in sys.modules\n"
        "                  if name.count('.') == 2 and name.startswith('agents.encoders.'))\n"
        "import agents.learners.reinforce; print(loaded())\n"
        "from agents.encoders import ContextConfig, make_encoder\n"
        "make_encoder('glom', ContextConfig(), 2); print(loaded())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "['base', 'config']"
    assert after == "['base', 'config', 'glom']"


def encoder_of(name: str, seed: int = 0) -> ContextEncoder:
    """With weights that are large enough for everything to matter."""
    with seeded_initialisation(generator(seed)):
        encoder = make_encoder(name, ContextConfig(width=WIDTH), COORDINATES)
    drawn = generator(seed)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=drawn))
    return encoder


def population(active: Tensor, seed: int = 0) -> dict:
    """Random tokens, and what an encoder may ask of the slots: every slot holds its own token."""
    drawn = generator(seed)
    size, slots = active.shape
    leaves = torch.randn(size, slots, COORDINATES, generator=drawn)
    rank = torch.rand(size, slots, generator=drawn).masked_fill(~active, 2.0)
    order = rank.argsort(1).argsort(1).masked_fill(~active, -1)
    owners = torch.arange(slots).expand(size, slots).masked_fill(~active, -1)
    return {
        "tokens": torch.randn(size, slots, WIDTH, generator=drawn),
        "active": active,
        "centroids": leaves.masked_fill(~active[..., None], 0.0),
        "order": order,
        "spans": Spans(leaves, owners),
    }


def some_active(seed: int = 0, size: int = 4) -> Tensor:
    active = torch.rand(size, SLOTS, generator=generator(seed)) < 0.6
    active[:, 2] = True
    return active


def encode(encoder: ContextEncoder, given_: dict) -> tuple[Tensor, Tensor]:
    context = encoder(**given_)
    return context.tokens, context.summary


@ALL
@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_what_stands_in_empty_slots_changes_nothing(name, junk):
    encoder, active = encoder_of(name), some_active()
    clean = population(active)
    dirty = dict(clean)
    empty = ~active[..., None]
    dirty["tokens"] = clean["tokens"].masked_fill(empty, junk).requires_grad_()
    dirty["centroids"] = clean["centroids"].masked_fill(empty, junk)
    leaves, owners = clean["spans"]
    dirty["spans"] = Spans(leaves.masked_fill(empty, junk), owners)
    clean["tokens"] = clean["tokens"].requires_grad_()
    for one, other in zip(encode(encoder, clean), encode(encoder, dirty), strict=True):
        assert torch.equal(one, other)
    grads = []
    for given_ in (clean, dirty):
        tokens, summary = encode(encoder, given_)
        (tokens.square().sum() + summary.square().sum()).backward()
        grads.append([p.grad.clone() for p in encoder.parameters()] + [given_["tokens"].grad])
        encoder.zero_grad()
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
    assert not grads[0][-1][~active].any()


@ALL
def test_empty_slots_come_back_as_zeros_and_padding_is_free(name):
    encoder, active = encoder_of(name), some_active()
    active[:, 5:] = False
    given_ = population(active)
    tokens, summary = encode(encoder, given_)
    assert not tokens[~active].any()
    leaves, owners = given_["spans"]
    narrow = {key: value[:, :5] for key, value in given_.items() if key != "spans"}
    narrow["spans"] = Spans(leaves[:, :5], owners[:, :5])
    for one, other in zip(encode(encoder, narrow), (tokens[:, :5], summary), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@ALL
@given(seed=st.integers(0, 1000))
def test_slots_may_stand_in_any_order(name, seed):
    """The order that ``order`` states moves along, so that this holds for ordered encoders too."""
    encoder, active = encoder_of(name), some_active(seed)
    given_ = population(active, seed)
    place = torch.randperm(SLOTS, generator=generator(seed))
    moved = {key: value[:, place] for key, value in given_.items() if key != "spans"}
    leaves, owners = given_["spans"]
    back = place.argsort()  # where each slot went
    moved["spans"] = Spans(leaves, torch.where(owners >= 0, back[owners.clamp(min=0)], -1))
    tokens, summary = encode(encoder, given_)
    for one, other in zip(encode(encoder, moved), (tokens[:, place], summary), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@ALL
def test_only_the_ordered_listen_to_the_order(name):
    encoder, given_ = encoder_of(name), population(some_active())
    rank = given_["order"]
    last = rank.amax(1, keepdim=True)
    backwards = given_ | {"order": torch.where(rank >= 0, last - rank, -1)}
    pairs = zip(encode(encoder, given_), encode(encoder, backwards), strict=True)
    assert encoder.ordered == any(not torch.equal(one, other) for one, other in pairs)


@ALL
def test_context_is_heard(name):
    """Another token somewhere changes what a token looks like, or at least the summary."""
    encoder, active = encoder_of(name), torch.ones(1, SLOTS, dtype=torch.bool)
    given_ = population(active)
    other = dict(given_)
    other["tokens"] = given_["tokens"].clone()
    other["tokens"][:, 6] = torch.randn(WIDTH, generator=generator(9))
    leaves = given_["spans"].tokens.clone()
    leaves[:, 6] += 1.0
    other["spans"] = Spans(leaves, given_["spans"].owners)
    tokens, summary = encode(encoder, given_)
    tokens_after, summary_after = encode(encoder, other)
    seen = torch.cat([tokens[:, 0], summary], dim=1)
    seen_after = torch.cat([tokens_after[:, 0], summary_after], dim=1)
    assert (seen - seen_after).abs().max() > 1e-3


@ALL
def test_one_token_and_none_give_finite_numbers(name):
    encoder = encoder_of(name)
    active = torch.zeros(2, SLOTS, dtype=torch.bool)
    active[0, 3] = True
    given_ = population(active)
    given_["tokens"].requires_grad_()
    tokens, summary = encode(encoder, given_)
    assert tokens.isfinite().all() and summary.isfinite().all()
    assert not tokens[1].any() and not summary[1].any()
    (tokens.sum() + summary.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@ALL
def test_gradients_reach_every_weight(name):
    encoder = encoder_of(name)
    tokens, summary = encode(encoder, population(some_active()))
    drawn = generator(1)
    loss = (tokens * torch.randn(tokens.shape, generator=drawn)).sum()
    (loss + (summary * torch.randn(summary.shape, generator=drawn)).sum()).backward()
    for weight_name, weight in encoder.named_parameters():
        assert weight.grad is not None and weight.grad.any(), weight_name


@ALL
def test_what_is_needed_and_not_given_is_named(name):
    encoder = encoder_of(name)
    given_ = population(some_active())
    for needed in encoder.needs:
        with pytest.raises(ValueError, match=needed):
            encoder(**{key: value for key, value in given_.items() if key != needed})
    assert set(encoder.needs) <= {"centroids", "order", "spans"}


def test_attention_is_that_of_torch():
    """Against ``nn.TransformerEncoderLayer`` with the same weights, population by population."""
    encoder, active = encoder_of("attention"), some_active()
    given_ = population(active)
    tokens, summary = encode(encoder, given_)
    layers = []
    for block in encoder.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            WIDTH, block.heads, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        before, first, _, last = block.feed_forward
        pairs = [
            (layer.norm1, block.before_attention),
            (layer.norm2, before),
            (layer.linear1, first),
            (layer.linear2, last),
            (layer.self_attn.out_proj, block.output),
        ]
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
        layer.self_attn.in_proj_weight.data.copy_(block.query_key_value.weight)
        layers.append(layer.eval())
    for row in range(len(active)):
        own = given_["tokens"][row, active[row]][None]
        for layer in layers:
            own = layer(own)
        own = encoder.last_norm(own)
        torch.testing.assert_close(tokens[row, active[row]], own[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(summary[row], own[0].mean(0), rtol=1e-4, atol=1e-4)


def test_a_mean_over_nothing_is_zero():
    tokens = torch.full((2, 3, 4), float("nan"))
    tokens[0, 1] = 2.0
    active = torch.tensor([[False, True, False], [False] * 3])
    assert masked_mean(tokens, active).tolist() == [[2.0] * 4, [0.0] * 4]


def test_unknown_names_and_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown encoder 'lstm'; choose from none, attention"):
        make_policy("pointer", 4, 8, "lstm")
    with pytest.raises(ValueError, match="unknown encoder"):
        observed_by("lstm")
    with pytest.raises(ValueError, match="width is 10; expected a multiple of 4 heads"):
        make_encoder("attention", ContextConfig(width=10), 2)


# ---------------------------------------------------------------- learners


def learner_of(algo: str, encoder: str, **changes):
    entry = algorithm(algo)
    small = {
        "encoder": encoder,
        "context": {"width": 16},
        "policy_hidden_dim": 16,
        "autoencoder": {"hidden_dim": 8},
        "demonstrations": ["nearest_sorted"],
        "demonstration_share": [[0.0, 1.0], [0.4, 1.0], [0.5, 0.0]],
        **({"n_envs": 4, "batch_size": 8} if "ppo" in algo else {"batch_size": 4}),
        **changes,
    }
    config = config_from_dict(
        type(entry.config), small | {name: getattr(entry.config, name) for name in entry.decided}
    )
    return entry.learner(
        "HTM-Trees-v0", config, env_kwargs={"heights": [2, 3]}, embedding_dim=4, seed=1
    )


@pytest.mark.parametrize(
    ("algo", "name"),
    [("reinforce", name) for name in ENCODERS] + [(algo, "attention") for algo in LEARNERS[1:]],
)
def test_learners_learn_with_it_and_continue_bit_for_bit(tmp_path, algo, name):
    learner = learner_of(algo, name)
    before = [weight.detach().clone() for weight in learner.policy.encoder.parameters()]
    for update in range(4):  # two of them clone
        learner.update(update / 4)
    after = list(learner.policy.encoder.parameters())
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    save_state(tmp_path / "state", learner.state())
    twin = learner_of(algo, name)
    twin.restore(load_state(tmp_path / "state"))
    for progress in (0.3, 0.9):
        assert learner.update(progress) == twin.update(progress)
    batch = learner.task.dataset("test").fixed(20)
    plans = [each.plan(batch, generator(), greedy=True) for each in (learner, twin)]
    assert torch.equal(*plans)


@ALL
def test_acting_in_the_environment_is_what_was_planned(name):
    learner = learner_of("reinforce", name)
    env = gym.make(
        "HTM-Trees-v0",
        heights=[2, 3],
        autoencoder=learner.autoencoder,
        split="test",
        observe=learner.policy.observes,
    )
    dataset = learner.task.dataset("test")
    batch = dataset.fixed(8)
    planned = learner.plan(batch, generator(), greedy=True)
    for key, merges in zip(dataset.fixed_keys(8).tolist(), planned.tolist(), strict=True):
        observation, _ = env.reset(options={"key": key})
        done = False
        while not done:
            action, _ = learner.predict(observation, deterministic=True)
            observation, _, done, cut, _ = env.step(action)
            assert not cut
        made = env.unwrapped.merge_tree().merges
        assert made.tolist() == [pair for pair in merges if pair[0] >= 0]
    if learner.policy.observes:
        blind = gym.make("HTM-Trees-v0", autoencoder=learner.autoencoder)
        with pytest.raises(ValueError, match="make the environment with observe="):
            learner.predict(blind.reset(seed=0)[0])


LOSSES = {"width": 16, "glom": {"denoising_weight": 1.0, "contrastive_weight": 1.0}}


@pytest.mark.parametrize(
    ("algo", "more"),
    [("reinforce", {}), ("replay", {"correction": "tree"}), ("replay", {"correction": "vtrace"})],
    ids=["reinforce", "replay by tree", "replay by v-trace"],
)
def test_an_encoders_own_losses_are_learned_from(algo, more):
    learner = learner_of(algo, "glom", context=LOSSES, **more)
    for progress in (0.0, 0.6, 0.7, 0.8):  # a clone, and what the algorithm does
        scalars = learner.update(progress)
        assert scalars["loss/denoising"] > 0 and scalars["loss/contrastive"] > 0
    assert learner.policy.encoder.hidden_token.grad.any()


@pytest.mark.parametrize("carried", [0, 2])
def test_an_encoders_own_losses_are_of_one_population_a_sample(carried):
    """Two trees of a sample are one scene, and the seed of the generator decides what is hidden."""
    context = {"width": 16, "glom": LOSSES["glom"] | {"continued_iterations": carried}}
    learner = learner_of("reinforce", "glom", context=context)
    once = learner.task.dataset("train").fixed(6)
    twice = once.rows(torch.arange(6).repeat_interleave(2))
    merges = learner.plan(twice, generator(), greedy=False)

    def losses(batch, merges, seed):
        episodes = follow(learner.autoencoder, batch, merges)
        terms = learner.policy.terms(learner.autoencoder, batch, episodes)
        return terms.encoder_losses(None if seed is None else generator(seed))

    expected, found = losses(once, merges[::2], 0), losses(twice, merges, 0)
    assert set(found) == {"denoising", "contrastive"}
    torch.testing.assert_close(found, expected)
    other = losses(twice, merges, 1)
    assert all(not torch.equal(found[name], other[name]) for name in found)
    assert losses(twice, merges, None) == {}


@ALL
def test_reconstruct_shows_what_the_policy_reads(name):
    learner = learner_of("reinforce", name)
    batch = learner.task.dataset("test").fixed(5)

    def policy(observation, generator):
        return torch.as_tensor(learner.predict(observation, deterministic=True)[0])

    found = learner.autoencoder.reconstruct(
        batch.tokens, batch.present, policy, observe=learner.policy.observes
    )
    merges = learner.plan(batch, generator(), greedy=True)
    roots = learner.autoencoder.encode(batch.tokens, batch.present, merges).roots
    expected = learner.autoencoder.decode(roots, merges, batch.present)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)


def test_hierarchies_may_follow_the_leaves():
    context = {"width": 16, "hierarchical": {"order": "leaves"}}
    learner = learner_of("reinforce", "hierarchical", context=context)
    assert learner.policy.observes == ("leaf_order",)
    learner.update(0.9)
    ppo = learner_of("ppo", "hierarchical", context=context)
    assert "leaf_order" in ppo.env.observation_space.spaces
    with pytest.raises(ValueError, match="unknown order 'random'; choose from"):
        HierarchicalConfig(order="random")


def test_every_algorithm_with_a_policy_network_can_have_one():
    for name in (*LEARNERS, "original", "original_policy"):
        assert algorithm(name).config.encoder == "none"
    learner = learner_of("reinforce", "attention")
    assert isinstance(learner.policy, ContextPolicy)
    observed = {"tokens": np.zeros((3, 4)), "active": np.zeros(3), "leaf_counts": np.zeros(3)}
    with pytest.raises(ValueError, match="fewer than two"):
        learner.predict(observed)

"""Optimizers: their learning rate by hand, and what a non-finite number does to them."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from episodes import generator, random_batch
from torch import nn

from agents.fixed import fixed_policy
from agents.optim.autoencoder_trainer import (
    PRECISIONS,
    AutoencoderConfig,
    AutoencoderTrainer,
    has_bfloat16,
)
from agents.optim.optimizers import (
    METHODS,
    NonFiniteGuard,
    OptimizerConfig,
    ScheduledOptimizer,
    restore_optimizer,
)
from agents.runs.checkpoint import load_state, save_state
from htm_env.losses import LossWeights

NAN, INF = float("nan"), float("inf")


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def config(**changes) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.1, "warm_up_updates": 0, **changes})


# ---------------------------------------------------------------- the guard


def test_the_guard_counts_and_then_raises():
    guard, fine, broken = NonFiniteGuard(patience=3), torch.tensor(1.0), torch.tensor(NAN)
    assert guard.allows("policy", fine, fine)
    assert not guard.allows("policy", fine, broken)
    assert not guard.allows("policy", torch.tensor(-INF))
    assert guard.allows("policy", fine)  # so it begins to count again
    assert not guard.allows("policy", broken)
    assert not guard.allows("policy", broken)
    assert guard.skipped == 4
    with pytest.raises(FloatingPointError, match="policy was not finite in 3 updates in a row"):
        guard.allows("policy", broken)
    assert guard.skipped == 5


def test_a_restored_guard_has_the_patience_that_was_left():
    guard, again = NonFiniteGuard(patience=2), NonFiniteGuard(patience=2)
    guard.allows("policy", torch.tensor(NAN))
    again.restore(guard.state())
    assert again.skipped == 1
    with pytest.raises(FloatingPointError):
        again.allows("policy", torch.tensor(NAN))


# ---------------------------------------------------------------- the optimizer


def test_the_learning_rate_warms_up_and_decays():
    """Adam's first steps along a constant gradient are as long as the learning rate."""
    parameter = weight(0.0)
    optimizer = ScheduledOptimizer(
        [parameter], config(learning_rate=0.5, warm_up_updates=4, final_share=0.2)
    )
    places = [0.0]
    for progress in (0.0, 0.5, 1.0, 1.0, 0.0):
        parameter.grad = torch.ones(1)
        optimizer.step(progress)
        places.append(float(parameter.detach()))
    lengths = [before - after for before, after in pairwise(places)]
    # 0.5 x (1/4 x 1, 2/4 x 0.6, 3/4 x 0.2, 1 x 0.2, 1 x 1)
    assert lengths == pytest.approx([0.125, 0.15, 0.075, 0.1, 0.5], rel=1e-4)


def test_clipping_by_hand():
    parameter = weight(1.0, 1.0)
    optimizer = ScheduledOptimizer([parameter], config(clip_norm=1.0))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert float(optimizer.clip()) == pytest.approx(5.0)
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)
    parameter.grad = torch.tensor([0.3, 0.4])
    assert float(optimizer.clip()) == pytest.approx(0.5)
    assert parameter.grad.tolist() == pytest.approx([0.3, 0.4])


def test_no_clipping_is_an_infinite_norm():
    parameter = weight(1.0, 1.0)
    parameter.grad = torch.tensor([3e3, 4e3])
    assert float(ScheduledOptimizer([parameter], config(clip_norm=math.inf)).clip()) == 5e3
    assert parameter.grad.tolist() == [3e3, 4e3]


def test_weight_decay_is_part_of_the_gradient():
    """With a gradient of 0 and a penalty, Adam moves by the learning rate towards 0."""
    parameter = weight(2.0, -2.0)
    optimizer = ScheduledOptimizer([parameter], config(weight_decay=0.01))
    parameter.grad = torch.zeros(2)
    optimizer.step(0.0)
    assert parameter.tolist() == pytest.approx([1.9, -1.9], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_is_a_snapshot_and_restores_exactly(method, tmp_path):
    one, other = (nn.Parameter(torch.eye(9, 6)) for _ in range(2))
    first, second = (ScheduledOptimizer([each], config(method=method)) for each in (one, other))

    def step(parameter, optimizer, scale):
        for row in range(12):  # soap turns its bases every ten steps
            parameter.grad = torch.randn(9, 6, generator=generator().manual_seed(row)) * scale
            optimizer.step(0.3)

    step(one, first, 1.0)
    save_state(tmp_path / "state.safetensors", first.state())
    state = load_state(tmp_path / "state.safetensors")
    kept = one.detach().clone()
    step(one, first, -5.0)
    expected = one.detach().clone()
    for _ in range(2):  # twice: restoring must not tie the state to the optimizer
        with torch.no_grad():
            other.copy_(kept)
        second.restore(state)
        assert second.updates == 12
        step(other, second, -5.0)
        assert torch.equal(other, expected)


def test_soap_turns_the_sides_of_embeddings_and_leaves_those_of_hidden_layers():
    wide = nn.Parameter(torch.eye(100, 8))
    optimizer = ScheduledOptimizer([wide], config(method="soap"))
    wide.grad = torch.randn(100, 8, generator=generator())
    optimizer.step(0.0)
    hidden, embedding = optimizer.optimizer.state[wide]["Q"]
    assert len(hidden) == 0
    assert torch.allclose(embedding.T @ embedding, torch.eye(8), atol=1e-5)
    # The basis is that of the gradients' covariance: in it, they are uncorrelated.
    turned = wide.grad @ embedding
    together = turned.T @ turned
    assert torch.allclose(together, together.diagonal().diag(), atol=1e-3)


def test_an_unknown_method_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown method 'sgd'; choose from \['adam', 'soap'\]"):
        config(method="sgd")


# ---------------------------------------------------------------- the autoencoder's trainer


def trainer(autoencoder, **changes) -> AutoencoderTrainer:
    optimizers = {name: config(learning_rate=1e-3) for name in ("lifter", "merger", "classifier")}
    settings = AutoencoderConfig(**{**optimizers, **changes})
    return AutoencoderTrainer(autoencoder, settings, generator())


def merges_of(autoencoder, batch):
    return fixed_policy("random", autoencoder).plan(batch, generator())


def test_bfloat16_learns_nearly_the_same_and_keeps_float32_weights(autoencoder):
    """On any device: without bfloat16 of its own it emulates it."""
    batch = random_batch([4, 3, 4])
    merges = merges_of(autoencoder, batch)
    found = {}
    for precision in PRECISIONS:
        one = copy.deepcopy(autoencoder)
        training = trainer(one, noise_std=0.01)
        training.precision = precision
        found[precision] = training.update(batch, merges, 0.5)
        assert all(weight.dtype == torch.float32 for weight in one.parameters())
        assert one.weights_hash() != autoencoder.weights_hash()
    exact, short = (found[precision] for precision in PRECISIONS)
    assert short["loss/reconstruction"] == pytest.approx(exact["loss/reconstruction"], rel=0.03)
    assert short["loss/reconstruction"] != exact["loss/reconstruction"]
    assert short["gradient_norm/merger"] == pytest.approx(exact["gradient_norm/merger"], rel=0.1)


def test_without_bfloat16_it_stays_float32_and_says_so(autoencoder):
    with pytest.warns(RuntimeWarning, match="meta has no bfloat16; training in float32"):
        assert trainer(autoencoder.to("meta"), precision="bfloat16").precision == "float32"


def test_a_device_of_no_known_kind_has_no_bfloat16():
    assert not has_bfloat16("meta")
    assert has_bfloat16("cpu") in (True, False)


def test_an_unknown_precision_is_refused_with_the_choices():
    choices = r"unknown precision 'half'; choose from \['float32', 'bfloat16'\]"
    with pytest.raises(ValueError, match=choices):
        AutoencoderConfig(precision="half")


@pytest.mark.parametrize("broken", [NAN, INF])
def test_a_non_finite_loss_leaves_the_weights_unchanged(autoencoder, broken):
    batch = random_batch([4, 3, 4])
    training = trainer(autoencoder)
    merges = merges_of(autoencoder, batch)
    training.update(batch, merges, 0.0)
    before = autoencoder.weights_hash()
    spoilt = batch._replace(tokens=batch.tokens.clone())
    spoilt.tokens[1, 0, 0] = broken
    scalars = training.update(spoilt, merges, 0.0)
    assert autoencoder.weights_hash() == before
    assert scalars["train/skipped_updates"] == 1
    assert not math.isfinite(scalars["loss/reconstruction"])
    training.update(batch, merges, 0.0)
    assert autoencoder.weights_hash() != before


def test_a_gradient_that_is_not_finite_leaves_the_weights_unchanged(autoencoder):
    """The loss is finite, and only the gradient of one weight is not."""
    batch = random_batch([4, 3, 4])
    training = trainer(autoencoder)
    hook = autoencoder.unmerger.value.weight.register_hook(lambda gradient: gradient * NAN)
    before = autoencoder.weights_hash()
    scalars = training.update(batch, merges_of(autoencoder, batch), 0.0)
    assert math.isfinite(scalars["loss/reconstruction"])
    assert not math.isfinite(scalars["gradient_norm/merger"])
    assert autoencoder.weights_hash() == before
    hook.remove()
    training.update(batch, merges_of(autoencoder, batch), 0.0)
    assert autoencoder.weights_hash() != before


def test_losses_that_stay_non_finite_stop_the_run(autoencoder):
    batch = random_batch([4, 3, 4])
    batch.tokens[0, 0, 0] = NAN
    training = trainer(autoencoder)
    merges = merges_of(autoencoder, batch)
    for _ in range(19):
        training.update(batch, merges, 0.0)
    with pytest.raises(FloatingPointError, match="autoencoder was not finite in 20 updates"):
        training.update(batch, merges, 0.0)


@pytest.mark.parametrize("part", ["lifter", "merger", "classifier"])
def test_each_part_has_an_optimizer_of_its_own(autoencoder, part):
    """With a learning rate of 0 a part stands still, and the others move."""
    batch = random_batch([4, 3, 4])
    still = {part: config(learning_rate=0.0)}
    training = trainer(autoencoder, loss=LossWeights(classifier=1.0), **still)
    before = {name: value.clone() for name, value in autoencoder.named_parameters()}
    training.update(batch, merges_of(autoencoder, batch), 0.0)
    moved = {
        name.split(".")[0]
        for name, value in autoencoder.named_parameters()
        if not torch.equal(value, before[name])
    }
    parts = {
        "lifter": {"lifter", "unlifter"},
        "merger": {"merger", "unmerger"},
        "classifier": {"classifier"},
    }
    assert moved == set().union(*(names for name, names in parts.items() if name != part))


def test_a_restored_trainer_continues_bit_for_bit(autoencoder):
    batch = random_batch([4, 3, 4])
    training = trainer(autoencoder)
    merges = merges_of(autoencoder, batch)
    training.update(batch, merges, 0.1)
    state = training.state()
    weights = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    draws = training.generator.get_state()
    training.update(batch, merges, 0.2)
    expected = autoencoder.weights_hash()
    training.update(batch, merges, 0.3)
    autoencoder.load_state_dict(weights)
    training.restore(state)
    training.generator.set_state(draws)
    training.update(batch, merges, 0.2)
    assert autoencoder.weights_hash() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [0.9, 5.0]}, "betas of an optimizer is"),
        ({"lr": float("nan")}, "the learning rate of an optimizer is not finite"),
        ({"lr": 1e30}, "the learning rate of an optimizer is 1e\\+30"),
        ({"lr": -1.0}, "the learning rate of an optimizer is -1.0"),
    ],
)
def test_an_optimizer_with_other_options_is_refused(change, message):
    one, other = (torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]) for _ in range(2))
    state = one.state_dict()
    state["param_groups"][0].update(change)
    with pytest.raises(ValueError, match=message):
        restore_optimizer(other, state)


@pytest.mark.parametrize("method", METHODS)
def test_averages_of_another_shape_or_type_are_refused(method):
    one, other = (
        ScheduledOptimizer([nn.Parameter(torch.ones(3, 2))], OptimizerConfig(method))
        for _ in range(2)
    )
    one.parameters[0].grad = torch.ones(3, 2)
    one.step(0.0)
    other.restore(one.state())
    places = ["exp_avg", "Q"] if method == "soap" else ["exp_avg"]
    for name in places:
        for wrong in (torch.zeros(5), torch.zeros(3, 2, dtype=torch.int64)):
            state = one.state()
            kept = state["optimizer"]["state"][0]
            kept[name] = [wrong, wrong] if name == "Q" else wrong
            with pytest.raises(ValueError, match=f"{name} of an optimizer is torch"):
                other.restore(state)

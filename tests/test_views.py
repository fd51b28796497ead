"""Masking, agreement of views, contrast of encoder and decoder: by hand, and in a run."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from conftest import small_autoencoder
from episodes import generator, random_batch

from agents import load
from agents.cli import main
from agents.config.run import RunConfig
from agents.fixed import fixed_policy
from agents.optim.autoencoder_trainer import AutoencoderConfig, AutoencoderTrainer
from agents.registry import build_learner
from htm_env.forest import active_nodes
from htm_env.losses import (
    LossWeights,
    autoencoder_losses,
    contrast_loss,
    covariance_loss,
    invariance_loss,
    variance_loss,
)
from htm_env.types import TokenBatch
from htm_env.views import (
    ViewConfig,
    ViewNetworks,
    affine_maps,
    hidden_nodes,
    jittered,
    moved,
    view_losses,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ALL = ViewConfig(
    masked=0.5,
    variance=25.0,
    invariance=25.0,
    covariance=1.0,
    projector=7,
    inner=True,
    hidden_nodes=0.2,
    hidden_tokens=0.3,
    translation=0.1,
    scale=0.1,
    shear=0.1,
    rotation=10.0,
    jitter=0.05,
)


def ragged(slots: int = 6):
    batch = random_batch([4, 2, 5, 3], slots=6)
    merges = fixed_policy("random", small_autoencoder(3)).plan(batch, generator())
    pad = slots - 6
    batch = TokenBatch(
        torch.nn.functional.pad(batch.tokens, (0, 0, 0, pad)),
        torch.nn.functional.pad(batch.present, (0, pad)),
        torch.zeros(4, 0, slots, dtype=torch.bool),
        torch.full((4, slots - 1, 2), -1),
    )
    return batch, torch.nn.functional.pad(merges, (0, 0, 0, pad), value=-1)


def losses_of(autoencoder, config, batch, merges, kind="points", seed=0):
    networks = ViewNetworks(autoencoder.embedding_dim, config, generator(5))
    found = view_losses(
        autoencoder, networks, batch, merges, config, kind, generator=generator(seed)
    )
    return found, networks


# ---------------------------------------------------------------- terms by hand


def test_variance_by_hand():
    """Standard deviations (2, 2) and (0, 0) around the means: only the second lacks 1."""
    values = torch.tensor([[0.0, 5.0], [4.0, 5.0]])
    assert float(variance_loss(values)) == pytest.approx((0 + (1 - 0.01)) / 2)
    assert float(variance_loss(values[:1])) == 0


def test_invariance_by_hand():
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    assert float(invariance_loss(one, other)) == (1 + 9) / 2


def test_covariance_by_hand():
    """(1, 1), (-1, -1) covary by 2, on both sides of the diagonal; variances do not count."""
    assert float(covariance_loss(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))) == (4 + 4) / 2
    assert float(covariance_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))) == 0
    assert float(covariance_loss(torch.ones(1, 2))) == 0


def test_contrast_by_hand():
    """Two nodes at a right angle: the own cosine is 1, the other's 0."""
    states = 3 * torch.eye(2)
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert float(contrast_loss(states, states, 0.5)) == pytest.approx(expected)
    assert float(contrast_loss(states.flip(0), states, 0.5)) == pytest.approx(expected + 2)


def test_equal_nodes_are_not_held_against_each_other():
    states = torch.eye(2)[[0, 0]]
    assert float(contrast_loss(states, states)) == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- views


def test_a_map_keeps_the_centre_and_turns_the_rest():
    batch, _ = ragged()
    std = torch.ones(3)
    tokens = moved(
        "points", batch.tokens, batch.present, std, ViewConfig(rotation=40.0), generator()
    )
    there = batch.present
    for row in range(4):
        before, after = batch.tokens[row, there[row]], tokens[row, there[row]]
        assert not torch.allclose(before, after, atol=1e-2)
        torch.testing.assert_close(before.mean(0), after.mean(0), **CLOSE)
        torch.testing.assert_close(torch.cdist(before, before), torch.cdist(after, after), **CLOSE)
    assert torch.equal(tokens[~there], batch.tokens[~there])


def test_a_shift_is_one_for_the_whole_sample_and_within_its_bound():
    batch, _ = ragged()
    std = 2 * torch.ones(3)
    config = ViewConfig(translation=0.25)
    tokens = moved("points", batch.tokens, batch.present, std, config, generator())
    shifts = (tokens - batch.tokens)[batch.present]
    assert 0.1 < float(shifts.abs().max()) <= 0.5
    own = (tokens - batch.tokens)[2, :5]
    torch.testing.assert_close(own, own[:1].expand(5, 3), **CLOSE)


def test_both_ends_of_a_segment_move_together():
    """A square of two segments, by a map of its own."""
    square = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]]])
    present = torch.ones(1, 2, dtype=torch.bool)
    config = ViewConfig(scale=0.5, shear=0.3, rotation=20.0, translation=0.2)
    found = moved("segments", square, present, torch.ones(4), config, generator(3))
    maps, shifts = affine_maps(1, 2, config, square, generator(3))
    centred = square.view(1, 4, 2) - 0.5
    expected = torch.einsum("bij,bkj->bki", maps, centred) + 0.5 + shifts
    torch.testing.assert_close(found.view(1, 4, 2), expected, **CLOSE)


def test_an_image_of_patches_moves_as_points_do():
    """The centre of light of one spot goes where the map takes it."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    tokens = torch.stack([x.flatten(), y.flatten()], 1)
    light = torch.exp(-((tokens - torch.tensor([5.0, 3.0])) ** 2).sum(1))
    patches = torch.cat([tokens, light[:, None]], 1)[None]
    present = torch.ones(1, 81, dtype=torch.bool)
    config = ViewConfig(rotation=50.0, translation=0.5)
    unit = torch.tensor([1.0, 1.0, 1.0])
    found = moved("patches", patches, present, unit, config, generator(3))
    maps, shifts = affine_maps(1, 2, config, patches, generator(3))
    assert torch.equal(found[..., :2], patches[..., :2])
    new = found[0, :, 2]
    centre = (tokens * new[:, None]).sum(0) / new.sum()
    expected = maps[0] @ torch.tensor([1.0, -1.0]) + 4 + shifts[0]
    assert float((expected - torch.tensor([5.0, 3.0])).abs().max()) > 0.3
    torch.testing.assert_close(centre, expected, rtol=0, atol=0.05)


def test_patches_of_several_pixels_come_back_under_no_map():
    patches = torch.cat([torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), torch.rand(3, 4)], 1)[
        None
    ]
    present = torch.ones(1, 3, dtype=torch.bool)
    found = moved("patches", patches, present, torch.ones(6), ViewConfig(), generator())
    torch.testing.assert_close(found, patches, **CLOSE)


def test_jitter_leaves_padding_and_categories_alone():
    tokens, present = torch.zeros(1, 2, 3), torch.tensor([[True, False]])
    found = jittered(tokens, present, 2, 0.5, generator())
    assert (found[0, 0, :2] != 0).all()
    assert (found[0, 1] == 0).all() and found[0, 0, 2] == 0


def test_roots_are_never_hidden_and_everything_below_may_be():
    batch, merges = ragged()
    merges[1] = -1  # two trees of one token each
    config = ViewConfig(hidden_nodes=1.0, hidden_tokens=1.0)
    hidden = hidden_nodes(merges, batch.num_tokens, config, generator())
    roots = active_nodes(merges, batch.num_tokens)
    assert not (hidden & roots).any()
    assert hidden.sum(1).tolist() == [6, 0, 8, 4]  # 2 n - 2
    tokens_only = hidden_nodes(merges, batch.num_tokens, ViewConfig(hidden_tokens=1.0), generator())
    assert tokens_only.sum(1).tolist() == [4, 0, 5, 3]


def test_tokens_that_do_not_have_places_are_refused():
    batch, merges = ragged()
    config = ViewConfig(masked=1.0, rotation=5.0)
    with pytest.raises(ValueError, match="tokens of kind 'vectors' have no places"):
        losses_of(small_autoencoder(3), config, batch, merges, "vectors")
    with pytest.raises(ValueError, match="tokens of kind 'vectors' have no places"):
        AutoencoderTrainer(small_autoencoder(3), AutoencoderConfig(views=config), generator())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("masked", -1.0, "masked of views is -1.0; expected 0 or more"),
        ("variance", math.nan, "variance of views is nan; expected 0 or more"),
        ("hidden_tokens", 1.5, "hidden_tokens of views is 1.5; expected 0 to 1"),
        ("projector", -1, "projector"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=expected):
        ViewConfig(**{name: value})


# ---------------------------------------------------------------- losses


def test_a_view_that_hides_and_moves_nothing_is_the_sample(autoencoder):
    batch, merges = ragged()
    plain = autoencoder_losses(autoencoder, batch, merges, LossWeights())["reconstruction"]
    config = ViewConfig(masked=2.0, invariance=3.0)
    found, networks = losses_of(autoencoder, config, batch, merges)
    torch.testing.assert_close(found["masked"], plain, **CLOSE)
    assert float(found["invariance"].detach()) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found["total"], 2 * found["masked"], **CLOSE)
    assert not list(networks.parameters())


def test_hidden_tokens_do_not_reach_the_root(autoencoder):
    """With all of them hidden, other tokens in their place change the target alone."""
    batch, merges = ragged()
    config = ViewConfig(masked=1.0, variance=1.0, hidden_tokens=1.0)
    other = batch._replace(tokens=batch.tokens.flip(-1))
    found = [losses_of(autoencoder, config, each, merges)[0] for each in (batch, other)]
    assert torch.equal(found[0]["variance"], found[1]["variance"])
    assert not torch.equal(found[0]["masked"], found[1]["masked"])


def test_hidden_clades_do_not_reach_the_root(autoencoder):
    """Both children of every root are hidden, or tokens that are children of one."""
    batch, merges = ragged()
    row = batch._replace(tokens=batch.tokens[:1], present=batch.present[:1])
    merges = torch.full((1, 5, 2), -1)
    merges[0, :3] = torch.tensor([[0, 1], [2, 3], [4, 5]])
    config = ViewConfig(masked=1.0, hidden_nodes=1.0)
    found, networks = losses_of(autoencoder, config, row, merges)
    found["masked"].backward()
    assert networks.hidden.grad.abs().sum() > 0
    assert all(weight.grad is None or not weight.grad.any() for weight in lifter(autoencoder))


def lifter(autoencoder):
    return list(autoencoder.lifter.parameters())


def test_every_weight_learns_from_the_views_that_concern_it(autoencoder):
    batch, merges = ragged()
    found, networks = losses_of(autoencoder, ALL, batch, merges)
    found["total"].backward()
    assert set(found) == {"masked", "variance", "invariance", "covariance", "total"}
    assert networks.hidden.grad.abs().sum() > 0
    assert all(weight.grad.any() for weight in networks.projector.parameters())
    assert all(weight.grad.any() for weight in lifter(autoencoder))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_slots_change_no_loss(autoencoder, share):
    """More of them, and anything in them; the maps are drawn by sample."""
    config = ViewConfig(
        masked=1.0,
        variance=1.0,
        invariance=1.0,
        covariance=1.0,
        hidden_tokens=share,
        rotation=30.0,
        scale=0.3,
        translation=0.2,
    )
    found = [losses_of(autoencoder, config, *ragged(slots))[0] for slots in (6, 9)]
    batch, merges = ragged()
    spoilt = torch.where(batch.present[..., None], batch.tokens, torch.tensor(77.0))
    found.append(losses_of(autoencoder, config, batch._replace(tokens=spoilt), merges)[0])
    for name, value in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(value, other[name], **CLOSE)


def test_inner_nodes_agree_where_both_views_show_them(autoencoder):
    """Views alike: no distance; of the variances those over roots and inner nodes together."""
    batch, merges = ragged()
    config = ViewConfig(variance=1.0, invariance=1.0, inner=True)
    found, _ = losses_of(autoencoder, config, batch, merges)
    assert float(found["invariance"].detach()) == pytest.approx(0, abs=1e-9)
    nodes = autoencoder.encode(batch.tokens, batch.present, merges).nodes
    rows = [nodes[row, n : 2 * n - 1] for row, n in enumerate(batch.num_tokens.tolist())]
    torch.testing.assert_close(found["variance"], variance_loss(torch.cat(rows)), **CLOSE)


def test_hidden_inner_nodes_are_not_compared(autoencoder):
    """All of them are hidden: what is left are the roots."""
    batch, merges = ragged()
    found = [
        losses_of(
            autoencoder,
            ViewConfig(variance=1.0, hidden_nodes=1.0, jitter=0.1, inner=inner),
            batch,
            merges,
        )[0]["variance"]
        for inner in (False, True)
    ]
    assert torch.equal(*found)


def test_contrast_is_of_nodes_below_the_roots(autoencoder):
    """A forest without merges has none."""
    batch, merges = ragged()
    weights = LossWeights(contrast=1.0)
    found = autoencoder_losses(autoencoder, batch, merges, weights)
    assert 0 < float(found["contrast"].detach()) < 10
    none = torch.full_like(merges, -1)
    assert "contrast" not in autoencoder_losses(autoencoder, batch, none, weights)


# ---------------------------------------------------------------- in training


def trained(config: AutoencoderConfig, updates: int = 3):
    batch, merges = ragged()
    trainer = AutoencoderTrainer(small_autoencoder(3), config, generator(9), kind="points")
    rows = [trainer.update(batch, merges, 0.1) for _ in range(updates)]
    return trainer, rows


def test_without_a_weight_everything_stays_bit_for_bit():
    plain, rows = trained(AutoencoderConfig())
    off = ViewConfig(hidden_nodes=0.5, hidden_tokens=0.5, rotation=10.0, projector=8)
    other, others = trained(AutoencoderConfig(views=off, contrast_temperature=0.5))
    assert other.view_networks is None
    assert rows == others
    assert plain.autoencoder.weights_hash() == other.autoencoder.weights_hash()
    assert torch.equal(plain.generator.get_state(), other.generator.get_state())
    assert set(plain.state()) == {"lifter", "merger", "classifier", "guard"}


def test_views_are_learned_from_and_continue_from_a_state():
    config = AutoencoderConfig(views=ALL)
    trainer, rows = trained(config, updates=4)
    assert rows[-1].keys() >= {"loss/masked", "loss/variance", "gradient_norm/view_networks"}
    assert trainer.view_networks.hidden.detach().abs().sum() > 0
    half, _ = trained(config, updates=2)
    state, weights = copy.deepcopy(half.state()), copy.deepcopy(half.autoencoder.state_dict())
    again = AutoencoderTrainer(small_autoencoder(3), config, generator(1), kind="points")
    again.restore(state)
    again.autoencoder.load_state_dict(weights)
    again.generator.set_state(half.generator.get_state())
    batch, merges = ragged()
    assert [again.update(batch, merges, 0.1) for _ in range(2)] == rows[2:]
    assert torch.equal(again.view_networks.hidden, trainer.view_networks.hidden)


ALGORITHM = {"batch_size": 8, "autoencoder": {"hidden_dim": 16, "views": vars(ALL)}}


@pytest.mark.parametrize("algo", ["balanced_sorted", "reinforce"])
def test_a_saved_learner_goes_on_as_if_it_had_not_stopped(tmp_path, algo):
    learner = build_learner(RunConfig("HTM-Crosses-v0", algo=algo, config=ALGORITHM))
    rows = [learner.update(0.2) for _ in range(2)]
    assert rows[1].keys() >= {"loss/masked", "loss/invariance"}
    learner.save(tmp_path)
    again = load(tmp_path)
    assert [again.update(0.2) for _ in range(2)] == [learner.update(0.2) for _ in range(2)]
    assert again.autoencoder.weights_hash() == learner.autoencoder.weights_hash()
    hidden = [each.trainer.view_networks.hidden.detach() for each in (again, learner)]
    assert torch.equal(*hidden)
    assert hidden[0].any()


@pytest.mark.parametrize("env_id", ["HTM-Digits-v0", "HTM-Crosses-v0"])
def test_the_command_has_every_option(tmp_path, env_id):
    options = {f"autoencoder.views.{name}": value for name, value in vars(ALL).items()}
    options |= {"autoencoder.loss.contrast": 0.1, "autoencoder.contrast_temperature": 0.3}
    options |= {"autoencoder.hidden_dim": 16, "autoencoder.view_networks.learning_rate": 0.01}
    arguments = ["--env", env_id, "--algo", "balanced_sorted", "--merges", "1000"]
    for name, value in options.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["autoencoder"]
    assert saved["views"] == vars(ALL)
    assert saved["loss"]["contrast"] == 0.1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert math.isfinite(result["test"]["nmse"])

"""Embeddings of pose and content: shifts and growth change the pose alone."""

from __future__ import annotations

import math

import pytest
import torch
from episodes import generator
from torch import nn

from agents import load
from agents.cli import main
from agents.config.run import RunConfig
from agents.fixed import fixed_policy
from agents.registry import build_learner
from htm_env.autoencoder import HTMAutoencoder
from htm_env.posed import PosedLifter, PosedMerger, PosedUnlifter, PosedUnmerger, common_units
from htm_env.types import TokenBatch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Kept(nn.Module):
    """The first numbers as they are, and what the network was given."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.given = values
        return values[..., : self.outputs]


def test_the_pose_of_a_segment_by_hand():
    """From (1, 2) to (3, 2): two wide, of which the mean squared deviation is 1/2 an axis."""
    lifter = PosedLifter(Kept(4), (4, 2))
    pose = lifter(torch.tensor([[1.0, 2.0, 3.0, 2.0]]))[0]
    assert pose[:2].tolist() == [2, 2]
    assert float(pose[2]) == pytest.approx(math.log(0.5 + 0.05**2) / 2)
    size = math.exp(float(pose[2]))
    assert pose[3:].tolist() == pytest.approx([-1 / size, 0, 1 / size, 0])
    back = PosedUnlifter(Kept(4), (4, 2))(pose[None])
    assert back[0].tolist() == pytest.approx([1, 2, 3, 2])


def test_the_pose_of_a_whole_by_hand():
    """Parts of size 1 at -2 and 2: squared size 1 + 4, and one number of content each."""
    network = Kept(1)
    merger = PosedMerger(network, 1)
    whole = merger(torch.tensor([[-2.0, 0.0, 7.0, 2.0, 0.0, 8.0]]))[0]
    assert whole[0] == 0
    assert float(whole[1]) == pytest.approx(math.log(5) / 2)
    size = math.sqrt(5)
    expected = [-2 / size, -math.log(5) / 2, -math.log(5) / 2, 7, 8]
    assert network.given[0].tolist() == pytest.approx(expected)


def test_parts_are_placed_in_the_frame_of_the_whole():
    """The network says: half a size to the left, and sizes whose softplus is log 2."""
    unmerger = PosedUnmerger(Kept(5), 1)
    whole = torch.tensor([[10.0, math.log(4.0), 0.5, 0.0, 0.0, 7.0, 8.0]])
    size = math.log(4) + 0.5 - math.log(2)
    expected = [12.0, size, 7, 8.0, size, 8]
    assert unmerger(whole)[0].tolist() == pytest.approx(expected)


def posed(embedding_dim: int = 9) -> HTMAutoencoder:
    made = HTMAutoencoder(4, embedding_dim, 16, "posed", places=(4, 2), generator=generator())
    made.set_statistics(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 3.0, 2.0, 3.0]))
    return made


def segments(batch: int = 3, count: int = 5) -> tuple[TokenBatch, torch.Tensor]:
    tokens = torch.randn(batch, count, 4, generator=generator(1))
    present = torch.ones(batch, count, dtype=torch.bool)
    merges = torch.full((batch, count - 1, 2), -1)
    samples = TokenBatch(tokens, present, torch.zeros(batch, 0, count, dtype=torch.bool), merges)
    return samples, fixed_policy("random", posed()).plan(samples, generator())


def test_places_have_one_unit_and_one_mean_an_axis():
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]), torch.tensor([3.0, 4.0, 5.0, 2.0, 7.0])
    mean, std = common_units(mean, std, (4, 2))
    assert mean.tolist() == [2, 3, 2, 3, 9]
    assert std.tolist() == pytest.approx([math.sqrt(54 / 4)] * 4 + [7])


def test_a_shift_of_the_sample_is_one_of_the_poses_and_of_what_is_decoded():
    model, (batch, merges) = posed(), segments()
    shift = torch.tensor([5.0, -3.0, 5.0, -3.0])
    here = model.encode(batch.tokens, batch.present, merges).roots
    there = model.encode(batch.tokens + shift, batch.present, merges).roots
    torch.testing.assert_close(there[:, 2:], here[:, 2:], **CLOSE)
    torch.testing.assert_close(
        there[:, :2] - here[:, :2], shift[:2].expand(3, 2) / model.token_std[0], **CLOSE
    )
    back = [model.decode(roots, merges, batch.present) for roots in (here, there)]
    torch.testing.assert_close(back[1] - back[0], shift.expand(3, 5, 4), **CLOSE)


def test_growth_of_a_whole_changes_its_size_and_not_its_content():
    """Of what has an extent: the size of a point is a constant, small beside these."""
    model, (batch, merges) = posed(), segments()
    big = [
        model.encode(factor * batch.tokens, batch.present, merges).roots for factor in (1e3, 2e3)
    ]
    torch.testing.assert_close(big[1][:, 3:], big[0][:, 3:], rtol=1e-3, atol=1e-3)
    growth = (big[1] - big[0])[:, 2]
    assert growth.tolist() == pytest.approx([math.log(2)] * 3, abs=1e-3)


def test_saving_and_loading(tmp_path):
    model = posed()
    model.save(tmp_path / "posed.safetensors")
    again = HTMAutoencoder.load(tmp_path / "posed.safetensors")
    assert again.config == model.config
    assert again.config["places"] == [4, 2]
    batch, merges = segments()
    roots = [each.encode(batch.tokens, batch.present, merges).roots for each in (model, again)]
    assert torch.equal(*roots)


def test_another_architecture_knows_no_places():
    assert "places" not in HTMAutoencoder(4, 9, 16, places=(4, 2)).config


@pytest.mark.parametrize(
    ("places", "embedding_dim", "message"),
    [
        ((), 9, "places is .*; expected two numbers"),
        ((4, 2), 3, "embedding_dim"),
        ((3, 2), 9, "expected whole places of 2 numbers"),
        ((6, 2), 9, r"places\[0\]"),
    ],
)
def test_places_that_do_not_fit_are_refused(places, embedding_dim, message):
    with pytest.raises(ValueError, match=message):
        HTMAutoencoder(4, embedding_dim, 16, "posed", places=places)


@pytest.mark.parametrize("env_id", ["HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Trees-v0"])
def test_a_learner_trains_it_and_goes_on_from_a_folder(env_id, tmp_path):
    config = {"autoencoder": {"architecture": "posed", "hidden_dim": 16}, "batch_size": 4}
    learner = build_learner(RunConfig(env_id, algo="balanced_sorted", config=config))
    assert learner.update(0.1)["loss/reconstruction"] > 0
    learner.save(tmp_path)
    again = load(tmp_path)
    assert again.update(0.1) == learner.update(0.1)


def test_the_command_refuses_tokens_without_places(tmp_path, capsys):
    arguments = ["--env", "HTM-Keys-v0", "--algo", "nearest", "--merges", "300"]
    arguments += ["--set", "autoencoder.architecture=posed", "--out", str(tmp_path / "run")]
    assert main(["train", *arguments]) != 0
    assert "tokens of kind 'items' have no places" in capsys.readouterr().err

"""Gloms of images: patches, crops and hidden regions, frames, and the words of glom-pytorch."""

from __future__ import annotations

import pytest
import torch

from agents import Glom, GlomTrainer, GlomTrainingConfig, ImageGlom, TokenGlom
from agents.encoders.config import GlomConfig
from agents.encoders.glom.images import grid, images_of, patches_of
from agents.encoders.glom.losses import draw_regions
from htm_env.autoencoder import seeded_initialisation

WORDS = {"dim": 8, "levels": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(size: int | tuple[int, int] = 8, patch: int = 2, channels: int = 1, **words) -> ImageGlom:
    with seeded_initialisation(generator()):
        return Glom.from_image(size, patch, channels, **(WORDS | words))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1))


def test_patches_go_row_by_row_and_back():
    image = torch.arange(8.0).reshape(1, 1, 2, 4)
    patches = patches_of(image, 2)
    assert patches.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    assert torch.equal(images_of(patches, 2, 1, 2), image)
    assert grid(1, 3).tolist() == [[-1, 0], [0, 0], [1, 0]]


def test_a_region_is_what_is_nearest_to_a_place():
    places, active = grid(1, 4).expand(50, -1, -1), torch.arange(4) < torch.tensor([[4], [2]] * 25)
    regions = draw_regions(places, active, 0.5, generator())
    assert torch.equal(regions.sum(dim=1), torch.tensor([2, 1] * 25))
    assert not (regions & ~active).any()
    found = {tuple(row) for row in regions[::2].int().tolist()}
    assert found == {(1, 1, 0, 0), (0, 1, 1, 0), (0, 0, 1, 1)}  # neighbours


def test_the_words_of_the_original_mean_the_same():
    """Its README: columns of every patch, all states, and those of a frame as the next one's."""
    model = ImageGlom(dim=8, levels=6, image_size=28, patch_size=14)
    first, second = images(2, 1, 3, 28, 28)
    levels = model(first, iters=4)
    assert levels.shape == (1, 4, 6, 8)
    states = model(first, iters=4, return_all=True)
    assert states.shape == (5, 1, 4, 6, 8) and torch.equal(states[-1], levels)
    assert len(model(first, return_all=True)) == 13  # twice the levels
    frames = torch.stack([first, second], dim=1)
    seen = model.watch(frames, iters=2)
    assert torch.equal(seen[:, 0], model(first))
    assert torch.equal(seen[:, 1], model(second, levels=seen[:, 0], iters=2))


def test_a_local_radius_and_neighbours_are_in_patches():
    """After one iteration from another state only neighbours of the last patch have changed."""
    image = images(1, 1, 4, 1)
    for words in ({"local_consensus_radius": 1}, {"neighbours": 1, "attention": False}):
        model = make((4, 1), 1, **words)
        state = model(image, iters=1)
        other = state.clone()
        other[:, 3] += torch.randn(8, generator=generator())
        changed = (model(image, 1, state) - model(image, 1, other)).abs().amax(dim=(0, 2, 3))
        assert (changed > 0).tolist() == [False, False, True, True]


def test_equal_patches_differ_by_their_places():
    model = make()
    columns = model(torch.ones(1, 1, 8, 8))[0]
    assert (torch.pdist(columns.flatten(1)) > 1e-4).all()
    same = make(place_frequencies=0)(torch.ones(1, 1, 8, 8))[0]
    torch.testing.assert_close(same, same[:1].expand_as(same))


def test_hidden_patches_are_not_seen_and_those_outside_a_crop_are_not_there():
    model, image = make(), images(2, 1, 8, 8)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 0] = True
    other = image.clone()
    other[:, :, :2, :2] = 99.0
    for name, chosen in (("hidden", mask), ("present", ~mask)):
        columns = model(image, **{name: chosen})
        assert torch.equal(columns, model(other, **{name: chosen}))
        assert bool(columns[:, 0].any()) is (name == "hidden")
    assert model.restore(columns).shape == image.shape


def test_losses_reach_every_parameter():
    model = make(neighbours=1.5)
    losses = model.losses(images(3, 1, 8, 8), training=GlomTrainingConfig(), generator=generator())
    assert set(losses) == {"denoising", "contrastive"}
    sum(losses.values()).backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


def test_images_are_of_whole_patches():
    with pytest.raises(ValueError, match="image_size is 9; expected a multiple of the patch size"):
        make(9)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"size": "8"}, "image_size is '8': expected a whole number"),
        ({"size": (8, 8, 8)}, "expected a side, or height and width"),
        ({"patch": 1.5}, "patch_size is 1.5: expected a whole number"),
        ({"dim": 0}, "dim is 0: expected a whole number from 1"),
        ({"local_consensus_radius": -1}, "local_consensus_radius is -1; expected at least 0"),
        ({"neighbours": -1}, "neighbours is -1; expected at least 0"),
        ({"depth": 3}, "ImageGlom has no keyword 'depth': expected image_size,"),
        ({"radius": 2}, "no keyword 'radius'"),
    ],
)
def test_impossible_words_are_named(words, said):
    with pytest.raises(ValueError, match=said):
        make(**words)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "shape", [(5, 1, 9, 9), (5, 1, 16, 16), (5, 3, 8, 8), (1, 8, 8), (5, 1, 1, 8, 8), (8,)]
)
def test_images_of_another_shape_are_refused(shape):
    model, said = make(), r"expected \(B, C, H, W\) = \(.*1, 8, 8\) of floats"
    with pytest.raises(ValueError, match=said):
        model(torch.zeros(shape))
    learning = GlomTrainingConfig(denoising_weight=0.0)
    with pytest.raises(ValueError, match=said):
        model.losses(torch.zeros(shape), training=learning, generator=generator())


@pytest.mark.usefixtures("unchecked")
def test_images_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"of torch.uint8; expected .* of floats"):
        make()(torch.zeros(5, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.usefixtures("unchecked")
def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, F, C, H, W\) = \(5, 1, 1, 8, 8\)"):
        make().watch(images(5, 1, 8, 8))
    with pytest.raises(ValueError, match="frames is 0; expected at least 1"):
        make().watch(images(5, 0, 1, 8, 8))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["hidden", "present"])
def test_masks_of_another_shape_are_refused(name):
    for mask in (torch.ones(5, 9, dtype=torch.bool), torch.ones(5, 16)):
        with pytest.raises(ValueError, match=rf"{name} has .*\(B, P\) = \(5, 16\) of truth"):
            make()(images(5, 1, 8, 8), **{name: mask})


@pytest.mark.usefixtures("unchecked")
def test_iterations_are_a_whole_number():
    for iters in (1.5, -1):
        with pytest.raises(ValueError, match=f"iters is {iters}: expected a whole number from 0"):
            make()(images(5, 1, 8, 8), iters)


def test_a_trainer_names_what_its_model_takes():
    image = images(5, 1, 8, 8)
    with pytest.raises(ValueError, match="the scenes are 2 tensors; expected images"):
        GlomTrainer(make(), generator()).update(0.0, image, image)
    tokens = TokenGlom(2, GlomConfig(level_width=8))
    with pytest.raises(ValueError, match="the scenes are 1 tensors; expected tokens and active"):
        GlomTrainer(tokens, generator()).update(0.0, images(6, 5, 2))


@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_a_trainer_continues_from_its_state(kind):
    def trainer() -> GlomTrainer:
        with seeded_initialisation(generator()):
            model = make() if kind == "images" else TokenGlom(2, GlomConfig(level_width=8))
        return GlomTrainer(model, generator())

    scenes = [images(6, 1, 8, 8)]
    if kind == "tokens":
        scenes = [images(6, 5, 2), torch.ones(6, 5, dtype=torch.bool)]
    first, other = trainer(), trainer()
    for _ in range(3):
        scalars = first.update(0.5, *scenes)
    assert set(scalars) == {
        *("loss/glom_denoising", "loss/glom_contrastive", "gradient_norm/glom"),
    }
    other.generator.set_state(first.generator.get_state())
    other.restore(first.state())
    assert first.update(1.0, *scenes) == other.update(1.0, *scenes)

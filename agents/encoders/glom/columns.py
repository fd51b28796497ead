"""``Glom``: every token is a column of levels that iterate until they agree (Hinton 2021);
``ImageGlom``: the tokens are patches of images."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from agents.encoders.base import without_junk
from agents.encoders.config import GlomConfig, GlomTrainingConfig
from agents.encoders.glom.images import grid, images_of, patches_of
from agents.encoders.glom.levels import (
    LevelNetworks,
    Surroundings,
    near,
    neighbour_filters,
    similarity_attention,
    sinusoids,
)
from agents.encoders.glom.losses import contrastive_loss, draw_regions, draw_two_regions
from htm_env.checks import at_least, keywords, whole_number, whole_numbers

WORDS = {
    "level_width": "dim",
    "attend_self": "consensus_self",
    "radius": "local_consensus_radius",
    "neighbourhood": "neighbours",
}
"""What :class:`ImageGlom` calls fields of :class:`GlomConfig`; the others have the same names."""


class Surrounded(NamedTuple):
    """What stays the same over the iterations."""

    lowest: Float[Tensor, "1 B P d"]
    """The tokens, as the lowest level receives them."""
    active: Bool[Tensor, "B P"] | None
    """True <--> a token is here; None: everywhere."""
    allowed: Bool[Tensor, "#B #P P"] | None
    """True <--> the column (second axis) may attend to this one (last axis); None: all may."""
    place: Float[Tensor, "B P d"] | None
    """What the top-down nets receive of where a column is."""
    filters: Float[Tensor, "F B P P"] | None
    """Of the columns around, for the bottom-up nets."""


class Glom(nn.Module):
    """Columns of ``L`` levels, one a token: at every iteration a level becomes the mean of what it
    was, the prediction of the level below (of the lowest: of the token), that of the level above,
    and the mean of the same level of the columns that are like it (attention).

    Geoffrey Hinton, 2021, "How to represent part-whole hierarchies in a neural network".

    Args:
        width: ``W`` of the tokens.
        coordinates: ``T`` of their centroids, where the configuration needs them.
    """

    def __init__(self, width: int, config: GlomConfig, coordinates: int | None = None) -> None:
        super().__init__()
        at_least(1, width=width)
        self.config = config
        levels, size = config.levels, config.level_width
        hidden = config.expansion * size
        if config.needs_coordinates and coordinates is None:
            raise ValueError("places of columns are used; expected coordinates, found None")
        places = 2 * (coordinates or 0) * config.place_frequencies
        self.from_token = nn.Sequential(
            nn.Linear(width + places, hidden), nn.GELU(), nn.Linear(hidden, size)
        )
        self.bottom_up = LevelNetworks(levels - 1, size, hidden)
        self.top_down = LevelNetworks(levels - 1, size, hidden)
        self.fresh = nn.Parameter(torch.randn(levels, size))
        terms = torch.full((levels, 1, 1, 1), 3.0 + config.attention)
        terms[-1] -= 1  # there is no level above the top
        self.register_buffer("terms", terms, persistent=False)
        self.terms: Tensor
        if config.place_frequencies:
            self.placing = nn.Linear(places, size)
        if config.neighbourhood is not None:
            self.surroundings = Surroundings(levels - 1, size, coordinates or 0)

    @staticmethod
    def from_image(
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 14,
        channels: int = 3,
        **words: Any,
    ) -> ImageGlom:
        """A Glom whose tokens are the patches of images; ``words`` as for :class:`ImageGlom`."""
        return ImageGlom(image_size, patch_size, channels, **words)

    def forward(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        centroids: Float[Tensor, "B P T"] | None = None,
        iterations: int | None = None,
        state: Float[Tensor, "B P L d"] | None = None,
        return_all: bool = False,
    ) -> Float[Tensor, "*times B P L d"]:
        """The columns after so many ``iterations`` (the configuration's if None); zeros where no
        token is.

        They start from ``state``, what an earlier call gave, or else all alike. ``k`` iterations
        and ``m`` more from their columns are ``k + m`` at once, to the last bit. With
        ``return_all`` the columns before the first iteration and after each, (1 + iterations, B,
        P, L, d).

        Raises ``ValueError`` where ``centroids`` are needed and not given, and for a state that is
        not of these tokens and levels.
        """
        shape = (*active.shape, self.config.levels, self.config.level_width)
        if state is not None and state.shape != shape:
            raise ValueError(
                f"the columns to start from have shape {tuple(state.shape)}; expected {shape}"
            )
        iterations = self.config.iterations if iterations is None else iterations
        whole_number("iterations", iterations, 0, 2**31)
        around = self._surrounded(tokens, active, centroids)
        start = self.fresh.expand(shape) if state is None else state
        # Levels first: each has networks of its own, and attends within itself.
        columns = start.masked_fill(~active[..., None, None], 0.0).permute(2, 0, 1, 3).contiguous()
        states = [columns]
        for _ in range(iterations):
            columns = self._iterate(columns, around)
            states.append(columns)
        if return_all:
            return torch.stack(states).permute(0, 2, 3, 1, 4)
        return columns.permute(1, 2, 0, 3)

    def _surrounded(
        self,
        tokens: Float[Tensor, "B P W"],
        active: Bool[Tensor, "B P"],
        centroids: Float[Tensor, "B P T"] | None,
    ) -> Surrounded:
        config, full = self.config, bool(active.all())
        tokens = without_junk(tokens, active)
        allowed = None if full else active[:, None]
        place = filters = None
        if centroids is None:
            if config.needs_centroids:
                raise ValueError("a Glom with a radius or places needs centroids, found None")
        else:
            if config.radius is not None:
                allowed = near(centroids, active, config.radius)
            if config.place_frequencies:
                waves = sinusoids(centroids, active, config.place_frequencies)
                tokens, place = torch.cat([tokens, waves], dim=2), self.placing(waves)
            if config.neighbourhood is not None:
                filters = neighbour_filters(centroids, active, config.neighbourhood)
        if not config.attend_self:
            others = ~torch.eye(active.shape[1], dtype=torch.bool, device=active.device)[None]
            allowed = others if allowed is None else allowed & others
        lowest = self.from_token(tokens)[None]
        return Surrounded(lowest, None if full else active, allowed, place, filters)

    def _iterate(
        self, columns: Float[Tensor, "L B P d"], around: Surrounded
    ) -> Float[Tensor, "L B P d"]:
        normal = nn.functional.layer_norm(columns, columns.shape[-1:])
        parts, wholes = normal[:-1], normal[1:]
        if around.filters is not None:
            parts = parts + self.surroundings(parts, around.filters)
        if around.place is not None:
            wholes = wholes + around.place
        below = torch.cat([around.lowest, self.bottom_up(parts)])
        above = nn.functional.pad(self.top_down(wholes), (0, 0, 0, 0, 0, 0, 0, 1))
        terms = columns + below + above
        if self.config.attention:
            terms = terms + similarity_attention(
                columns, around.allowed, self.config.sharpness, self.config.agreement_decay
            )
        terms = terms / self.terms
        if around.active is None:
            return terms
        return terms.masked_fill(~around.active[..., None], 0.0)


class ImageGlom(nn.Module):
    """Columns over the patches of images, row by row, in the words of ``glom-pytorch``.

    Args:
        image_size: side in pixels, or height and width; whole patches.
        patch_size: side of a patch; 1: a column for every pixel.
        channels: numbers of a pixel, best standardised.
        dim: ``d``, numbers of a level.
        levels: ``L``; without ``iters`` there are twice as many iterations.
        consensus_self: False <--> a column attends to others only.
        local_consensus_radius: how far away in patches those are that a column attends to; 0: all.
        neighbours: how far away in patches those are whose level below the bottom-up nets receive;
            0: their own column alone.
        options: other fields of :class:`GlomConfig`.

    Raises ``ValueError`` for images that are not of whole patches, and for unknown options.
    """

    takes = ("images",)
    """What :meth:`losses` are of."""

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 14,
        channels: int = 3,
        *,
        dim: int = 512,
        levels: int = 6,
        consensus_self: bool = False,
        local_consensus_radius: float | int = 0,
        neighbours: float | int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        known = [WORDS.get(field.name, field.name) for field in fields(GlomConfig)]
        keywords("ImageGlom", list(options), ["image_size", "patch_size", "channels", *known])
        sides = whole_numbers("image_size", image_size, 1, 2**31)
        if len(sides) > 2:
            raise ValueError(f"image_size is {image_size}; expected a side, or height and width")
        height, width = sides[0], sides[-1]
        for name, value in (("patch_size", patch_size), ("channels", channels), ("dim", dim)):
            whole_number(name, value, 1, 2**31)
        at_least(0, local_consensus_radius=local_consensus_radius, neighbours=neighbours)
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"image_size is {image_size}; expected a multiple of the patch size {patch_size}"
            )
        self.image_shape = (channels, height, width)
        self.patch_size, self.rows, self.columns = (
            patch_size,
            height // patch_size,
            width // patch_size,
        )
        places = grid(self.rows, self.columns)
        spacing = 1 / max(float(places.square().mean().sqrt()), 1e-6)
        self.register_buffer("places", spacing * places, persistent=False)
        self.places: Tensor
        numbers = channels * patch_size**2
        config = {
            "levels": levels,
            "level_width": dim,
            "expansion": 4,
            "iterations": 2 * levels,
            "attend_self": consensus_self,
            "radius": _reach(local_consensus_radius, spacing),
            "neighbourhood": _reach(neighbours, spacing),
            "place_frequencies": 1 + math.ceil(math.log2(max(self.rows, self.columns))),
        }
        self.glom = Glom(numbers, GlomConfig(**{**config, **options}), coordinates=2)
        self.hidden_patch = nn.Parameter(torch.zeros(numbers))
        hidden = 4 * dim
        self.restored_places = nn.Parameter(torch.randn(len(places), dim))
        self.restoring = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, numbers)
        )

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        iters: int | None = None,
        levels: Float[Tensor, "B P L d"] | None = None,
        return_all: bool = False,
        *,
        hidden: Bool[Tensor, "B P"] | None = None,
        present: Bool[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "*times B P L d"]:
        """The columns of every patch after ``iters`` iterations.

        Args:
            levels: columns to start from, those of another frame for instance.
            return_all: the columns before the first iteration and after each, ``(1 + iters, B, P,
                L, d)``.
            hidden: True <--> the patch is not seen; its column is there.
            present: True <--> the patch is part of the crop: elsewhere there is no column.

        Raises ``ValueError`` for images of another shape than the model's, and for what does not
        fit to them.
        """
        self._check_images(images, "B, C, H, W")
        if iters is not None:
            whole_number("iters", iters, 0, 2**31)
        patches_shape = (len(images), len(self.places))
        for name, mask in (("hidden", hidden), ("present", present)):
            if mask is not None and (mask.shape != patches_shape or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)} of {mask.dtype}; "
                    f"expected (B, P) = {patches_shape} of truth values"
                )
        patches = patches_of(images, self.patch_size)
        if hidden is not None:
            patches = torch.where(hidden[..., None], self.hidden_patch, patches)
        if present is None:
            present = patches.new_ones(patches.shape[:2], dtype=torch.bool)
        places = self.places.expand(len(images), -1, -1)
        return self.glom(patches, present, places, iters, levels, return_all)

    def watch(
        self, frames: Float[Tensor, "B F C H W"], iters: int = 2
    ) -> Float[Tensor, "B F P L d"]:
        """The columns after every frame of a video: a few iterations each, from the columns of the
        frame before; the first frame has as many as an image.

        Raises ``ValueError`` for frames of another shape than the model's images, and for none.
        """
        self._check_images(frames, "B, F, C, H, W")
        at_least(1, frames=frames.shape[1])
        seen: list[Tensor] = []
        for frame in frames.unbind(dim=1):
            seen.append(self(frame, iters, seen[-1]) if seen else self(frame))
        return torch.stack(seen, dim=1)

    def restore(self, columns: Float[Tensor, "B P L d"]) -> Float[Tensor, "B C H W"]:
        """The images, each patch restored from its place and the mean of the top level over all
        columns that are there: what the whole is."""
        tops = columns[:, :, -1]
        there = tops.any(dim=2, keepdim=True).sum(dim=1, keepdim=True).clamp(min=1)
        whole = nn.functional.layer_norm(tops.sum(dim=1, keepdim=True) / there, tops.shape[-1:])
        patches = self.restoring(whole + self.restored_places)
        return images_of(patches, self.patch_size, self.rows, self.columns)

    def losses(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        training: GlomTrainingConfig,
        generator: torch.Generator,
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses of these images by name, weighted; those of weight 0 are left out.

        Every image is to be restored while a region of it is hidden, and two regions of one image
        are to be told from those of others. ``generator`` draws them.
        """
        losses: dict[str, Tensor] = {}
        places = self.places.expand(len(images), -1, -1)
        everywhere = places.new_ones(places.shape[:2], dtype=torch.bool)
        if training.denoising_weight:
            hidden = draw_regions(places, everywhere, training.hidden_tokens, generator)
            loss = nn.functional.mse_loss(self.restore(self(images, hidden=hidden)), images)
            losses["denoising"] = training.denoising_weight * loss
        if training.contrastive_weight:
            crops = draw_two_regions(places, everywhere, training.crop_share, generator)
            tops = self(torch.cat([images, images]), present=torch.cat(crops))[:, :, -1].chunk(2)
            losses["contrastive"] = training.contrastive_weight * contrastive_loss(
                tops[0], crops[0], tops[1], crops[1], training.temperature
            )
        return losses

    def _check_images(self, images: Tensor, axes: str) -> None:
        """Raise ``ValueError`` where the images are not of these axes and of the model's shape."""
        batch = images.shape[: axes.count(",") - 2]
        expected = (*batch, *self.image_shape)
        if images.shape != expected or not images.is_floating_point():
            raise ValueError(
                f"the images have shape {tuple(images.shape)} of {images.dtype}; "
                f"expected ({axes}) = {expected} of floats"
            )


def _reach(patches: float | int, spacing: float) -> float | None:
    """A distance in patches as one of standardised places, a little more against rounding."""
    return 1.001 * spacing * patches if patches else None

"""The figures show what they were given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from htm_env.drawing.figures.generation import (
    NoisySample,
    criteria_figure,
    denoising_figure,
    generated_figure,
    interpolation_figure,
)
from htm_env.drawing.rendering import figure_to_array
from htm_env.generation.generate import Generated
from htm_env.generation.mixture import Candidate

KINDS = {
    "points": 2,
    "segments": 4,
    "strokes": 6,
    "patches": 6,
    "items": 5,
    "particles": 4,
    "vectors": 3,
}


def generated(kind: str, count: int) -> Generated:
    """Samples of one, two and three tokens in turn."""
    tokens = torch.rand(count, 3, KINDS[kind], generator=torch.Generator().manual_seed(0))
    sizes = torch.arange(count) % 3 + 1
    merges = torch.tensor([[[-1, -1], [-1, -1]], [[0, 1], [-1, -1]], [[0, 1], [3, 2]]])
    nothing = torch.zeros(count, dtype=torch.bool)
    return Generated(tokens, torch.arange(3) < sizes[:, None], merges[sizes - 1], nothing, nothing)


def test_criteria_are_lines_over_components_and_the_chosen_one_is_marked():
    candidates = [
        Candidate(count, kind, 10.0 * count + offset, 5.0 * count, True)
        for kind, offset in (("full", 0), ("diag", 7))
        for count in (4, 1, 2)
    ]
    figure = criteria_figure(candidates, candidates[1])
    bic, aic = figure.axes
    assert (bic.get_ylabel()[:3], aic.get_ylabel()[:3]) == ("BIC", "AIC")
    full, diag, chosen = bic.lines
    assert full.get_xydata().tolist() == [[1, 10], [2, 20], [4, 40]]
    assert diag.get_xydata().tolist() == [[1, 17], [2, 27], [4, 47]]
    assert chosen.get_xydata().tolist() == [[1, 10]]
    assert aic.lines[0].get_ydata().tolist() == [5, 10, 20]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "full",
        "diag",
        "chosen: 1",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_token_can_be_drawn(kind):
    samples = generated(kind, 8)
    titles = [f"sample {row}" for row in range(8)]
    figure = generated_figure(samples, kind, titles, samples.tokens[2].numpy())
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown[::2]] == titles
    for beside, merges in zip(shown[1::2], samples.merges, strict=True):
        links = len(beside.collections[0].get_paths())
        assert links == int((merges[:, 0] >= 0).sum())  # its tree is beside it
    pictures = [figure, interpolation_figure([samples, samples], kind, samples.tokens[2].numpy())]
    clean = samples.tokens[2].numpy()
    column = NoisySample(clean, clean + 0.1, clean, 0.25, 0.0)
    pictures.append(denoising_figure([column, column], kind, 0.1))
    for picture in pictures:
        assert figure_to_array(picture).std() > 5  # something is there


def test_steps_of_one_way_have_one_scale():
    figure = interpolation_figure([generated("points", 5)], "points", np.zeros((1, 2)))
    limits = {axes.get_xlim() + axes.get_ylim() for axes in figure.axes}
    assert len(limits) == 1
    assert [axes.get_title() for axes in figure.axes] == ["0%", "25%", "50%", "75%", "100%"]


def test_what_a_limit_cut_is_marked_on_the_way_between_roots():
    way = generated("points", 3)
    way.token_limited[1] = True
    figure = interpolation_figure([way, way], "points", np.zeros((1, 2)))
    assert [axes.get_title() for axes in figure.axes] == ["0%", "50%, cut", "100%", "", "cut", ""]


def test_noise_shows_its_errors():
    clean = np.array([[0.0, 0.0], [1.0, 1.0]])
    figure = denoising_figure([NoisySample(clean, clean + 1, clean, 0.25, 0.031)], "points", 0.5)
    assert [axes.get_title() for axes in figure.axes] == ["", "nmse 0.25", "nmse 0.031"]
    assert "0.5 std" in figure.axes[1].get_ylabel()

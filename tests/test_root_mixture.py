"""The mixture over roots: chosen rightly, never failing, the same again after saving."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.mixture import GaussianMixture

from htm_env.files import read_tensors, write_tensors
from htm_env.generation.mixture import COVARIANCE_TYPES, KEY, Candidate, RootMixture


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int = 600) -> torch.Tensor:
    """Three round clusters on a line, of equal size."""
    places = torch.tensor([[0.0, 0.0], [50.0, 0.0], [100.0, 0.0]]).repeat(count // 3, 1)
    return places + torch.randn(count, 2, generator=random())


def test_three_clusters_are_three_components_at_their_places():
    fitted: list[Candidate] = []
    mixture = RootMixture.fit(
        clusters(), random(), range(1, 7), COVARIANCE_TYPES, on_fitted=fitted.append
    )
    assert tuple(fitted) == mixture.candidates
    assert mixture.chosen.components == 3
    assert mixture.chosen == min(mixture.candidates, key=lambda candidate: candidate.bic)
    assert len(mixture.candidates) == 6 * 4
    assert mixture.weights.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)
    places = mixture.means[mixture.means[:, 0].argsort()]
    assert torch.allclose(places, torch.tensor([[0.0, 0], [50, 0], [100, 0]]).double(), atol=0.3)
    assert torch.allclose(mixture.covariances, torch.eye(2).double(), atol=0.25)


def test_criteria_are_those_of_their_definitions():
    roots = clusters()
    (one,) = RootMixture.fit(roots, random(), [1]).candidates
    # Standardised roots: the likelihood is that of a Gaussian with their own covariance.
    values = roots.double().numpy()
    values = (values - values.mean(0)) / values.std(0)
    covariance = values.T @ values / len(values) + 1e-6 * np.eye(2)
    inverse = np.linalg.inv(covariance)
    quadratic = np.einsum("ni,ij,nj->n", values, inverse, values)
    log = -0.5 * (quadratic + np.linalg.slogdet(covariance)[1] + 2 * math.log(2 * math.pi))
    parameters = 2 + 3  # a mean and a symmetric matrix
    assert one.aic == pytest.approx(-2 * log.sum() + 2 * parameters)
    assert one.bic == pytest.approx(-2 * log.sum() + parameters * math.log(len(values)))


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_covariance_type_gives_scikit_learns_density(covariance_type):
    roots = clusters(90)
    mixture = RootMixture.fit(roots, random(), [3], [covariance_type])
    values = roots.double().numpy()
    mean, std = values.mean(0), values.std(0)
    seed = int(torch.randint(2**31, (), generator=random()))
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=seed, max_iter=200)
    model.fit((values - mean) / std)
    expected = model.score_samples((values - mean) / std) - np.log(std).sum()
    assert np.allclose(mixture.log_density(roots).numpy(), expected, atol=1e-6)


def test_samples_have_the_moments_of_the_mixture():
    mixture = RootMixture.fit(clusters(), random(), range(1, 7))
    drawn = mixture.sample(30_000, random(1)).double()
    assert mixture.sample(1, random()).dtype == torch.float32
    assert torch.allclose(drawn.mean(0), clusters().double().mean(0), atol=1.0)
    near = drawn[(drawn[:, 0] - 50).abs() < 10]
    assert len(near) / len(drawn) == pytest.approx(1 / 3, abs=0.02)
    assert near.std(0).tolist() == pytest.approx([1.0, 1.0], rel=0.1)


def ring(count: int, seed: int) -> torch.Tensor:
    """Roots near a circle, which no few Gaussians follow."""
    generator = random(seed)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 1 + 0.02 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def test_a_smoothed_mixture_is_a_kernel_density():
    """One round component: a Gaussian of its covariance times the squared width at each root."""
    roots, others = clusters(30), clusters(60)[30:]
    mixture = RootMixture.fit(roots, random(), [1])
    smoothed = mixture.smoothed(roots, 0.5)
    kernel = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), mixture.covariances[0] / 4
    )
    each = kernel.log_prob(others.double()[:, None] - roots.double())
    expected = torch.logsumexp(each, dim=1) - math.log(30)
    assert torch.allclose(smoothed.log_density(others), expected)
    assert smoothed.bandwidth == 0.5 and smoothed.chosen == mixture.chosen
    nothing = smoothed.sample(200, random(), 0.0)  # the roots themselves
    assert float(torch.cdist(nothing, roots).amin(dim=1).max()) < 1e-5


def test_every_root_has_the_covariance_of_its_component():
    mixture = RootMixture.fit(clusters(), random(), range(1, 7), COVARIANCE_TYPES)
    smoothed = mixture.smoothed(clusters(), 0.1)
    nearest = torch.cdist(clusters().double(), mixture.means).argmin(dim=1)
    assert torch.equal(smoothed.covariance_of, nearest)
    assert torch.allclose(smoothed.covariances, mixture.covariances / 100)


def test_on_a_curve_a_smoothed_mixture_stays_nearer_than_its_component():
    plain = RootMixture.fit(ring(400, 0), random(), [1])
    smoothed = plain.smoothed(ring(400, 0), 0.05)
    far, near = (
        float((each.sample(500, random()).norm(dim=1) - 1).abs().mean())
        for each in (plain, smoothed)
    )
    assert near < 0.1 < 0.3 < far


def test_temperature_scales_the_variance_and_zero_gives_the_means():
    mixture = RootMixture.fit(clusters(), random(), [3])
    plain, hot = mixture.sample(500, random(1)), mixture.sample(500, random(1), 4.0)
    means = mixture.sample(500, random(1), 0.0)
    assert torch.allclose(hot - means, 2 * (plain - means), atol=1e-4)  # the root of 4
    apart = torch.cdist(means.double(), mixture.means).amin(dim=1)
    assert float(apart.max()) < 1e-5


def test_the_same_seed_gives_the_same_mixture_and_samples():
    first, again = (RootMixture.fit(clusters(), random(3), [2, 5]) for _ in range(2))
    assert torch.equal(first.means, again.means)
    assert first.candidates == again.candidates
    assert torch.equal(first.sample(50, random(1)), again.sample(50, random(1)))
    assert not torch.equal(first.sample(50, random(1)), first.sample(50, random(2)))


@settings(max_examples=25)
@given(
    st.sampled_from(["equal", "few", "line", "constant", "tiny", "huge"]),
    st.sampled_from(COVARIANCE_TYPES),
    st.integers(1, 8),
)
def test_degenerate_roots_never_fail(what, covariance_type, components):
    noise = torch.randn(40, 4, generator=random())
    roots = {
        "equal": torch.full((40, 4), 7.0),
        "few": noise[:2].repeat(20, 1),
        "line": noise[:, :1].expand(40, 4).clone(),
        "constant": noise * torch.tensor([1.0, 0.0, 1e-12, 1.0]),
        "tiny": 1e-20 * noise,
        "huge": 1e15 * noise + 1e18,
    }[what]
    mixture = RootMixture.fit(roots, random(), [components], [covariance_type])
    drawn = mixture.sample(50, random())
    assert drawn.isfinite().all()
    spread = float((roots - roots.double().mean(0)).abs().max())
    # Roots that do not vary are regularised relative to their size; float32 rounds at 1e-7 of it.
    size = float(roots.abs().max())
    away = float((drawn - roots.double().mean(0)).abs().max())
    assert away <= 6 * spread + 1e-5 * size


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="5 roots are fewer than 6 components"):
        RootMixture.fit(torch.randn(5, 3, generator=random()), random(), [2, 6])
    with pytest.raises(ValueError, match="at least 2 roots"):
        RootMixture.fit(torch.zeros(1, 3), random(), [1])
    with pytest.raises(ValueError, match="components are"):
        RootMixture.fit(clusters(), random(), [0])
    with pytest.raises(ValueError, match=r"round.*choose from.*spherical"):
        RootMixture.fit(clusters(), random(), [1], ["round"])
    bad = clusters()
    bad[4, 1] = torch.nan
    with pytest.raises(ValueError, match="root 4 is not finite"):
        RootMixture.fit(bad, random(), [1])
    mixture = RootMixture.fit(clusters(), random(), [1])
    for bandwidth in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="bandwidth"):
            mixture.smoothed(clusters(), bandwidth)
    with pytest.raises(ValueError, match=r"smoothed already, with bandwidth 0\.5"):
        mixture.smoothed(clusters(), 0.5).smoothed(clusters(), 0.5)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            mixture.sample(3, random(), temperature)
    with pytest.raises(ValueError, match="count is 0"):
        mixture.sample(0, random())


def test_saving_and_loading_changes_nothing(tmp_path):
    mixture = RootMixture.fit(clusters(), random(), [2, 3], ["full", "diag"])
    path = tmp_path / "mixture.safetensors"
    mixture.save(path)
    loaded = RootMixture.load(path)
    assert (loaded.chosen, loaded.candidates) == (mixture.chosen, mixture.candidates)
    assert torch.equal(loaded.sample(20, random()), mixture.sample(20, random()))
    smoothed = mixture.smoothed(clusters(), 1.0)
    smoothed.save(path)
    loaded = RootMixture.load(path)
    assert loaded.bandwidth == 1.0
    assert torch.equal(loaded.sample(20, random()), smoothed.sample(20, random()))
    with pytest.raises(FileNotFoundError, match="nothing"):
        RootMixture.load(tmp_path / "nothing")
    path.write_bytes(b"not a mixture")
    with pytest.raises(ValueError, match="does not hold a root mixture"):
        RootMixture.load(path)
    save_file({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="does not hold a root mixture"):
        RootMixture.load(path)


def test_what_no_fit_makes_is_refused(tmp_path):
    mixture = RootMixture.fit(clusters(), random(), [2])
    path = tmp_path / "mixture.safetensors"
    mixture.save(path)
    arrays, about = read_tensors(path, KEY)
    lopsided = mixture.covariances.clone()
    lopsided[0, 0, 1] += 1.0
    for name, value, message in (
        ("weights", -mixture.weights, "weights add up to -1"),
        ("weights", mixture.weights.float(), "weights is torch.float32"),
        ("weights", mixture.weights.long(), "weights is torch.int64"),
        ("means", mixture.means * torch.nan, "means has numbers that are not finite"),
        ("means", mixture.means[:1], "are not of one mixture"),
        ("covariances", mixture.covariances[:, :1], "are not of one mixture"),
        ("covariances", -mixture.covariances, "are not symmetric and positive definite"),
        ("covariance_of", mixture.covariance_of + 1, "are not of one mixture"),
        ("covariances", lopsided, "are not symmetric and positive definite"),
    ):
        write_tensors(path, KEY, arrays | {name: value}, about)
        with pytest.raises(ValueError, match=f"mixture.safetensors does not hold.*{message}"):
            RootMixture.load(path)
    for bandwidth in ("wide", 0.0, -0.5, 1):
        write_tensors(path, KEY, arrays, about | {"bandwidth": bandwidth})
        with pytest.raises(ValueError, match=f"bandwidth is {bandwidth!r}"):
            RootMixture.load(path)
    for change, message in (
        ({"components": "2"}, "no candidate of a mixture"),
        ({"covariance_type": "round"}, "no candidate of a mixture"),
        ({"components": 3}, "not the candidate"),
    ):
        write_tensors(path, KEY, arrays, about | {"chosen": about["chosen"] | change})
        with pytest.raises(ValueError, match=f"mixture.safetensors does not hold.*{message}"):
            RootMixture.load(path)

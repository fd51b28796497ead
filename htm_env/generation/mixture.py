"""``RootMixture``: a Gaussian mixture over root embeddings, what new roots are drawn from."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits
from torch import Tensor

from htm_env.checks import at_least, check_finite
from htm_env.files import check_tensors, read_tensors, reading, write_tensors

COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128)
COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
REGULARISATION = 1e-6
"""Added to the variances of standardised roots."""
_ITERATIONS = 200
_ROWS = 512
"""Roots whose densities are computed at a time."""
_ROUNDING = 1e-6
KEY = "htm_root_mixture"
"""The key of the description in a file."""


_ARRAYS = {
    "weights": (torch.float64, 1),
    "means": (torch.float64, 2),
    "covariances": (torch.float64, 3),
    "covariance_of": (torch.int64, 1),
}
"""Type and dimensions of the arrays of a file."""


class Candidate(NamedTuple):
    """One mixture that was tried; the smaller a criterion, the better."""

    components: int
    covariance_type: str
    bic: float
    """Bayesian information criterion, in nats of the standardised roots, doubled (Schwarz 1978)."""
    aic: float
    """Akaike's (1974)."""
    converged: bool
    """False where expectation maximisation was still improving after its last iteration."""


@dataclass(frozen=True)
class RootMixture:
    """A Gaussian mixture, and the candidates that it was chosen from."""

    weights: Float[Tensor, "K"]
    """float64, like means and covariances."""
    means: Float[Tensor, "K D"]
    covariances: Float[Tensor, "C D D"]
    """Whole matrices, whatever the type."""
    covariance_of: Int64[Tensor, "K"]
    """The covariance of each component."""
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    bandwidth: float | None = None
    """Of a smoothed mixture, see :meth:`smoothed`; None: the components are those of ``chosen``."""

    @classmethod
    def fit(
        cls,
        roots: Float[Tensor, "S D"],
        generator: torch.Generator,
        components: Sequence[int] = COMPONENTS,
        covariance_types: Sequence[str] = ("full",),
        on_fitted: Callable[[Candidate], None] | None = None,
    ) -> RootMixture:
        """Fit every number of components with every covariance type, and keep the least BIC.

        The roots are standardised first, so that the regularisation is relative to their variance
        in each dimension; a dimension that does not vary at all keeps a millionth of the largest
        one's standard deviation. Uses as many threads as torch does. ``on_fitted`` is called with
        every mixture that was tried.

        Raises ``ValueError`` where there are fewer roots than components, where a root is not
        finite, and for an unknown covariance type.
        """
        _check(roots, components, covariance_types)
        values = roots.detach().cpu().double().numpy()
        mean, scale = values.mean(axis=0), _scale(values)
        standardised = (values - mean) / scale
        fitted = []
        for covariance_type, count in itertools.product(covariance_types, components):
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
            model = _fitted(standardised, count, covariance_type, seed)
            bic, aic = float(model.bic(standardised)), float(model.aic(standardised))
            candidate = Candidate(count, covariance_type, bic, aic, bool(model.converged_))
            fitted.append((candidate, model))
            if on_fitted is not None:
                on_fitted(candidate)
        chosen, model = min(fitted, key=lambda pair: pair[0].bic)
        covariances = _matrices(model.covariances_, chosen, values.shape[1])
        return cls(
            torch.from_numpy(model.weights_),
            torch.from_numpy(model.means_ * scale + mean),
            torch.from_numpy(covariances * scale[:, None] * scale),
            torch.arange(len(covariances)),
            chosen,
            tuple(candidate for candidate, _ in fitted),
        )

    def smoothed(self, roots: Float[Tensor, "S D"], bandwidth: float) -> RootMixture:
        """A component at each of these roots, all of the same weight.

        Its covariance is that of this mixture's component to which the root belongs, times the
        square of ``bandwidth``. Draws are those of a smoothed bootstrap (Silverman and Young 1987,
        "The bootstrap: to smooth or not to smooth?"): they follow a curved surface of roots more
        closely than a few wide components.

        Raises ``ValueError`` for a bandwidth that is not above 0 and finite, and where this mixture
        is a smoothed one.
        """
        if not 0 < bandwidth < math.inf:
            raise ValueError(f"bandwidth is {bandwidth}; expected a finite number above 0")
        if self.bandwidth is not None:
            raise ValueError(f"the mixture is smoothed already, with bandwidth {self.bandwidth}")
        belongs = self.covariance_of[self._by_component(roots).argmax(dim=1)]
        return replace(
            self,
            weights=torch.full((len(roots),), 1 / len(roots), dtype=torch.float64),
            means=roots.detach().cpu().double(),
            covariances=self.covariances * bandwidth**2,
            covariance_of=belongs,
            bandwidth=float(bandwidth),
        )

    def sample(
        self, count: int, generator: torch.Generator, temperature: float = 1.0
    ) -> Float[Tensor, "S D"]:
        """Draw roots, float32 on the CPU, like the generator.

        ``temperature`` multiplies every covariance, so standard deviations grow with its square
        root: 0 gives the components' means. The components' weights stay.

        Raises ``ValueError`` for a count below one, or a temperature that is negative or not
        finite.
        """
        at_least(1, count=count)
        if not 0 <= temperature < math.inf:
            raise ValueError(
                f"temperature is {temperature}; expected a finite number of at least 0"
            )
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        roots = torch.empty(count, self.means.shape[1])
        # One component after the other: a matrix for every root would be the most of the memory.
        for number, factor in enumerate(torch.linalg.cholesky(self.covariances)):
            here = self.covariance_of[component] == number
            spread = math.sqrt(temperature) * noise[here] @ factor.T
            roots[here] = (self.means[component[here]] + spread).float()
        return roots

    def log_density(self, roots: Float[Tensor, "S D"]) -> Float[Tensor, "S"]:
        """The logarithm of the mixture's density at each root, float64."""
        parts = roots.split(_ROWS)
        return torch.cat([torch.logsumexp(self._by_component(part), dim=1) for part in parts])

    def _by_component(self, roots: Float[Tensor, "S D"]) -> Float[Tensor, "S K"]:
        """The logarithm of every component's weight and density at each root."""
        values = roots.detach().cpu().double()
        found = self.weights.log().repeat(len(values), 1)
        constant = 0.5 * values.shape[1] * math.log(2 * math.pi)
        for number, factor in enumerate(torch.linalg.cholesky(self.covariances)):
            here = self.covariance_of == number

            def white(rows: Tensor, factor: Tensor = factor) -> Tensor:
                solved: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False)
                return solved.T.contiguous()

            away = torch.cdist(
                white(values), white(self.means[here]), compute_mode="donot_use_mm_for_euclid_dist"
            )
            found[:, here] -= away.square() / 2 + constant + factor.diagonal().log().sum()
        return found

    def save(self, path: str | Path) -> None:
        """Write the mixture and its candidates as one safetensors file, all or nothing."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        about = {
            "chosen": self.chosen._asdict(),
            "candidates": [candidate._asdict() for candidate in self.candidates],
            "bandwidth": self.bandwidth,
        }
        write_tensors(path, KEY, arrays, about)

    @classmethod
    def load(cls, path: str | Path) -> RootMixture:
        """Read what :meth:`save` wrote; nothing in the file is executed.

        Raises ``FileNotFoundError`` where there is no file, ``ValueError`` for any other file.
        """
        with reading(path, "root mixture"):
            arrays, about = read_tensors(path, KEY)
            _check_arrays(arrays)
            candidates = tuple(_candidate(values) for values in about["candidates"])
            chosen = _candidate(about["chosen"])
            bandwidth = about["bandwidth"]
            if chosen not in candidates or chosen.components != len(arrays["covariances"]):
                raise ValueError(f"{chosen} is not the candidate that the mixture was made of")
            if bandwidth is not None and not (
                type(bandwidth) is float and 0 < bandwidth < math.inf
            ):
                raise ValueError(f"bandwidth is {bandwidth!r}; expected a number above 0, or none")
            return cls(**arrays, chosen=chosen, candidates=candidates, bandwidth=bandwidth)


def _check_arrays(arrays: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where these are not the arrays of a mixture that can be drawn from."""
    check_tensors(arrays, _ARRAYS)
    weights, means, covariances, covariance_of = (arrays[name] for name in _ARRAYS)
    (count,), dim = weights.shape, means.shape[1]
    if (
        (len(means), len(covariance_of)) != (count, count)
        or covariances.shape[1:] != (dim, dim)
        or not ((covariance_of >= 0) & (covariance_of < len(covariances))).all()
    ):
        raise ValueError(
            f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, covariances "
            f"{tuple(covariances.shape)} and covariance_of {tuple(covariance_of.shape)} are not of "
            "one mixture"
        )
    if weights.min() < 0 or abs(float(weights.sum()) - 1) > _ROUNDING:
        raise ValueError(f"weights add up to {float(weights.sum())}; expected shares of 1")
    deviations = covariances.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    size = deviations[:, :, None] * deviations[:, None]  # (K, D, D)
    symmetric = ((covariances - covariances.mT).abs() <= _ROUNDING * size).all()
    if not symmetric or torch.linalg.cholesky_ex(covariances).info.any():
        raise ValueError("covariances are not symmetric and positive definite")


def _candidate(values: Mapping[str, Any]) -> Candidate:
    """A candidate from JSON; raises ``ValueError`` for one of other types."""
    candidate = Candidate(**values)
    kinds = tuple(map(type, candidate))
    if kinds != (int, str, float, float, bool) or candidate.covariance_type not in COVARIANCE_TYPES:
        raise ValueError(f"{candidate} is no candidate of a mixture")
    return candidate


def _fitted(
    roots: Float[np.ndarray, "S D"], components: int, covariance_type: str, seed: int
) -> GaussianMixture:
    model = GaussianMixture(
        components,
        covariance_type=covariance_type,
        reg_covar=REGULARISATION,
        max_iter=_ITERATIONS,
        random_state=seed,
    )
    with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
        # Roots that coincide give k-means fewer clusters than components: empty ones do no harm.
        # The candidate says whether expectation maximisation converged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(roots)


def _scale(values: Float[np.ndarray, "S D"]) -> Float[np.ndarray, "D"]:
    """The standard deviation of every dimension, above zero."""
    std = values.std(axis=0)
    largest = std.max() if std.max() > 0 else 1.0
    scale: np.ndarray = np.maximum(std, 1e-6 * largest)
    return scale


def _matrices(covariances: Any, chosen: Candidate, dim: int) -> Float[np.ndarray, "K D D"]:
    """Whole covariance matrices from scikit-learn's shape of each type."""
    shapes: dict[str, Callable[[], np.ndarray]] = {
        "full": lambda: covariances,
        "tied": lambda: np.repeat(covariances[None], chosen.components, axis=0),
        "diag": lambda: covariances[:, :, None] * np.eye(dim),
        "spherical": lambda: covariances[:, None, None] * np.eye(dim),
    }
    return shapes[chosen.covariance_type]()


def _check(roots: Tensor, components: Sequence[int], covariance_types: Sequence[str]) -> None:
    if not components or min(components) < 1:
        raise ValueError(f"components are {list(components)}; expected numbers of at least 1")
    if len(roots) < max(components):
        raise ValueError(
            f"{len(roots)} roots are fewer than {max(components)} components; "
            "expected at least one root a component"
        )
    if len(roots) < 2:
        raise ValueError("one root has no variance; expected at least 2 roots")
    check_finite(roots)
    unknown = set(covariance_types) - set(COVARIANCE_TYPES)
    if unknown or not covariance_types:
        raise ValueError(
            f"unknown covariance types {sorted(unknown)}; choose from {list(COVARIANCE_TYPES)}"
        )

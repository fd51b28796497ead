"""What every test shares: one thread, checked shapes, no display, and small autoencoders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jaxtyping
import matplotlib
import torch

torch.set_num_threads(1)
matplotlib.use("Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

# Checks the annotated shapes of every function, so it has to come before the first import.
jaxtyping.install_import_hook(["htm_env", "agents", "replay"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from htm_env.autoencoder import HTMAutoencoder  # noqa: E402

# The first call of a layer is slow, and a failure should be the same for everybody.
settings.register_profile("here", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("here")


_SLOW = """
    annealing autoencoder benchmarks benchmarks_of_context best_known candidate_replay
    candidate_rollout candidate_search carried_state checkpoint cli clients clocks compare
    configuration crashes demonstrations description devices devices_of_benchmarks diagnoses
    earlier_runs embed encoders endurance engine_ray engine_slurm engines entropy env_candidates
    env_contract estimator evaluation examples figures fixed_policies flat flipped_bytes floor_plan
    full_disk generate_command generation_figures glom_order hierarchical_transformer importance
    interruption invalid_actions jets_benchmark key_scenes known_learners known_search learning
    merge_rounds_benchmark outputs page plot_command plug_ins policy_losses policy_share ppo_learner
    ppo_make ppo_recent_states ppo_vector_env predict pretrained processes_and_threads ranks
    recombination rendering replay_reinforce report report_diverged results resume rewards rollout
    run_data semantic_report set_distances sets single_simulator stable_baselines start_up tracing
    training tuning vector_env view views wheel wrappers
"""
SLOW_MODULES = frozenset(_SLOW.split())
"""Modules ``test_NAME`` that train, draw or start processes, and take more than two seconds."""
_LONG = """
    benchmarks benchmarks_of_context best_known cli compare configuration crashes devices
    devices_of_benchmarks diagnoses earlier_runs embed endurance entropy examples flipped_bytes
    full_disk generate_command glom_losses key_scenes known_learners learning merge_rounds_benchmark
    outputs page plot_command plug_ins ppo_learner ppo_make processes_and_threads ranks
    replay_reinforce report resume run_data stable_baselines tuning view views
"""
LONG_MODULES = frozenset(_LONG.split())
"""Modules whose runs make the same calls over and over: shapes are not checked in them."""


def is_adversarial(item: Any) -> bool:
    """True <--> a test of ``tests/adversarial``: slow, of many calls, and of wrong types too."""
    return item.path.parent.name == "adversarial"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ``make test-fast`` leaves out, and those in which shapes are checked."""
    seen = set()
    for item in items:
        module = item.path.stem.removeprefix("test_")
        if module in SLOW_MODULES or is_adversarial(item):
            item.add_marker("slow")
        case = (item.path, item.originalname)
        again = case in seen and item.get_closest_marker("slow") is not None
        seen.add(case)
        if not (again or module in LONG_MODULES or is_adversarial(item)):
            item.add_marker("checks_shapes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutations",
        type=int,
        default=400,
        help="mutations that a test of tests/adversarial makes",
    )


@pytest.fixture
def mutations(request: pytest.FixtureRequest) -> int:
    """Mutations to try: few in ``make test``, many in ``make test-adversarial``."""
    count: int = request.config.getoption("--mutations")
    return count


@pytest.fixture
def in_full(mutations: int) -> bool:
    """True <--> ``make test-adversarial``, where a test tries everything that it has."""
    return mutations >= 5000


@pytest.fixture(autouse=True)
def checked_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Annotated shapes are checked at every call, which takes more time than most tests: of the
    cases of a slow test in the first one only, and not through long runs."""
    checks = request.node.get_closest_marker("checks_shapes") is not None
    jaxtyping.config.update("jaxtyping_disable", not checks)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are not checked, as at a user's: what does not fit is passed to the functions."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def pytest_configure(config: pytest.Config) -> None:
    # beartype dislikes how Gymnasium spells the base class of its Dict space.
    config.addinivalue_line(
        "filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning"
    )


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


needs_kanji = pytest.mark.skipif(not _installed("kanjivg"), reason="needs htm-rl[kanji]")


def every(ids: Iterable[str]) -> list[Any]:
    """The ids as parameters of a test; skipped is what needs an extra that is not installed."""
    return [pytest.param(name, marks=needs_kanji if "Kanji" in name else ()) for name in ids]


def small_autoencoder(token_dim: int, embedding_dim: int = 5, seed: int = 0) -> HTMAutoencoder:
    """Random weights, and statistics that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    autoencoder = HTMAutoencoder(token_dim, embedding_dim, 16, generator=generator)
    mean, std = torch.linspace(-1, 2, token_dim), torch.linspace(0.5, 3, token_dim)
    autoencoder.set_statistics(mean, std)
    return autoencoder


@pytest.fixture(params=["cpu", *["cuda"] * torch.cuda.is_available()])
def device(request: pytest.FixtureRequest) -> str:
    """Every kind of device that this machine has."""
    return request.param


@pytest.fixture
def frames_shown(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every frame that a window shows, as on a machine that can open one."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")  # loaded before its loading is replaced
    shown: list[np.ndarray] = []

    def pause(seconds: float) -> None:
        canvas = pyplot.gcf().canvas
        canvas.draw()
        shown.append(np.array(canvas.buffer_rgba())[..., :3])

    monkeypatch.setattr(matplotlib, "get_backend", lambda: "webagg")
    monkeypatch.setattr(pyplot, "switch_backend", lambda name: None)
    monkeypatch.setattr(pyplot, "pause", pause)
    return shown


@pytest.fixture
def autoencoder() -> HTMAutoencoder:
    """Takes tokens of three coordinates."""
    return small_autoencoder(token_dim=3)


@pytest.fixture(scope="session")
def own_data() -> np.ndarray:
    """The user's own data: 20 sets of 5 tokens with 3 coordinates."""
    return np.random.default_rng(0).normal(size=(20, 5, 3))


@pytest.fixture
def env_kwargs(own_data):
    """What ``gym.make`` needs beside the id, without the shipped weights."""

    def of(env_id: str) -> dict:
        kwargs: dict = {} if env_id == "HTM-Jets-v0" else {"autoencoder": "untrained"}
        if env_id == "HTM-v0":
            kwargs["dataset"] = own_data
        return kwargs

    return of

"""The processor of a run: its name, and a calibration that is made once a day."""

from __future__ import annotations

import time

import pytest

from agents.runs.host import VALID_SECONDS, Host, matrix_gigaflops, this_host
from htm_env.files import read_json, write_json


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The caches of this test are its own."""
    monkeypatch.setenv("HTM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def calibrated() -> Host:
    return this_host(calibrate=True, seconds=0.01)


def test_a_calibration_is_made_where_it_is_asked_for_and_kept(cache):
    assert this_host().gigaflops is None
    first = calibrated()
    assert first.processor
    assert first.gigaflops is not None and first.gigaflops > 0
    assert this_host() == calibrated() == first
    (kept,) = cache.rglob("*.json")
    values = read_json(kept) | {"gigaflops": 1e-3}  # no machine is so slow
    write_json(kept, values)
    assert calibrated().gigaflops == 1e-3
    write_json(kept, values | {"time": time.time() - 2 * VALID_SECONDS})
    assert this_host().gigaflops is None
    assert calibrated().gigaflops > 1e-3
    kept.write_text("{")
    assert this_host().gigaflops is None


def test_where_nothing_can_be_kept_it_is_made_each_time(cache):
    cache.write_text("a file")
    assert calibrated().gigaflops > 0
    assert this_host().gigaflops is None


def test_products_of_matrices_are_counted():
    """A product of two 256 x 256 matrices is 256 x 256 sums of 256 products each."""
    began = time.perf_counter()
    assert 0 < matrix_gigaflops(seconds=0.05) < 1e6
    assert time.perf_counter() - began >= 0.05

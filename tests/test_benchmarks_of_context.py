"""The benchmarks of context encoders run, and text is learned better than by counting pairs."""

from __future__ import annotations

import json

import pytest

from agents.encoders import ENCODERS
from benchmarks import encoders, text


def test_the_cost_of_every_encoder_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(encoders, "POPULATIONS", {4: 2})
    monkeypatch.setattr(encoders, "SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    encoders.main()
    rows = json.loads((tmp_path / "runs/benchmarks/encoders.json").read_text())["rows"]
    assert [row["encoder"] for row in rows] == ["none", *ENCODERS]
    for row in rows:
        assert all(cost > 0 for name, cost in row.items() if name != "encoder")


@pytest.mark.slow
def test_a_hundred_steps_read_text_better_than_bigrams():
    """Scored on training bytes that are held out, with another seed than the benchmark's."""
    validation = text.Text.load(validate=True)
    training = text.Training(text.HIERARCHIES, validation, seed=100, steps=100).finish()
    assert training.nats() < text.bigram(validation, 0.1)

"""The benchmarks of context encoders run, and text is learned better than by counting pairs."""

from __future__ import annotations

import pytest

from agents.encoders import ENCODERS
from benchmarks import encoders, text


def test_the_cost_of_every_encoder_is_measured():
    rows = encoders.rows_of({4: 2}, seconds=0.0)
    assert [row["encoder"] for row in rows] == ["none", *ENCODERS]
    for row in rows:
        assert list(row)[1:] == ["P = 4: choose, µs", "P = 4: learn, µs"]
        assert all(cost > 0 for cost in list(row.values())[1:])


@pytest.mark.slow
def test_a_hundred_steps_read_text_better_than_bigrams():
    """Scored on training bytes that are held out, with another seed than the benchmark's."""
    validation = text.Text.load(validate=True)
    training = text.Training(text.HIERARCHIES, validation, seed=100, steps=100).finish()
    assert training.nats() < text.bigram(validation, 0.1)

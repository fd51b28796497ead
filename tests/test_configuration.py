"""Bounds of what a configuration may hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from agents.config.dataclasses_json import check_bounds


@dataclass(frozen=True)
class Config:
    count: int = 3
    rate: float = 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count is 0; expected at least 1"),
        ({"count": 0.5}, "count is 0.5; expected a whole number"),
        ({"count": math.inf}, "count is inf; expected a whole number"),
        ({"rate": 1.5}, "rate is 1.5; expected at least 0 and at most 1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"rate": "x"}, "rate is x"),
    ],
)
def test_numbers_out_of_bounds_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_bounds(Config(**changes), count=(1, math.inf), rate=(0, 1))


def test_the_bounds_themselves_are_allowed():
    check_bounds(Config(1, 1), count=(1, 5), rate=(0, 1))
    check_bounds(Config(5, 0.0), count=(1, 5), rate=(0, 1))

"""The comparison with glom-pytorch, without that package."""

from __future__ import annotations

from benchmarks import glom_speed


def test_ratios_are_of_medians_to_the_original():
    """Theirs takes 1, 3 and 9 s, ours 2, 1 and 1; theirs twice our memory."""
    seconds = iter([1.0, 2.0, 9.0, 1.0, 3.0, 1.0])

    def pretended(original: bool, width: int, steps: int) -> dict[str, float]:
        return {"seconds": next(seconds), "memory, MB": 200.0 if original else 100.0}

    theirs, ours = glom_speed.rows_of(32, rounds=3, run=pretended)
    assert (theirs["seconds"], ours["seconds"]) == (3.0, 1.0)
    assert (theirs["speed, times the original"], ours["speed, times the original"]) == (1.0, 3.0)
    assert ours["memory, times the original"] == 0.5


def test_ours_is_measured():
    row = glom_speed.measured(False, 8, steps=1)
    assert row["seconds"] > 0 and row["memory, MB"] >= 0

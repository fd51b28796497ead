"""Values that the options of several commands share."""

from typing import Literal

TEST_EPISODES = 1000
"""Held-out episodes of an evaluation; finite data gives each of its rows once at most."""
PictureFormat = Literal["png", "pdf", "svg"]
Split = Literal["train", "validation", "test"]

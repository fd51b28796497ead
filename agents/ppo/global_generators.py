"""The global generators that Stable-Baselines3 draws from, seeded from a generator of one's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from htm_env.autoencoder import GLOBAL_GENERATORS


@contextmanager
def seeded_globals(generator: torch.Generator) -> Iterator[None]:
    """Inside, the global generators of torch, NumPy and Python follow from ``generator`` alone.

    Afterwards they are as they were before. Other threads that ask for this wait meanwhile.
    """
    seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    devices = [generator.device] if generator.device.type == "cuda" else []
    with GLOBAL_GENERATORS:
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(seed)
                np.random.seed(seed)  # noqa: NPY002
                random.seed(seed)
                yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)

"""Joint training on images of many points: ``python -m benchmarks.lit_pixels``.

scikit-learn's digits, as large as MNIST's (20 of 28 pixels a side) and written as its IDX file, are
read as any user's would be: a token is a lit pixel. Images with 100 to 200 of them are kept. Merges
per second are of the whole training, cloned ones and searches for better trees included; the peak
memory is that of the training and of the evaluation after it.
"""

from __future__ import annotations

import argparse
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from agents import Reinforce, ReinforceConfig
from benchmarks.measuring import Row, add_device, own_process, peak_gigabytes, settle
from benchmarks.table import report
from htm_env.datasets.files import IDX_IMAGES

SECONDS = 600.0
SIDE, INNER, THRESHOLD = 28, 20, 127
"""Pixels of an image, of the digit within it as in MNIST, and the grey above which one is lit."""
FEWEST, MOST = 100, 200
"""Lit pixels of an image."""
EMBEDDING_DIM = 64
SPEED_TARGET, MEMORY_TARGET, ERROR_TARGET = 3000, 2.0, 0.1
CONFIG = ReinforceConfig(candidates="knn", neighbours="centroids")
SHIPPED = partial(Reinforce, config=CONFIG)


def scaled_digits() -> UInt8[np.ndarray, "N 28 28"]:
    """The digits as large as MNIST's, those with as many lit pixels as are wanted."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    small = load_digits().images  # (N, 8, 8), 0 to 16
    large = zoom(small, (1, INNER / 8, INNER / 8), order=1)
    large = np.pad(large, ((0, 0), *2 * [((SIDE - INNER) // 2,) * 2]))
    images = (large * (255 / 16)).round().clip(0, 255).astype(np.uint8)
    lit = (images > THRESHOLD).sum((1, 2))
    return images[(lit >= FEWEST) & (lit <= MOST)]


def write_idx(path: Path, images: UInt8[np.ndarray, "N rows columns"]) -> None:
    """An IDX file of unsigned bytes."""
    path.write_bytes(IDX_IMAGES + struct.pack(">3I", *images.shape) + images.tobytes())


def measure(
    images: UInt8[np.ndarray, "N rows columns"],
    seconds: float,
    seed: int,
    split: str,
    device: str = "cpu",
    *,
    make: Callable[..., Reinforce] = SHIPPED,
    peak: Callable[[str], float] = peak_gigabytes,
) -> Row:
    """One row; ``make`` builds the learner, ``peak`` measures the peak memory on a device."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images-idx3-ubyte"
        write_idx(path, images)
        data = {"dataset": str(path), "threshold": THRESHOLD}
        learner = make(
            "HTM-v0", env_kwargs=data, embedding_dim=EMBEDDING_DIM, seed=seed, device=device
        )
        started = time.perf_counter()
        learner.train(seconds=seconds, progress_bar=True)
        settle(device)
        speed = learner.merges_made / (time.perf_counter() - started)
        found = learner.evaluate(learner.task.dataset(split), sampled=False)
        memory = peak(device)
    tokens = learner.dataset.fixed(10**6).num_tokens
    return {
        "images": len(images),
        "tokens, median": float(tokens.median()),
        "tokens, most": int(tokens.max()),
        "merges/s": speed,
        "merges/s, at least": SPEED_TARGET,
        "peak memory, GB": memory,
        "GB, at most": MEMORY_TARGET,
        "held-out nmse": found["nmse"],
        "nmse, at most": ERROR_TARGET,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of joint training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test", help="of the samples that are reconstructed")
    add_device(parser)
    options = parser.parse_args(arguments)
    asked = scaled_digits(), options.seconds, options.seed, options.split, options.device
    report("lit_pixels", [own_process(measure, *asked)], device=options.device)


if __name__ == "__main__":
    main()

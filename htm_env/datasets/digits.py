"""``DigitsDataset``: scikit-learn's handwritten digits as sets of patches."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float32, Int64

from htm_env.datasets.base import FiniteDataset, RowFacts, check_split

_SPLIT_SEED = 0


class DigitsDataset(FiniteDataset):
    """1797 images of 8x8 pixels, each sixteen 2x2 patches.

    A token is ``(x, y, four intensities)``: the patch's column and row, 0 to 3, and its pixels from
    left to right and top to bottom, 0 to 16. The splits (0.8, 0.1, 0.1) keep the classes' shares.
    Labels are the digits that the images show.
    """

    name = "HTM-Digits-v0"
    kind = "patches"

    def __init__(self, split: str = "train") -> None:
        check_split(split)
        patches, classes, rows_of_splits = _load()
        lengths = np.full(len(patches), patches.shape[1])
        facts = RowFacts(name=self.name, classes=classes, label_values=np.arange(10))
        super().__init__(split, patches, lengths, rows_of_splits, facts)


@lru_cache(maxsize=1)
def _load() -> tuple[
    Float32[np.ndarray, "1797 16 6"],
    Int64[np.ndarray, "1797"],
    tuple[Int64[np.ndarray, "_"], ...],
]:
    # Here, not above: scikit-learn takes a second to import, and only this data needs it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    classes = digits.target.astype(np.int64)
    blocks = digits.images.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4)  # (N, y, x, 2, 2)
    intensities = blocks.reshape(-1, 16, 4)
    y, x = np.divmod(np.arange(16), 4)
    corners = np.broadcast_to(np.stack([x, y], axis=1), (len(classes), 16, 2))
    patches = np.concatenate([corners, intensities], axis=2).astype(np.float32)

    everything = np.arange(len(classes))
    held_out = round(0.1 * len(classes))
    rest, test = train_test_split(
        everything, test_size=held_out, stratify=classes, random_state=_SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=held_out, stratify=classes[rest], random_state=_SPLIT_SEED
    )
    return patches, classes, (train, validation, test)

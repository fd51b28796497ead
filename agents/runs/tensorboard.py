"""TensorBoard events; the only file that imports TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from agents.runs.loop import Position, Scalars
from htm_env.files import naming

PROJECTOR_CONFIG = "projector_config.pbtxt"
"""The file that TensorBoard's projector reads first."""


class TensorBoardLogger:
    """Scalars, pictures and hyperparameters in one folder; the step is the number of merges.

    Args:
        folder: where the event files go.
        resumed_at: the merges of the checkpoint that the run continues from, or None for a run from
            the start: events that an earlier process wrote after it are hidden.

    An ``OSError`` names the folder.
    """

    def __init__(self, folder: str | Path, resumed_at: int | None = None) -> None:
        purge_step = 0 if resumed_at is None else resumed_at + 1
        self.folder = folder
        with naming(folder):
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(self, position: Position, scalars: Scalars) -> None:
        with naming(self.folder):
            for tag, value in scalars.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, position.merges)
            self._writer.flush()

    def image(self, tag: str, pixels: UInt8[np.ndarray, "H W 3"], step: int) -> None:
        """Show a picture of the training at that number of merges."""
        with naming(self.folder):
            self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Show a text in Markdown at that number of merges."""
        with naming(self.folder):
            self._writer.add_text(tag, markdown, step)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Scalars) -> None:
        """Enter the run into the table of hyperparameters, with what it reached.

        Values that TensorBoard cannot hold are written as text. ``SummaryWriter.add_hparams`` would
        make a second run of it in a folder of its own.
        """
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in values.items()
        }
        reached = {tag: value for tag, value in metrics.items() if value is not None}
        file_writer = self._writer.file_writer
        assert file_writer is not None  # only closed writers have none
        with naming(self.folder):
            for summary in hparams(plain, reached):
                file_writer.add_summary(summary)
            for tag, value in reached.items():
                self._writer.add_scalar(tag, value)

    def close(self) -> None:
        with naming(self.folder):
            self._writer.close()


def write_projector(
    folder: str | Path,
    embeddings: Float[np.ndarray, "N D"],
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    pictures: UInt8[np.ndarray, "N pixels pixels 3"],
) -> None:
    """Fill a folder with a log of TensorBoard's projector: points that show their pictures.

    Args:
        folder: an empty folder.
        embeddings: one point a row.
        columns: values of every point by name, to search for and to colour by; the first one is
            what a point is called. At least two.
        pictures: square thumbnails.

    Raises ``ValueError`` for fewer than two columns: the projector reads the name of a single one
    as a value.
    """
    if len(columns) < 2:
        raise ValueError(f"the projector has the columns {list(columns)}; expected at least two")
    rows = [[str(value) for value in row] for row in zip(*columns.values(), strict=True)]
    # The writer multiplies by 255 and cuts; half a step keeps every value as it is.
    images = (pictures.astype(np.float64).transpose(0, 3, 1, 2) + 0.5) / 255.0
    with SummaryWriter(str(folder)) as writer:
        writer.add_embedding(
            embeddings, rows, torch.from_numpy(images), tag="roots", metadata_header=list(columns)
        )

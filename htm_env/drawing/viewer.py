"""Draws one episode of a population: an RGB array, text, or a window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from htm_env.drawing.rendering import Window, figure_to_array, forest_figure, tree_text
from htm_env.population import Population
from htm_env.simulator import Simulator


class Viewer:
    """Frames of the tokens, the forest so far and its reconstruction, in one render mode."""

    def __init__(self, render_mode: str | None, simulator: Simulator) -> None:
        self.render_mode, self.simulator = render_mode, simulator
        self._window: Window | None = None

    def frame(self, population: Population, row: int) -> Any:
        """An ``(H, W, 3)`` uint8 array, a string, or None after drawing into the window."""
        forest, dataset = population.forest, self.simulator.dataset
        merges = forest.merges[row].cpu().numpy()
        merges = merges[merges[:, 0] >= 0]
        present = population.batch.present[row]
        tokens = dataset.to_user(population.batch.tokens[row][present]).cpu().numpy()
        error = float(population.error[row])
        autoencoder, restored = self.simulator.autoencoder, None
        if self.render_mode == "ansi":
            return tree_text(tokens, merges, dataset.kind, error, autoencoder.error_name)
        if autoencoder.decodes:
            active, trees = population.embeddings[row], forest.merges[row]
            with torch.no_grad():
                decoded = autoencoder.decode(active[None], trees[None], present[None])
            restored = dataset.to_user(decoded[0][present]).cpu().numpy()
        title = f"{int(forest.num_active[row])} active, {autoencoder.error_name} {error:.4f}"
        figure = forest_figure(tokens, merges, restored, dataset.kind, title)
        image: np.ndarray = figure_to_array(figure)
        if self.render_mode == "human":
            self._window = self._window or Window()
            self._window.show(image)
            return None
        return image

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

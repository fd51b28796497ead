"""SOAP (Vyas et al. 2024), as a learner that is saved and continued needs it."""

from __future__ import annotations

from typing import Any

import pytorch_optimizer
from torch import Tensor


class SOAP(pytorch_optimizer.SOAP):
    """The library's optimizer, continuing bit for bit from a state that was saved.

    A decomposition gives its matrices column by column, a file row by row, and products of the two
    are rounded differently; so everything is kept as a file gives it back.
    """

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for state in self.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.contiguous()
                elif isinstance(value, list):
                    state[name] = [
                        each.contiguous() if isinstance(each, Tensor) else each for each in value
                    ]
        return loss

"""Token shift: some features are a neighbour's, which makes pairs of tokens cheap to see."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


def shift_back(
    vectors: Float[Tensor, "B K W"], before: Float[Tensor, "B 1 W"] | None = None
) -> Float[Tensor, "B K W"]:
    """The second half of the features comes from the vector before (as in RWKV, Peng et al. 2023);
    ``before``, or zeros, stands before the first."""
    kept, shifted = vectors.chunk(2, dim=2)
    if before is None:
        shifted = pad(shifted, (0, 0, 1, -1))
    else:
        shifted = torch.cat((before.chunk(2, dim=2)[1], shifted[:, :-1]), 1)
    return torch.cat((kept, shifted), 2)


def shift_both_ways(vectors: Float[Tensor, "B K W"]) -> Float[Tensor, "B K W"]:
    """A quarter of the features comes from the vector before, a quarter from the one after."""
    half, quarter = vectors.shape[2] // 2, vectors.shape[2] // 4
    kept, earlier, later = vectors.split((half, quarter, quarter), dim=2)
    return torch.cat((kept, pad(earlier, (0, 0, 1, -1)), pad(later, (0, 0, -1, 1))), 2)

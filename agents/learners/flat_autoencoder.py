"""A set autoencoder without a hierarchy: what merging in a tree is compared with."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from htm_env.autoencoder import HTMAutoencoder
from htm_env.coding.networks import seeded_initialisation
from htm_env.coding.weights_file import not_weights, read_weights, tensors_hash, write_weights


class FlatAutoencoder(nn.Module):
    """Encodes a token set at once into ``D`` numbers, and those at once into a set.

    The encoder is permutation invariant (deep sets, Zaheer et al. 2017, "Deep Sets"): every token
    is lifted, the mean over the tokens goes through a network. The decoder sees the root and how
    many tokens there are, and gives ``P`` tokens in an order that means nothing: whoever compares
    them with a sample matches them first (:func:`matched`).

    Args:
        token_dim: ``T``, coordinates of a token.
        max_tokens: ``P``, the most tokens of a sample.
        embedding_dim: ``D``.
        width: of the hidden layers; :func:`matching_width` makes two kinds comparable.
        generator: draws the initial weights; torch's global generator if None.
    """

    def __init__(
        self,
        token_dim: int,
        max_tokens: int,
        embedding_dim: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = {
            "token_dim": token_dim,
            "max_tokens": max_tokens,
            "embedding_dim": embedding_dim,
            "width": width,
        }
        for name, size in self.config.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        self.token_dim, self.max_tokens = token_dim, max_tokens
        self.embedding_dim = embedding_dim
        with seeded_initialisation(generator):
            self.lifter = _network(token_dim, width, width)
            self.encoder = _network(width, width, embedding_dim)
            self.decoder = nn.Sequential(
                nn.Linear(embedding_dim + max_tokens, width),
                nn.SiLU(),
                _network(width, width, max_tokens * token_dim),
            )
        self.register_buffer("token_mean", torch.zeros(token_dim))
        self.register_buffer("token_std", torch.ones(token_dim))
        self.token_mean: Tensor
        self.token_std: Tensor

    def standardise(self, tokens: Float[Tensor, "B P T"]) -> Float[Tensor, "B P T"]:
        """Coordinates in units of the training split's standard deviation."""
        return (tokens - self.token_mean) / self.token_std

    def set_statistics(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> None:
        """Take the training split's mean and standard deviation of every coordinate."""
        self.token_mean.copy_(mean)
        self.token_std.copy_(std)

    def encode(
        self, standardised: Float[Tensor, "B P T"], present: Bool[Tensor, "B P"]
    ) -> Float[Tensor, "B D"]:
        """One root a sample, whatever the order of its tokens and the number of empty slots."""
        lifted = self.lifter(standardised).masked_fill(~present[..., None], 0.0)  # (B, P, W)
        return self.encoder(lifted.sum(1) / present.sum(1, keepdim=True))

    def decode(
        self, roots: Float[Tensor, "B D"], num_tokens: Int64[Tensor, "B"]
    ) -> Float[Tensor, "B Q T"]:
        """``Q = max_tokens`` standardised tokens, of which the first ``n`` are the sample's set.

        Raises ``ValueError`` for more tokens than the autoencoder was made for.
        """
        most = int(num_tokens.max())
        if most > self.max_tokens:
            raise ValueError(
                f"a sample has {most} tokens; this flat autoencoder was made for at most "
                f"{self.max_tokens}"
            )
        counts = nn.functional.one_hot(num_tokens - 1, self.max_tokens).to(roots.dtype)
        decoded = self.decoder(torch.cat([roots, counts], dim=1))
        return decoded.view(-1, self.max_tokens, self.token_dim)

    def weights_hash(self) -> str:
        """Twelve hexadecimal digits that change with any weight or statistic."""
        return tensors_hash(self.state_dict())

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as one safetensors file, all or nothing."""
        write_weights(path, self.state_dict(), self.config)

    @classmethod
    def load(cls, path: str | Path) -> FlatAutoencoder:
        """Read what :meth:`save` wrote; ``FileNotFoundError`` or ``ValueError`` naming the file."""
        state, config = read_weights(path)
        try:
            autoencoder = cls(**config, generator=torch.Generator())
            autoencoder.load_state_dict(state)
        except (TypeError, ValueError, RuntimeError) as error:
            raise not_weights(path, error) from error
        return autoencoder


def matched(
    decoded: Float[Tensor, "B Q T"],
    target: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
) -> Float[Tensor, "B P T"]:
    """Each sample's decoded tokens in the order of the target's that makes the error least.

    The first ``n`` decoded tokens are assigned one to one (Kuhn 1955, the Hungarian method);
    empty slots get zeros. Gradients reach ``decoded``, not the choice of the order.
    """
    batch, slots = present.shape
    counts = present.sum(1).tolist()
    with torch.no_grad():
        costs = (target[:, :, None] - decoded[:, None, :]).square().sum(-1)  # (B, P, Q)
        # What is not finite cannot be matched, but the error has to show it.
        table = costs.nan_to_num(nan=1e30, posinf=1e30).cpu().numpy()
    order = torch.zeros(batch, slots, dtype=torch.long)
    for row, count in enumerate(counts):
        order[row, :count] = torch.from_numpy(
            linear_sum_assignment(table[row, :count, :count])[1].astype("int64")
        )
    rows = torch.arange(batch, device=decoded.device)[:, None]
    return decoded[rows, order.to(decoded.device)].masked_fill(~present[..., None], 0.0)


def matching_width(token_dim: int, max_tokens: int, embedding_dim: int, hidden_dim: int) -> int:
    """The width at which the flat autoencoder has most nearly as many parameters as the tree's.

    The tree's is :class:`HTMAutoencoder` of the same ``token_dim``, ``embedding_dim`` and
    ``hidden_dim``, with its leaf classifier.
    """
    with torch.device("meta"):  # counts without numbers
        target = num_parameters(HTMAutoencoder(token_dim, embedding_dim, hidden_dim))

        def size(width: int) -> int:
            return num_parameters(FlatAutoencoder(token_dim, max_tokens, embedding_dim, width))

        low, high = 1, 2
        while size(high) < target:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) < target else (low, middle)
        return min((low, high), key=lambda width: abs(size(width) - target))


def num_parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def _network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

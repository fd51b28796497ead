"""The options of the language model, as its own and in the words of the original package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from agents.config.dataclasses_json import LARGEST, check_bounds
from agents.encoders.config import HierarchyConfig
from htm_env.checks import at_least, check_choice, did_you_mean, whole_numbers

LATENT_ERRORS = ("mse_and_cosine_sim", "mse", "smooth_l1")
"""The errors of a predicted vector, by name."""

EARLIER = {
    "hierarchical_ar_loss_weight": "next_weight",
    "prophet_loss_use_quantized": "next_weight and codes",
    "prophet_quantized_use_embed": "next_weight and codes",
    "rq_codebook_size": "codes",
    "rq_codebook_dim": "codes",
    "rq_num_codebooks": "codes",
}
"""Words of versions before 0.4 that are no words here, and those that are closest to them."""

NO_TOKEN = -1
"""The target where there is no token."""

Weights = int | float | tuple[int | float, ...]
"""One weight for all hierarchies, or one for each."""
Numbers = int | float | Sequence[int | float]
"""One number for all hierarchies, or one for each."""


@dataclass(frozen=True)
class HierarchicalTransformerConfig:
    """A causal language model.

    The weights are those of losses beside the cross-entropy of the next token; 0 leaves a loss
    out. Each is a number, or a tuple of one for each hierarchy.
    """

    vocabulary: int = 256
    """Number of different tokens."""
    layers: int | tuple[int, ...] = 2
    """Each has a block for every hierarchy and a merge of them all. In an hourglass, the blocks of
    every hierarchy, or of each."""
    hierarchies: tuple[HierarchyConfig, ...] = (
        HierarchyConfig(),
        HierarchyConfig(rate=2),
        HierarchyConfig(rate=8),
    )
    """Their rates differ, in any order."""
    receiving_rates: tuple[int, ...] | None = None
    """The rates of the hierarchies that what is merged is added to; None: the one that predicts."""
    hourglass: bool = False
    """True <--> not side by side: a hierarchy is between the blocks of the next lower one, whose
    vectors it is made of and to which it is added (Nawrot et al. 2021). The lowest predicts; each
    rate and stride is a multiple of the lower one's."""
    token_autoencoder: bool = False
    """True <--> a hierarchy's first vectors are made of those of the next lower rate, not of the
    tokens: the maps of one encoder, whose decoder is that of ``reconstruction_weight``. Each rate
    and stride is then a multiple of the lower one's."""
    share_attention: bool = False
    """True <--> the hierarchies of a layer have one attention; their widths and heads are equal."""
    next_weight: Weights = 0.0
    """Of the first vector that shares no token with the own one."""
    codes: int = 0
    """0 compares with the next vector itself (cosine); otherwise the next vector's tokens are
    quantised to one of this many codes by a frozen random projection, and the code predicted."""
    reconstruction_weight: Weights = 0.0
    """Of the tokens that each coarse vector is made of."""
    prophet_weight: Weights = 0.0
    """Of the ``rate`` tokens after each coarse vector (ProphetNet, Yan et al. 2020)."""
    latent_weight: Weights = 0.0
    """Of the next vector, from this one and the mean of the next vector's embedded tokens (next
    latent prediction, Teoh et al. 2025, arXiv 2511.05963)."""
    rollouts: int = 1
    """Vectors ahead that the latent prediction goes, each from the prediction before it."""
    rollout_weights: tuple[int | float, ...] | None = None
    """One for each of these vectors ahead, as shares of their sum; None: all alike."""
    rollout_decay: float = 1.0
    """A later step counts exp(-decay * e), where e are the errors of the steps before it."""
    latent_error: str | Callable[[Tensor, Tensor], Tensor] = "mse_and_cosine_sim"
    """Of a predicted vector: mse_and_cosine_sim (nine tenths of one minus the cosine and a tenth of
    the mean square), mse, smooth_l1, or a function of prediction and target (B, m, W) that gives
    (B, m, W) or (B, m, 1)."""
    dynamics_hidden: int | None = None
    """Hidden units of the network that predicts the next vector; None: the hierarchy's width."""
    dynamics_layers: int = 3
    """Its linear layers."""
    predicting_rate: int | None = None
    """The rate of the hierarchy that predicts; its stride is 1. None: the lowest."""
    predict_from_all: bool = False
    """True <--> the logits are made of the vectors of all hierarchies at a token side by side."""
    longest: int | None = None
    """Tokens that may be given at once; None: any number."""
    ignored: int = NO_TOKEN
    """The token that is no target, such as padding at the end of a row. If the vocabulary lacks it,
    its embedding is 0."""

    def __post_init__(self) -> None:
        rates = [each.rate for each in self.hierarchies]
        if not rates or len(set(rates)) < len(rates):
            raise ValueError(f"the rates are {rates}; expected at least one, all different")
        size = (1, LARGEST)
        check_bounds(self, vocabulary=size, codes=(0, LARGEST), rollouts=size)
        check_bounds(self, rollout_decay=0, dynamics_layers=size)
        if self.dynamics_hidden is not None:
            check_bounds(self, dynamics_hidden=size)
        if not callable(self.latent_error):
            check_choice("latent_error", self.latent_error, LATENT_ERRORS)
        self._check_rollout_weights()
        for name in ("next_weight", "reconstruction_weight", "prophet_weight", "latent_weight"):
            weights = self.weights(name)
            if len(weights) != len(rates) or not all(weight >= 0 for weight in weights):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected a number of at least 0, or "
                    f"{len(rates)} of them, one a hierarchy"
                )
        if self.longest is not None:
            check_bounds(self, longest=1)
        if self.predicting_rate not in (None, *rates):
            raise ValueError(f"predicting_rate is {self.predicting_rate}; expected one of {rates}")
        for rate in self.receiving_rates or ():
            if rate not in rates:
                raise ValueError(f"receiving_rates has {rate}; expected some of {rates}")
        if self.receiving_rates == ():
            raise ValueError("receiving_rates is (); expected at least one, or None")
        self._check_layers()
        if self.hourglass:
            self._check_hourglass()
        if self.token_autoencoder:
            self._check_multiples("token_autoencoder")
        if self.share_attention:
            self._check_equal_attention()
        stride = self.hierarchies[self.predicts].stride
        if stride != 1:
            raise ValueError(f"the hierarchy that predicts has stride {stride}; expected 1")

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of each hierarchy."""
        if isinstance(self.layers, tuple):
            return self.layers
        return (self.layers,) * len(self.hierarchies)

    @property
    def predicts(self) -> int:
        """The number of the hierarchy that predicts."""
        rates = [each.rate for each in self.hierarchies]
        return rates.index(min(rates) if self.predicting_rate is None else self.predicting_rate)

    @property
    def receives(self) -> tuple[int, ...]:
        """The numbers of the hierarchies that what is merged is added to."""
        if self.receiving_rates is None:
            return (self.predicts,)
        rates = [each.rate for each in self.hierarchies]
        return tuple(rates.index(rate) for rate in self.receiving_rates)

    def _check_rollout_weights(self) -> None:
        given = self.rollout_weights
        if given is None:
            return
        at_least(0, **{f"rollout_weights[{index}]": each for index, each in enumerate(given)})
        if len(given) != self.rollouts or not sum(given) > 0:
            raise ValueError(
                f"rollout_weights is {given}; expected {self.rollouts} (rollouts), not all 0"
            )

    def _check_layers(self) -> None:
        blocks = whole_numbers("layers", self.layers, 1, LARGEST)
        if isinstance(self.layers, tuple) and not self.hourglass:
            raise ValueError(f"layers is {self.layers}; expected a number, or an hourglass")
        if isinstance(self.layers, tuple) and len(blocks) != len(self.hierarchies):
            raise ValueError(
                f"layers is {self.layers}; expected a number or {len(self.hierarchies)} of them, "
                "one a hierarchy"
            )

    def _check_hourglass(self) -> None:
        self._check_multiples("hourglass")
        lowest = min(each.rate for each in self.hierarchies)
        refused = {
            "receiving_rates": self.receiving_rates is not None,
            "token_autoencoder": self.token_autoencoder,
            "share_attention": self.share_attention,
            "predicting_rate": self.predicting_rate not in (None, lowest),
        }
        for name, given in refused.items():
            if given:
                raise ValueError(f"{name} is {getattr(self, name)}; expected none in an hourglass")

    def _check_multiples(self, reason: str) -> None:
        rising = sorted(self.hierarchies, key=lambda each: each.rate)
        for low, high in pairwise(rising):
            if high.rate % low.rate or high.stride % low.stride:
                raise ValueError(
                    f"rate {high.rate} of stride {high.stride} is above rate {low.rate} of stride "
                    f"{low.stride}; expected multiples of both ({reason})"
                )

    def _check_equal_attention(self) -> None:
        found = {(each.width, each.heads, each.of_a_head) for each in self.hierarchies}
        if len(found) > 1 or any(each.window == 0 for each in self.hierarchies):
            raise ValueError(
                "the hierarchies have different widths, heads, or a window of 0; expected equal "
                "ones with attention (share_attention)"
            )

    def weights(self, name: str) -> tuple[int | float, ...]:
        """The weights of that name, one for each hierarchy."""
        given: Weights = getattr(self, name)
        return given if isinstance(given, tuple) else (given,) * len(self.hierarchies)

    @staticmethod
    def in_words_of_the_original(
        *,
        num_tokens: int,
        dim: int | Sequence[int],
        depth: int | Sequence[int],
        seq_len: int = 2048,
        dim_head: int | Sequence[int] = 64,
        heads: int | Sequence[int] = 8,
        ff_mult: Numbers = 4,
        hierarchies: int | Sequence[int] = 1,
        window_sizes: int | Sequence[int | None] | None = None,
        hierarchical_stride: int | Sequence[int] = 1,
        hierarchy_merge_all: bool = False,
        predict_hierarchy: int | None = None,
        predict_use_all_hierarchy: bool = False,
        recon_loss_weight: Numbers = 0.1,
        prophet_loss_weight: Numbers = 0.0,
        next_weight: Numbers = 0.0,
        codes: int = 0,
        next_latent_loss_weight: Numbers = 0.25,
        next_latent_loss_type: str | Callable[[Tensor, Tensor], Tensor] = "mse_and_cosine_sim",
        num_rollouts: int = 1,
        rollout_weights: Sequence[int | float] | None = None,
        dynamic_rollout_loss_weight: bool = True,
        dynamic_loss_decay: float = 1.0,
        dynamics_hidden_dim: int | None = None,
        dynamics_num_layers: int = 3,
        ignore_index: int = 0,
        use_flash_attn: bool = False,
        compressor: str | Sequence[str] = "convolution",
        hourglass: bool = False,
        token_autoencoder: bool = False,
        share_attention: bool = False,
    ) -> HierarchicalTransformerConfig:
        """The words and defaults of ``simple-hierarchical-transformer`` 0.4.0 (PyPI).

        A number holds for all hierarchies, a tuple has one for each.

        Args:
            num_tokens: size of the vocabulary.
            dim: widths.
            depth: layers; in an hourglass also one number a hierarchy.
            seq_len: the longest input.
            dim_head: numbers of one head.
            heads: heads of each attention.
            ff_mult: hidden units of the feed-forward network, as a multiple of the width.
            hierarchies: the rates, 1 being the tokens themselves.
            window_sizes: reach of attention, in vectors ``rate`` tokens apart; None: everywhere; 0:
                no attention.
            hierarchical_stride: tokens from one vector to the next.
            hierarchy_merge_all: what is merged goes into every hierarchy.
            predict_hierarchy: the rate that predicts; None: the lowest.
            predict_use_all_hierarchy: predict from all hierarchies.
            recon_loss_weight: of the tokens that a vector is made of.
            prophet_loss_weight: of the ``rate`` tokens after a vector (versions before 0.4).
            next_weight, codes: of the next vector that shares no token with the own one, or of its
                code by a random projection. No words of the original.
            next_latent_loss_weight: of the next vector, from this one and the tokens between them.
            next_latent_loss_type: the error of a predicted vector, by name or as a function.
            num_rollouts: vectors ahead.
            rollout_weights: one for each of them.
            dynamic_rollout_loss_weight: count a later one less where those before it are wrong.
            dynamic_loss_decay: how much less.
            dynamics_hidden_dim: hidden units of the network that predicts the next vector.
            dynamics_num_layers: its linear layers.
            ignore_index: the token that is no target; 0 by default, also where 0 is a byte.
            use_flash_attn: changes nothing; PyTorch selects the kernel by itself.
            hourglass: a hierarchy between the blocks of the next lower one, not beside them; no
                word of the original.
            compressor: what makes one vector of several tokens, convolution or attention. This and
                the next two are on the original's list of what is to be tried.
            token_autoencoder: each hierarchy starts from the next lower one.
            share_attention: one attention for all hierarchies of a layer.

        Raises:
            ValueError: there is neither one value nor one for each hierarchy, or as the classes do.
        """
        rates = tuple(hierarchies) if isinstance(hierarchies, Sequence) else (hierarchies,)

        def each(name: str, value: Any) -> tuple[Any, ...]:
            several = isinstance(value, Sequence) and not isinstance(value, str)
            values = tuple(value) if several else (value,) * len(rates)
            if len(values) != len(rates):
                raise ValueError(
                    f"{name} is {value}; expected one value or {len(rates)}, one a hierarchy"
                )
            return values

        columns = (
            rates,
            each("hierarchical_stride", hierarchical_stride),
            each("dim", dim),
            each("heads", heads),
            tuple(map(float, each("ff_mult", ff_mult))),
            each("window_sizes", window_sizes),
            each("dim_head", dim_head),
            each("compressor", compressor),
        )
        return HierarchicalTransformerConfig(
            vocabulary=num_tokens,
            layers=tuple(depth) if isinstance(depth, Sequence) else depth,
            hierarchies=tuple(HierarchyConfig(*row) for row in zip(*columns, strict=True)),
            receiving_rates=rates if hierarchy_merge_all else None,
            hourglass=hourglass,
            token_autoencoder=token_autoencoder,
            share_attention=share_attention,
            reconstruction_weight=each("recon_loss_weight", recon_loss_weight),
            prophet_weight=each("prophet_loss_weight", prophet_loss_weight),
            next_weight=each("next_weight", next_weight),
            codes=codes,
            latent_weight=each("next_latent_loss_weight", next_latent_loss_weight),
            rollouts=num_rollouts,
            rollout_weights=None if rollout_weights is None else tuple(rollout_weights),
            rollout_decay=dynamic_loss_decay if dynamic_rollout_loss_weight else 0.0,
            latent_error=next_latent_loss_type,
            dynamics_hidden=dynamics_hidden_dim,
            dynamics_layers=dynamics_num_layers,
            predicting_rate=predict_hierarchy,
            predict_from_all=predict_use_all_hierarchy,
            longest=seq_len,
            ignored=ignore_index,
        )


_SIGNATURE = inspect.signature(HierarchicalTransformerConfig.in_words_of_the_original).parameters
WORDS = tuple(_SIGNATURE)
"""The words of the original package that are words here."""
NEEDED = tuple(word for word, each in _SIGNATURE.items() if each.default is each.empty)
"""Those without a default."""


def check_words(given: Collection[str], others: Sequence[str]) -> None:
    """Raise ``ValueError`` for a word that is neither one of :data:`WORDS` nor of the ``others``,
    with what is closest to it, and for a needed word that is not there."""
    known = [*WORDS, *others]
    for word in given:
        if word not in known:
            like = f" (did you mean {EARLIER[word]}?)" if word in EARLIER else ""
            raise ValueError(
                f"HierarchicalTransformer has no keyword {word!r}; expected those of "
                "HierarchicalTransformerConfig.in_words_of_the_original"
                + (like or did_you_mean(word, known))
            )
    for word in NEEDED:
        if word not in given:
            raise ValueError(
                f"HierarchicalTransformer has no {word}: expected {', '.join(NEEDED)}, or a config"
            )

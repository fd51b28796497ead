"""A causal language model with parallel hierarchies, of use without any token merging."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from agents.encoders.hierarchical.config import (
    NO_TOKEN,
    HierarchicalTransformerConfig,
    check_words,
)
from agents.encoders.hierarchical.hourglass import HourglassLayers
from agents.encoders.hierarchical.layers import (
    Cache,
    HierarchicalLayers,
    Hierarchies,
    norm_before,
    spread,
)
from agents.encoders.hierarchical.objectives import Objectives, token_loss
from htm_env.autoencoder import seeded_initialisation
from htm_env.checks import Whole, at_least, whole_number

if TYPE_CHECKING:
    Tokens = Integer[Tensor, "B L"] | Sequence[Tensor] | Sequence[Sequence[int]]
else:
    # Anything, since the checks below answer better than a type.
    Tokens = Any


class LossParts(NamedTuple):
    """The parts of a loss, weighted: it is the sum of the first three."""

    token: Float[Tensor, ""]
    """Cross-entropy of the next token, in nats."""
    ahead: Float[Tensor, ""]
    """All losses of what follows a vector: next vectors, codes, tokens and latent predictions."""
    reconstruction: Float[Tensor, ""]
    """That of the tokens that vectors are made of."""
    by_hierarchy: tuple[Float[Tensor, ""], ...]
    """What is in ``ahead``, one a hierarchy."""


class HierarchicalTransformer(nn.Module):
    """Predicts each next token from those before it, seen at several rates at once (after the
    simple hierarchical transformer, P. Wang 2023, and Nawrot et al. 2021).

    Its options are a config, or the words of ``simple-hierarchical-transformer``::

        model = HierarchicalTransformer(
            num_tokens=256, dim=128, depth=4, hierarchies=(1, 2, 8), window_sizes=(32, 64, None)
        )
        loss, parts = model(ids, return_loss=True)
        logits = model(ids)  # (B, L, 256)
        text = model.generate(ids[:, :16], 100, temperature=0.8, top_p=0.9)

    Tokens are whole numbers of any type, ``uint8`` among them: (B, L), or a list of rows (tensors
    or lists of numbers) of different lengths. Any length of at least one token works. A coarse
    vector is given to the tokens from its last one on, so that nothing at token ``t`` depends on a
    token after ``t``, nor on padding behind the row.
    """

    def __init__(
        self,
        config: HierarchicalTransformerConfig | None = None,
        *,
        chunk_summarizers: nn.Module | Sequence[nn.Module | None] | None = None,
        detach_summaries: bool = True,
        generator: torch.Generator | None = None,
        **words: Any,
    ) -> None:
        """Makes the networks.

        Args:
            config: None is the default one, or that of the words.
            chunk_summarizers: of the latent prediction, one a hierarchy or one for all: each gives
                (B, vectors, width) for embedded tokens (B, L, embedding); None: the mean.
            detach_summaries: no gradient of the latent prediction reaches the embedding by them.
            generator: draws all weights; without one, torch's own does.
            words: those of :meth:`HierarchicalTransformerConfig.in_words_of_the_original`.

        Raises ``ValueError`` for a config beside words, a word that there is not or that is
        missing, not as many summarizers as hierarchies, or one of a hierarchy whose weight of the
        latent prediction is 0.
        """
        super().__init__()
        if words and config is not None:
            raise ValueError(f"there is a config beside {sorted(words)}; expected one of the two")
        if words:
            check_words(words, ("config", "chunk_summarizers", "detach_summaries", "generator"))
            config = HierarchicalTransformerConfig.in_words_of_the_original(**words)
        self.config = config = config or HierarchicalTransformerConfig()
        hierarchies = config.hierarchies
        summarizers = chunk_summarizers
        if summarizers is None or isinstance(summarizers, nn.Module):
            summarizers = [summarizers] * len(hierarchies)
        if len(summarizers) != len(hierarchies):
            raise ValueError(
                f"there are {len(summarizers)} chunk summarizers; expected {len(hierarchies)}, one "
                "a hierarchy"
            )
        weights = config.weights("latent_weight")
        for each, summarizer, weight in zip(hierarchies, summarizers, weights, strict=True):
            if summarizer is not None and not weight:
                raise ValueError(
                    f"there is a chunk summarizer of rate {each.rate}, whose latent weight "
                    "(next_latent_loss_weight) is 0; expected None, or a weight above 0"
                )
        everywhere = tuple(range(len(hierarchies)))
        self.predicting = everywhere if config.predict_from_all else (config.predicts,)
        embedding = max(each.width for each in hierarchies)
        predicting = [hierarchies[index].width for index in self.predicting]
        with seeded_initialisation(generator):
            self.embedding = nn.Embedding(config.vocabulary, embedding)
            self.layers: HierarchicalLayers | HourglassLayers
            if config.hourglass:
                self.layers = HourglassLayers(hierarchies, config.blocks, embedding)
            else:
                self.layers = HierarchicalLayers(
                    hierarchies,
                    config.blocks[0],
                    embedding,
                    causal=True,
                    receivers=config.receives,
                    chained=config.token_autoencoder,
                    share_attention=config.share_attention,
                )
            self.last_norms = nn.ModuleList(
                norm_before(width, weights=True) for width in predicting
            )
            self.head = nn.Linear(sum(predicting), config.vocabulary, bias=False)
            self.objectives = Objectives(
                config, embedding, summarizers, detach_summaries, generator
            )

    @property
    def seq_len(self) -> int | None:
        """Tokens that may be given at once; None: any number."""
        return self.config.longest

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    def forward(
        self,
        ids: Tokens,
        return_loss: bool = False,
        return_hierarchical_token_embeds: bool = False,
        return_hierarchical_embeds: bool = False,
        return_logits_and_embeds: bool = False,
        ablate_hierarchical_merge: bool = False,
    ) -> (
        Float[Tensor, "B L V"]
        | tuple[Float[Tensor, ""], LossParts]
        | list[Tensor]
        | tuple[Float[Tensor, "B L V"], list[Tensor]]
    ):
        """Logits of the token that follows each, unless something else is asked for.

        Args:
            return_loss: the loss and its parts. It is that of ``ids`` themselves, every token but
                the first being a target.
            return_hierarchical_token_embeds: the vectors of each hierarchy as they enter the
                layers, (B, ceil(L / stride), width).
            return_hierarchical_embeds: those that come out of the last layer, normalised.
            return_logits_and_embeds: both the logits and these.
            ablate_hierarchical_merge: nothing is merged, so that each hierarchy is by itself.

        Raises ``ValueError`` where the tokens are no whole numbers, have another shape, or are too
        many, and where more than one result is asked for.
        """
        wanted = {
            "return_loss": return_loss,
            "return_hierarchical_token_embeds": return_hierarchical_token_embeds,
            "return_hierarchical_embeds": return_hierarchical_embeds,
            "return_logits_and_embeds": return_logits_and_embeds,
        }
        if sum(wanted.values()) > 1:
            found = ", ".join(word for word, is_wanted in wanted.items() if is_wanted)
            raise ValueError(f"there are {found}; expected at most one of them")
        tokens = self._tokens(ids)
        merging = not ablate_hierarchical_merge
        if return_loss:
            return self._loss(self.losses(tokens, merging=merging))
        self._check_length(tokens.shape[1])
        hierarchies = self.read(self.embed(tokens), merging=merging)
        if return_hierarchical_token_embeds:
            return hierarchies.starts
        if return_hierarchical_embeds:
            return self._normalised(hierarchies)
        logits = self.logits(hierarchies)
        return (logits, self._normalised(hierarchies)) if return_logits_and_embeds else logits

    def _loss(self, losses: dict[str, Float[Tensor, ""]]) -> tuple[Float[Tensor, ""], LossParts]:
        zero = losses["token"].new_zeros(())
        rates = [each.rate for each in self.config.hierarchies]
        ahead = [
            sum((losses.get(f"{name}_{rate}", zero) for name in AHEAD), start=zero)
            for rate in rates
        ]
        reconstruction = [losses.get(f"reconstruction_{rate}", zero) for rate in rates]
        parts = LossParts(
            losses["token"],
            torch.stack(ahead).sum(),
            torch.stack(reconstruction).sum(),
            tuple(ahead),
        )
        return torch.stack(parts[:3]).sum(), parts

    def _normalised(self, hierarchies: Hierarchies) -> list[Tensor]:
        """The last vectors of each hierarchy: those that predict as the head receives them."""
        normed = [layer_norm(each, each.shape[2:]) for each in hierarchies.ends]
        for index, norm in zip(self.predicting, self.last_norms, strict=True):
            normed[index] = norm(hierarchies.ends[index])
        return normed

    def embed(self, tokens: Integer[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Raises ``ValueError`` where there is no token, or one that the vocabulary lacks."""
        if tokens.shape[1] == 0:
            raise ValueError("the length is 0; expected at least one token")
        last = self.config.vocabulary - 1
        tokens = tokens.long()
        wrong = (tokens < 0) | (tokens > last)
        empty = wrong & (tokens == self.config.ignored)
        if (wrong & ~empty).any():
            bad = int(tokens[wrong & ~empty][0])
            raise ValueError(f"a token is {bad}; expected 0 to {last}")
        embedded = self.embedding(tokens.masked_fill(empty, 0))
        return embedded.masked_fill(empty[..., None], 0.0)

    def read(
        self, embedded: Float[Tensor, "B L E"], cache: Cache | None = None, merging: bool = True
    ) -> Hierarchies:
        """The vectors of every hierarchy; without ``merging`` each is by itself."""
        return self.layers(embedded, cache=cache, merging=merging)

    def logits(self, hierarchies: Hierarchies) -> Float[Tensor, "B L V"]:
        """From the last vectors of the hierarchy that predicts, or of all."""
        length = hierarchies.ends[self.config.predicts].shape[1]
        strides = [each.stride for each in self.config.hierarchies]
        ends = [spread(hierarchies.ends[i], strides[i], length) for i in self.predicting]
        return self._logits(ends)

    def losses(self, ids: Tokens, merging: bool = True) -> dict[str, Float[Tensor, ""]]:
        """Losses by name, weighted, to be added up.

        ``token`` is the cross-entropy in nats of every token but the first; ``next_R``,
        ``prophet_R``, ``latent_R`` and ``reconstruction_R``, where asked for, are those of the
        hierarchy of rate ``R``. Without ``merging`` each hierarchy is by itself.
        """
        tokens = self._tokens(ids)
        self._check_length(tokens.shape[1] - 1)
        targets = tokens.masked_fill(tokens == self.config.ignored, NO_TOKEN)
        embedded = self.embed(tokens)
        hierarchies = self.read(embedded, merging=merging)
        token = token_loss(self.logits(hierarchies)[:, :-1], targets[:, 1:])
        return {"token": token, **self.objectives(targets, embedded, hierarchies)}

    @torch.no_grad()
    def generate(
        self,
        prompt: Tokens,
        length: Whole,
        temperature: float = 1.0,
        filter_thres: float | None = None,
        *,
        top_k: Whole | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        cached: bool = True,
    ) -> Int64[Tensor, "B {length}"]:
        """The ``length`` tokens that follow the prompt.

        Args:
            prompt: at least one token; of more than ``config.longest``, the last of them. Rows of
                different lengths are a list, and each goes on from its own last token.
            length: how many tokens to add; together they may be more than ``config.longest``.
            temperature: divides the logits; 0 takes the most likely token.
            filter_thres: the share of the vocabulary, the least likely tokens, that is left out.
            top_k: tokens that are left, the most likely ones; not beside ``filter_thres``.
            top_p: the probability that the most likely tokens have to reach; the others are left
                out (nucleus sampling, Holtzman et al. 2020).
            generator: draws the tokens.
            cached: keep keys, values and whatever else is needed of earlier tokens, so that a new
                one costs one step; otherwise everything is computed again. The tokens are the same.

        Raises ``ValueError`` for an option that is out of range, or a prompt with tokens that the
        vocabulary lacks: padding, which nothing could follow, among them.
        """
        whole_number("length", length, 0, 2**31)
        at_least(0, temperature=temperature)
        if filter_thres is not None and top_k is not None:
            raise ValueError(f"filter_thres is beside top_k {top_k}; expected one of the two")
        for name, share in (("filter_thres", filter_thres), ("top_p", top_p)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected 0 to 1")
        if filter_thres is not None:
            top_k = max(1, int((1 - filter_thres) * self.config.vocabulary))
        if top_k is not None:
            whole_number("top_k", top_k, 1, 2**31)

        def choose(logits: Float[Tensor, "B V"]) -> Int64[Tensor, "B 1"]:
            return _choose(
                nucleus(likeliest(logits, top_k), top_p, temperature), temperature, generator
            )

        if isinstance(prompt, Tensor):
            return self._go_on(self._tokens(prompt), length, choose, cached)
        rows = self._rows(prompt)
        lengths = torch.tensor([len(row) for row in rows])
        written = torch.empty(len(rows), length, dtype=torch.long, device=rows[0].device)
        for equal in lengths.unique():
            places = (lengths == equal).nonzero().flatten().tolist()
            together = torch.stack([rows[place] for place in places])
            written[places] = self._go_on(together, length, choose, cached)
        return written

    def _go_on(
        self,
        prompt: Int64[Tensor, "B L"],
        length: int,
        choose: Callable[[Float[Tensor, "B V"]], Int64[Tensor, "B 1"]],
        cached: bool,
    ) -> Int64[Tensor, "B {length}"]:
        """The tokens that are chosen one after the other behind rows of one length."""
        ignored = self.config.ignored
        if not 0 <= ignored < self.config.vocabulary and (prompt == ignored).any():
            raise ValueError(
                f"the prompt has the token {ignored}, which is padding; expected a list of rows "
                "without it"
            )
        if self.config.longest is not None:
            prompt = prompt[:, -self.config.longest :]
        tokens = prompt
        cache = self.layers.empty_cache() if cached else None
        logits = self.logits(self.read(self.embed(tokens), cache))[:, -1]
        for added in range(length):
            tokens = torch.cat((tokens, choose(logits)), 1)
            if added + 1 == length:
                break
            if cache is None:
                logits = self.logits(self.read(self.embed(tokens)))[:, -1]
            else:
                ends = self.layers.step(self.embed(tokens[:, -1:]), cache)
                logits = self._logits([ends[index] for index in self.predicting])[:, -1]
        return tokens[:, prompt.shape[1] :]

    def _logits(self, ends: Sequence[Float[Tensor, "B L _"]]) -> Float[Tensor, "B L V"]:
        normed = [norm(each) for norm, each in zip(self.last_norms, ends, strict=True)]
        return self.head(torch.cat(normed, 2))

    def _tokens(self, ids: Tokens) -> Int64[Tensor, "B L"]:
        """Rows of different lengths are filled with the ignored token, which is no input that
        another token depends on."""
        if not isinstance(ids, Tensor):
            rows = self._rows(ids)
            return nn.utils.rnn.pad_sequence(rows, True, padding_value=self.config.ignored)
        if ids.ndim != 2 or len(ids) == 0:
            shape = tuple(ids.shape)
            raise ValueError(f"the tokens have the shape {shape}; expected (batch, length)")
        return _whole(ids)

    def _rows(self, ids: Any) -> list[Int64[Tensor, "_"]]:
        """Rows of different lengths, checked."""
        try:
            rows = [
                row
                if isinstance(row, Tensor)
                else torch.tensor(row, device=self.head.weight.device)
                for row in ids
            ]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError("the tokens are no rows of whole numbers") from error
        shapes = [tuple(row.shape) for row in rows]
        if not rows or any(len(shape) != 1 or shape == (0,) for shape in shapes):
            raise ValueError(
                f"the rows of tokens have the shapes {shapes}; expected at least one, all (length,)"
            )
        return [_whole(row) for row in rows]

    def _check_length(self, length: int) -> None:
        if self.config.longest is not None and length > self.config.longest:
            raise ValueError(
                f"the length is {length}; expected at most {self.config.longest} (seq_len)"
            )


def _whole(tokens: Tensor) -> Int64[Tensor, "*shape"]:
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"the tokens are {tokens.dtype}; expected whole numbers")
    return tokens.long()


AHEAD = ("next", "prophet", "latent")
"""The losses of what follows a vector."""


def likeliest(logits: Float[Tensor, "B V"], count: int | None) -> Float[Tensor, "B V"]:
    """Minus infinity for all but the ``count`` largest; None leaves all."""
    if count is None or count >= logits.shape[1]:
        return logits
    least = logits.topk(count, dim=1).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def nucleus(
    logits: Float[Tensor, "B V"], reached: float | None, temperature: float
) -> Float[Tensor, "B V"]:
    """Minus infinity for all but the largest that have the probability ``reached`` together."""
    if reached is None or temperature == 0:
        return logits
    ordered, index = (logits / temperature).softmax(1).sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    left_out = before >= reached
    left_out[:, 0] = False
    return logits.masked_fill(torch.zeros_like(left_out).scatter(1, index, left_out), -torch.inf)


def _choose(
    logits: Float[Tensor, "B V"], temperature: float, generator: torch.Generator | None
) -> Int64[Tensor, "B 1"]:
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)

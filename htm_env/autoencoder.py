"""The autoencoder: lifter, merger, unmerger, unlifter and leaf classifier, run level by level."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from htm_env.actions import action_masks, action_slots, why_illegal
from htm_env.candidates import Nearest, Neighbourhood, check_candidates
from htm_env.checks import at_least, check_choice, whole_number
from htm_env.files import check_weights, load_weights, read_tensors, reading, write_tensors
from htm_env.forest import (
    Forest,
    Level,
    active_nodes,
    check_merges,
    check_present,
    forest_levels,
    leftmost_leaves,
    pad_merges,
)
from htm_env.membership import ACTION_MASK, Membership, check_extras, observed_extras
from htm_env.posed import (
    PosedLifter,
    PosedMerger,
    PosedUnlifter,
    PosedUnmerger,
    common_units,
    split_pose,
)

AutoencoderType = TypeVar("AutoencoderType", bound="SavedAutoencoder")

WIDEST = 2**20
"""Width of an embedding, a token or a hidden layer, at most."""
WEIGHTS_KEY = "htm_autoencoder"
"""The key of the configuration in a file of weights."""
NOTHING_DECODED = "nothing can be decoded here: the merger is known, and there is no autoencoder"
RAREST = 1e-4
"""Frequency that a value of a category has at least, before anything is learned."""
BLOCK = 512
"""Rows that a processor takes at a time where no gradient is needed: what lies between two layers
then stays in its cache, which halves the time of many rows."""


class ResidualNetwork(nn.Module):
    """A linear skip from input to output beside one hidden layer of gated units.

    The skip lets a merge keep coordinates exactly from the first update on, and keeps gradients
    alive through a tree of merges. A hidden unit is a product, ``silu(a) tanh(b)`` of two affine
    maps (gated linear units, Dauphin et al. 2017; Shazeer 2020): angles and lengths, that is what
    directions and crossings are made of, need products, and sums of plain units, which cannot make
    them, train slowly. One factor is bounded, so that a unit grows no faster than its
    input, however deep the tree.
    Two thirds of ``hidden`` units have the parameters of ``hidden`` plain ones; a multiple of 8 is
    what matrix products like. A second hidden layer costs three times as much and, in equal time,
    measured worse.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        units = math.ceil(hidden * 2 / 3 / 8) * 8
        self.skip = nn.Linear(inputs, outputs)
        self.value = nn.Linear(inputs, units)
        self.gate = nn.Linear(inputs, units)
        self.last = nn.Linear(units, outputs, bias=False)
        nn.init.ones_(self.gate.bias)  # open at first: plain units, which learn faster early on

    def forward(self, values: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            hidden = nn.functional.silu(self.value(values)) * torch.tanh(self.gate(values))
            summed: Tensor = self.skip(values) + self.last(hidden)
            return summed
        if values.ndim != 2 or len(values) <= BLOCK or values.device.type != "cpu":
            return self._without_gradients(values)
        return torch.cat([self._without_gradients(block) for block in values.split(BLOCK)])

    def _without_gradients(self, values: Tensor) -> Tensor:
        """The same in place."""
        hidden = nn.functional.silu(self.value(values), inplace=True)
        hidden *= _tanh_(self.gate(values))
        summed: Tensor = self.last(hidden).add_(self.skip(values))
        return summed


def _tanh_(values: Tensor) -> Tensor:
    """In place; of float32 as ``2 sigmoid(2 x) - 1``, which a processor has in a fifth of the time.

    The difference loses what of a gate lies below 1e-7. With gradients it gains nothing: what is
    saved going forward is spent coming back.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.tanh_()
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)


def plain_network(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """The published method's MLP with two hidden layers, initialised as there."""
    network = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 1e-3)
    return network


def linear(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """One affine layer, whatever ``hidden`` says."""
    return nn.Linear(inputs, outputs)


class Architecture(NamedTuple):
    """Constructors of the networks, from inputs, hidden width and outputs."""

    lifter: Callable[[int, int, int], nn.Module]
    """Makes the lifter and the unlifter."""
    merger: Callable[[int, int, int], nn.Module]
    """Makes the merger, the unmerger and the classifier."""


ARCHITECTURES = {
    "residual": Architecture(ResidualNetwork, ResidualNetwork),
    "mlp": Architecture(linear, plain_network),
    "posed": Architecture(ResidualNetwork, ResidualNetwork),
}
"""This project's, the published method's, and this project's with poses (``posed.py``)."""
POSED = ("posed",)
"""Those whose embeddings are pose and content."""


# ---------------------------------------------------------------- the networks on numpy arrays

# A call of a torch layer costs microseconds before it computes anything: for few rows, most of its
# time. Results are torch's up to rounding.

ArrayFunction = Callable[[np.ndarray], np.ndarray]
"""From ``(rows, inputs)`` to ``(rows, outputs)``."""


def array_function(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
    """The function of a network on the processor, with its weights as they are now.

    Views are kept for as long as the weights are where they were.
    """
    if type(network) is ResidualNetwork:
        return _kept(network)
    make: Callable[..., ArrayFunction] = _MAKERS.get(type(network), _through_torch)
    return make(network)


def _kept(network: ResidualNetwork) -> ArrayFunction:
    places = [  # past the attributes of modules, each of which takes a microsecond
        weight.data_ptr()
        for layer in network._modules.values()
        for weight in layer._parameters.values()  # type: ignore[union-attr]
        if weight is not None
    ]
    made = _MADE.get(network)
    if made is None or made[0] != places:
        made = _MADE[network] = places, _residual(network)
    return made[1]


def _residual(network: ResidualNetwork) -> ArrayFunction:
    layers = network.skip, network.value, network.gate, network.last
    skip, value, gate, last = (_view(layer.weight).T for layer in layers)
    skip_bias, value_bias, gate_bias = (_view(layer.bias) for layer in layers[:3])

    def function(rows: np.ndarray) -> np.ndarray:
        half = rows.dot(value)
        half += value_bias
        hidden = silu(half)
        opened = rows.dot(gate)
        opened += gate_bias
        hidden *= np.tanh(opened, out=opened)
        outputs: np.ndarray = rows.dot(skip)
        outputs += skip_bias
        outputs += hidden.dot(last)
        return outputs

    return function


def packed_function(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
    """The same of weights that stay as they are for as long as the function is used: some are
    copied, so that what is multiplied with the inputs is multiplied at once.

    A network that is none of torch's may say what it is on arrays by a method ``on_arrays``.
    """
    own: Callable[[], ArrayFunction] | None = getattr(network, "on_arrays", None)
    if own is not None:
        return own()
    weights = packed_weights(network)
    return array_function(network) if weights is None else _packed(weights)


class PackedWeights(NamedTuple):
    """The weights of a :class:`ResidualNetwork`: those that its inputs are multiplied with are side
    by side, of values, gates and the skip."""

    weight: np.ndarray
    bias: np.ndarray
    last: np.ndarray


def packed_weights(network: Callable[[Tensor], Tensor]) -> PackedWeights | None:
    """Copies of the weights of a network; None of one that computes something else.

    A network that is none of torch's may give those of one that it holds, by a method of this name,
    where it does no more than hand that one's outputs on, with the centroid and the logarithm of
    the number of leaves beside them.
    """
    own: Callable[[], PackedWeights | None] | None = getattr(network, "packed_weights", None)
    if own is not None:
        return own()
    if type(network) is not ResidualNetwork:
        return None
    layers = network.value, network.gate, network.skip
    weight = np.concatenate([_view(layer.weight) for layer in layers]).T.copy()
    bias = np.concatenate([_view(layer.bias) for layer in layers])
    return PackedWeights(weight, bias, np.ascontiguousarray(_view(network.last.weight).T))


def _packed(weights: PackedWeights) -> ArrayFunction:
    weight, bias, last = weights
    units = len(last)

    def function(rows: np.ndarray) -> np.ndarray:
        made = rows.dot(weight)
        made += bias
        hidden = silu(made[:, :units])
        hidden *= np.tanh(made[:, units : 2 * units])
        outputs: np.ndarray = hidden.dot(last)
        outputs += made[:, 2 * units :]
        return outputs

    return function


def _affine(layer: nn.Linear) -> ArrayFunction:
    weight = _view(layer.weight).T
    if layer.bias is None:
        return lambda rows: rows @ weight
    bias = _view(layer.bias)
    return lambda rows: rows @ weight + bias


def _sequence(network: nn.Sequential) -> ArrayFunction:
    functions = [array_function(layer) for layer in network]

    def function(rows: np.ndarray) -> np.ndarray:
        for layer in functions:
            rows = layer(rows)
        return rows

    return function


def _relu(network: nn.ReLU) -> ArrayFunction:
    return lambda rows: np.maximum(rows, 0.0)


def _silu(network: nn.SiLU) -> ArrayFunction:
    return silu


def silu(values: np.ndarray) -> np.ndarray:
    """``v sigmoid(v) = v / 2 + v / 2 tanh(v / 2)``, which does not overflow."""
    half = values * 0.5
    found: np.ndarray = np.tanh(half)
    found *= half
    found += half
    return found


def _through_torch(network: Callable[[Tensor], Tensor]) -> ArrayFunction:
    @torch.no_grad()
    def function(rows: np.ndarray) -> np.ndarray:
        outputs: np.ndarray = network(torch.from_numpy(rows)).numpy()
        return outputs

    return function


def _view(weight: Tensor) -> np.ndarray:
    array: np.ndarray = weight.detach().numpy()
    return array


_MADE: WeakKeyDictionary[nn.Module, tuple[list[int], ArrayFunction]] = WeakKeyDictionary()
_MAKERS: dict[type, Callable[..., ArrayFunction]] = {
    nn.Linear: _affine,
    nn.Sequential: _sequence,
    nn.ReLU: _relu,
    nn.SiLU: _silu,
}
"""By the class of the network, exactly: a subclass may compute something else."""


# ---------------------------------------------------------------- the parts of an autoencoder

GLOBAL_GENERATORS = RLock()
"""Held by the thread that has seeded the global generators, until they are as they were before."""
if hasattr(os, "register_at_fork"):  # a copy of the process is not to wait for another's thread
    os.register_at_fork(
        before=GLOBAL_GENERATORS.acquire,
        after_in_parent=GLOBAL_GENERATORS.release,
        after_in_child=GLOBAL_GENERATORS.release,
    )


@contextmanager
def seeded_initialisation(generator: torch.Generator | None) -> Iterator[None]:
    """Let torch's layers draw their initial weights from ``generator``, and from nothing else.

    torch's initialisers draw from the global generator only; its state is restored. Other threads
    that ask for this wait meanwhile.
    """
    if generator is None:
        yield
        return
    with GLOBAL_GENERATORS, torch.random.fork_rng(devices=[]):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.default_generator.manual_seed(int(seed))
        yield


MergeCosts = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``costs(first (I, D), second (I, D), merged (I, D), last (I,)) -> (I,)``; ``last``: True <--> the
merge makes a root."""

Policy = Callable[[dict[str, Tensor], torch.Generator | None], Int64[Tensor, "B"]]
"""``policy(observation batch, generator) -> actions``: the observation keys of the environment."""


@dataclass(frozen=True)
class Encoding:
    """Result of encoding a batch of forests."""

    nodes: Float[Tensor, "B N D"]
    """The embedding of every node; zeros for nodes that do not exist."""
    population: Float[Tensor, "B P D"]
    """The embeddings of the active nodes, each in its slot; zeros in empty slots."""
    num_active: Int64[Tensor, "B"]

    @property
    def roots(self) -> Float[Tensor, "B D"]:
        """The root embedding of every sample; ``ValueError`` where a forest is not one tree."""
        if (self.num_active != 1).any():
            row = int((self.num_active != 1).nonzero()[0])
            raise ValueError(
                f"sample {row} has {int(self.num_active[row])} trees; expected one root"
            )
        return self.population.sum(dim=1)


class Hidden(NamedTuple):
    """Nodes that enter their merges as one vector, whatever is under them."""

    nodes: Bool[Tensor, "BN"]
    """True <--> the node is hidden; by flat node id, ``sample * N + node``."""
    vector: Float[Tensor, "D"]


class SavedAutoencoder(nn.Module):
    """Part of every autoencoder: the training split's statistics of the tokens, and its file.

    ``config`` holds the arguments of the subclass's constructor, ``token_dim`` among them.
    ``categories`` are the numbers of values of the categories, whose coordinates are a token's
    last ones: 1 for its value and 0 for the others. What is decoded for them, standardised, are
    logits beside the logarithms of the training split's frequencies, so that 0 is the mean, as for
    a number.
    """

    token_mean: Tensor
    token_std: Tensor

    def __init__(self, config: dict[str, Any], categories: Sequence[int] = ()) -> None:
        super().__init__()
        self.categories = tuple(categories)
        if self.categories:  # else as in files that know of none
            at_least(2, **{f"categories[{at}]": count for at, count in enumerate(self.categories)})
            at_least(sum(self.categories), token_dim=config["token_dim"])
            config = config | {"categories": list(self.categories)}
        self.config = config
        self.token_dim: int = config["token_dim"]
        self.embedding_dim: int = config["embedding_dim"]
        self.register_buffer("token_mean", torch.zeros(self.token_dim))
        self.register_buffer("token_std", torch.ones(self.token_dim))

    def standardise(self, tokens: Float[Tensor, "B P T"]) -> Float[Tensor, "B P T"]:
        """Coordinates in units of the training split's standard deviation."""
        return (tokens - self.token_mean) / self.token_std

    def probable(self, decoded: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows T"]:
        """What is decoded with probabilities for logits, standardised as tokens are."""
        if not self.categories:
            return decoded
        numbers, *logits = self._parts(decoded)
        tokens = [values.softmax(dim=-1) for values in self._with_frequencies(logits)]
        _, *means = self._parts(self.token_mean)
        _, *units = self._parts(self.token_std)
        standard = [(p - m) / u for p, m, u in zip(tokens, means, units, strict=True)]
        return torch.cat([numbers, *standard], dim=-1)

    def to_tokens(self, decoded: Float[Tensor, "*rows T"]) -> Float[Tensor, "*rows T"]:
        """What is decoded in the data's own units: numbers, and probabilities of categories."""
        return self.probable(decoded) * self.token_std + self.token_mean

    def token_losses(
        self, decoded: Float[Tensor, "L T"], standardised: Float[Tensor, "L T"]
    ) -> Float[Tensor, "L"]:
        """The loss of every decoded token against the standardised one, the mean over coordinates.

        Squared error of numbers; of categories cross-entropy, over the square of their unit, which
        is what makes of a squared error of probabilities one that is 1 for the frequencies.
        """
        if not self.categories:
            return (decoded - standardised).square().mean(dim=1)
        numbers, *logits = self._parts(decoded)
        targets, *_ = self._parts(standardised)
        _, *values = self._parts(standardised * self.token_std + self.token_mean)
        _, *units = self._parts(self.token_std)
        losses = (numbers - targets).square().sum(dim=1)
        for scores, value, unit in zip(self._with_frequencies(logits), values, units, strict=True):
            entropy = nn.functional.cross_entropy(scores, value.argmax(dim=1), reduction="none")
            losses = losses + entropy / unit[0].square()
        return losses / self.token_dim

    def _parts(self, values: Float[Tensor, "*rows T"]) -> tuple[Tensor, ...]:
        """The numbers, then each category's coordinates."""
        numbers = self.token_dim - sum(self.categories)
        parts: tuple[Tensor, ...] = values.split([numbers, *self.categories], dim=-1)
        return parts

    def _with_frequencies(self, logits: list[Tensor]) -> list[Tensor]:
        _, *frequencies = self._parts(self.token_mean)
        return [
            values + share.clamp(min=RAREST).log()
            for values, share in zip(logits, frequencies, strict=True)
        ]

    def set_statistics(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> None:
        """Take the training split's mean and the unit of every coordinate: its standard deviation,
        or less where it weighs more (see :attr:`htm_env.datasets.Dataset.std`)."""
        self.token_mean.copy_(mean)
        self.token_std.copy_(std)

    def weights_hash(self) -> str:
        """Twelve hexadecimal digits that change with any weight or statistic."""
        return tensors_hash(self.state_dict())

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as one safetensors file, all or nothing."""
        write_tensors(path, WEIGHTS_KEY, self.state_dict(), self.config)

    @classmethod
    def load(
        cls: type[AutoencoderType], path: str | Path, device: str | torch.device = "cpu"
    ) -> AutoencoderType:
        """Read what :meth:`save` wrote; ``FileNotFoundError`` or ``ValueError`` naming the file."""
        with reading(path, "saved autoencoder"):
            state, config = read_tensors(path, WEIGHTS_KEY)
            with torch.device("meta"):  # of another size than the weights it would take memory
                check_weights(cls(**config), state)
            autoencoder = cls(**config, generator=torch.Generator())  # type: ignore[call-arg]
            load_weights(autoencoder, state)
        return autoencoder.to(device)


class TreeEncoder(SavedAutoencoder):
    """Lifts tokens, and merges pairs of embeddings along given trees.

    The part of an autoencoder that an environment needs, and all that there is where the merger is
    known (``htm_env/known.py``): nothing is decoded then, and a merge has a cost of its own.
    """

    merge_costs: MergeCosts | None = None
    """Cost of merges, where it is known; None <--> the error of what is decoded is the cost."""
    observes: tuple[str, ...] = ()
    """Extra keys that an environment with this encoder adds to its observations: those that the
    policy that learned with it reads."""
    costs_known: bool = True
    """False <--> nothing is decoded and no cost of merges is known: their cost is 0, and no search
    can compare trees."""
    commutative: bool = False
    """True <--> the order within a pair means nothing."""
    associative: bool = False
    """True <--> an embedding depends on nothing but the set of leaves under it."""
    momenta: Callable[[Tensor], Tensor] | None = None
    """From raw tokens ``(..., T)`` to their four-momenta ``(..., 4)``, energy first; None <-->
    tokens are no particles."""

    lifter: Callable[[Tensor], Tensor]
    """From standardised tokens ``(..., T)`` to leaf embeddings ``(..., D)``."""
    merger: Callable[[Tensor], Tensor]
    """From two embeddings side by side, ``(I, 2 D)``, to that of their merge, ``(I, D)``."""

    def decode(
        self,
        roots: Float[Tensor, "..."],
        merges: Int64[Tensor, "B K 2"],
        present: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B P T"]:
        """Tokens from roots, where there is an unmerger; ``ValueError`` where there is none."""
        raise ValueError(NOTHING_DECODED)

    @property
    def decodes(self) -> bool:
        """True <--> :meth:`decode` gives tokens, whose error says how good a tree is."""
        return self.merge_costs is None

    @property
    def error_name(self) -> str:
        """What the error of a tree is called: ``nmse``, or ``cost`` where nothing is decoded."""
        return "nmse" if self.decodes else "cost"

    def decoding(self) -> HTMAutoencoder:
        """The same as an autoencoder that decodes; ``ValueError`` where nothing is decoded."""
        raise ValueError(NOTHING_DECODED)

    def content(self, embeddings: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows C"]:
        """What a part is, without its pose: embeddings without place and size where these are
        numbers of their own, else all of them."""
        return embeddings

    def encode(
        self,
        tokens: Float[Tensor, "B P T"],
        present: Bool[Tensor, "B P"],
        merges: Int64[Tensor, "B K 2"],
    ) -> Encoding:
        """Encode tokens along merges: a whole tree, or any part of one.

        Raises ``ValueError`` where tokens have the wrong dimension, where a sample's tokens leave
        a gap in its slots, or where merges are not a forest.
        """
        self._check_tokens(tokens)
        merges, num_leaves = self._check_merges(merges, present)
        levels = forest_levels(merges, num_leaves)
        states = self.encode_levels(self.standardise(tokens), present, levels)
        batch, slots = present.shape
        nodes = tokens.new_zeros(batch * (2 * slots - 1), self.embedding_dim)
        for level, state in zip(levels, states, strict=True):
            nodes = nodes.index_copy(0, level.nodes, state)
        nodes = nodes.view(batch, 2 * slots - 1, -1)
        active, slot = active_nodes(merges, num_leaves), leftmost_leaves(merges, num_leaves)
        rows, ids = active.nonzero(as_tuple=True)
        population = nodes.new_zeros(batch, slots, self.embedding_dim)
        population = population.index_put((rows, slot[rows, ids]), nodes[rows, ids])
        return Encoding(nodes, population, active.sum(1))

    # ------------------------------------------------------------ level by level

    def encode_levels(
        self,
        standardised: Float[Tensor, "B P T"],
        present: Bool[Tensor, "B P"],
        levels: list[Level],
        *,
        noise_std: float = 0.0,
        generator: torch.Generator | None = None,
        hidden: Hidden | None = None,
    ) -> list[Tensor]:
        """The states of every level, from the leaves up: ``states[d]`` belongs to ``levels[d]``.

        ``noise_std`` adds Gaussian noise after lifting and after merging, and ``hidden`` replaces
        the states of some nodes (training only).
        """

        def noisy(state: Tensor) -> Tensor:
            if noise_std == 0.0:
                return state
            noise = torch.empty_like(state).normal_(generator=generator)
            return state + noise_std * noise

        slots = present.shape[1]
        num_nodes = 2 * slots - 1
        lifted = noisy(self.lifter(standardised[present]))  # (sum n, D)
        position = (present.flatten().cumsum(0) - 1).view_as(present)  # token -> row of lifted
        states: list[Tensor] = []
        below = lifted[:0]
        for level in reversed(levels):
            leaf = level.nodes[level.leaves]
            state = lifted[position[leaf // num_nodes, leaf % num_nodes]]
            if len(level.internal):
                merged = noisy(self.merger(below.view(-1, 2 * self.embedding_dim)))
                order = torch.empty_like(level.nodes)
                order[level.internal] = torch.arange(len(merged), device=order.device)
                order[level.leaves] = torch.arange(len(merged), len(order), device=order.device)
                state = torch.cat([merged, state])[order]
            if hidden is not None:
                vector = hidden.vector.to(state.dtype)
                state = torch.where(hidden.nodes[level.nodes, None], vector, state)
            states.append(state)
            below = state
        return states[::-1]

    # ------------------------------------------------------------ checks

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.token_dim:
            raise ValueError(
                f"tokens have {tokens.shape[-1]} coordinates; this autoencoder expects "
                f"{self.token_dim}"
            )

    @staticmethod
    def _check_merges(merges: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        check_present(present)
        num_leaves = present.sum(1)
        merges = pad_merges(merges, present.shape[1])
        check_merges(merges, num_leaves)
        return merges, num_leaves


def check_places(places: Sequence[int], token_dim: int, embedding_dim: int) -> None:
    """Raises ``ValueError`` unless these are places of such tokens whose poses leave room."""
    if len(places) != 2:
        raise ValueError(
            f"places is {places!r}; expected two numbers, since embeddings are to have poses"
        )
    count = whole_number("places[0]", places[0], 1, token_dim)
    width = whole_number("places[1]", places[1], 1, count)
    if count % width:
        raise ValueError(f"places is {places!r}; expected whole places of {width} numbers")
    at_least(width + 2, embedding_dim=embedding_dim)


class HTMAutoencoder(TreeEncoder):
    """Encodes token sets along given merges into roots, and decodes them back.

    Tokens enter and leave in the data's own units; inside, coordinates are standardised by
    ``token_mean`` and ``token_std`` (the training split's), which travel with the weights.

    Args:
        token_dim: ``T``, coordinates of a token.
        embedding_dim: ``D``; well under ``n T`` it is a bottleneck, so that structure is needed.
        hidden_dim: width of the hidden layers, counted in plain units; ``"residual"`` has two
            thirds as many gated ones, with the same number of parameters.
        architecture: ``"residual"`` (this project's), ``"mlp"`` (the published one), or
            ``"posed"``: embeddings of a pose and of a content in its own frame.
        categories: numbers of values of the categories, whose coordinates are a token's last ones.
        places: of ``"posed"`` alone: the leading coordinates of a token that are places, and how
            many a single place has (see :func:`htm_env.datasets.kinds.place_columns`).
        generator: draws the initial weights; torch's global generator if None.

    Raises ``ValueError`` for an unknown architecture, a size that is out of range, and where a pose
    leaves no room for content.
    """

    def __init__(
        self,
        token_dim: int,
        embedding_dim: int = 32,
        hidden_dim: int = 256,
        architecture: str = "residual",
        *,
        categories: Sequence[int] = (),
        places: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        check_choice("architecture", architecture, sorted(ARCHITECTURES))
        sizes = {"token_dim": token_dim, "embedding_dim": embedding_dim, "hidden_dim": hidden_dim}
        for name, size in sizes.items():
            whole_number(name, size, 1, WIDEST)
        config: dict[str, Any] = {**sizes, "architecture": architecture}
        if architecture in POSED:
            check_places(places, token_dim, embedding_dim)
            config["places"] = list(places)
        super().__init__(config, categories)
        self.places = tuple(places) if architecture in POSED else ()
        pose = self.places[1] + 1 if self.places else 0
        content, relative = embedding_dim - pose, pose + 1 if pose else 0
        lift, merge = ARCHITECTURES[architecture]
        with seeded_initialisation(generator):
            self.lifter = lift(token_dim, hidden_dim, content)
            self.merger = merge(relative + 2 * content, hidden_dim, content)
            self.unmerger = merge(content, hidden_dim, relative + 2 * content)
            self.unlifter = lift(content, hidden_dim, token_dim)
            self.classifier = merge(embedding_dim, min(hidden_dim, 64), 1)
        if self.places:
            self.lifter = PosedLifter(self.lifter, self.places)
            self.merger = PosedMerger(self.merger, self.places[1])
            self.unmerger = PosedUnmerger(self.unmerger, self.places[1])
            self.unlifter = PosedUnlifter(self.unlifter, self.places)

    lifter: nn.Module
    merger: nn.Module
    unmerger: nn.Module
    unlifter: nn.Module
    classifier: nn.Module

    def content(self, embeddings: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows C"]:
        return split_pose(embeddings, self.places[1])[2] if self.places else embeddings

    def set_statistics(self, mean: Float[Tensor, "T"], std: Float[Tensor, "T"]) -> None:
        if self.places:
            mean, std = common_units(mean, std, self.places)
        super().set_statistics(mean, std)

    def decoding(self) -> HTMAutoencoder:
        return self

    # ------------------------------------------------------------ public faces, whole batches

    def decode(
        self,
        roots: Float[Tensor, "..."],
        merges: Int64[Tensor, "B K 2"],
        present: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B P T"]:
        """Decode roots ``(B, D)``, or a population ``(B, P, D)`` by slot, down to the tokens.

        Raises ``ValueError`` where merges are not a forest, where ``roots`` has another shape, or
        where it holds one embedding a sample and a forest has several trees.
        """
        merges, num_leaves = self._check_merges(merges, present)
        batch, slots = present.shape
        shapes = ((batch, self.embedding_dim), (batch, slots, self.embedding_dim))
        if tuple(roots.shape) not in shapes:
            raise ValueError(
                f"roots have shape {tuple(roots.shape)}; expected {shapes[0]}, or {shapes[1]} "
                "for a population"
            )
        active, slot = active_nodes(merges, num_leaves), leftmost_leaves(merges, num_leaves)
        rows, ids = active.nonzero(as_tuple=True)
        if roots.ndim == 2:
            if len(rows) != len(roots):
                raise ValueError(
                    f"{len(roots)} roots for {len(rows)} trees; a partial forest is decoded from "
                    "its population (B, P, D)"
                )
            start = roots[rows]
        else:
            start = roots[rows, slot[rows, ids]]
        levels = forest_levels(merges, num_leaves)
        states = self.decode_levels(start, levels)
        leaf_ids, decoded = self.unlift_leaves(states, levels)
        num_nodes = 2 * slots - 1
        tokens = decoded.new_zeros(batch, slots, self.token_dim)
        values = self.to_tokens(decoded)
        return tokens.index_put((leaf_ids // num_nodes, leaf_ids % num_nodes), values)

    @torch.no_grad()
    def reconstruct(
        self,
        tokens: Float[Tensor, "B P T"],
        present: Bool[Tensor, "B P"],
        policy: Policy,
        generator: torch.Generator | None = None,
        observe: Sequence[str] = (),
        candidates: int | None = None,
        neighbours: str = "embeddings",
    ) -> Float[Tensor, "B P T"]:
        """Merge with a policy until one root is left, and decode it again.

        ``observe`` names what the policy reads beside tokens, mask and leaf counts, and
        ``candidates`` is ``k`` (None: all pairs) of ``neighbours``, as for the environment. Raises
        ``ValueError`` for an unknown name, an action that is not legal where a sample has merges to
        make, and where a sample's tokens leave a gap in its slots.
        """
        self._check_tokens(tokens)
        check_present(present)
        nearest = None if candidates is None else check_candidates("knn", candidates, neighbours)
        networks = self.lifter, self.merger
        keys = tuple(dict.fromkeys((*observe, *self.observes)))
        forest = merge_with(
            policy, self.standardise(tokens), present, *networks, generator, keys, nearest
        )
        return self.decode(
            self.encode(tokens, present, forest.merges).population, forest.merges, present
        )

    # ------------------------------------------------------------ level by level

    def decode_levels(self, start: Float[Tensor, "S D"], levels: list[Level]) -> list[Tensor]:
        """The states of every level, from the starting nodes down."""
        states = [start]
        for level in levels[:-1]:
            states.append(self.unmerge(states[-1][level.internal]))
        return states

    def unmerge(self, parents: Float[Tensor, "I D"]) -> Float[Tensor, "K D"]:
        """The children of every parent, two neighbouring rows each."""
        pairs: Tensor = self.unmerger(parents)
        return pairs.view(-1, self.embedding_dim)

    def unlift_leaves(
        self, states: list[Tensor], levels: list[Level]
    ) -> tuple[Int64[Tensor, "L"], Float[Tensor, "L T"]]:
        """The flat node ids of all leaves of a walk, and what is decoded for them: standardised
        numbers, and logits of categories."""
        nodes = torch.cat([level.nodes[level.leaves] for level in levels])
        leaves = torch.cat(
            [state[level.leaves] for state, level in zip(states, levels, strict=True)]
        )
        return nodes, self.unlifter(leaves)


@torch.no_grad()
def merge_with(
    policy: Policy,
    standardised: Float[Tensor, "B P T"],
    present: Bool[Tensor, "B P"],
    lifter: Callable[[Tensor], Tensor],
    merger: Callable[[Tensor], Tensor],
    generator: torch.Generator | None = None,
    observe: Sequence[str] = (),
    nearest: Nearest | None = None,
) -> Forest:
    """The forest that a policy makes of standardised tokens: the merges only, until one root is
    left.

    ``lifter`` and ``merger`` make the embeddings; ``observe`` names what the policy observes beside
    tokens, mask and leaf counts, ``nearest`` says who are candidates (None <--> all pairs).

    Raises ``ValueError`` for an unknown key, and for an action that is not legal where a sample has
    merges to make.
    """
    keys = check_extras(observe)
    forest = Forest.start(present)
    population, counts = lifter(standardised) * present[..., None], present.long()
    near, candidates = None, None
    if nearest is not None:
        near = Neighbourhood.of(nearest, standardised, population, present)
    rows = torch.arange(len(present), device=present.device)
    while (running := forest.num_active > 1).any():
        observation = {"tokens": population, "active": forest.active, "leaf_counts": counts}
        if near is not None:
            candidates = near.candidates.partners
            observation["candidates"] = candidates.to(torch.int32)
        if ACTION_MASK in keys:
            mask = action_masks(forest.active, candidates)
            observation[ACTION_MASK] = mask.to(torch.int8)
        if keys:
            membership = Membership.of(standardised, present, forest)
            observation |= observed_extras(membership, keys)
        actions = policy(observation, generator).long()
        first, second, legal = action_slots(actions, forest.active, candidates)
        if not (legal | ~running).all():
            wrong = int((running & ~legal).nonzero()[0])
            action, own = int(actions[wrong]), None if candidates is None else candidates[wrong]
            raise ValueError(
                f"policy action {action} is not a merge of sample {wrong}: it "
                f"{why_illegal(action, forest.active[wrong], own)}"
            )
        forest = forest.merge(first, second, where=running)
        row, first, second = rows[running], first[running], second[running]
        pair = torch.cat([population[row, first], population[row, second]], dim=-1)
        population, counts = population.clone(), counts.clone()  # the policy may keep the old ones
        population[row, first], population[row, second] = merger(pair), 0.0
        counts[row, first] += counts[row, second]
        counts[row, second] = 0
        if near is not None:
            near = near.merged(row, first, second, population, counts)
    return forest


def tensors_hash(state: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits of the names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]

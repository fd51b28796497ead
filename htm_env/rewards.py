"""Rewards: what one merge, or a whole episode of merges, earns.

A reward is an object with two methods: ``step`` for one merge in the environment, and ``episode``
for all merges of whole episodes at once, by level. Both give the same numbers.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from htm_env.autoencoder import MergeCosts, TreeEncoder
from htm_env.checks import did_you_mean
from htm_env.datasets import Dataset, named_object
from htm_env.forest import action_to_pair, are_clades, leaf_sets, merges_to_actions
from htm_env.population import (
    MadeMerges,
    Population,
    merge_costs,
    merge_pairs,
    node_errors,
    start_population,
)
from htm_env.types import TokenBatch

if TYPE_CHECKING:
    RewardName = Any
else:  # in a dataclass that a file or a command line may fill, which hold names only
    RewardName = str


class Transition(NamedTuple):
    """One merge in each of ``B`` populations."""

    autoencoder: TreeEncoder
    before: Population
    after: Population
    first: Int64[Tensor, "B"]
    second: Int64[Tensor, "B"]
    """The slots that were merged, in this order; where nothing was, both populations are alike."""


@dataclass(frozen=True)
class EncodedEpisodes:
    """Whole episodes of a batch under one autoencoder, with the errors along the way."""

    autoencoder: TreeEncoder
    batch: TokenBatch
    merges: Int64[Tensor, "B M 2"]
    """Ordered merges in node ids; -1 pads. Trees, or forests that were not merged to the end."""
    nodes: Float[Tensor, "B N D"]
    """The embedding of every node."""
    std: Float[Tensor, "T"]
    """The units of the error."""

    @cached_property
    def node_errors(self) -> Float[Tensor, "B N"]:
        """See :func:`htm_env.population.node_errors`."""
        return node_errors(self.autoencoder, self.batch, self.merges, self.nodes, self.std)

    @cached_property
    def error_falls(self) -> Float[Tensor, "B M"]:
        """``E_t - E_{t+1}`` of every merge; 0 in padding."""
        if not self.autoencoder.decodes:
            return -merge_costs(self.autoencoder, self.batch, self.merges, self.nodes)
        errors, merges, num_leaves = self.node_errors, self.merges, self.batch.num_tokens
        made = num_leaves[:, None] + torch.arange(merges.shape[1], device=merges.device)  # (B, M)
        children = errors.gather(1, merges.clamp(min=0).flatten(1)).view(merges.shape).sum(-1)
        damage = (errors.gather(1, made) - children) * (merges[..., 0] >= 0)
        return -damage / (num_leaves[:, None] * self.batch.tokens.shape[2])

    @property
    def error(self) -> Float[Tensor, "B"]:
        """The ``nmse`` where each episode ends; of a known merger its cost."""
        if not self.autoencoder.decodes:
            return -self.error_falls.sum(1)
        present = self.batch.present
        leaves = (self.node_errors[:, : present.shape[1]] * present).sum(1)
        coordinates = self.batch.num_tokens * self.batch.tokens.shape[2]
        return leaves / coordinates - self.error_falls.sum(1)


class Reward(ABC):
    """Reward of merges; a subclass defines ``step``, and ``episode`` where that can be faster."""

    needs_clades = False
    """True <--> the data must have a hierarchy of its own."""
    needs_costs = False
    """True <--> under a known merger it is minus the cost of merges, which has to be known."""
    is_fall_of_error = False
    """True <--> the return is ``E_0 - E_final``, so that a large error means a poor episode."""

    @property
    def merge_costs(self) -> MergeCosts | None:
        """Minus the reward of merges, where it depends on nothing but the pair and its parent."""
        return None

    @abstractmethod
    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        """The reward of one merge; 0 where nothing was merged."""

    @torch.no_grad()
    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        """The rewards of all merges; 0 in padding. Here one merge at a time."""
        autoencoder, batch, std = episodes.autoencoder, episodes.batch, episodes.std
        rewards, before = [], start_population(autoencoder, batch, std)
        for actions in merges_to_actions(episodes.merges, batch.num_tokens).unbind(1):
            real = actions >= 0
            first, second = action_to_pair(actions.clamp(min=0), batch.present.shape[1])
            after = merge_pairs(autoencoder, before, first, second, std, real)
            reward = self.step(Transition(autoencoder, before, after, first, second))
            reward = check_rewards(reward, real & after.error.isfinite())
            rewards.append(reward.masked_fill(~real, 0.0))
            before = after
        return torch.stack(rewards, dim=1)


class Incremental(Reward):
    """``E_t - E_{t+1}``: each merge is charged for exactly the damage that it did.

    ``E_t`` is the ``nmse`` of a sample when every active node after ``t`` merges is decoded down to
    its leaves; the return is ``E_0 - E_final`` for any order.
    """

    needs_costs = True
    is_fall_of_error = True

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        return transition.before.error - transition.after.error

    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        return episodes.error_falls


class Terminal(Reward):
    """The incremental rewards of an episode, summed and paid with the merge that ends it."""

    needs_costs = True
    is_fall_of_error = True

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        before, after = transition.before, transition.after
        finished = (after.forest.num_active == 1) & (before.forest.num_active > 1)
        return (after.initial_error - after.error) * finished

    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        """An episode that was not merged to one root is taken to end with its last merge."""
        falls, made = episodes.error_falls, (episodes.merges[..., 0] >= 0).sum(1, keepdim=True)
        last = (made - 1).clamp(min=0)
        return torch.zeros_like(falls).scatter_(1, last, falls.sum(1, keepdim=True))


class OneStep(Reward):
    """Minus the mean squared error of unmerging what was just merged, in embedding space.

    The published method's reward; an autoencoder can shrink its embeddings to please it, so it is
    never a measure of quality. Under a known merger, which is not undone, minus the merge's cost.
    """

    needs_costs = True

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        autoencoder, before, after, first, second = transition
        if not autoencoder.decodes:
            return before.error - after.error
        rows = torch.arange(len(first), device=first.device)
        pairs = before.embeddings[rows[:, None], torch.stack([first, second], dim=1)]  # (B, 2, D)
        merged = after.forest.num_merges > before.forest.num_merges
        return -unmerge_errors(autoencoder, after.embeddings[rows, first], pairs) * merged

    @torch.no_grad()
    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        if not episodes.autoencoder.decodes:
            return episodes.error_falls
        merges, nodes = episodes.merges, episodes.nodes
        made = MadeMerges.of(merges, episodes.batch.num_tokens, nodes)
        pairs = torch.stack([made.first, made.second], dim=1)  # (I, 2, D)
        rewards = nodes.new_zeros(merges.shape[:2])
        rewards[made.rows, made.times] = -unmerge_errors(episodes.autoencoder, made.merged, pairs)
        return rewards


class RightMerges(Reward):
    """One over the number of the data's clades for a merge whose tokens are one of them, else 0.

    The return is the share of the clades that were found; nothing is asked of the autoencoder.
    """

    needs_clades = True

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        forest, clades = transition.after.forest, transition.after.batch.clades
        rows = torch.arange(len(clades), device=clades.device)
        made = forest.num_leaves + forest.num_merges - 1  # the latest node
        sets = leaf_sets(forest.merges, forest.num_leaves)[rows, made]  # (B, P)
        moved = forest.num_merges > transition.before.forest.num_merges
        right = are_clades(sets[:, None], clades)[:, 0] & moved
        return right / _number_of(clades)

    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        return right_merges(episodes.merges, episodes.batch)


class Recurring(Reward):
    """The mean affinity between the tokens of one part and those of the other, in nats: what recurs
    together in the training split, and lies near, belongs together
    (:class:`htm_env.recurrence.Recurrence`).

    It depends on the tokens alone, whatever the autoencoder is.
    """

    def __init__(self, dataset: Dataset) -> None:
        from htm_env.recurrence import recurrence  # it loads much, and most runs need none

        self.recurrence = recurrence(dataset)

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        before, after = transition.before, transition.after
        forest = before.forest
        rows = torch.arange(len(forest.num_leaves), device=forest.num_leaves.device)
        sets = leaf_sets(forest.merges, forest.num_leaves)  # (B, N, P)
        moved = after.forest.num_merges > forest.num_merges
        pair = [
            (sets[rows, forest.slots[rows, slot].clamp(min=0)] & moved[:, None])[:, None]
            for slot in (transition.first, transition.second)
        ]
        return self._of(before.batch, *pair)[:, 0]

    @torch.no_grad()
    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        merges, batch = episodes.merges, episodes.batch
        sets = leaf_sets(merges, batch.num_tokens)
        rows = torch.arange(len(merges), device=merges.device)[:, None]
        made = (merges[..., 0] >= 0)[..., None]  # (B, M, 1)
        first, second = (sets[rows, child.clamp(min=0)] & made for child in merges.unbind(2))
        return self._of(batch, first, second)

    def _of(
        self, batch: TokenBatch, first: Bool[Tensor, "B K P"], second: Bool[Tensor, "B K P"]
    ) -> Float[Tensor, "B K"]:
        from htm_env.recurrence import mean_affinities

        return mean_affinities(self.recurrence.affinities(batch), first, second)


class MergeReward(Reward):
    """A known reward of single merges, which depends on the pair and on what it becomes, and on
    nothing else.

    Beside a known merger it is also what a tree costs (``htm_env/known.py``), so that searches know
    the reward of a pair without merging it.
    """

    is_fall_of_error = True

    @property
    def merge_costs(self) -> MergeCosts:
        return self._costs_of

    def _costs_of(self, *merges: Tensor) -> Tensor:
        return -self.of_merges(*merges)

    @abstractmethod
    def of_merges(
        self,
        first: Float[Tensor, "I D"],
        second: Float[Tensor, "I D"],
        merged: Float[Tensor, "I D"],
        last: Bool[Tensor, "I"],
    ) -> Float[Tensor, "I"]:
        """The reward of merging each pair; ``last``: True <--> the merge makes a root."""

    def step(self, transition: Transition) -> Float[Tensor, "B"]:
        _, before, after, first, second = transition
        moved = after.forest.num_merges > before.forest.num_merges
        rows = moved.nonzero()[:, 0]
        first, second = first[rows], second[rows]
        one, other = before.embeddings[rows, first], before.embeddings[rows, second]
        last = after.forest.num_active[rows] == 1
        rewards = before.embeddings.new_zeros(len(moved))
        rewards[rows] = self.of_merges(one, other, after.embeddings[rows, first], last)
        return rewards

    @torch.no_grad()
    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        merges, nodes = episodes.merges, episodes.nodes
        rows, times, *pairs = MadeMerges.of(merges, episodes.batch.num_tokens, nodes)
        rewards = nodes.new_zeros(merges.shape[:2])
        rewards[rows, times] = self.of_merges(*pairs)
        return rewards


class RewardOfMerges(MergeReward):
    """A known reward from any object with ``of_merges``."""

    def __init__(self, of_merges: Callable[..., Any]) -> None:
        self._of_merges = of_merges

    def of_merges(self, first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Any:
        rewards = self._of_merges(first, second, merged, last)
        try:
            return check_rewards(rewards, torch.ones_like(last))
        except ValueError as error:
            if merged.isfinite().all():
                raise
            wrong = float(merged[~merged.isfinite()][0])
            message = f"the merger returned {wrong}; expected finite numbers"
            raise ValueError(message) from error


class RewardOfFunctions(Reward):
    """A reward from a function for one merge, and perhaps another for whole episodes.

    Those who call ``step`` check what it returns, as they do for every reward.
    """

    def __init__(
        self,
        step: Callable[[Transition], Float[Tensor, "B"]],
        episode: Callable[[EncodedEpisodes], Float[Tensor, "B M"]] | None = None,
    ) -> None:
        self._step, self._episode = step, episode

    def step(self, transition: Transition) -> Any:
        return self._step(transition)

    def episode(self, episodes: EncodedEpisodes) -> Float[Tensor, "B M"]:
        if self._episode is None:
            return super().episode(episodes)
        made = (episodes.merges[..., 0] >= 0) & episodes.error.isfinite()[:, None]
        return check_rewards(self._episode(episodes), made)


REWARDS: dict[str, Reward] = {
    "incremental": Incremental(),
    "terminal": Terminal(),
    "one_step": OneStep(),
    "right_merges": RightMerges(),
}
REWARDS_OF_DATA: dict[str, Callable[[Dataset], Reward]] = {"recurring": Recurring}
"""The rewards that have a name, for ``gym.make`` and the command line; the latter are made for the
data."""


class CountedReward(MergeReward):
    """Another known reward, and the number of merges whose reward was asked of it.

    That is what a search costs: beside a known merger its ``merge_costs`` count every candidate.
    """

    def __init__(self, reward: MergeReward) -> None:
        self.reward = reward
        self.count = 0

    def of_merges(self, first: Tensor, second: Tensor, merged: Tensor, last: Tensor) -> Tensor:
        self.count += len(first)
        return self.reward.of_merges(first, second, merged, last)


def reward_on(dataset: Dataset, reward: Any = None) -> Reward:
    """The reward on this data: that of the data's own environment if None.

    ``reward`` is a name of ``REWARDS`` or ``REWARDS_OF_DATA``, a :class:`Reward`, any object with
    ``of_merges`` (see :class:`MergeReward`) or with ``step`` (and ``episode``, where that can be
    faster), or a callable ``(before, after, first, second) -> (B,)`` of the fields of a
    :class:`Transition` (of one argument: the transition itself). Raises ``ValueError`` for
    anything else, as a class, and for a reward that needs clades where the data has none.
    """
    if reward is None:
        name = dataset.default_reward
        reward = named_object(name)(dataset) if ":" in name else name
    if isinstance(reward, type):
        name = reward.__name__
        raise ValueError(f"the reward is the class {name}; expected an object of it, as {name}()")
    if isinstance(reward, str) and reward in REWARDS:
        found = REWARDS[reward]
    elif isinstance(reward, str) and reward in REWARDS_OF_DATA:
        found = REWARDS_OF_DATA[reward](dataset)
    elif isinstance(reward, Reward):
        found = reward
    elif hasattr(reward, "of_merges"):
        found = RewardOfMerges(reward.of_merges)
    elif hasattr(reward, "step"):
        found = RewardOfFunctions(reward.step, getattr(reward, "episode", None))
    elif callable(reward):
        found = RewardOfFunctions(_of_one_merge(reward))
    elif isinstance(reward, str) and ":" in reward:
        raise ValueError(
            f"the reward is the name {reward!r}; expected the object itself, since only the "
            "command line and the configuration of a run take the form module:name"
        )
    elif hasattr(reward, "episode"):
        name = type(reward).__name__
        raise ValueError(f"the reward of type {name} has episode but no step; expected both")
    else:
        names = sorted({**REWARDS, **REWARDS_OF_DATA})
        like = did_you_mean(reward, names)
        raise ValueError(
            f"unknown reward {reward!r}; choose from {names}, or give a callable "
            f"(before, after, first, second) or an object with step(transition){like}"
        )
    if found.needs_clades and not dataset.has_hierarchy:
        others = sorted(
            [*(name for name, other in REWARDS.items() if not other.needs_clades), *REWARDS_OF_DATA]
        )
        raise ValueError(
            f"the reward {reward} counts clades, but {dataset.name} has no hierarchy; "
            f"choose from {others}"
        )
    return found


def known_costs(
    dataset: Dataset, reward: Any, merger: Any, autoencoder: Any
) -> tuple[Reward, MergeCosts | None]:
    """The reward, and what merges cost where their result is known; arguments of an environment.

    Costs are minus the reward, where it is one of merges alone, else minus the data's own; None
    where neither is. An autoencoder that is given takes the place of the data's known merger, and
    then the reward that was left out is ``"incremental"``. Raises ``ValueError`` where a merger is
    given and no reward is known, or one that is made of costs that are not.
    """
    if merger is None and (autoencoder is not None or dataset.default_merger is None):
        own = ":" in dataset.default_reward  # it is about embeddings that the autoencoder has not
        return reward_on(dataset, "incremental" if reward is None and own else reward), None
    found, own_reward = reward_on(dataset, reward), reward_on(dataset)
    if reward is None and own_reward.merge_costs is None:
        raise ValueError("a merger is given without a reward; expected reward= beside merger=")
    costs = found.merge_costs or own_reward.merge_costs
    if costs is None and found.needs_costs:
        raise ValueError(
            f"the reward {reward} beside a merger is minus the cost of merges, and no cost is "
            "known; expected a reward with of_merges(first, second, merged, last)"
        )
    return found, costs


def _of_one_merge(function: Callable[..., Any]) -> Callable[[Transition], Any]:
    """A callable of a transition's four fields as one of the transition.

    Raises ``ValueError`` for one that takes neither the four nor the transition.
    """
    if _takes(function, 4):
        return lambda made: function(made.before, made.after, made.first, made.second)
    if _takes(function, 1):
        return function
    name = getattr(function, "__name__", type(function).__name__)
    raise ValueError(
        f"the reward {name} takes neither (before, after, first, second) nor one argument, the "
        "transition"
    )


def _takes(function: Callable[..., Any], count: int) -> bool:
    """True <--> the callable can be called with so many arguments, as far as Python can tell."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):  # no such arguments; built in, without a signature
        return False
    return True


def check_rewards(rewards: Any, counted: Bool[Tensor, "*_"]) -> Tensor:
    """The rewards that an object or a callable returned, finite where they are ``counted``.

    ``counted``: True <--> a merge was made, and the error after it is finite. Raises ``ValueError``
    for another shape or type, and for a counted reward that is not finite.
    """
    shape = counted.shape
    if not isinstance(rewards, Tensor) or rewards.shape != shape:
        given = f"an object of type {type(rewards).__name__}"
        if isinstance(rewards, Tensor):
            given = f"a tensor of shape {tuple(rewards.shape)}"
        raise ValueError(f"the reward returned {given}; expected a tensor of shape {tuple(shape)}")
    if not rewards.is_floating_point():
        raise ValueError(f"the reward returned {rewards.dtype}; expected floating-point numbers")
    wrong = counted & ~rewards.isfinite()
    if wrong.any():
        raise ValueError(f"the reward returned {float(rewards[wrong][0])}; expected finite numbers")
    return rewards


def unmerge_errors(
    autoencoder: TreeEncoder, merged: Float[Tensor, "I D"], pairs: Float[Tensor, "I 2 D"]
) -> Float[Tensor, "I"]:
    """Mean squared error of unmerging each embedding against the pair that it was merged from."""
    unmerged = autoencoder.decoding().unmerge(merged).view_as(pairs)
    return (unmerged - pairs).square().mean(dim=(1, 2))


def right_merges(merges: Int64[Tensor, "B M 2"], batch: TokenBatch) -> Float[Tensor, "B M"]:
    """One over the number of the sample's clades for every merge that makes one of them, else 0."""
    made = batch.num_tokens[:, None] + torch.arange(merges.shape[1], device=merges.device)  # (B, M)
    rows = torch.arange(len(merges), device=merges.device)[:, None]
    sets = leaf_sets(merges, batch.num_tokens)[rows, made]  # (B, M, P), empty in padding
    return are_clades(sets, batch.clades) / _number_of(batch.clades)[:, None]


def _number_of(clades: Bool[Tensor, "B C P"]) -> Int64[Tensor, "B"]:
    """The clades of each sample, at least 1 so that it can divide."""
    return clades.any(2).sum(1).clamp(min=1)

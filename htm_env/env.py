"""The environment for one episode at a time; it only wires state, reward and viewer."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from htm_env import checks
from htm_env.autoencoder import TreeEncoder
from htm_env.population import Population
from htm_env.simulator import RENDER_MODES, EnvConfig, Simulator
from htm_env.single_simulator import SingleSimulator
from htm_env.specs import StoredSpec
from htm_env.trees.merge_tree import MergeTree
from htm_env.types import NONE

MAX_KEY = 2**62
"""An episode is a pure function of a key below this; the environment's generator draws it."""


class EpisodesInProgress:
    """The simulator, population and viewer that the single and the batched environment have."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator, config = simulator, simulator.config
        self.mask_in_info, self.render_mode = config.mask_in_info, config.render_mode
        self._spec: EnvSpec | None = None
        self._population: Population | None = None
        self._viewer: Any = None

    @property
    def spec(self) -> EnvSpec | None:
        """What ``gym.make`` made this of; its JSON names files of arrays and autoencoders."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = None if spec is None else StoredSpec.of(spec)

    @property
    def population(self) -> Population:
        """The episodes in progress; ``ResetNeeded`` before the first reset."""
        if self._population is None:
            raise ResetNeeded("no episode has started; call reset first")
        return self._population

    @property
    def autoencoder(self) -> TreeEncoder:
        """The autoencoder in use; training it changes the environment, with all of its copies."""
        return self.simulator.autoencoder

    def fixed_keys(self, count: int) -> np.ndarray:
        """The keys of the split's first ``count`` fixed episodes, for ``reset(options=...)``."""
        return self.simulator.dataset.fixed_keys(count)

    def frame(self, row: int = 0) -> Any:
        """One episode as ``render_mode`` says."""
        from htm_env.drawing.viewer import Viewer

        if self._viewer is None:
            self._viewer = Viewer(self.render_mode, self.simulator)
        return self._viewer.frame(self.population, row)

    def show(self) -> None:
        """Let the window of ``"human"``, if that is the mode, follow the first episode."""
        if self.render_mode == "human":
            self.frame()

    def close_viewer(self) -> None:
        if self._viewer is not None:
            self._viewer.close()
            self._viewer = None


class EpisodeState(NamedTuple):
    """State of an environment at a moment, for :meth:`HTMEnv.restore_state`: it shares its arrays
    with the environment, which never changes them."""

    population: Population
    invalid_actions: int
    generator: Mapping[str, Any]
    """That of ``env.np_random``, which draws the episodes that follow."""


class HTMEnv(EpisodesInProgress, gym.Env):
    """Merge a set of tokens into one root embedding, pair by pair.

    ## Description
    A sample (nodes of trees in the plane, crossed line segments, patches of a handwritten digit,
    items that match by colour or by shape as a key says, or your own tokens) is lifted to one
    embedding a token. Each action merges an ordered pair of active embeddings into one, until a
    single root is left. An autoencoder decodes the root along the same tree back to the tokens: the
    better the merges, the smaller the error.
    Which tokens belong together is for the agent to find out; their order in the slots is shuffled
    and says nothing.

    ## Action Space
    `Discrete(P * (P - 1))`, with `P` token slots: every ordered pair of different slots. Action `a`
    merges slots `i = a // (P - 1)` and `j = a % (P - 1)`, plus one where `j >= i`
    (`htm_env.action_to_pair`, `htm_env.pair_to_action`). The parent goes to slot `i`, slot `j`
    becomes empty. Order matters: the merger sees `i` first. With `n` active slots, `n (n - 1)`
    actions are legal.

    With `candidates="knn"`, `Discrete(P * k)`: every slot has at most `k` candidates, its nearest
    neighbours, kept up through merges (`htm_env/candidates.py`). Action `a` merges slots
    `i = a // k` and `j = candidates[i, a % k]` (`htm_env.candidate_pair`,
    `htm_env.candidate_action`), and is legal where that is not -1.

    ## Observation Space
    A `Dict`:

    | key | shape, type | meaning |
    |---|---|---|
    | `tokens` | `(P, D)` float32 | the active embeddings, zeros in empty slots |
    | `active` | `(P,)` int8 | 1 where a slot holds an embedding |
    | `leaf_counts` | `(P,)` int32 | how many of the sample's tokens are under each slot |
    | `candidates` | `(P, k)` int32 | `candidates="knn"`: the slots that may be `j`, or -1 |
    | `centroids` | `(P, T)` float32 | `observe=("centroids",)`: mean standardised coordinates |
    | `order` | `(P,)` int32 | `observe=("order",)`: rank along a space-filling curve, or -1 |
    | `leaf_order` | `(P,)` int32 | `observe=("leaf_order",)`: rank by the leftmost leaf, or -1 |
    | `leaves` | `(P, T)` float32 | `observe=("leaves",)`: standardised coordinates of the tokens |
    | `owners` | `(P,)` int32 | `observe=("owners",)`: the slot each token is under, or -1 |
    | `action_mask` | `(A,)` int8 | `observe=("action_mask",)`: as in `info` |

    ## Starting State
    A random sample of the split, its tokens shuffled, no merges. `reset(seed=s)` fixes this episode
    and all that follow. `reset(options={"key": k})` starts the episode of that 62-bit key; the keys
    `0, 1, 2, ...` of a generated dataset's test split are its fixed test episodes, and
    `env.unwrapped.fixed_keys(count)` gives them for every dataset.

    ## Rewards
    Let `E_t` be the normalised mean squared error (`nmse`, 1.0 is "predict the mean") of the sample
    when every active embedding is decoded after `t` merges.

    - `reward="incremental"` (default, but not of Keys): `E_t - E_{t+1}`. The return is
      `E_0 - E_final`, and `E_final` depends on the merges: at most about 0, and 0 is a perfect
      reconstruction.
    - `reward="terminal"`: the same sum, paid with the last merge.
    - `reward="one_step"`: minus the mean squared error of unmerging what was just merged.
    - `reward="right_merges"` (default of Keys): one over the number of the data's clades if the
      tokens under the new embedding are one of them, else 0. The return is the share of the clades
      that were found, from 0 to 1. Only for data that has clades.

    - `reward="recurring"`: the mean affinity between the tokens of one part and those of the other,
      in nats: large where they are near, and where such pairs are frequent in training samples
      (`htm_env.recurrence.Recurrence`). It depends on tokens alone, not on the autoencoder.
    - of Jets: the log-likelihood of the splitting that a merge undoes. With `merger=`: an object
      with `of_merges`, what merges of known result earn (`htm_env.rewards.MergeReward`). Nothing is
      decoded then: `E_t` is what the merges so far have cost, minus the return.
    - `reward=` an object with `step` and `episode`, or a callable like `step`: your own, as
      `htm_env.rewards.Reward` describes it.

    An illegal action (an empty slot, no candidate) changes nothing and earns
    `invalid_penalty / max_invalid_actions`, so that an episode of nothing else earns
    `invalid_penalty`: as much as an error of "predict the mean".

    With `invalid_action="remap"` every action merges a pair, for clients that do not mask: the
    `r`-th illegal action, in the order of their numbers and counted from 0, is executed as the
    legal action of number `r mod L` among the `L` legal ones. Each of these has as many illegal
    actions that are executed as it as any other, up to one, so that uniform play stays uniform.

    ## Episode End
    - Termination: one embedding is left, after `n - 1` merges.
    - Truncation: `max_invalid_actions` illegal actions in one episode; not under `"remap"`.

    ## Information
    `reset` and `step` return the same keys, as numpy arrays and scalars of one type each:
    `action_mask` int8, one number an action (unless `mask_in_info=False`; also
    `env.unwrapped.action_masks()`; all ones where the episode has ended), `error` (`E_t`),
    `num_active`, `invalid` (whether the last action was illegal) and `executed_action` (the action
    that was made: the chosen one, that in its place under `"remap"`, or -1).

    ## Arguments
    ```python
    import gymnasium as gym
    env = gym.make("htm_env:HTM-Trees-v0", heights=(3,), reward="terminal")
    ```

    | parameter | default | meaning |
    |---|---|---|
    | `autoencoder` | `"pretrained"` (`HTM-v0`: `"untrained"`) | or a path, or an `HTMAutoencoder` |
    | `merger` | `None` (Jets: momenta add up) | or a known merger, in the autoencoder's place |
    | `embedding_dim` | by id | `D` of an untrained autoencoder; `"auto"`: as the data suggests |
    | `reward` | `"incremental"` (Keys: `"right_merges"`) | or another of the above |
    | `split` | `"train"` | or `"validation"`, `"test"` |
    | `invalid_action` | `"penalize"` | or `"remap"`, or `"raise"` (`ValueError`, for debugging) |
    | `invalid_penalty` | `-1.0` | return of an episode of illegal actions only |
    | `max_invalid_actions` | `100` | illegal actions until truncation |
    | `mask_in_info` | `True` | put the mask into `info` |
    | `observe` | `()` | extra observation keys |
    | `candidates` | `"all"` | pairs that may be merged; `"knn"`: a slot and a near one |
    | `k` | `8` | candidates of a slot under `"knn"` |
    | `neighbours` | `"embeddings"` | near by these, or by `"centroids"` of standardised tokens |
    | `render_mode` | `None` | `"rgb_array"`, `"ansi"` or `"human"` |
    | `device` | `"cpu"` | where the autoencoder runs |

    One environment runs in numpy; the fastest way to many episodes is `gym.make_vec`, with its
    `num_envs` copies in one batch. For search over trees of actions there are `clone_state` and
    `restore_state`, in microseconds; `copy.deepcopy` copies the autoencoder too.

    An `HTMAutoencoder` may be trained meanwhile; what was made of embeddings stays as it is.
    All others go to the dataset (`htm_env.make_dataset`): the geometry of Trees, Crosses and Keys,
    `dataset=` of `HTM-v0` and what comes beside it (`htm_env.datasets.ArrayDataset`).

    ## References
    The action and observation follow the Hierarchical Token Merger; the incremental reward is
    potential-based in the sense of Ng, Harada & Russell (1999), "Policy invariance under reward
    transformations".

    ## Version History
    * v0: fixed test episodes and shipped weights; either changes only with a new version.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012

    simulator: SingleSimulator

    def __init__(self, env_id: str | EnvConfig, **arguments: Any) -> None:
        config = EnvConfig.of(env_id, arguments, type(self))
        super().__init__(SingleSimulator(config))
        self.observation_space = self.simulator.observation_space
        self.action_space = self.simulator.action_space
        self._invalid_actions = 0

    # ------------------------------------------------------------ Gymnasium's face

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        chosen = check_key(options["key"]) if options and "key" in options else None
        super().reset(seed=None if seed is None else checks.seed(seed))
        drawn = draw_key(self.np_random)
        self._population = self.simulator.start_one(drawn if chosen is None else chosen)
        self._invalid_actions = 0
        self.show()
        return self.simulator.observe_one(self.population), self._info()

    def step(
        self, action: int | np.integer | np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        population = self.population
        if population.forest.num_active.item() == 1:
            raise ResetNeeded("the episode is over: one embedding is left; call reset first")
        after, reward, invalid, executed = self.simulator.step_one(
            population, operator.index(action)
        )
        self._population = after
        self._invalid_actions += executed < 0
        truncated = self._invalid_actions >= self.simulator.config.max_invalid_actions
        self.show()
        info = self._info(invalid, executed)
        terminated = int(info["num_active"]) == 1
        return self.simulator.observe_one(after), reward, terminated, truncated, info

    def render(self) -> Any:
        """The tokens, the forest so far and its reconstruction, as ``render_mode`` says.

        Returns an RGB array, a string, or None for ``"human"`` (whose window follows every step).
        """
        if self.render_mode is None:
            gym.logger.warn(
                "render() does nothing without a render_mode; "
                f"choose from {self.metadata['render_modes']} in gym.make"
            )
            return None
        return None if self.render_mode == "human" else self.frame()

    def close(self) -> None:
        self.close_viewer()

    # ------------------------------------------------------------ beyond Gymnasium

    def action_masks(self) -> np.ndarray:
        """True <--> legal, bool ``(A,)``, one an action; all True where the episode has ended."""
        return self.simulator.mask_one(self.population)

    def merge_tree(self) -> MergeTree:
        """The forest so far."""
        return tree_of(self.population, 0)

    def clone_state(self) -> EpisodeState:
        """The episode in progress, in microseconds: for search over trees of actions."""
        generator = self.np_random.bit_generator.state
        return EpisodeState(self.population, self._invalid_actions, generator)

    def restore_state(self, state: EpisodeState) -> None:
        """Continue from what :meth:`clone_state` gave, however often.

        Raises ``ValueError`` for a state of other slots or embeddings than this environment's.
        """
        given = tuple(state.population.embeddings.shape[1:])
        own = (self.simulator.num_slots, self.autoencoder.embedding_dim)
        if given != own:
            raise ValueError(
                f"the state has {given[0]} slots of {given[1]} numbers; expected {own[0]} of "
                f"{own[1]}, as in the environment that it came from"
            )
        self._population, self._invalid_actions, generator = state
        self.np_random.bit_generator.state = generator

    # ------------------------------------------------------------ inside

    def _info(self, invalid: bool = False, executed: int = NONE) -> dict[str, Any]:
        population = self.population
        mask = {"action_mask": self.action_masks().view(np.int8)} if self.mask_in_info else {}
        return {
            **mask,
            "error": np.float32(population.error.item()),
            "num_active": np.int64(population.forest.num_active.item()),
            # Of numpy's bool scalars Gymnasium's vector environments make an array of objects.
            "invalid": np.array(invalid),
            "executed_action": np.int64(executed),
        }


def draw_key(generator: np.random.Generator) -> int:
    """The key of the next episode."""
    return int(generator.integers(MAX_KEY))


def check_key(key: Any) -> int:
    """The key as an integer; ``ValueError`` unless it is one in ``[0, 2**62)``."""
    return checks.whole_number("the key of an episode", key, 0, MAX_KEY - 1)


def tree_of(population: Population, row: int) -> MergeTree:
    """The forest of one sample."""
    merges = population.forest.merges[row].cpu().numpy()
    return MergeTree(merges[merges[:, 0] >= 0], int(population.forest.num_leaves[row]))

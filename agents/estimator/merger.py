"""``HierarchicalTokenMerger``: a learner on one's own sets, as an estimator of scikit-learn."""

from __future__ import annotations

import numbers
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from agents.config.budget import Budget
from agents.config.dataclasses_json import config_from_dict, nested
from agents.config.run import RunConfig
from agents.evaluation.sets import EncodedSets
from agents.inspection.rows import encode_rows
from agents.registry import build_learner, configured, load_learner
from htm_env.checks import brief, keywords, whole_number
from htm_env.datasets import SPLITS
from htm_env.datasets.sets import as_list
from htm_env.files import check_tensors
from htm_env.generation.generate import generate, refine
from htm_env.generation.mixture import COMPONENTS, RootMixture
from htm_env.trees.merge_tree import MergeTree

HELD_OUT = (0.9, 0.05, 0.05)
"""Shares of the sets that train, that validate, and that are kept for ``htm evaluate``."""
ENOUGH_TO_HOLD_OUT = 20
"""With fewer sets all of them train."""
ROOTS_A_COMPONENT, REFINEMENTS = 20, 3
"""Of :meth:`HierarchicalTokenMerger.sample`, as in ``htm generate``."""
OF_TOKENS = ("categorical", "weights", "kind")
"""Keywords of ``HTM-v0`` that say what the numbers of a token are."""


@dataclass(frozen=True)
class SavedEstimator:
    """What an estimator saves with its learner, beside the roots."""

    parameters: dict[str, Any]
    n_features_in: int
    nmse: float
    validation_nmse: float | None

    def __post_init__(self) -> None:
        known = HierarchicalTokenMerger._get_param_names()
        keywords("the estimator", tuple(self.parameters), known)


class HierarchicalTokenMerger(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Sets of tokens to vectors along learned merge trees, and back.

    Sets are an array (N, P, T), N sets of P tokens of T numbers, or a list of arrays (n_i, T). The
    order of the tokens in a set says nothing: any order gives the same tree and vector, but for
    rounding. New sets may have other numbers of tokens than those of training.

    Padding is told apart by ``lengths`` (N,), or ``present`` (N, P), True <--> the token is there,
    which every method that takes sets has, as :meth:`agents.Learner.embed`; without them every
    token of an array is there.

    Args:
        algo: the algorithm's name, as ``reinforce`` or ``nearest_sorted`` (``htm train --algo``).
        embedding_dim: D, the numbers of a vector; ``"auto"``: as ``HTM-v0`` suggests for the data.
        seconds: the budget of training, where ``merges`` is None; how far it gets depends on the
            machine.
        merges: the budget in merges made for learning, whose result can be repeated.
        search: trees that are evaluated for each set when sets are merged, to find one with a
            smaller reconstruction error than the greedy tree has; where the merger is known, merges
            whose reward is evaluated.
        random_state: an int, a ``numpy.random.RandomState``, or None.
        progress_bar: show training on standard error.
        options: options of the algorithm by name, nested or dotted, such as
            ``{"autoencoder.hidden_dim": 64}``.
        data: what is known of the numbers of a token, by the keywords of ``HTM-v0``: of
            ``categorical``, ``weights`` and ``kind``.
        merger: a known merger in the place of an autoencoder, or ``module:name`` of it (see
            ``htm_env/known.py``); its reward is the option ``reward``, by such a name. A vector is
            the merger's then, and nothing can be reconstructed.

    Attributes:
        learner_: the trained :class:`agents.Learner`.
        n_features_in_: T, the numbers of a token.
        embedding_dim_: D.
        roots_: (N, D), the vectors of the sets that it was fitted to.
        nmse_: their mean reconstruction error, 1 for predicting the mean; of a known merger the
            mean cost of their trees.
        validation_nmse_: that of the tenth of the sets that was held out of training; None where
            there were fewer than 20, all of which train.
    """

    def __init__(
        self,
        algo: Any = "reinforce",
        embedding_dim: Any = "auto",
        seconds: Any = 60,
        merges: Any = None,
        search: Any = 0,
        random_state: Any = 0,
        progress_bar: Any = False,
        options: Any = None,
        data: Any = None,
        merger: Any = None,
    ) -> None:
        # Anything is taken here and checked in fit, as estimators do.
        self.algo = algo
        self.embedding_dim = embedding_dim
        self.seconds = seconds
        self.merges = merges
        self.search = search
        self.random_state = random_state
        self.progress_bar = progress_bar
        self.options = options
        self.data = data
        self.merger = merger

    def fit(
        self,
        sets: Any,
        y: Any = None,
        spans: Any = None,
        lengths: Any = None,
        present: Any = None,
    ) -> HierarchicalTokenMerger:
        """Train a learner on sets of at least two tokens each.

        Args:
            sets: (N, P, T), or a list of (n_i, T).
            y: ignored.
            spans: what is known of the structure of each set, as ``HTM-v0`` takes it. Sets that are
                transformed have none, so it is for learning from, and no use to ``algo="spans"``
                afterwards.
            lengths: the tokens of each set, its first ones.
            present: the tokens of each set that are there; not beside ``lengths``.

        Raises ``ValueError`` for sets that cannot be used, for an unknown algorithm or option, and
        for arguments out of range.
        """
        beside = {"spans": spans, "lengths": lengths, "present": present}
        sets = self._checked(sets, lengths, present)
        keywords("data", tuple(self.data or ()), OF_TOKENS)
        budget = Budget(self.seconds if self.merges is None else None, self.merges)
        whole_number("search", self.search, 0, 2**31)
        run = RunConfig(
            env="HTM-v0",
            env_kwargs={**(self.data or {}), **_own_data(sets, beside)},
            embedding_dim=None if self.embedding_dim == "auto" else self.embedding_dim,
            seed=self._seed(),
            merger=self.merger,
            algo=self.algo,
            config=asdict(configured(self.algo, nested(self.options or {}))),
        )
        learner = build_learner(run)
        learner.train(budget.seconds, budget.merges, progress_bar=self.progress_bar)
        self.learner_ = learner
        self.n_features_in_ = int(np.asarray(sets[0]).shape[-1])
        self.embedding_dim_ = learner.autoencoder.embedding_dim
        found = encode_rows(learner, SPLITS)
        roots, errors = found.encoded.roots[: len(sets)], found.encoded.errors[: len(sets)]
        held_out = np.array(found.splits[: len(sets)]) != "train"
        self.roots_ = roots
        self.nmse_ = float(errors.mean())
        self.validation_nmse_ = float(errors[held_out].mean()) if held_out.any() else None
        return self

    def fit_transform(
        self,
        sets: Any,
        y: Any = None,
        spans: Any = None,
        lengths: Any = None,
        present: Any = None,
    ) -> np.ndarray:
        """:meth:`fit`, then :meth:`transform` of the same sets."""
        return self.fit(sets, y, spans, lengths, present).transform(sets, lengths, present)

    def transform(self, sets: Any, lengths: Any = None, present: Any = None) -> np.ndarray:
        """The vector of every set, (N, D)."""
        return self._encoded(sets, lengths, present).roots

    def inverse_transform(self, roots: Any) -> list[np.ndarray]:
        """The set that each vector (N, D) unmerges to, (n_i, T) each.

        The leaf classifier, which was trained along, says where a tree ends, so the number of
        tokens is a guess, and their order says nothing. Raises ``ValueError`` for an algorithm
        without one.
        """
        check_is_fitted(self)
        roots = check_array(roots, dtype=np.float32, input_name="roots", estimator=self)
        return self._unmerged(torch.from_numpy(roots))

    def trees(self, sets: Any, lengths: Any = None, present: Any = None) -> list[MergeTree]:
        """The merge tree of every set; its leaves are indices into the set as it was given."""
        check_is_fitted(self)
        sets = self._checked(sets, lengths, present)
        return self.learner_.trees(sets, lengths=lengths, present=present, search=self.search)

    def reconstruct(self, sets: Any, lengths: Any = None, present: Any = None) -> Any:
        """What the vector of every set decodes to along its tree, token by token, in the form of
        the sets, an array or a list, with zeros where there is no token."""
        check_is_fitted(self)
        sets = self._checked(sets, lengths, present)
        return self.learner_.reconstruct(sets, lengths=lengths, present=present, search=self.search)

    def score(self, sets: Any, y: Any = None, lengths: Any = None, present: Any = None) -> float:
        """Minus the mean ``nmse`` of the sets' reconstructions, or the mean return of their trees
        where the merger is known: more is better."""
        return -float(self._encoded(sets, lengths, present).errors.mean())

    def sample(self, n: int = 1) -> list[np.ndarray]:
        """New sets, (n_i, T) each: vectors of a Gaussian mixture over :attr:`roots_`, unmerged.

        Raises ``ValueError`` for fewer than one, an algorithm without a leaf classifier, and where
        the estimator was fitted to one set only.
        """
        check_is_fitted(self)
        generator = torch.Generator().manual_seed(self._seed())
        roots = torch.from_numpy(self.roots_)
        components = [k for k in COMPONENTS if k == 1 or k * ROOTS_A_COMPONENT <= len(roots)]
        mixture = RootMixture.fit(roots, generator, components)
        return self._unmerged(mixture.sample(n, generator), refinements=REFINEMENTS)

    def save(self, directory: str | Path) -> None:
        """Write everything to a folder, as JSON and safetensors; a run folder for ``htm`` too.

        Raises ``ValueError`` for a ``random_state`` that is neither a number nor None.
        """
        check_is_fitted(self)
        if not isinstance(self.random_state, numbers.Integral | None):
            raise ValueError(
                f"random_state is {self.random_state!r}; a file can only hold a number or None"
            )
        parameters = self.get_params() | {"merger": self.learner_.run_config().merger}
        if self.random_state is not None:
            parameters["random_state"] = int(self.random_state)
        about = SavedEstimator(parameters, self.n_features_in_, self.nmse_, self.validation_nmse_)
        roots = torch.from_numpy(self.roots_)
        self.learner_.saved_with = {"estimator": asdict(about), "roots": roots}
        self.learner_.save(directory)

    @classmethod
    def load(cls, directory: str | Path) -> HierarchicalTokenMerger:
        """Read what :meth:`save` wrote; nothing in the files is executed.

        Raises ``FileNotFoundError`` where there is none, ``ValueError`` for files that cannot be
        read.
        """
        learner = load_learner(directory)
        if not learner.saved_with:
            raise FileNotFoundError(f"no saved estimator at {directory}, but a learner alone")
        try:
            about, roots = (learner.saved_with[name] for name in ("estimator", "roots"))
            check_tensors({"roots": roots}, {"roots": (torch.float32, 2)})
            saved = config_from_dict(SavedEstimator, about)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            message = f"{directory} holds no saved estimator that can be read: {error}"
            raise ValueError(brief(message)) from error
        merger = cls(**saved.parameters)
        merger.learner_, merger.roots_ = learner, roots.numpy()
        merger.n_features_in_ = saved.n_features_in
        merger.nmse_, merger.validation_nmse_ = saved.nmse, saved.validation_nmse
        merger.embedding_dim_ = learner.autoencoder.embedding_dim
        return merger

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.non_deterministic = self.merges is None
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.embedding_dim_

    def _seed(self) -> int:
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _encoded(self, sets: Any, lengths: Any, present: Any) -> EncodedSets:
        check_is_fitted(self)
        sets = self._checked(sets, lengths, present)
        return self.learner_.encode_sets(sets, lengths, present, self.search)

    def _checked(self, sets: Any, lengths: Any = None, present: Any = None) -> Any:
        """An array of plain numbers; a list, or sets with padding, as they are."""
        sets = as_list(sets)
        if isinstance(sets, list | tuple):
            return list(sets)
        if lengths is not None or present is not None:
            return sets  # padding may hold anything, which the data's own check leaves out
        return check_array(sets, allow_nd=True, input_name="sets", estimator=self)

    def _unmerged(self, roots: torch.Tensor, refinements: int = 0) -> list[np.ndarray]:
        learner = self.learner_
        if not hasattr(learner.autoencoder, "classifier"):
            raise ValueError(f"{self.algo} has no leaf classifier, which says where a tree ends")
        slots = learner.dataset.max_tokens
        limits: dict[str, Any] = {"max_depth": slots, "max_tokens": 2 * slots}
        model = learner.autoencoder.decoding()
        made = generate(model, roots.to(learner.device), **limits)
        made = refine(model, made, refinements, enough=self.nmse_, **limits)
        tokens = learner.dataset.to_user(made.tokens).cpu().numpy()
        return [row[there] for row, there in zip(tokens, made.present.cpu().numpy(), strict=True)]


def _own_data(sets: Any, beside: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``HTM-v0``: a tenth of the sets is held out, or copies where all train.

    ``beside`` has a value for each set, by keyword, or None.
    """
    beside = {name: values for name, values in beside.items() if values is not None}
    if len(sets) >= ENOUGH_TO_HOLD_OUT:
        return {"dataset": sets, "split_fractions": HELD_OUT, **beside}
    copied = {
        name: [*values, *[values[0]] * 2] for name, values in {"dataset": sets, **beside}.items()
    }
    return {"split_of": ["train"] * len(sets) + ["validation", "test"], **copied}

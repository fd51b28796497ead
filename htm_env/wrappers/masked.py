"""Observations with their mask of legal actions, in the forms in which libraries expect them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from htm_env.checks import check_choice
from htm_env.wrappers.flat import MASK, Flattening

if TYPE_CHECKING:
    from htm_env.wrappers.one_agent import OneAgent


class Form(NamedTuple):
    """The two keys, and the type of the mask, that a library expects."""

    vector: str
    mask: str
    dtype: type


FORMS = {
    "rllib": Form("observations", "action_mask", np.float32),
    "tianshou": Form("obs", "mask", np.bool_),
    "pettingzoo": Form("observation", "action_mask", np.int8),
    "torchrl": Form("observation", "action_mask", np.bool_),
}


class MaskedObservation(gym.ObservationWrapper, RecordConstructorArgs):
    """One environment that observes a ``Dict`` of a vector and the mask of legal actions.

    The vector is that of :class:`htm_env.wrappers.Flat`, without a mask at its end. In the mask, 1
    (or True) <--> legal, and after an episode's last merge all numbers are 1.
    """

    def __init__(self, env: gym.Env, form: str) -> None:
        check_choice("form", form, list(FORMS))
        RecordConstructorArgs.__init__(self, form=form)
        super().__init__(env)
        self.form = FORMS[form]
        self.flattening = Flattening(env.observation_space, leave_out=(MASK,))
        actions = int(env.get_wrapper_attr("action_space").n)
        mask = spaces.Box(0, 1, (actions,), self.form.dtype)
        self.observation_space = spaces.Dict(
            {self.form.vector: self.flattening.space, self.form.mask: mask}
        )

    def observation(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        legal: np.ndarray = self.get_wrapper_attr("action_masks")()
        return {
            self.form.vector: self.flattening(observation),
            self.form.mask: legal.astype(self.form.dtype),
        }


def Masked(env: gym.Env, form: str) -> MaskedObservation | OneAgent:  # noqa: N802  # used as a class
    """The environment as a library expects it that masks illegal actions.

    Args:
        env: one environment of an id without ``Flat``.
        form: ``"rllib"`` (keys ``observations`` and ``action_mask``), ``"tianshou"`` (``obs`` and
            ``mask``), ``"torchrl"`` (``observation`` and ``action_mask``), or ``"pettingzoo"``: an
            ``AECEnv`` of one agent, whose observations are ``observation`` and ``action_mask``.

    Raises ``ValueError``, with the choices, for another form.
    """
    masked = MaskedObservation(env, form)
    if form != "pettingzoo":
        return masked
    from htm_env.wrappers.one_agent import OneAgent

    return OneAgent(masked)

"""What replay can be told: REINFORCE's options, and how episodes are stored and replayed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from agents.config.dataclasses_json import check_bounds
from agents.learners.corrections import CORRECTIONS
from agents.learners.reinforce import ReinforceConfig

CORRECTION_NAMES = (*CORRECTIONS, "tree")


@dataclass(frozen=True)
class ReplayConfig(ReinforceConfig):
    """REINFORCE's options, and how episodes are stored and replayed."""

    batch_growth: float = 0.0
    """As REINFORCE's, but none: fresh episodes would outgrow those that are replayed."""
    replays: int = 8
    """Updates on stored episodes after each update on fresh ones."""
    replay_batch_size: int = 64
    """Stored episodes an update."""
    capacity: int = 20_000
    """Episodes stored at most; with the default staleness there are some 400."""
    max_staleness: int | None = 50
    """Episodes older than this many updates are dropped, since an autoencoder that goes on learning
    the trees of a policy long gone is held back by them; 0 keeps the latest batch only, None leaves
    it to the capacity."""
    sampler: str = "uniform"
    """Which episodes are replayed more often: uniform (none), advantage or return."""
    alpha: float = 0.6
    """Exponent of the priorities; 0 is uniform."""
    beta: float = 0.4
    """Exponent of the weights that correct for them; 1 corrects fully."""
    correction: str = "vtrace"
    """vtrace, per_decision, self_normalised, truncated, or tree (ratios of whole trees, exact for
    few tokens and else from sampled sequences; it takes the whole return as earned at the end)."""
    rho_bar: float = 1.0
    """Where importance weights are cut; inf for never. Those of per_decision and self_normalised
    are cut in the critic's targets only."""
    c_bar: float = 1.0
    """Where V-trace cuts its traces."""
    lambda_: float = 1.0
    """Of V-trace's traces: 1 looks ahead to the end, 0 by one merge."""
    trust: float = 0.2
    """How far a stored merge's probability may have moved towards what its advantage asks for, as a
    ratio, before it teaches the policy no more (as PPO's clip); inf for any distance, as learning
    from stored episodes alone needs it."""
    seed_episodes: int = 0
    """Demonstrations stored before the first update. They grow old as all others do: to keep them,
    set max_staleness to None."""
    demonstration_epsilon: float = 0.02
    """Share of random episodes among the demonstrations, so that every probability is known and
    none is 0; for other policies than the nearest ones."""
    demonstration_temperature: float = 0.05
    """Of a softmax over distances in standard deviations; for nearest and nearest_sorted."""
    demonstration_order_epsilon: float = 0.05
    """Probability of turning a pair around; for nearest_sorted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        some, any_number = (1, math.inf), (0, math.inf)
        check_bounds(
            self,
            replays=any_number,
            replay_batch_size=some,
            capacity=some,
            seed_episodes=any_number,
            c_bar=any_number,
            lambda_=(0, 1),
            trust=(0, math.inf),
        )
        if any(share < 1 for _, share in self.policy_share):
            raise ValueError(
                f"policy_share is {self.policy_share}; expected 1 throughout: in between, "
                "replay's autoencoder learns from stored episodes"
            )
        if not self.rho_bar > 0:
            raise ValueError(f"rho_bar is {self.rho_bar}; expected more than 0")

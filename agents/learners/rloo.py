"""REINFORCE that compares whole trees of a sample, for problems that do not move.

Every merge of a tree has the same advantage: the error of the tree less that of the sample's other
seven (leave-one-out baseline, Kool, van Hoof and Welling 2019, "Buy 4 REINFORCE samples, get a
baseline for free!"; Kwon et al. 2020, "POMO"). Where the autoencoder is frozen, or the merger
known, later errors decide, and what a merge costs at once says little: an undiscounted return ends
lower. Batches stay small, since updates are worth more than little noise.
"""

from __future__ import annotations

from agents.learners.reinforce import ReinforceConfig

RLOO = ReinforceConfig(
    trees_per_sample=8,
    batch_growth=0.0,
    reward="terminal",
    discount=1.0,
    demonstration_race=0.1,
    demonstration_share=((0.12, 1.0), (0.3, 0.0)),
)
"""``rloo``; it clones for a shorter time, since a policy that is not sure yet finds more."""

"""The published method's recipe, as configurations of REINFORCE: the rows to beat.

After the original implementation of the Hierarchical Token Merger: a plain-MLP autoencoder, an MLP
over every pair of embeddings, minus the one-step cycle error as immediate reward (no discounted
future), normalised by the latest 10,000 rewards, and a penalty on the distance of the entropy from
its target schedule. Its code leaves learning rates, batch size and the weights of the auxiliary
losses to the user; those here measured best of three on Trees of 7 tokens, and only there. As
everywhere in this project, coordinates are standardised and tokens shuffled.
"""

from __future__ import annotations

import math
from dataclasses import replace

from agents.learners.reinforce import EntropyConfig, ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from htm_env.losses import LossWeights

_ADAM = OptimizerConfig(learning_rate=3e-3, warm_up_updates=0, clip_norm=math.inf)

ORIGINAL = ReinforceConfig(
    autoencoder=AutoencoderConfig(
        architecture="mlp",
        hidden_dim=256,
        loss=LossWeights(
            reconstruction=1.0,
            subtrees=0.0,
            cycle=0.1,
            transport=0.1,
            classifier=1.0,
            classifier_detached=True,
        ),
        transport_interpolation=((0.05, 0.5), (0.8, 0.0)),
        noise_std=0.01,
        lifter=_ADAM,
        merger=_ADAM,
        classifier=_ADAM,
    ),
    policy=replace(_ADAM, weight_decay=1e-5),
    scorer="pair_mlp",
    policy_hidden_dim=256,
    batch_size=64,
    batch_growth=0.0,
    trees_per_sample=1,
    trees_per_step=64,
    reward="one_step",
    discount=0.0,
    baseline="moving_normaliser",
    demonstration_share=((0.0, 0.0),),
    scale_advantages=False,
    coordinates=False,
    failure=0.0,
    entropy=EntropyConfig(
        ordered=True,
        control="distance",
        weight=3.0,
        target=((0.05, 1.0), (0.2, 0.3), (0.5, 0.3), (0.7, 0.0)),
    ),
)
"""``original``: the whole recipe, its own autoencoder included."""

ORIGINAL_POLICY = replace(
    ORIGINAL, autoencoder=AutoencoderConfig(), trees_per_step=ReinforceConfig.trees_per_step
)
"""``original_policy``: the same policy learning on this project's autoencoder."""

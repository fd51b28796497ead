"""The leaf classifier's accuracy, of four kinds."""

from __future__ import annotations

import math

import torch
from conftest import small_autoencoder
from torch import nn

from htm_env import make_dataset
from htm_env.measures.metrics import classifier_scores, mean_or_none


class Says(nn.Module):
    def __init__(self, logit):
        super().__init__()
        self.logit = logit

    def forward(self, state):
        return torch.full_like(state[:, :1], self.logit)


def means(autoencoder, **kwargs):
    batch = make_dataset("HTM-Crosses-v0", num_crosses=(1, 3)).fixed(12)
    scores = classifier_scores(autoencoder, batch, batch.merges, **kwargs)
    return {name: mean_or_none(values) for name, values in scores.items()}


def test_always_leaf_is_right_about_leaves_only():
    autoencoder = small_autoencoder(4)
    autoencoder.classifier = Says(1.0)
    found = means(autoencoder)
    assert found == {
        "classifier_leaf_encoder": 1.0,
        "classifier_internal_encoder": 0.0,
        "classifier_leaf_decoder": 1.0,
        "classifier_internal_decoder": 0.0,
    }
    assert means(autoencoder, threshold=0.9)["classifier_internal_decoder"] == 1.0


@torch.no_grad()
def test_encoder_and_decoder_states_are_told_apart_and_counted_by_sample():
    """Against a loop over single nodes."""
    autoencoder = small_autoencoder(4, seed=2)
    batch = make_dataset("HTM-Crosses-v0").fixed(8)
    found = classifier_scores(autoencoder, batch, batch.merges)
    encoding = autoencoder.encode(batch.tokens, batch.present, batch.merges)
    for row, size in enumerate(batch.num_tokens.tolist()):
        up = {node: encoding.nodes[row, node] for node in range(2 * size - 1)}
        down = {2 * size - 2: up[2 * size - 2]}
        for step in reversed(range(size - 1)):
            children = autoencoder.unmerger(down[size + step][None]).view(2, -1)
            down |= zip(batch.merges[row, step].tolist(), children, strict=True)
        for way, states in (("encoder", up), ("decoder", down)):
            said = {
                node: float(autoencoder.classifier(state[None])) >= 0
                for node, state in states.items()
            }
            leaves = sum(said[node] for node in range(size)) / size
            inner = sum(not said[node] for node in range(size, 2 * size - 1)) / (size - 1)
            assert math.isclose(float(found[f"classifier_leaf_{way}"][row]), leaves, rel_tol=1e-6)
            assert math.isclose(
                float(found[f"classifier_internal_{way}"][row]), inner, rel_tol=1e-6
            )


def test_a_single_token_has_no_internal_node():
    batch = make_dataset("HTM-Crosses-v0", num_crosses=1).fixed(3)
    batch.present[1, 1] = False
    merges = batch.merges.clone()
    merges[1] = -1
    found = classifier_scores(small_autoencoder(4), batch, merges)
    assert found["classifier_internal_decoder"].isnan().tolist() == [False, True, False]
    assert not found["classifier_leaf_decoder"].isnan().any()

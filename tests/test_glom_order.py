"""The learner whose trees are a Glom's islands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from agents.cli import main
from agents.encoders.config import GlomConfig
from agents.learners.glom import GlomOrder, GlomOrderConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.registry import load_learner
from htm_env.forest import check_merges

SMALL = GlomOrderConfig(
    autoencoder=AutoencoderConfig(hidden_dim=8),
    glom=GlomConfig(levels=2, level_width=8),
    glom_batch_size=6,
    batch_size=4,
)
TREES = {"env_kwargs": {"heights": [2, 3]}, "embedding_dim": 4}


def learner(**changes) -> GlomOrder:
    return GlomOrder("HTM-Trees-v0", replace(SMALL, **changes), **TREES)


def weights(one: GlomOrder) -> list[torch.Tensor]:
    parts = [*one.glom.state_dict().values(), *one.autoencoder.state_dict().values()]
    return [value.clone() for value in parts]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_its_plans_are_trees_and_need_no_random_numbers_but_for_ties():
    glom = learner()
    batch = glom.dataset.fixed(20)
    merges = glom.plan(batch, torch.Generator().manual_seed(0), greedy=True)
    check_merges(merges, batch.num_tokens)
    again = glom.plan(batch, torch.Generator().manual_seed(1), greedy=False)
    assert torch.equal(merges, again)


def test_a_plan_is_that_of_the_current_glom():
    glom = learner()
    batch = glom.dataset.fixed(50)
    before = glom.plan(batch, torch.Generator().manual_seed(0), greedy=True)
    for _ in range(10):
        glom.update(0.0)
    after = glom.plan(batch, torch.Generator().manual_seed(0), greedy=True)
    assert not torch.equal(before, after)


def test_the_glom_stands_still_after_its_share_of_the_budget():
    glom = learner(glom_share=0.5)
    early = glom.update(0.25)
    assert {"loss/glom_denoising", "loss/glom_contrastive", "gradient_norm/glom"} <= set(early)
    before = [value.clone() for value in glom.glom.state_dict().values()]
    hash_before = glom.autoencoder.weights_hash()
    late = glom.update(0.5)
    assert "loss/glom_denoising" not in late and "train/nmse" in late
    assert equal(before, list(glom.glom.state_dict().values()))
    assert glom.autoencoder.weights_hash() != hash_before


def test_a_saved_state_continues_bit_for_bit(tmp_path):
    through, stopped = learner(), learner()
    for update in range(6):
        through.update(update / 10)
    for update in range(2):
        stopped.update(update / 10)
    stopped.save(tmp_path / "agent")
    resumed = GlomOrder.load(tmp_path / "agent")
    assert resumed.config == SMALL
    for update in range(2, 6):
        resumed.update(update / 10)
    assert equal(weights(through), weights(resumed))
    assert torch.equal(through.generator.get_state(), resumed.generator.get_state())


def test_the_command_trains_evaluates_and_resumes_it(tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = [
        "--env",
        "HTM-Trees-v0",
        "--env-kwargs",
        '{"heights": [2, 3]}',
        "--algo",
        "glom",
        "--merges",
        "60",
        "--set",
        "glom.level_width=8",
        "--set",
        "glom.iterations=2",
        "--set",
        "glom_batch_size=6",
        "--set",
        "autoencoder.hidden_dim=8",
        "--out",
        str(folder),
    ]
    assert main(["train", *arguments]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["algo"] == "glom"
    assert 0 <= result["test"]["tree_f1"] <= 1
    assert main(["evaluate", str(folder), "--json"]) == 0
    assert main(["train", "--resume", str(folder)]) == 0
    assert isinstance(load_learner(folder), GlomOrder)


@pytest.mark.parametrize(("field", "value"), [("glom_share", 1.5), ("batch_size", 0)])
def test_impossible_configurations_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        GlomOrderConfig(**{field: value})

"""The comparison with the original hierarchical transformer, at tiny sizes."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import torch

from agents import HierarchicalTransformer
from benchmarks import hierarchical_original, hierarchical_readme
from benchmarks.hierarchical_training import Job, outcome

TINY = {"num_tokens": 256, "dim": 8, "depth": 1, "seq_len": 256, "dim_head": 4, "heads": 2}


def test_a_job_says_what_came_of_it():
    text = torch.arange(900) % 10 + 60
    job = Job("agents", "now", TINY, steps=1, learning_rate=1e-2, written=3)
    first, more = (outcome(each, text, text[:600]) for each in (job, replace(job, steps=15)))
    model = HierarchicalTransformer(**TINY)
    assert first["parameters"] == sum(each.numel() for each in model.parameters())
    assert more["bits"] < first["bits"] < 10
    assert set(first) == {"parameters", "seconds", "bits", "seconds of writing"}


def test_a_training_that_is_done_is_not_repeated(monkeypatch, tmp_path):
    calls = []

    def run(command, **_):
        calls.append(command)
        told = json.loads(command[-1]) | {"bits": 2.0}
        return subprocess.CompletedProcess(command, 0, f"something else\n{json.dumps(told)}\n")

    monkeypatch.setattr(subprocess, "run", run)
    file = tmp_path / "trainings.jsonl"
    job = Job("agents", "now", TINY)
    for trainings in (hierarchical_original.Trainings(file) for _ in range(2)):
        assert trainings.result("python", job)["bits"] == 2.0
    hierarchical_original.Trainings(file).result("python", replace(job, seed=1))
    assert len(calls) == 2


def test_models_of_unequal_speed_are_trained_in_the_time_of_the_other(monkeypatch, tmp_path):
    """A flat one that takes twice as long: 5 steps where the hourglass makes 10, which makes 20."""
    told = []

    def run(command, **_):
        if command[0] == "git":
            return subprocess.CompletedProcess(command, 0, "")
        job = json.loads(command[-1])
        told.append(job)
        slow = 2.0 if job["words"].get("hierarchies") is None else 1.0
        done = {"seconds": slow * job["steps"], "seconds of writing": 1.0, "parameters": 709_072}
        line = json.dumps(job | done | {"bits": 1 + job["learning_rate"]})
        return subprocess.CompletedProcess(command, 0, line)

    monkeypatch.setattr(subprocess, "run", run)
    rows = hierarchical_original.comparison(
        tmp_path, "python", 10, 2, ("hourglass", "flat"), (0.5, 0.25)
    )
    names = ("hourglass", "flat", "flat in the hourglass's time", "hourglass in the flat's time")
    assert tuple(row["model"] for row in rows) == names
    assert [row["steps"] for row in rows] == [10, 10, 5, 20]
    assert [row["steps a second"] for row in rows] == [1, 0.5, 0.5, 1]
    assert {row["learning rate"] for row in rows} == {0.25}
    assert {row["bits a byte, mean"] for row in rows} == {1.25}
    assert not [job for job in told if job["package"] != "agents" and job["steps"]]


def test_the_feed_forward_network_makes_up_for_parameters():
    words = hierarchical_original.as_large(TINY, 9000)
    size = sum(each.numel() for each in HierarchicalTransformer(**words).parameters())
    assert abs(size - 9000) <= 9  # a hidden unit has 8 + 8 weights and a bias


def test_writing_is_the_same_with_and_without_a_cache():
    with_cache, without = hierarchical_original.writing(TINY, torch.tensor([[60, 61]]), 5)
    assert with_cache["same bytes"] and without["same bytes"]
    assert (with_cache["bytes"], with_cache["times as long"]) == (5, 1.0)


README = """
```python
from simple_hierarchical_transformer import HierarchicalTransformer

model = HierarchicalTransformer(
    num_tokens = 11, dim = 8, depth = 1, seq_len = 32, dim_head = 4, heads = 2,
    hierarchies = (1, 4)
).cuda()
```
```python
model = HierarchicalTransformer(
    ...,
    depth = 2
)
```
```python
model = HierarchicalTransformer(num_tokens = 11, dim = 8, depth = 1, seq_len = 16)
```
"""


def test_blocks_of_the_readme_run_with_our_import():
    code = hierarchical_readme.blocks(README)
    assert len(code) == 2  # one has a placeholder
    first, second = hierarchical_readme.checked(code, generated=3)
    assert (first["hierarchies"], second["hierarchies"]) == ("1 4", "1")
    assert (first["shape of the logits"], second["shape of the logits"]) == (
        "1 x 32 x 11",
        "1 x 16 x 11",
    )
    for row in (first, second):
        assert row["largest gradient of later tokens"] == 0.0
        assert row["same tokens with a cache"]

"""``htm evaluate --semantics``: its tables, files and pictures, on small runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from agents.cli.command import run as command
from agents.cli.options import EvaluateOptions
from agents.cli.semantics import other_runs
from agents.inspection.parts import labelled_trees
from agents.inspection.semantic_report import semantic_report
from agents.learners.fixed_order import FixedOrder
from agents.learners.flat import Flat
from agents.registry import algorithm, load_learner
from htm_env.datasets import make_dataset
from htm_env.files import read_json
from htm_env.types import NONE


def fixed_order(name: str, env_id: str, **task) -> FixedOrder:
    kind = algorithm(name)
    return kind.learner(env_id, kind.config, **task)


def own_data(rows: int = 60) -> dict:
    """Sets that lie at a place of their label."""
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    data = rng.normal(size=(rows, 5, 2)) + 20 * labels[:, None, None]
    return {"dataset": data, "labels": [f"kind {label}" for label in labels]}


def test_the_own_hierarchy_is_found_and_stable_and_random_merges_are_not():
    task = {"env_kwargs": {"heights": [3]}, "embedding_dim": 4}
    structure = fixed_order("structure", "HTM-Trees-v0", **task)
    random = fixed_order("random", "HTM-Trees-v0", **task)
    flat = Flat("HTM-Trees-v0", **task)
    others = {"random": random, "flat": flat}
    report = semantic_report(structure, structure.task, others, {}, {}, 50)
    assert report.agreement["root"]["tree_f1"] == (1.0, 1.0, 1.0)
    # Two clades of seven tokens; the tree has five, so three of seven are in one only.
    assert report.agreement["root"]["tree_robinson_foulds"] == pytest.approx((3 / 7,) * 3)
    mean, low, high = report.agreement["random"]["tree_f1"]
    assert low < mean < high < 0.5
    assert report.stability["root"] == {"jittered": (1.0, 0.0), "one_token_dropped": (1.0, 0.0)}
    assert report.stability["random"]["jittered"].mean < 0.5
    # Without labels only the rank is left of embeddings, and nothing of trees where there are none.
    assert set(report.embeddings) == {"root", "random", "flat"}
    assert all(set(scores) == {"effective_rank"} for scores in report.embeddings.values())
    assert all(1 <= scores["effective_rank"] <= 4 for scores in report.embeddings.values())
    assert "flat" not in report.agreement | report.stability
    assert not report.few_shot and not report.parts


def test_nodes_have_the_labels_of_the_clades_that_they_are():
    strokes = {"strokes": [4, 6]}
    structure = fixed_order("structure", "HTM-Kanji-v0", env_kwargs=strokes, embedding_dim=4)
    dataset = make_dataset("HTM-Kanji-v0", "test", **strokes)
    keys = dataset.fixed_keys(20)
    trees = labelled_trees(structure, dataset, keys)
    nodes, clades = trees.as_nodes(), trees.as_clades()
    # The own hierarchy has every group; each labelled one is one node.
    assert sorted(nodes.labels[nodes.labels != NONE]) == sorted(clades.labels)
    batch, labels = dataset.episodes(keys), dataset.clade_labels(keys)
    for row in range(20):
        groups = {
            tuple(np.flatnonzero(members)): label
            for members, label in zip(batch.clades[row].numpy(), labels[row], strict=True)
        }
        for node in range(trees.leaves.shape[1]):
            leaves = tuple(np.flatnonzero(trees.leaves[row, node].numpy()))
            assert trees.labels[row, node] == groups.get(leaves or None, NONE)
    inner = 2 * batch.num_tokens - 1 - batch.num_tokens - 1  # no leaves and no root
    assert np.bincount(nodes.samples, minlength=20).tolist() == inner.tolist()


def test_the_own_hierarchy_lacks_no_part():
    task = {"env_kwargs": {"strokes": [4, 5]}, "embedding_dim": 4}
    structure = fixed_order("structure", "HTM-Kanji-v0", **task)
    random = fixed_order("random", "HTM-Kanji-v0", **task)
    report = semantic_report(structure, structure.task, {"random": random}, {}, {}, 50)
    assert set(report.parts) == {"root", "pca_4", "random"}
    for name in ("root", "pca_4"):
        parts = report.parts[name]
        assert parts.found == 1.0
        assert parts.retrieval == pytest.approx(parts.retrieval_of_found)
        assert parts.retrieval > 0
        assert parts.probe == parts.probe_of_found
    random_parts = report.parts["random"]
    assert random_parts.found < 0.6
    assert random_parts.retrieval < random_parts.found  # at most the share of queries


def test_a_learner_without_trees_has_no_nodes():
    flat = Flat("HTM-Trees-v0", env_kwargs={"heights": [3]}, embedding_dim=4)
    dataset = flat.task.dataset("test")
    assert labelled_trees(flat, dataset, dataset.fixed_keys(3)) is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two fixed orders and flat on labelled sets, hardly trained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs")
    task = {"env_kwargs": own_data(), "embedding_dim": 4}
    for name in ("nearest", "balanced"):
        fixed_order(name, "HTM-v0", **task).train(merges=200, out=folder / name)
    Flat("HTM-v0", **task).train(merges=200, out=folder / "flat")
    return folder


def test_tables_files_and_pictures(runs, capsys):
    run, others = runs / "nearest", [runs / "balanced", runs / "flat"]
    assert command(["evaluate", str(run), "--semantics", "--against", *map(str, others)]) == 0
    printed = capsys.readouterr().out
    found = read_json(run / "semantics.json")
    assert set(found["embeddings"]) == {"root", "pca_4", "tokens", "pooled", "balanced", "flat"}
    # The place of a set is its label: one label a class is enough for its mean token.
    assert found["few_shot"]["pooled"]["1"] == {"mean": 1.0, "error": 0.0}
    assert found["few_shot_classes"] == 3
    assert {"pca_4", "pca_4, one scale"} < set(found["few_shot"])
    assert found["against"]["flat"]["algo"] == "flat"
    assert set(found["stability"]) == {"root", "balanced"}  # flat has no trees
    assert found["agreement"] == {"root": {}, "balanced": {}}  # and the data no clades
    report = (run / "semantics.md").read_text()
    for shown in ("few labels: accuracy on", "1.000 ± 0.000", "balanced", "flat"):
        assert shown in report.replace("Few", "few") and shown in printed
    assert "one token dropped" in report
    for picture in ("roots_map", "roots_nearest"):
        assert f"figures/semantics_{picture}.png" in report
        content = (run / "figures" / f"semantics_{picture}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert not list((run / "figures").glob("semantics_parts*"))


def test_the_usual_output_stays_without_the_flag(runs, capsys):
    run = runs / "balanced"
    assert command(["evaluate", str(run), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert "meaning" not in plain and not (run / "semantics.json").exists()
    assert command(["evaluate", str(run), "--semantics", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)
    assert more.pop("meaning")["few_shot_samples"] == plain["semantics_samples"]
    assert more == plain


def test_a_run_that_is_called_as_an_embedding_gets_a_row_of_its_own(runs, tmp_path):
    learner = load_learner(runs / "flat")
    learner.save(tmp_path / "pooled")
    (tmp_path / "a").mkdir()
    learner.save(tmp_path / "a" / "nearest")
    others = [tmp_path / "pooled", tmp_path / "a" / "nearest", runs / "nearest"]
    options = EvaluateOptions(runs / "nearest", semantics=True, against=tuple(others))
    assert list(other_runs(options, learner)) == ["run pooled", *map(str, others[1:])]


def test_it_says_what_it_measures(runs):
    learner = load_learner(runs / "nearest")
    said: list[str] = []
    others = {"other": load_learner(runs / "balanced")}
    semantic_report(learner, learner.task, others, {}, {}, 5, on_measure=said.append)
    assert said == ["few labels", "trees of this run", "trees of other"]


def test_wrong_usage_is_told(runs, tmp_path, capsys):
    run = str(runs / "nearest")
    assert command(["evaluate", run, "--semantics", "--search", "5"]) == 2
    assert "not those of --search 5" in capsys.readouterr().err
    assert command(["evaluate", run, "--against", run]) == 2
    assert "--against is for runs to measure with --semantics" in capsys.readouterr().err
    assert command(["evaluate", run, "--semantics", "--against", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err
    other = Flat(
        "HTM-v0",
        env_kwargs={"dataset": np.random.default_rng(0).random((20, 4, 3))},
        embedding_dim=4,
    )
    other.save(tmp_path / "other")
    assert command(["evaluate", run, "--semantics", "--against", str(tmp_path / "other")]) == 1
    assert "3 coordinates" in capsys.readouterr().err

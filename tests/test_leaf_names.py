"""Pictures and pages call rows and tokens what the data calls them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents import Reinforce
from agents.inspection.traces import sample_title, traces_of
from htm_env.drawing.figures import charges_figure, probabilities_figure, tree_figure
from htm_env.drawing.figures.roots import root_figure
from htm_env.drawing.page.content import page_content
from htm_env.types import TokenBatch

ROWS, PLACES = 30, 7
PARTS = ("head", "left arm", "right arm", "left leg", "right leg", "tail", "nose")


def given(**more):
    """Tokens at some of seven places, with labels and names, and a learner on them."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(ROWS, PLACES, 2)).astype(np.float32)
    present = rng.random((ROWS, PLACES)) < 0.6
    present[:, [2, 5]] = True
    kwargs = {"dataset": tokens, "present": present, **more}
    return tokens, Reinforce("HTM-v0", env_kwargs=kwargs, embedding_dim=4)


def test_a_trace_has_the_tokens_of_the_row_in_the_order_of_the_row():
    tokens, learner = given()
    dataset = learner.task.dataset("test")
    for key, trace in enumerate(traces_of(learner, dataset, range(dataset.size))):
        places = [int(name) for name in trace.leaf_names]
        assert places == sorted(places)
        assert np.array_equal(trace.tokens, tokens[dataset.rows[key], places])
        assert trace.title == f"row {dataset.rows[key]}"
        # Its merges are of these tokens: encoded along them, the root gives the same back.
        count = len(places)
        here = torch.ones(1, count, dtype=torch.bool)
        merges = torch.tensor(trace.tree.merges)[None]
        given_order = TokenBatch(
            torch.from_numpy(trace.tokens)[None], here, torch.zeros(1, 0, count).bool(), merges
        )
        back = learner.encode(given_order, merges).reconstruction[0]
        assert back.numpy() == pytest.approx(trace.reconstruction, abs=1e-5)
        for (nodes, found), (again, expected) in zip(
            trace.considered, learner.pair_probabilities(given_order, merges), strict=True
        ):
            assert nodes.tolist() == again.tolist() == sorted(nodes.tolist())
            assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_generated_samples_are_called_by_their_slots():
    learner = Reinforce("HTM-Trees-v0", env_kwargs={"heights": [2]}, embedding_dim=4)
    dataset = learner.task.dataset("test")
    (trace,) = traces_of(learner, dataset, [0])
    assert (trace.title, trace.leaf_names) == ("", ())
    assert trace.names == ["0", "1", "2", "3", "4"]
    assert np.array_equal(trace.tokens, dataset.fixed(1).tokens[0].numpy())


def test_merges_are_no_numbers_where_tokens_are_not_all_of_them():
    _, learner = given()
    dataset = learner.task.dataset("test")
    traces = traces_of(learner, dataset, range(dataset.size))
    gaps = next(trace for trace in traces if trace.leaf_names[-1] != str(trace.tree.num_leaves - 1))
    count = gaps.tree.num_leaves
    assert gaps.names == [*gaps.leaf_names, *(f"m{merge}" for merge in range(1, count))]


def test_figures_and_the_page_have_the_names():
    rows, labels = [f"cat {row}" for row in range(ROWS)], ["wild", "tame"] * (ROWS // 2)
    _, learner = given(token_names=PARTS, names=rows, labels=labels)
    dataset = learner.task.dataset("test")
    row = dataset.rows[0]
    (trace,) = traces_of(learner, dataset, [0])
    assert set(trace.leaf_names) <= set(PARTS)
    assert trace.title == sample_title(dataset, 0) == f"cat {row} ({labels[row]})"

    shown = sorted(trace.leaf_names)
    plane, dendrogram = tree_figure(trace).axes
    assert sorted(text.get_text() for text in plane.texts) == shown
    assert sorted(tick.get_text() for tick in dendrogram.get_xticklabels()) == shown
    assert trace.title in plane.get_title()
    table = probabilities_figure(trace, 1).axes[0]
    assert "m1" in [tick.get_text() for tick in table.get_xticklabels()]
    assert (
        sorted(tick.get_text() for tick in charges_figure(trace).axes[1].get_yticklabels()) == shown
    )

    (sample,) = page_content({"0": trace})["samples"]
    assert (sample["names"], sample["title"]) == (trace.names, trace.title)


def test_a_map_of_roots_has_the_names_of_labels():
    rng = np.random.default_rng(0)
    pictures = np.zeros((30, 8, 8, 3), dtype=np.uint8)
    names = [f"kind {label}" for label in range(9)]  # more than there are colours
    figure = root_figure(
        rng.normal(size=(30, 3)), np.arange(30) % 9, "label", pictures, "30 roots", names
    )
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == names
    short = root_figure(
        rng.normal(size=(30, 3)), np.arange(30) % 2, "label", pictures, "30 roots", ["A", "B"]
    )
    assert short.axes[0].get_legend() is None
    assert short.axes[0].get_title() == "numerals: label"

"""The page as a text: what is written into it, and that it needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from htm_env.drawing.page import SCRIPTS, viewer_page
from htm_env.drawing.page.content import page_content
from htm_env.drawing.trace import Considered, Trace
from htm_env.trees.merge_tree import MergeTree

TOKENS = np.array([[0.0, 100.0], [200.0, 50.0], [7.123456, 150.0]])


def considered(nodes, probabilities):
    return Considered(np.array(nodes), np.array(probabilities))


@pytest.fixture
def trace():
    """Three points: 2 and 0 are merged to node 3, then 3 and 1."""
    reconstructions = np.stack([TOKENS, TOKENS, TOKENS + 3.0])
    reconstructions[1, [0, 2]] += 1.123456  # a merge changes what is under it, and nothing else
    return Trace(
        tokens=TOKENS,
        kind="points",
        tree=MergeTree([[2, 0], [3, 1]], 3),
        reconstructions=reconstructions,
        errors=np.array([0.0, 0.000123456, 0.1]),
        considered=(
            considered([0, 1, 2], [[0, 0.1, 0.05], [0.1, 0, 0.05], [0.6, 0.1, 0]]),
            considered([1, 3], [[0, 0.25], [0.75, 0]]),
        ),
    )


class Blocks(HTMLParser):
    """The text of every script element, by its type, as a browser would end them."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.open, self.addresses = {}, None, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.open = dict(attributes).get("type", "code") if tag == "script" else None
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, text):
        if self.open:
            self.texts[self.open] = self.texts.get(self.open, "") + text

    def handle_endtag(self, tag):
        self.open = None


def content_of(page):
    return json.loads(Blocks(page).texts["application/json"])


def test_nested_lists_are_on_the_page(trace):
    page = viewer_page({"5": trace}, "Title", course=[(1000, ["<1>"]), (2000, ["(0, 1)"])])
    assert "<th>sample 5</th>" in page and "<td>((2, 0), 1)</td>" in page
    assert "<tr><td>1,000</td><td>&lt;1&gt;</td></tr><tr><td>2,000</td><td>(0, 1)</td></tr>" in page
    assert "over the training" not in viewer_page({"5": trace}, "Title")


def test_the_content_is_what_the_trace_says(trace):
    (sample,) = content_of(viewer_page({"5": trace}, "Title"))["samples"]
    assert sample["name"] == "5"
    assert (sample["kind"], sample["dim"]) == ("points", 2)
    # The first coordinate's extent is 200, so two decimals are a twenty-thousandth of it.
    assert sample["tokens"] == [0.0, 100.0, 200.0, 50.0, 7.12, 150.0]
    assert sample["start"] == sample["tokens"]
    # Under node 3 are the tokens 0 and 2; the second coordinate's extent is 100.
    assert sample["changes"][0] == [1.12, 101.12, 8.25, 151.12]
    assert sample["changes"][1] == [3.0, 103.0, 203.0, 53.0, 10.12, 153.0]
    assert sample["merges"] == [[2, 0], [3, 1]]
    assert sample["errors"] == [0.0, 0.00012346, 0.1]
    assert sample["charges"] == [0.00012346, 0.099877]  # 0.1 - 0.000123456
    assert sample["considered"] == [
        {
            "count": 6,
            "pairs": [
                [2, 0, 0.6],
                [0, 1, 0.1],
                [1, 0, 0.1],
                [2, 1, 0.1],
                [0, 2, 0.05],
                [1, 2, 0.05],
            ],
        },
        {"count": 2, "pairs": [[3, 1, 0.75], [1, 3, 0.25]]},
    ]


def test_ten_pairs_stand_there_and_the_chosen_one_wherever_it_ranks(trace):
    tokens = np.arange(12.0).reshape(6, 2)
    probabilities = np.arange(36.0).reshape(6, 6)
    np.fill_diagonal(probabilities, 0)
    probabilities /= probabilities.sum()
    tree = MergeTree([[0, 1]], 6)  # the least probable pair of all
    one = dataclasses.replace(
        trace,
        tokens=tokens,
        tree=tree,
        reconstructions=np.stack([tokens, tokens]),
        errors=np.array([0.0, 1.0]),
        considered=(considered(range(6), probabilities),),
    )
    step = page_content({"0": one})["samples"][0]["considered"][0]
    assert step["count"] == 30
    assert [pair[:2] for pair in step["pairs"]] == [
        [5, 4],
        [5, 3],
        [5, 2],
        [5, 1],
        [5, 0],
        [4, 5],
        [4, 3],
        [4, 2],
        [4, 1],
        [4, 0],
        [0, 1],
    ]
    assert step["pairs"][-1][2] == pytest.approx(probabilities[0, 1], rel=1e-4)


def test_a_policy_without_probabilities_writes_none(trace):
    fixed = dataclasses.replace(trace, considered=())
    assert page_content({"0": fixed})["samples"][0]["considered"] == []


def test_coordinates_that_are_all_the_same_keep_their_digits(trace):
    level = dataclasses.replace(trace, tokens=np.full((3, 2), [0.0, 0.012345]))
    assert page_content({"0": level})["samples"][0]["tokens"] == [0.0, 0.012345] * 3


def test_no_text_can_end_its_element_or_open_another(trace):
    evil = "</script><script>alert(1)</script><!-- {{content}} & \u2028"
    page = viewer_page({evil: trace}, evil, evil)
    assert content_of(page)["samples"][0]["name"] == evil
    assert set(Blocks(page).texts) == {"application/json", "code"}
    assert "alert" not in Blocks(page).texts["code"]
    assert page.count("<script") == page.count("</script>") == 2
    assert "<title>&lt;/script&gt;" in page


def test_the_page_asks_for_no_other_file(trace):
    page = viewer_page({"0": trace}, "Title")
    assert "default-src 'none'" in page
    assert Blocks(page).addresses == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|\bfetch\(", page)


def test_every_script_is_joined_once_and_none_is_forgotten(trace):
    folder = files("htm_env.drawing.page")
    scripts = [entry.name for entry in folder.iterdir() if entry.name.endswith(".js")]
    assert sorted(scripts) == sorted(SCRIPTS)
    page = viewer_page({"0": trace}, "Title")
    for name in (*SCRIPTS, "page.css"):
        assert page.count(folder.joinpath(name).read_text(encoding="utf-8")) == 1


def test_a_page_says_what_is_wrong_with_its_samples(trace):
    with pytest.raises(ValueError, match="at least 1 sample"):
        viewer_page({}, "Title")
    broken = dataclasses.replace(trace, reconstructions=np.full((3, 3, 2), np.nan))
    with pytest.raises(ValueError, match="sample 7 has reconstructions that are not finite"):
        viewer_page({"7": broken}, "Title")
    broken = dataclasses.replace(trace, considered=(considered([0, 1], [[0, np.inf], [0, 0]]),))
    with pytest.raises(ValueError, match="sample 8 has probabilities that are not finite"):
        viewer_page({"7": trace, "8": broken}, "Title")

"""Trees as nested lists: in the folder of a run, in TensorBoard, and on the page."""

from __future__ import annotations

import pytest
import torch

from agents import FixedOrder
from agents.inspection.trained import say_if_not_trained
from agents.runs.directory import RunDirectory
from agents.runs.records import TreeCourse
from agents.runs.trees import nested_lists, over_training, side_by_side
from htm_env.datasets import make_dataset


def test_trees_are_nested_lists_side_by_side():
    batch = make_dataset("HTM-Trees-v0", heights=[2]).fixed(2)
    merges = torch.tensor([[[0, 1], [3, 2]], [[2, 0], [1, 3]]])
    lists = nested_lists(batch, merges)
    assert lists == ["((0, 1), 2)", "(1, (2, 0))"]
    assert side_by_side(lists).splitlines() == [
        "| sample 0 | sample 1 |",
        "| --- | --- |",
        "| ((0, 1), 2) | (1, (2, 0)) |",
    ]
    assert nested_lists(batch, torch.full_like(merges, -1)) == []


def test_a_course_is_that_of_one_sample_and_is_cut_at_a_checkpoint():
    course = TreeCourse().then(10, ["a", "b"]).then(2000, ["c", "d"])
    assert over_training(course, 1).splitlines()[2:] == ["| 10 | b |", "| 2,000 | d |"]
    assert course.until(1999) == TreeCourse((10,), (("a", "b"),))
    assert course.then(2000, ["e", "f"]) == TreeCourse((10, 2000), (("a", "b"), ("e", "f")))
    with pytest.raises(ValueError, match="lists has 0 rows; expected 1"):
        TreeCourse((1,))


def test_a_course_is_kept_in_the_folder(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.load_trees() == TreeCourse()
    course = TreeCourse().then(10, ["(0, 1)"])
    directory.save_trees(course)
    assert directory.load_trees() == course
    directory.trees_path.write_text('{"merges": 3}')
    with pytest.raises(ValueError, match=r"trees\.json"):
        directory.load_trees()


def test_samples_that_do_not_end_are_told(capsys):
    order = FixedOrder("HTM-Trees-v0", env_kwargs={"heights": [2]}, mode="frozen")
    say_if_not_trained(order, cut=0.5)
    assert capsys.readouterr().out == ""
    say_if_not_trained(order, cut=0.9)
    told = capsys.readouterr().out
    assert told == "not trained enough to use: 90% of the samples were cut off\n"

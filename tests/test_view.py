"""``htm view``: the page in a browser says at every step what the environment says."""

from __future__ import annotations

import json
import os
import re
import shutil
from functools import cache
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from browser import headless_browser, set_size
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

import htm_env
from agents import Reinforce
from agents.cli import main
from agents.inspection.traces import traces_of
from agents.registry import algorithm
from agents.runs.lock import locked
from htm_env.drawing.page import viewer_page
from htm_env.drawing.trace import Trace
from htm_env.trees.merge_tree import MergeTree

DATA = {"heights": [3]}
"""Samples of seven tokens: six merges each."""
SAMPLES = (0, 3, 5)
SHOWN = 1e-4
"""The page has five digits of a number."""


class Step(NamedTuple):
    """What is to be seen after so many merges."""

    active: list[int]
    error: float
    charge: float | None
    pair: tuple[int, int] | None
    probability: float | None
    text: str


@pytest.fixture(scope="module")
def learner():
    return Reinforce("HTM-Trees-v0", env_kwargs=DATA, embedding_dim=6)


@pytest.fixture(scope="module")
def run(learner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    learner.save(folder)
    return folder


@pytest.fixture(scope="module")
def page(run):
    samples = ",".join(map(str, SAMPLES))
    assert main(["view", str(run), "--samples", samples]) == 0
    return run / "view.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@cache
def trajectory(learner, key):
    """The episode played in the environment, and the probabilities of the policy network."""
    env = gymnasium.make("HTM-Trees-v0", split="test", autoencoder=learner.autoencoder, **DATA)
    observation, info = env.reset(options={"key": key})
    slots = observation["active"].size
    node_in = dict(enumerate(range(slots)))  # by slot
    steps, charge = [], None
    for made in range(slots):
        pair = probability = None
        error = info["error"]
        active = sorted(node_in[slot] for slot in range(slots) if observation["active"][slot])
        text = str(htm_env.MergeTree(env.unwrapped.merge_tree().merges, slots))
        before = charge
        if made < slots - 1:
            action, _ = learner.predict(observation, deterministic=True)
            first, second = htm_env.action_to_pair(int(action), slots)
            pair = node_in[first], node_in[second]
            tensors = {name: torch.as_tensor(part)[None] for name, part in observation.items()}
            logits, _ = learner.policy(learner.read(tensors))
            probability = float(logits.detach().double().softmax(1)[0, int(action)])
            node_in[first] = slots + made
            observation, reward, _, _, info = env.step(action)
            charge = -reward
        steps.append(Step(active, error, before, pair, probability, text))
    return steps


# ---------------------------------------------------------------- in the browser


READ = """
const all = (query) => [...document.querySelectorAll(query)];
const text = (query) => all(query).map((element) => element.textContent).join();
const number = (name) => all(`[data-testid=${name}]`).map((element) => Number(element.value))[0];
const rings = ["one", "two"].flatMap((part) => all(`#forest .rings .${part}`));
return {
  step: Number(text("[data-testid=step]")),
  merges: Number(text("[data-testid=merges]")),
  slider: Number(document.getElementById("slider").value),
  active: all("[data-testid=active] button").map((chip) => Number(chip.textContent)),
  text: text("[data-testid=text]"),
  error: number("error"),
  charge: number("charge"),
  bar: all(".charge.current").map((bar) => [Number(bar.dataset.step), Number(bar.dataset.value)]),
  pair: text("[data-testid=pair]"),
  probability: number("probability"),
  chosen: all("#choices [aria-current]").map((row) => row.dataset.pair).join(),
  rings: rings.map((ring) => Number(ring.dataset.node)),
};
"""


def press(browser, key):
    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def text_of(browser, query):
    return browser.find_element(By.CSS_SELECTOR, query).text


def check(browser, steps, step):
    """Everything that the page says of this step."""
    said, expected = browser.execute_script(READ), steps[step]
    assert (said["step"], said["slider"], said["merges"]) == (step, step, len(steps) - 1)
    assert (said["active"], said["text"]) == (expected.active, expected.text)
    assert said["error"] == pytest.approx(expected.error, rel=SHOWN)
    if expected.charge is None:
        assert said["charge"] is None and said["bar"] == []
    else:
        # Rewards are float32 differences.
        assert said["charge"] == pytest.approx(expected.charge, rel=1e-3, abs=1e-6)
        assert said["bar"] == [[step, said["charge"]]]
    if expected.pair is None:
        assert (said["pair"], said["probability"], said["chosen"]) == ("none", None, "")
        assert said["rings"] == []
    else:
        assert said["pair"] == "{}, {}".format(*expected.pair)
        assert said["probability"] == pytest.approx(expected.probability, rel=SHOWN)
        assert said["chosen"] == "{} {}".format(*expected.pair)
        assert said["rings"] == list(expected.pair)


def test_the_keyboard_steps_through_what_the_environment_says(browser, page, learner):
    browser.get(page.as_uri())
    steps = trajectory(learner, SAMPLES[0])
    assert len(steps) == 7
    check(browser, steps, 0)
    press(browser, Keys.ARROW_LEFT)  # nothing stands before the first merge
    for step in range(7):
        check(browser, steps, step)
        press(browser, Keys.ARROW_RIGHT)
    check(browser, steps, 6)
    press(browser, Keys.ARROW_LEFT)
    check(browser, steps, 5)
    press(browser, Keys.HOME)
    check(browser, steps, 0)
    press(browser, Keys.END)
    check(browser, steps, 6)


def test_the_slider_the_buttons_and_the_bars_go_there_too(browser, page, learner):
    browser.get(f"{page.as_uri()}#sample={SAMPLES[1]}&step=0")
    browser.refresh()
    steps = trajectory(learner, SAMPLES[1])
    slider = browser.find_element(By.ID, "slider")
    for step in (0, 1, 2, 3, 4, 5, 6, 2):
        across = round((step / 6 - 0.5) * (slider.size["width"] - 16))  # the thumb stays inside
        pointer = ActionChains(browser, duration=0)
        pointer.move_to_element_with_offset(slider, across, 0).click().perform()
        check(browser, steps, step)
    for button, step in (("next", 3), ("previous", 2), ("last", 6), ("first", 0)):
        browser.find_element(By.ID, button).click()
        check(browser, steps, step)
    browser.find_element(By.CSS_SELECTOR, ".charge[data-step='4'] .hit").click()
    check(browser, steps, 4)


def test_samples_change_by_key_by_list_and_by_link(browser, page, learner):
    browser.get(page.as_uri())
    press(browser, Keys.ARROW_RIGHT)
    press(browser, Keys.ARROW_DOWN)
    check(browser, trajectory(learner, SAMPLES[1]), 1)
    press(browser, Keys.ARROW_DOWN)
    press(browser, Keys.ARROW_DOWN)  # there are three
    check(browser, trajectory(learner, SAMPLES[2]), 1)
    press(browser, Keys.ARROW_UP)
    check(browser, trajectory(learner, SAMPLES[1]), 1)
    options = browser.find_elements(By.CSS_SELECTOR, "#sample option")
    assert [option.text.split(":")[0] for option in options] == [str(key) for key in SAMPLES]
    options[0].click()
    check(browser, trajectory(learner, SAMPLES[0]), 1)
    browser.execute_script("location.hash = 'sample=5&step=4'")
    check(browser, trajectory(learner, 5), 4)
    press(browser, Keys.ARROW_RIGHT)
    waiting = "const done = arguments[0]; setTimeout(() => done(location.hash), 400)"
    assert browser.execute_async_script(waiting) == "#sample=5&step=5"
    browser.refresh()
    check(browser, trajectory(learner, 5), 5)
    browser.execute_script("location.hash = 'sample=none&step=many'")  # which is nowhere
    check(browser, trajectory(learner, 5), 5)


def test_space_plays_to_the_end_and_stops(browser, page, learner):
    browser.get(f"{page.as_uri()}#sample=0&step=4")
    browser.refresh()
    play = browser.find_element(By.ID, "play")
    press(browser, Keys.SPACE)
    assert play.text == "Pause"
    press(browser, Keys.SPACE)
    assert play.text == "Play"
    press(browser, Keys.SPACE)
    ended = """
    const [done, play] = [arguments[1], arguments[0]];
    setInterval(() => play.textContent === "Play" && done(), 50);
    """
    browser.set_script_timeout(20)
    browser.execute_async_script(ended, play)
    check(browser, trajectory(learner, 0), 6)


def test_a_node_under_the_pointer_lights_its_tokens_everywhere(browser, page, learner):
    browser.get(f"{page.as_uri()}#sample=0&step=6")
    browser.refresh()
    (trace,) = traces_of(learner, learner.task.dataset("test"), [0])
    node, tokens = 8, sorted(trace.tree.clades()[1])
    joint = browser.find_element(By.CSS_SELECTOR, f"#tree .joint[data-node='{node}']")
    ActionChains(browser, duration=0).move_to_element(joint).perform()
    for drawing in ("#forest .token", "#copy .copied", "#tree .leaf"):
        lit = browser.find_elements(By.CSS_SELECTOR, f"{drawing}.lit")
        assert sorted(int(element.get_attribute("data-node")) for element in lit) == tokens
    title = browser.find_element(By.ID, "tree-title")
    ActionChains(browser, duration=0).move_to_element(title).perform()
    assert not browser.find_elements(By.CSS_SELECTOR, ".lit")


def test_numbers_are_written_for_people(browser, page):
    browser.get(page.as_uri())
    shown = browser.execute_script(
        "return [short(0.0123456), short(-3.4816e-5), short(0), short(123456), signed(0.5),"
        " percent(0.3184), percent(0.99996), percent(0.00021), percent(1e-9)]"
    )
    minus, times = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
    assert shown == [
        "0.0123",
        f"{minus}3.48{times}10⁻⁵",
        "0",
        f"1.23{times}10⁵",
        "+0.5",
        "31.8 %",
        "> 99.9 %",
        "0.021 %",
        "< 0.001 %",
    ]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_nothing_is_wider_than_the_window(browser, page, width, height):
    browser.get(page.as_uri())
    try:
        set_size(browser, width, height)
        assert browser.execute_script("return document.body.scrollWidth") <= width
        tall = browser.execute_script("return document.documentElement.scrollHeight")
        assert tall <= height or width < 1280  # all of it at once on a screen
    finally:
        set_size(browser, 1280, 800)


def test_the_page_asks_the_network_for_nothing_and_reports_no_errors(browser, page):
    browser.get_log("browser"), browser.get_log("performance")  # of the pages before
    browser.get(page.as_uri())
    for key in (Keys.END, Keys.ARROW_DOWN, Keys.HOME):
        press(browser, key)
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {page.as_uri(), "data:,"} and page.as_uri() in asked
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("env_id", ["HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0"])
def test_a_fixed_policy_says_that_it_has_no_probabilities(browser, env_id, tmp_path):
    algorithm("nearest").learner(env_id, algorithm("nearest").config).save(tmp_path)
    assert main(["view", str(tmp_path), "--samples", "2"]) == 0
    browser.get_log("browser")
    browser.get((tmp_path / "view.html").as_uri())
    assert "no probabilities" in text_of(browser, "[data-testid=note]")
    assert not browser.find_elements(By.CSS_SELECTOR, "[data-testid=probability]")
    press(browser, Keys.END)
    assert "nothing is left to choose" in text_of(browser, "[data-testid=note]")
    assert browser.get_log("browser") == []


def bare(kind, *shape):
    """Tokens all at one place, merged as a chain; nothing is lost and nothing was considered."""
    tokens = np.ones(shape)
    merges = [[0, 1], [2, 3]][: len(tokens) - 1]
    copies = np.stack([tokens] * len(tokens))
    return Trace(tokens, kind, MergeTree(merges, len(tokens)), copies, np.zeros(len(tokens)), ())


@pytest.mark.parametrize(
    "trace",
    [
        bare("points", 1, 2),
        bare("segments", 1, 4),
        bare("patches", 2, 6),
        bare("patches", 2, 11),
        bare("points", 3, 3),
        bare("strokes", 2, 6),
        bare("items", 3, 5),
        bare("vectors", 3, 1),
        bare("vectors", 3, 9),
    ],
    ids=lambda trace: f"{trace.kind}-{trace.tokens.shape}",
)
def test_the_smallest_samples_are_drawn(browser, trace, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(viewer_page({"a sample": trace}, "One"), encoding="utf-8")
    browser.get_log("browser")
    browser.get(page.as_uri())
    press(browser, Keys.END)
    tokens = len(trace.tokens)
    for drawing in ("#forest .token", "#copy .copied", "#tree .leaf"):
        assert len(browser.find_elements(By.CSS_SELECTOR, drawing)) == tokens
    assert text_of(browser, "[data-testid=step]") == str(tokens - 1)
    assert "NaN" not in browser.find_element(By.TAG_NAME, "main").get_attribute("innerHTML")
    assert browser.get_log("browser") == []


def test_points_of_space_turn_when_they_are_dragged(browser, tmp_path):
    """The middle of the box stays, and a quarter of a turn brings y to where x was."""
    tokens = np.array([[2.0, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]])
    merges = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    copies = np.stack([tokens] * 6)
    trace = Trace(tokens, "points", MergeTree(merges, 6), copies, np.zeros(6), ())
    page = tmp_path / "page.html"
    page.write_text(viewer_page({"a sample": trace}, "Space"), encoding="utf-8")
    browser.get(page.as_uri())
    assert "drag to turn" in text_of(browser, "#copy-legend")

    def places(picture):
        found = browser.execute_script(
            f"return [...document.querySelectorAll('{picture} circle')].map((dot) => "
            "[dot.parentNode.dataset.node, dot.cx.baseVal.value, dot.cy.baseVal.value])"
        )
        return np.array([place[1:] for place in sorted(found, key=lambda place: int(place[0]))])

    before = places("#forest .token")
    drawing = browser.find_element(By.ID, "forest")
    ActionChains(browser).drag_and_drop_by_offset(drawing, -180, 0).perform()
    for picture in ("#forest .token", "#copy .copied"):
        after = places(picture)
        assert after.mean(axis=0) == pytest.approx(before.mean(axis=0), abs=0.01)
        assert after[[4, 5]] == pytest.approx(before[[4, 5]], abs=0.01)  # the axis that it turns on
        assert after[[2, 3]] == pytest.approx(before[[0, 1]], abs=0.01)
    assert browser.get_log("browser") == []


# ---------------------------------------------------------------- the command


def test_the_page_has_the_samples_of_the_split_that_were_asked_for(run, learner, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    arguments = ["--samples", "4,1", "--split", "validation", "--out", str(out)]
    assert main(["view", str(run), *arguments]) == 0
    assert capsys.readouterr().out == f"page      {out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    text = out.read_text(encoding="utf-8")
    samples = json.loads(re.search(r'id="content">(.*?)</script>', text, re.S)[1])["samples"]
    assert [sample["name"] for sample in samples] == ["4", "1"]
    expected = traces_of(learner, learner.task.dataset("validation"), [4, 1])
    for sample, trace in zip(samples, expected, strict=True):
        assert sample["tokens"] == pytest.approx(trace.tokens.ravel(), abs=0.005)
        assert sample["merges"] == trace.tree.merges.tolist()


def test_eight_samples_of_sixteen_tokens_are_a_small_page(tmp_path):
    Reinforce("HTM-Digits-v0").save(tmp_path)
    assert main(["view", str(tmp_path)]) == 0
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert page.count('"changes"') == 8
    assert len(page.encode()) < 200_000


@pytest.mark.parametrize("samples", ["", ",", "0", "-1", "some", "1,two", "3,-1", "2,2"])
def test_samples_that_cannot_be_meant_are_wrong_usage(run, samples, capsys):
    assert main(["view", str(run), f"--samples={samples}"]) == 2
    assert f"--samples is {samples!r}" in capsys.readouterr().err


def test_what_cannot_be_shown_fails_in_one_line(tmp_path, capsys):
    assert main(["view", str(tmp_path)]) == 1
    nearest = algorithm("nearest").learner("HTM-Digits-v0", algorithm("nearest").config)
    nearest.save(tmp_path)
    assert main(["view", str(tmp_path), "--samples", "0,180"]) == 2
    assert "--samples has 180, but the test split has 180 samples" in capsys.readouterr().err
    assert not (tmp_path / "view.html").exists()


def test_a_page_in_a_run_that_trains_is_refused(run, tmp_path, capsys):
    """Beside the run it needs no lock; inside it does, whatever way the folder is named."""
    folder = shutil.copytree(run, tmp_path / "run")
    before = sorted(folder.rglob("*"))
    with locked(folder):
        for out in ([], ["--out", str(folder)], ["--out", str(folder / ".." / "run" / "a.html")]):
            assert main(["view", str(folder), "--samples", "1", *out]) == 1
            assert f"run is in use by process {os.getpid()} since" in capsys.readouterr().err
        beside = tmp_path / "page.html"
        assert main(["view", str(folder), "--samples", "1", "--out", str(beside)]) == 0
    assert beside.exists() and sorted(folder.rglob("*")) == before
    assert main(["view", str(folder), "--samples", "1"]) == 0
    assert set(folder.rglob("*")) == {*before, folder / "view.html"}


def test_a_browser_opens_where_it_is_asked_for(run, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    out = tmp_path / "page.html"
    assert main(["view", str(run), "--samples", "1", "--out", str(out), "--open"]) == 0
    assert opened == [out.as_uri()]
    assert "found no browser" in capsys.readouterr().err

"""The best trees known: what ships, scores against them, and the search for better ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_search import token_batch

from agents.cli import main
from agents.config.options import TEST_EPISODES
from agents.evaluation.best_known import Improvement, exact_errors
from agents.evaluation.evaluate import EVALUATION_SEED
from agents.fixed import fixed_policy
from agents.runs.lock import locked
from agents.search.exhaustive import all_trees, best_of_all
from htm_env.autoencoder import HTMAutoencoder
from htm_env.best_known import FOLDER, KEY, BestKnown, best_known
from htm_env.datasets import make_dataset
from htm_env.files import read_tensors, write_tensors
from htm_env.forest import check_merges
from htm_env.simulator import EnvConfig, Simulator
from htm_env.trees.merge_tree import MergeTree

FILES = sorted(FOLDER.glob("*.safetensors"))
EPISODES = 100
"""Of each file, those whose errors are computed again."""


def status(*arguments: object) -> int:
    return main(list(map(str, arguments)))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def shipped(request):
    """A file, its environment, and its first episodes."""
    known = BestKnown.load(request.param)
    world = Simulator(EnvConfig(known.env))
    return known, world, make_dataset(known.env, split="test")


def test_every_file_is_of_its_environment_and_all_its_test_episodes():
    assert FILES
    for path in FILES:
        known, data = BestKnown.load(path), make_dataset(path.stem, split="test")
        assert known.env == path.stem
        assert len(known.errors) == min(TEST_EPISODES, data.size or TEST_EPISODES)


def test_the_errors_are_those_of_the_trees(shipped):
    known, world, data = shipped
    assert known.weights_hash == world.autoencoder.weights_hash()
    batch = data.fixed(EPISODES)
    merges = known.merges[:EPISODES]
    check_merges(merges, batch.num_tokens)
    assert ((merges[..., 0] >= 0).sum(1) == batch.num_tokens - 1).all()
    errors = exact_errors(world.autoencoder, batch, merges, data.std)
    torch.testing.assert_close(errors, known.errors[:EPISODES], rtol=1e-6, atol=0)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    drawn = fixed_policy("random", world.autoencoder).plan(data.fixed(256), generator)
    random = exact_errors(world.autoencoder, batch, drawn[:EPISODES], data.std)
    torch.testing.assert_close(random, known.random_errors[:EPISODES], rtol=1e-6, atol=0)


def test_no_rule_beats_them(shipped):
    known, world, data = shipped
    batch = data.fixed(20)
    for name in ("nearest_sorted", "balanced_sorted", "ward", "random", "greedy"):
        generator = torch.Generator().manual_seed(1)
        merges = fixed_policy(name, world.autoencoder, data).plan(batch, generator)
        errors = exact_errors(world.autoencoder, batch, merges, data.std)
        assert (known.errors[:20] <= errors + 1e-6 * errors.abs()).all(), name


def test_few_tokens_are_proven(shipped):
    known, _, data = shipped
    most = 11 if known.env == "HTM-Jets-v0" else 6
    assert torch.equal(known.proven, data.fixed(len(known.errors)).num_tokens <= most)
    assert 0 <= int(known.source.max()) < len(known.sources)


def of(errors: list[float], random: list[float]) -> BestKnown:
    count = len(errors)
    number = torch.zeros(count, dtype=torch.int64)
    values = (torch.tensor(each, dtype=torch.float64) for each in (errors, random))
    merges = torch.zeros(count, 1, 2, dtype=torch.int64)
    best, chance = values
    sources = ({"command": "htm best-known", "version": "0"},)
    return BestKnown("HTM-Crosses-v0", "abc", merges, best, number.bool(), chance, number, sources)


def test_a_score_is_0_for_random_merges_and_1_for_the_best_known(tmp_path):
    known = of([1.0, 3.0, 100.0], [5.0, 7.0, 0.0])
    assert known.score(6.0, 2) == (4.0, 0.0)
    assert known.score(2.0, 2) == (0.0, 1.0)
    assert known.score(3.0, 2) == (1.0, 0.75)
    assert of([1.0, 3.0], [3.0, 1.0]).score(2.5, 2) == (0.5, None)  # of the same mean
    with pytest.raises(ValueError, match=r"4 episodes of HTM-Crosses-v0.*first 3"):
        known.score(1.0, 4)
    known.save(tmp_path / "known")
    again = BestKnown.load(tmp_path / "known")
    assert again.sources == known.sources
    assert torch.equal(again.errors, known.errors)
    content = bytearray((tmp_path / "known").read_bytes())
    content[-1] ^= 1
    (tmp_path / "known").write_bytes(content)
    with pytest.raises(ValueError, match="known does not hold a file of best known trees"):
        BestKnown.load(tmp_path / "known")


def test_what_no_search_writes_is_refused(tmp_path, capsys):
    known, path = of([1.0, 3.0], [5.0, 7.0]), tmp_path / "known"
    known.save(path)
    tensors, about = read_tensors(path, KEY)
    for changes, message in (
        ({"errors": known.errors * torch.nan}, "errors has numbers that are not finite"),
        ({"errors": known.errors.float()}, "errors is torch.float32"),
        ({"random_errors": known.errors[:1]}, "expected as many episodes of each"),
        ({"proven": known.proven.long()}, "proven is torch.int64"),
        ({"merges": tensors["merges"] + 3}, "have no pairs of tokens and subtrees"),
        ({"source": tensors["source"] - 1}, "source is -1 to -1; there are 1 sources"),
        ({"colour": known.errors}, "it has the tensors .*colour"),
    ):
        write_tensors(path, KEY, tensors | changes, about)
        with pytest.raises(ValueError, match=f"known does not hold a file.*{message}"):
            BestKnown.load(path)
    for changes, message in (
        ({"sources": []}, "source is 0 to 0; there are 0 sources"),
        ({"sources": [{"command": 3, "version": "1"}]}, "not each a command and a version"),
        ({"sources": [{"command": "a"}]}, "not each a command and a version"),
        ({"weights_hash": 3}, "expected env, weights_hash and sources"),
    ):
        write_tensors(path, KEY, tensors, about | changes)
        with pytest.raises(ValueError, match=f"known does not hold a file.*{message}"):
            BestKnown.load(path)
    source = {"command": "\x1b[31mred", "version": "\x07"}
    replace(known, env="\x1b[2J", sources=(source,)).save(path)
    assert status("best-known", "--env", "HTM-Crosses-v0", "--out", path) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown
    assert "\\x1b[31mred" in shown


def test_they_are_about_the_data_and_the_weights_of_their_id():
    digest = Simulator(EnvConfig("HTM-Digits-v0")).autoencoder.weights_hash()
    assert best_known("HTM-Digits-v0", {}, digest) is not None
    assert best_known("HTM-Digits-v0", {}, "another") is None
    assert best_known("HTM-Digits-v0", {"patch": 3}, digest) is None
    assert best_known("HTM-v0", {}, digest) is None


# ---------------------------------------------------------------- all trees


def test_all_trees_are_listed_once():
    for size, number in ((1, 1), (2, 2), (3, 12), (4, 120), (5, 1680)):
        trees = all_trees(size)
        assert len(trees) == number
        check_merges(trees, torch.full((number,), size))
        assert len({MergeTree(tree.numpy(), size).newick() for tree in trees}) == number


def test_the_best_of_all_trees_is_the_best_of_all_trees():
    model = HTMAutoencoder(2, 6, 16, generator=torch.Generator().manual_seed(0))
    batch = token_batch([1, 3, 4])
    best = exact_errors(model, batch, best_of_all(model, batch, model.token_std), model.token_std)
    for row, size in ((1, 3), (2, 4)):
        trees = torch.nn.functional.pad(all_trees(size), (0, 0, 0, 4 - size), value=-1)
        same = batch.rows(torch.full((len(trees),), row))
        errors = exact_errors(model, same, trees, model.token_std)
        assert float(best[row]) == pytest.approx(float(errors.min()), rel=1e-5)
    with pytest.raises(ValueError, match=r"sample 1 has 7 tokens.*at most 6"):
        best_of_all(model, token_batch([2, 7]), model.token_std)


# ---------------------------------------------------------------- search for better ones


def test_a_search_keeps_what_is_better_and_its_source():
    world, data = Simulator(EnvConfig("HTM-Digits-v0")), make_dataset("HTM-Digits-v0", split="test")
    source = {"command": "me", "version": "1"}
    known = BestKnown.load(FOLDER / "HTM-Digits-v0.safetensors")
    worse = known.errors.clone()
    merges = known.merges.clone()
    random = Improvement(known.env, world.autoencoder, data, None, source).known
    merges[:90], worse[:90] = random.merges[:90], random.errors[:90]
    mixed = Improvement(
        known.env, world.autoencoder, data, replace(known, merges=merges, errors=worse), source
    )
    assert mixed.take(known.merges) == 90
    assert torch.equal(mixed.known.merges, known.merges)
    assert mixed.known.sources == (*known.sources, source)
    assert (mixed.known.source[:90] == len(known.sources)).all()
    assert torch.equal(mixed.known.source[90:], known.source[90:])
    assert mixed.take(random.merges) == 0


def test_the_command_shows_and_writes_a_file_where_something_is_better(tmp_path, capsys):
    out = tmp_path / "digits.safetensors"
    command = ("best-known", "--env", "HTM-Digits-v0", "--out", out)
    assert status(*command) == 1
    assert "no file of best known trees" in capsys.readouterr().err
    improve = (*command, "--improve", "--search", 1, "--seconds", 0, "--orders", "random,chain")
    assert status(*improve) == 0
    first = BestKnown.load(out)
    assert first.errors.mean() < first.random_errors.mean()
    assert "written" in capsys.readouterr().out
    assert status(*improve) == 0
    assert "nothing better was found" in capsys.readouterr().out
    assert status("best-known") == 0
    assert "HTM-Digits-v0" in capsys.readouterr().out
    assert status("best-known", "--improve") == 2
    for seconds in ("nan", "inf", -1):
        assert status(*command, "--improve", "--seconds", seconds) == 2
        assert f"--seconds is {float(seconds)}" in capsys.readouterr().err
    assert status("best-known", "--env", "HTM-Kanji-v0", "--improve") == 2


def test_a_search_asks_first_whether_it_can_write(tmp_path, capsys):
    improve = ("best-known", "--env", "HTM-Digits-v0", "--improve")
    with locked(tmp_path):
        assert status(*improve, "--out", tmp_path / "digits.safetensors") == 1
    assert "is in use by process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert status(*improve, "--out", "/proc/none/digits.safetensors") == 1


def test_evaluate_reports_regret_and_score(tmp_path, capsys):
    run = tmp_path / "run"
    train = ("train", "--env", "HTM-Digits-v0", "--mode", "frozen", "--algo", "ward")
    assert status(*train, "--merges", 100, "--out", run) == 0
    capsys.readouterr()
    scores = []
    for search in (0, 5):
        assert status("evaluate", run, "--json", "--episodes", 40, "--search", search) == 0
        scores.append(json.loads(capsys.readouterr().out))
    known = BestKnown.load(FOLDER / "HTM-Digits-v0.safetensors")
    best, random = (float(each[:40].mean()) for each in (known.errors, known.random_errors))
    for found in scores:
        assert found["regret"] == pytest.approx(found["nmse"] - best)
        assert found["score"] == pytest.approx((random - found["nmse"]) / (random - best))
    assert 0 < scores[0]["score"] < scores[1]["score"] < 1

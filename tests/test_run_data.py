"""The data of a run: recorded, compared, found again elsewhere, and evaluated beside yardsticks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_cli import only_line, status

import agents
from agents.config.errors import RunWarning
from agents.registry import algorithm, build_learner, load_learner
from agents.runs.directory import RunDirectory
from agents.runs.session import resume_run
from htm_env.files import read_json, write_json

TINY = ["--set", "autoencoder.hidden_dim=8", "--embedding-dim", "4", "--merges", "300"]


def write_sets(path, rows: int, *, seed: int = 0, slots: int = 6, token_dim: int = 2):
    """An ``.npz`` of random sets of up to ``slots`` tokens; returns its path."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, slots + 1, rows)
    lengths[0] = slots
    values = rng.normal(size=(int(lengths.sum()), token_dim)).astype(np.float32)
    np.savez(path, values=values, lengths=lengths)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of sets, the same sets under another name, other sets, and sets of other tokens."""
    folder = tmp_path_factory.mktemp("data")
    write_sets(folder / "mine.npz", 40)
    shutil.copy(folder / "mine.npz", folder / "renamed.npz")
    write_sets(folder / "other.npz", 30, seed=1)
    write_sets(folder / "solid.npz", 30, token_dim=3)
    write_sets(folder / "longer.npz", 30, slots=9)
    return folder


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The folder of a short run on ``mine.npz``."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--data", files / "mine.npz", "--algo", "chain", *TINY]
    assert status("train", *arguments, "--out", out) == 0
    return out


def edit(folder, **env_kwargs):
    """Give a run other arguments of its data, as if it had begun with them."""
    directory = RunDirectory(folder)
    run, data = directory.load_config(), directory.load_data_record()
    run = replace(run, env_kwargs=run.env_kwargs | env_kwargs)
    directory.save_config(run, data)


def back_to_the_middle(folder):
    """Take a run back to the checkpoint before its last one, as a kill in between leaves it."""
    directory = RunDirectory(folder)
    shutil.rmtree(directory.checkpoint)
    directory.result_path.unlink()
    assert 0 < directory.load_checkpoint()["learner"]["merges_made"] < 300


@pytest.fixture
def moved(run, files, tmp_path):
    """The run in another folder, whose data is no longer where it was."""
    shutil.copytree(run, tmp_path / "moved")
    edit(tmp_path / "moved", dataset=str(tmp_path / "gone" / "mine.npz"))
    return tmp_path / "moved"


# ---------------------------------------------------------------- what is recorded


def test_a_run_records_its_data(run, files):
    config = json.loads((run / "config.json").read_text())
    assert (config["env"], config["env_kwargs"]["dataset"]) == ("HTM-v0", str(files / "mine.npz"))
    recorded, dataset = config["data"], load_learner(run).dataset
    assert recorded["sha256"] == dataset.fingerprint()["sha256"]
    assert [recorded[name] for name in ("name", "rows", "tokens", "token_dim")] == [
        "mine.npz",
        40,
        6,
        2,
    ]
    assert recorded["std"] == pytest.approx(dataset.std.tolist())


def test_data_is_short_for_the_environment_and_its_dataset(files, tmp_path, capsys):
    asked = ["train", "--data", files / "mine.npz", "--algo", "chain", *TINY]
    assert status(*asked, "--save-config", tmp_path / "short.json") == 0
    saved = json.loads((tmp_path / "short.json").read_text())
    assert saved["env"] == "HTM-v0"
    assert saved["env_kwargs"] == {"dataset": str(files / "mine.npz")}
    capsys.readouterr()
    assert status(*asked, "--env", "HTM-Trees-v0") == 2
    assert "HTM-Trees-v0 has data of its own" in only_line(capsys.readouterr().err)


# ---------------------------------------------------------------- the same data elsewhere

COMMANDS = {
    "evaluate": (),
    "view": (),
    "plot": ("--samples", 1),
    "embed": (),
    "generate": ("--n", 10, "--refinements", 0),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_moved_run_needs_its_data_and_works_with_it(moved, files, capsys, command):
    assert status(command, moved, *COMMANDS[command]) == 1
    assert "--data FILE" in only_line(capsys.readouterr().err)
    arguments = [command, moved, "--data", files / "renamed.npz", *COMMANDS[command]]
    assert status(*arguments) == 0
    assert "was trained on" not in capsys.readouterr().err  # it is the same data


def test_scores_are_the_same_wherever_run_and_data_are(run, moved, files, capsys):
    assert status("evaluate", run, "--json") == 0
    here = json.loads(capsys.readouterr().out)
    assert status("evaluate", moved, "--data", files / "renamed.npz", "--json") == 0
    there = json.loads(capsys.readouterr().out)
    assert here.pop("env_kwargs") != there.pop("env_kwargs")
    assert here == there


def test_a_moved_run_resumes_with_its_data_and_remembers_the_place(moved, files, capsys):
    back_to_the_middle(moved)
    assert status("train", "--resume", moved) == 1
    assert "--data FILE" in capsys.readouterr().err
    assert status("train", "--resume", moved, "--data", files / "renamed.npz") == 0
    assert "was trained on" not in capsys.readouterr().err
    config = json.loads((moved / "config.json").read_text())
    assert config["env_kwargs"]["dataset"] == str(files / "renamed.npz")
    assert json.loads((moved / "result.json").read_text())["merges"] >= 300


def test_arrays_move_with_the_folder(tmp_path, own_data):
    learner = agents.FixedOrder("HTM-v0", env_kwargs={"dataset": own_data}, embedding_dim=3)
    learner.save(tmp_path / "a")
    learner.save(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    loaded = agents.load(tmp_path / "b")
    assert loaded.dataset.fingerprint()["sha256"] == learner.dataset.fingerprint()["sha256"]
    loaded.save(tmp_path / "b")  # from the file beside it
    shutil.move(tmp_path / "b", tmp_path / "c")
    assert agents.load(tmp_path / "c").dataset.size == learner.dataset.size


# ---------------------------------------------------------------- other data


def test_other_data_is_told_in_one_line(run, files, capsys):
    assert status("evaluate", run, "--data", files / "other.npz", "--json") == 0
    captured = capsys.readouterr()
    line = only_line(captured.err)
    assert "mine.npz (40 rows" in line
    assert "other.npz (30 rows" in line
    assert json.loads(captured.out)["episodes"] == 3  # a tenth of its rows
    assert status("view", run, "--data", files / "longer.npz", "--out", files / "page.html") == 0
    assert "longer.npz" in only_line(capsys.readouterr().err)


def test_tokens_of_another_dimension_are_refused(run, moved, files, capsys):
    for folder in (run, moved):
        assert status("evaluate", folder, "--data", files / "solid.npz") == 1
        line = only_line(capsys.readouterr().err)
        assert "tokens of this data have 3 coordinates" in line
        assert "trained on tokens of 2" in line


def test_a_run_resumes_with_other_data_of_its_shape_where_that_is_allowed(moved, files, capsys):
    back_to_the_middle(moved)
    with pytest.raises(ValueError, match=r"up to 9 tokens; .* up to 6"):
        resume_run(moved, build_learner, files / "longer.npz", progress_bar=False)
    before = (moved / "config.json").read_text()
    resume = ["train", "--resume", moved, "--data", files / "other.npz"]
    assert status(*resume) == 1
    assert "other data: on mine.npz" in (line := only_line(capsys.readouterr().err))
    assert "--allow-changed-data" in line
    assert (moved / "config.json").read_text() == before
    assert status(*resume, "--allow-changed-data") == 0
    assert "was trained on other data: on mine.npz" in capsys.readouterr().err
    recorded = json.loads((moved / "config.json").read_text())["data"]
    assert recorded["name"] == "other.npz"
    assert [(one["name"], one["rows"]) for one in recorded["earlier"]] == [("mine.npz", 40)]


def test_a_file_that_was_replaced_is_refused(moved, files, tmp_path):
    (tmp_path / "gone").mkdir()
    shutil.copy(files / "other.npz", tmp_path / "gone" / "mine.npz")
    back_to_the_middle(moved)
    with pytest.raises(ValueError, match=r"other data.*--allow-changed-data"):
        resume_run(moved, build_learner, progress_bar=False)
    with pytest.warns(RunWarning, match="trained on other data"):
        resume_run(moved, build_learner, allow_changed_data=True, progress_bar=False)


@pytest.mark.parametrize("with_digest", [True, False])
def test_a_run_is_not_extended_by_an_edited_budget(run, tmp_path, capsys, with_digest):
    """Schedules follow the budget, so what was trained on another one is no such run."""
    folder = shutil.copytree(run, tmp_path / "run")
    values = read_json(folder / "config.json")
    values["budget"]["merges"] = 400
    if with_digest:
        write_json(folder / "config.json", values)
    else:
        (folder / "config.json").write_text(json.dumps(values))
    result = (folder / "result.json").read_bytes()
    for command in (["train", "--resume", folder], ["evaluate", folder]):
        assert status(*command) == 1
        line = only_line(capsys.readouterr().err)
        assert "of another run: its budget.merges is 300, and that of" in line
        assert line.endswith("is 400")
    assert (folder / "result.json").read_bytes() == result


def test_a_finished_run_does_not_become_one_of_other_data(moved, files):
    before = (moved / "config.json").read_text()
    with pytest.raises(
        ValueError, match=r"other\.npz.*budget of .* is used, so nothing is learned"
    ):
        resume_run(
            moved,
            build_learner,
            files / "other.npz",
            allow_changed_data=True,
            progress_bar=False,
        )
    assert (moved / "config.json").read_text() == before


def test_versions_that_are_others_are_told(moved, files):
    values = read_json(moved / "config.json")
    values["versions"] |= {"python": "3.0", "numpy": "1.0"}
    write_json(moved / "config.json", values)
    with pytest.warns(RunWarning, match=r"began with python 3\.0 \(here .*\), numpy 1\.0") as told:
        resume_run(moved, build_learner, files / "renamed.npz", progress_bar=False)
    assert "torch" not in str(told[0].message)


def test_a_file_whose_content_changed_is_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    edit(tmp_path / "run", dataset=str(write_sets(tmp_path / "mine.npz", 40, seed=7)))
    with pytest.warns(RunWarning, match=r"mine\.npz \(40 rows"):
        load_learner(tmp_path / "run")


def test_a_run_on_generated_data_takes_own_data_of_its_dimension(tmp_path, files):
    learner = agents.FixedOrder("HTM-Trees-v0", embedding_dim=3)
    learner.save(tmp_path / "trees")
    with pytest.warns(RunWarning, match=r"trained on other data: on HTM-Trees-v0.*other\.npz"):
        loaded = load_learner(tmp_path / "trees", files / "other.npz")
    assert loaded.dataset.max_tokens == 6
    assert loaded.task.dataset("test").size == 3
    assert loaded.autoencoder.weights_hash() == learner.autoencoder.weights_hash()


# ---------------------------------------------------------------- without any data


@pytest.mark.parametrize("algo", ["reinforce", "replay", "ppo", "flat"])
def test_a_learner_opens_without_its_data_to_embed_other_sets(tmp_path, algo):
    write_sets(tmp_path / "mine.npz", 30)
    kind = algorithm(algo)
    kwargs = {"dataset": str(tmp_path / "mine.npz")}
    learner = kind.learner("HTM-v0", kind.config, env_kwargs=kwargs, embedding_dim=4)
    learner.save(tmp_path / "run")
    sets = [np.random.default_rng(3).normal(size=(n, 2)) for n in (2, 4, 6)]
    expected = learner.embed(sets)
    (tmp_path / "mine.npz").unlink()
    with pytest.warns(RunWarning, match="data of .*run is not at .*mine.npz"):
        loaded = agents.load(tmp_path / "run")
    assert np.array_equal(loaded.embed(sets), expected)
    assert (loaded.dataset.max_tokens, loaded.dataset.token_dim) == (6, 2)
    assert loaded.std.tolist() == learner.std.tolist()
    for ask in (lambda: loaded.dataset.fixed(1), lambda: loaded.train(merges=10)):
        with pytest.raises(FileNotFoundError, match="named by --data FILE"):
            ask()


def test_trees_of_what_recurs_are_not_made_without_the_training_data(tmp_path):
    write_sets(tmp_path / "mine.npz", 30)
    kind = algorithm("recurrent_sorted")
    kwargs = {"dataset": str(tmp_path / "mine.npz")}
    learner = kind.learner("HTM-v0", kind.config, env_kwargs=kwargs, embedding_dim=4)
    learner.save(tmp_path / "run")
    write_sets(tmp_path / "other.npz", 40)
    sets = [np.random.default_rng(3).normal(size=(4, 2))]
    learner.embed(sets)
    (tmp_path / "mine.npz").unlink()
    with pytest.warns(RunWarning, match="data of .*run is not at .*mine.npz"):
        alone = agents.load(tmp_path / "run")
    with pytest.warns(RunWarning, match="trained on other data"):
        elsewhere = agents.load(tmp_path / "run", data=tmp_path / "other.npz")
    for loaded in (alone, elsewhere):
        with pytest.raises(FileNotFoundError, match=r"mine\.npz: expected it there"):
            loaded.embed(sets)

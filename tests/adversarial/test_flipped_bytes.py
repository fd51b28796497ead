"""Any single byte of any file of a run is changed: refused, recovered, or of no consequence."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import only_line, status
from test_crashes import course_of, resume, train

from agents.comparison.results import run_rows
from agents.runs.data import RunData
from agents.runs.directory import RunDirectory
from htm_env.autoencoder import HTMAutoencoder

NEVER_READ = ("figures/validation.png", "events.out.tfevents.*", ".lock")
"""Files that nothing reads back."""
Reader = Callable[[RunDirectory], Any]


def plain(value: Any) -> Any:
    """The same, with the bytes of tensors, so that nan equals nan."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    return [plain(item) for item in value] if isinstance(value, list) else value


def configuration(directory: RunDirectory) -> Any:
    config = directory.load_config()
    return config, directory.load_data_record(), directory.other_versions()


def state(directory: RunDirectory) -> Any:
    return plain(directory.load_checkpoint())


def older_state(directory: RunDirectory) -> Any:
    """The checkpoint before, where the last one is gone."""
    hidden = directory.checkpoint.rename(directory.path / "hidden")
    try:
        return state(directory)
    finally:
        hidden.rename(directory.checkpoint)


def weights(folder: str) -> Reader:
    def read(directory: RunDirectory) -> Any:
        autoencoder = HTMAutoencoder.load(directory.path / folder / "autoencoder.safetensors")
        return autoencoder.weights_hash(), autoencoder.config

    return read


def data(directory: RunDirectory) -> Any:
    run = directory.load_config()
    original = RunData(directory.path, run, directory.load_data_record())
    if differs := original.difference(run.dataset("train")):
        raise ValueError(differs)  # as a resumed run does


READERS: dict[str, Reader] = {
    "config.json": configuration,
    "result.json": RunDirectory.load_result,
    "metrics.csv": run_rows,
    "trees.json": RunDirectory.load_trees,
    "hosts.json": RunDirectory.load_hosts,
    "dataset.npz": data,
    "checkpoint/training.safetensors": state,
    "checkpoint/autoencoder.safetensors": weights("checkpoint"),
    "checkpoint.before/training.safetensors": older_state,
    "checkpoint.before/autoencoder.safetensors": weights("checkpoint.before"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flipped") / "run"
    train(folder)
    return folder


def changed(content: bytes, rng: random.Random) -> bytes:
    """One byte is another; half of the time near the start, where names and shapes are."""
    place = rng.randrange(min(len(content), rng.choice([2_000, len(content)])))
    return content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :]


def outcome(directory: RunDirectory, reader: Reader, expected: Any) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = reader(directory)
        except (ValueError, FileNotFoundError) as error:
            return "refused" if str(directory.path) in str(error) else f"unnamed: {error}"
    if told:
        assert "the checkpoint before it is used" in str(told[0].message)
        return "recovered"
    assert found == expected
    return "of no consequence"


def test_every_file_of_a_run_is_known(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    for pattern in NEVER_READ:
        files -= {str(path.relative_to(run)) for path in run.glob(pattern)}
    assert files == set(READERS)


@pytest.mark.timeout(1200)  # of the long form
@pytest.mark.parametrize("file", READERS)
def test_a_changed_byte_is_refused_recovered_or_of_no_consequence(run, tmp_path, file, mutations):
    shutil.copytree(run, tmp_path / "run")
    directory, reader, path = RunDirectory(tmp_path / "run"), READERS[file], tmp_path / "run" / file
    expected, content, rng = reader(directory), path.read_bytes(), random.Random(file)
    outcomes: Counter[str] = Counter()
    for _ in range(mutations // len(READERS)):
        path.write_bytes(changed(content, rng))
        outcomes[outcome(directory, reader, expected)] += 1
    print(file, dict(outcomes))  # shown by pytest -s
    assert set(outcomes) <= {"refused", "recovered", "of no consequence"}
    # Spaces between the fields of JSON, the padding of a header, dates in an archive.
    assert outcomes["of no consequence"] < 0.4 * outcomes.total()
    assert (outcomes["recovered"] > 0) == (file == "checkpoint/training.safetensors")


def test_files_that_are_never_read_may_hold_anything(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for pattern in NEVER_READ:
        for path in (tmp_path / "run").glob(pattern):
            path.write_bytes(b"\x00\xff")
    resume(tmp_path / "run")
    assert course_of(tmp_path / "run") == course_of(run)


@pytest.mark.parametrize("file", ["config.json", "dataset.npz"])
def test_the_command_refuses_in_one_line(run, tmp_path, file, capsys):
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert status("train", "--resume", tmp_path / "run") == 1
    assert file in only_line(capsys.readouterr().err)
    assert before == {p: p.read_bytes() for p in before}

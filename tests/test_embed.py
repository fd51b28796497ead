"""Root embeddings of a run: the numbers, the map, and a log that TensorBoard's projector reads."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from matplotlib.image import imread
from sklearn.datasets import load_digits
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from agents import Reinforce
from agents.cli import main
from agents.inspection.embeddings import root_embeddings
from agents.inspection.probes import semantic_table
from agents.registry import algorithm
from agents.runs.tensorboard import write_projector
from htm_env.datasets import make_dataset
from htm_env.drawing.figures.roots import apart, principal_plane, root_figure, thumbnails
from htm_env.files import atomic_folder


def status(*arguments: object) -> int:
    """The exit status, whether the command returns it or the parser exits with it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a Digits run of two updates."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    arguments = ["--env", "HTM-Digits-v0", "--algo", "nearest_sorted", "--merges", 900]
    small = ["--set", "autoencoder.hidden_dim=8", "--embedding-dim", 6]
    assert status("train", *arguments, *small, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The folder of a run on data without labels."""
    folder = tmp_path_factory.mktemp("runs") / "trees"
    arguments = ["--env", "HTM-Trees-v0", "--env-kwargs", '{"heights": [2, 3]}']
    small = ["--algo", "chain", "--merges", 200, "--set", "autoencoder.hidden_dim=8"]
    assert status("train", *arguments, *small, "--out", folder) == 0
    return folder


# ---------------------------------------------------------------- roots and what they say


def test_roots_are_encoded_along_the_greedy_merges():
    learner = Reinforce("HTM-Digits-v0", seed=0)
    dataset = learner.task.dataset("validation")
    found = root_embeddings(learner, dataset, 1000)
    batch = dataset.fixed(180)
    merges = learner.plan(batch, torch.Generator(), greedy=True)  # draws nothing
    with torch.no_grad():
        roots = learner.autoencoder.encode(batch.tokens, batch.present, merges).roots
    assert found.roots.shape == (180, 32)
    assert found.roots == pytest.approx(roots.numpy(), abs=1e-5)
    assert np.array_equal(found.tokens, batch.tokens.numpy())
    assert found.present.all()
    assert np.array_equal(found.labels, dataset.labels(dataset.fixed_keys(180)))


def test_policies_that_draw_repeat_with_the_seed():
    learner = algorithm("random").learner("HTM-Trees-v0", algorithm("random").config)
    dataset = learner.task.dataset("test")
    roots = [root_embeddings(learner, dataset, 300, seed).roots for seed in (1, 1, 2)]
    assert np.array_equal(roots[0], roots[1])
    assert not np.array_equal(roots[0], roots[2])
    assert root_embeddings(learner, dataset, 3).labels is None


def test_a_set_autoencoder_has_embeddings_without_trees():
    flat = algorithm("flat").learner("HTM-Digits-v0", algorithm("flat").config)
    dataset = flat.task.dataset("test")
    batch = dataset.fixed(20)
    found = root_embeddings(flat, dataset, 20).roots
    assert found.shape == (20, 32)
    turned = flat.autoencoder.standardise(batch.tokens.flip(1))
    with torch.no_grad():
        assert found == pytest.approx(flat.autoencoder.encode(turned, batch.present), abs=1e-4)


def test_evaluate_says_what_roots_say_of_labels(run, capsys):
    assert status("evaluate", run, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["semantics"]
    assert list(rows) == ["root", "pca_6", "pca_16", "pca_32", "tokens", "pooled"]
    measures = {
        "linear_probe",
        "five_nearest",
        "five_nearest_standardised",
        "nmi",
        "nmi_standardised",
    }
    assert all(set(scores) == measures for scores in rows.values())
    # Known of scikit-learn's digits: near all are told apart by their pixels' neighbours.
    assert rows["tokens"]["five_nearest"] > 0.96
    assert rows["pca_32"]["linear_probe"] > 0.93
    # The mean of a digit's patches is little more than how much ink it has.
    assert 0.1 < rows["pooled"]["linear_probe"] < 0.5
    assert status("evaluate", run, "--episodes", 10) == 0
    table = capsys.readouterr().out
    for shown in ("nmse", "probe", "pca_16", f"{rows['root']['five_nearest']:.3f}"):
        assert shown in table


def test_nothing_changes_for_data_without_labels(trees, capsys):
    assert status("evaluate", trees, "--json", "--episodes", 10) == 0
    assert "semantics" not in json.loads(capsys.readouterr().out)
    assert status("evaluate", trees, "--episodes", 10) == 0
    assert "probe" not in capsys.readouterr().out
    learner = algorithm("chain").learner("HTM-Trees-v0", algorithm("chain").config)
    with pytest.raises(ValueError, match="HTM-Trees-v0 has no labels"):
        semantic_table(learner)


# ---------------------------------------------------------------- the command


def test_embed_writes_arrays_a_map_and_a_log(run, tmp_path, capsys):
    assert status("embed", run, "--out", tmp_path / "out", "--samples", 70) == 0
    printed = capsys.readouterr().out
    for name in ("embeddings.npz", "pca.png", "projector"):
        assert str(tmp_path / "out" / name) in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "embeddings.npz",
        "pca.png",
        "projector",
    }
    with np.load(tmp_path / "out" / "embeddings.npz") as arrays:
        roots, labels = arrays["roots"], arrays["labels"]
        assert set(arrays) == {"roots", "tokens", "present", "labels"}
    dataset = make_dataset("HTM-Digits-v0", "test")
    assert roots.shape == (70, 6)
    assert np.array_equal(labels, dataset.labels(dataset.fixed_keys(70)))

    folder = tmp_path / "out" / "projector"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (log,) = config.embeddings
    with open(folder / log.tensor_path) as file:
        vectors = [[float(value) for value in row] for row in csv.reader(file, delimiter="\t")]
    assert np.array_equal(np.array(vectors, dtype=np.float32), roots)
    with open(folder / log.metadata_path) as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == ["label", "tokens", "sample"]
    assert rows == [[str(label), "16", str(index)] for index, label in enumerate(labels)]
    pixels = (imread(folder / log.sprite.image_path)[..., :3] * 255).round().astype(np.uint8)
    width, height = log.sprite.single_image_dim
    batch = dataset.fixed(70)
    expected = thumbnails(batch.tokens.numpy(), batch.present.numpy(), "patches")
    assert pixels.shape == (9 * height, 9 * width, 3)  # the smallest square of at least 70
    for index in range(70):
        top, left = height * (index // 9), width * (index % 9)
        assert np.array_equal(pixels[top : top + height, left : left + width], expected[index])


def test_embed_again_replaces_what_it_wrote(trees):
    for samples in (9, 5):
        assert (
            status("embed", trees, "--samples", samples, "--split", "validation", "--format", "pdf")
            == 0
        )
    out = trees / "embeddings"
    with np.load(out / "embeddings.npz") as arrays:
        assert "labels" not in arrays
        assert arrays["roots"].shape == (5, 8)
    assert len(list((out / "projector").glob("events.out.tfevents.*"))) == 1
    rows = (out / "projector" / "00000" / "roots" / "metadata.tsv").read_text().splitlines()
    assert rows[0] == "tokens\tsample"
    assert len(rows) == 6
    assert {path.name for path in out.iterdir()} == {"embeddings.npz", "pca.pdf", "projector"}


def test_embed_refuses_what_it_cannot_do(run, tmp_path, capsys):
    assert status("embed", run, "--samples", 1) == 2
    assert "--samples is 1; expected at least 2" in capsys.readouterr().err
    assert status("embed", run, "--split", "holdout") == 2
    assert status("embed", tmp_path) == 1
    capsys.readouterr()
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "thesis.txt").write_text("mine")
    assert status("embed", run, "--out", tmp_path) == 1
    assert "is no projector log" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"projector"}
    assert (tmp_path / "projector" / "thesis.txt").read_text() == "mine"


def test_the_projector_needs_two_columns(tmp_path):
    pictures = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"columns \['label'\]; expected at least two"):
        write_projector(tmp_path, np.zeros((2, 3)), {"label": [1, 2]}, pictures)


def test_a_folder_is_replaced_all_or_nothing(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "a") as folder:
        (folder / "missing" / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]
    shutil.copytree(tmp_path / "a", tmp_path / ".a.tmp")  # what a killed process left
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["points", "segments", "patches", "items", "vectors"])
def test_thumbnails_show_the_tokens_that_are_present(kind):
    rng = np.random.default_rng(0)
    dim = {"points": 2, "segments": 4, "patches": 6, "items": 5, "vectors": 3}[kind]
    tokens = rng.uniform(1, 16, size=(2, 4, dim)).round()
    present = np.array([[True] * 4, [True, True, False, False]])
    made = thumbnails(tokens, present, kind, pixels=24)
    assert made.shape == (2, 24, 24, 3)
    inside = made[:, 1:-1, 1:-1]
    assert all((picture < 120).any() and (picture > 250).any() for picture in inside)
    hidden = np.where(present[:, :, None], tokens, 1e6)
    assert np.array_equal(thumbnails(hidden, present, kind, pixels=24), made)
    alone = thumbnails(tokens[1:], present[1:], kind, pixels=24)
    assert np.array_equal(alone[0], made[1])


def test_a_digits_thumbnail_is_its_image():
    dataset = make_dataset("HTM-Digits-v0", "test")
    batch = dataset.fixed(5)
    side = 56  # the frame: four patches, and 0.12 of the three between their centres on each side
    made = thumbnails(batch.tokens.numpy(), batch.present.numpy(), "patches", side)
    pixel = side / (4 + 2 * 0.12 * 3) / 2
    for row, picture in enumerate(made):
        image = load_digits().images[dataset.rows[row]]
        centres = (side / 2 + (np.arange(8) - 3.5) * pixel).astype(int)
        seen = picture[np.ix_(centres, centres)][..., 0].astype(float)
        # Matplotlib's greys fall with the intensity, 0 to 16; its two ends are white and black.
        assert (seen[image == 0] == 255).all()
        assert (seen[image == 16] == 0).all()
        by_intensity = [seen[image == value].mean() for value in np.unique(image)]
        assert by_intensity == sorted(by_intensity, reverse=True)


def test_the_plane_has_the_directions_of_most_variance():
    # Variances 8, 2 and 0 along the axes of a rotated frame: shares 0.8 and 0.2.
    square = np.array([[2.0, 1], [2, -1], [-2, 1], [-2, -1]]) * np.sqrt(2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    plane = principal_plane(np.pad(square, ((0, 0), (0, 1))) @ turn + 5)
    assert plane.shares == pytest.approx([0.8, 0.2])
    assert np.abs(plane.places) == pytest.approx(np.abs(square))


def test_a_plane_of_one_number_or_of_equal_embeddings_is_flat():
    line = principal_plane(np.array([[0.0], [2.0]]))
    assert np.abs(line.places) == pytest.approx(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert line.shares == pytest.approx([1.0, 0.0])
    point = principal_plane(np.ones((3, 4)))
    assert (point.places == 0).all()
    assert point.shares.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="at least 2 embeddings, not 1"):
        principal_plane(np.ones((1, 4)))
    with pytest.raises(ValueError, match="not all finite"):
        principal_plane(np.full((3, 4), np.nan))


def test_thumbnails_on_the_map_keep_apart():
    places = np.array([[0.0, 0], [0.9, 0.9], [1, 0], [1.5, 0.2], [0, 2]])
    assert apart(places, 1.0) == [0, 2, 4]


@pytest.mark.parametrize("values", [1, 3, 40])
def test_the_map_says_what_its_axes_and_marks_are(values):
    rng = np.random.default_rng(0)
    pictures = np.zeros((50, 8, 8, 3), dtype=np.uint8)
    shows = np.arange(50) % values
    figure = root_figure(rng.normal(size=(50, 3)), shows, "number of tokens", pictures, "50 roots")
    marked, pictured = figure.axes[:2]
    for axes in (marked, pictured):
        assert "principal component 1" in axes.get_xlabel()
        assert "% of the variance)" in axes.get_ylabel()
        assert np.ptp(axes.get_xlim()) == pytest.approx(np.ptp(axes.get_ylim()))
    assert "number of tokens" in marked.get_title()
    points = sum(len(dots.get_offsets()) for dots in marked.collections)
    assert points == 50
    assert len(figure.axes) == (3 if values == 40 else 2)  # a scale of colours

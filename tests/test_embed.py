"""Root embeddings of a run: the numbers, the map, and a log that TensorBoard's projector reads."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from commands import status
from google.protobuf import text_format
from matplotlib.image import imread
from sklearn.datasets import load_digits
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from agents import FixedOrder, Reinforce, load
from agents.cli.embed import _described
from agents.inspection.embeddings import root_embeddings
from agents.inspection.probes import semantic_table
from agents.inspection.rows import distinct, encode_rows
from agents.inspection.traces import traces_of
from agents.registry import algorithm, configured
from agents.runs.tensorboard import write_projector
from htm_env.datasets import SPLITS, make_dataset
from htm_env.drawing.figures.roots import apart, principal_plane, root_figure, thumbnails
from htm_env.files import atomic_folder
from htm_env.trees.merge_tree import MergeTree


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
    for shown in ("nmse", "probe", "pca_16", "180 samples", f"{rows['root']['five_nearest']:.3f}"):
        assert shown in table


def test_nothing_changes_for_data_without_labels(trees, capsys):
    assert status("evaluate", trees, "--json", "--episodes", 10) == 0
    assert "semantics" not in json.loads(capsys.readouterr().out)
    assert status("evaluate", trees, "--episodes", 10) == 0
    assert "probe" not in capsys.readouterr().out
    learner = algorithm("chain").learner("HTM-Trees-v0", algorithm("chain").config)
    with pytest.raises(ValueError, match="HTM-Trees-v0 has no labels"):
        semantic_table(learner)


# ---------------------------------------------------------------- search


def test_search_lowers_the_error_of_every_command(trees, tmp_path, capsys):
    errors = []
    for search in (0, 20):
        assert status("evaluate", trees, "--json", "--episodes", 20, "--search", search) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["search"] == search
        errors.append(found["nmse"])
    assert errors[1] < errors[0]
    learner = load(trees)
    dataset = learner.task.dataset("test")
    plain, better = (traces_of(learner, dataset, range(5), search) for search in (0, 20))
    pairs = list(zip(plain, better, strict=True))
    assert all(after.errors[-1] <= before.errors[-1] + 1e-6 for before, after in pairs)
    assert any(after.tree != before.tree for before, after in pairs)
    assert status("view", trees, "--search", 5, "--out", tmp_path / "page.html") == 0
    assert status("view", trees, "--search", -1) == 2


# ---------------------------------------------------------------- the command


FILES = {"embeddings.npz", "merges.npz", "reconstructions.npz", "trees.nwk"}


def arrays(path):
    with np.load(path) as archive:
        return dict(archive)


def test_embed_writes_rows_in_their_own_numbers(run, tmp_path, capsys):
    assert status("embed", run, "--out", tmp_path, "--samples", 70) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert all(str(tmp_path / name) in printed for name in FILES)
    found = arrays(tmp_path / "embeddings.npz")
    assert set(found) == {"row", "split", "label", "root", "error"}
    dataset = make_dataset("HTM-Digits-v0", "test")
    assert found["row"].tolist() == sorted(dataset.rows[:70])
    assert found["label"].tolist() == load_digits().target[found["row"]].tolist()  # numbers
    assert set(found["split"]) == {"test"}
    # A row is what the agent makes of it, whoever asks.
    images = load_digits().images[found["row"]]
    decoded = arrays(tmp_path / "reconstructions.npz")
    assert decoded["tokens"][:, 1, 2:] == pytest.approx(images[:, :2, 2:4].reshape(70, 4))
    agent = load(run)
    assert agent.embed(decoded["tokens"]) == pytest.approx(found["root"], abs=1e-5)
    assert status("embed", run, "--out", tmp_path, "--samples", 70, "--search", 5) == 0
    better = arrays(tmp_path / "embeddings.npz")["error"]
    assert (better <= found["error"] + 1e-6).all() and (better < found["error"]).any()


RAGGED = [np.random.default_rng(count).normal(size=(2 + count % 6, 3)) for count in range(40)]


HOLES = np.random.default_rng(0).random((40, 9)) < 0.6
HOLES[:, :2] = True
PADDED = np.random.default_rng(1).normal(size=(40, 9, 3))
NAMED = {"names": [f"row {row}" for row in range(40)], "labels": ["odd", "even"] * 20}
OWN = {
    "ragged": {"dataset": RAGGED, **NAMED},
    "holes": {"dataset": PADDED, "present": HOLES, "token_names": list("abcdefghi"), **NAMED},
    "digits": None,
}


@pytest.mark.parametrize("data", list(OWN))
def test_the_printed_tree_decodes_to_what_is_stored(data, tmp_path):
    """Parse every line, and encode and decode the row as it was given along that tree."""
    env, kwargs = ("HTM-Digits-v0", {}) if data == "digits" else ("HTM-v0", OWN[data])
    config = configured("reinforce", {"autoencoder": {"hidden_dim": 8}})
    agent = Reinforce(env, config, env_kwargs=kwargs, embedding_dim=4)
    agent.train(merges=300, out=tmp_path)
    assert status("embed", tmp_path, "--split", "all") == 0
    names = ("embeddings.npz", "merges.npz", "reconstructions.npz")
    found, made, decoded = (arrays(tmp_path / "embeddings" / name) for name in names)
    lines = (tmp_path / "embeddings" / "trees.nwk").read_text().splitlines()
    assert found["row"].tolist() == list(range(1797 if data == "digits" else 40))
    assert len(lines) == len(found["row"])
    given = {"ragged": RAGGED, "holes": PADDED, "digits": decoded["tokens"]}[data]
    if data != "digits":
        assert found["name"].tolist() == NAMED["names"]
        assert found["label"].tolist() == NAMED["labels"]
    columns = decoded["present"].shape[1]
    leaf_names = "abcdefghi" if data == "holes" else range(columns)
    trees = [MergeTree.from_newick(line, leaf_names) for line in lines]
    if data == "holes":
        leaves = [np.flatnonzero(row).tolist() for row in HOLES]
        assert [tree.leaves.tolist() for tree in trees] == leaves
    autoencoder = load(tmp_path).autoencoder
    for size in {tree.num_leaves for tree in trees}:
        rows = [row for row, tree in enumerate(trees) if tree.num_leaves == size]
        tokens = np.stack([given[row][trees[row].leaves] for row in rows])
        merges = torch.tensor(np.stack([trees[row].merges for row in rows]))
        present = torch.ones(len(rows), size, dtype=torch.bool)
        with torch.no_grad():
            roots = autoencoder.encode(torch.tensor(tokens).float(), present, merges).roots
            back = autoencoder.decode(roots, merges, present)
        stored = [decoded["reconstruction"][row][trees[row].leaves] for row in rows]
        assert roots.numpy() == pytest.approx(found["root"][rows], abs=1e-5)
        assert back.numpy() == pytest.approx(np.stack(stored), abs=1e-5)
    for merges, tree in zip(made["merges"], trees, strict=True):
        clades = [{column} for column in range(columns)]
        for first, second in merges[merges[:, 0] >= 0].tolist():
            clades.append(clades[first] | clades[second])
        assert set(map(frozenset, clades[columns:])) == set(tree.clades())


def test_labels_that_are_numbers_are_in_the_order_of_numbers():
    given = {"dataset": RAGGED, "labels": [2, 10] * 20}
    found = encode_rows(FixedOrder("HTM-v0", env_kwargs=given, embedding_dim=2), SPLITS)
    assert found.labels == [2, 10] * 20
    _, classes, _, names = _described(found)
    assert (classes.tolist(), names) == ([0, 1] * 20, ["2", "10"])


def test_names_that_tokens_share_get_their_index():
    assert distinct(["the", "cat", "the"]) == ["the#0", "cat", "the#2"]


def test_a_set_autoencoder_writes_no_trees(own_data, tmp_path, capsys):
    kwargs = {"env_kwargs": {"dataset": own_data}, "embedding_dim": 4}
    flat = algorithm("flat").learner("HTM-v0", algorithm("flat").config, **kwargs)
    flat.train(merges=50, out=tmp_path)
    assert status("embed", tmp_path) == 0
    assert "flat makes no trees" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "embeddings").iterdir()} == {
        "embeddings.npz",
        "reconstructions.npz",
    }


def test_pictures_are_a_map_and_a_log(run, tmp_path, capsys):
    arguments = ["--out", tmp_path / "out", "--samples", 70, "--pictures"]
    assert status("embed", run, *arguments) == 0
    printed = capsys.readouterr().out
    for name in ("embeddings.npz", "pca.png", "projector"):
        assert str(tmp_path / "out" / name) in printed
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {*FILES, "pca.png", "projector"}
    found = arrays(tmp_path / "out" / "embeddings.npz")
    decoded = arrays(tmp_path / "out" / "reconstructions.npz")
    roots, labels = found["root"], found["label"]
    assert roots.shape == (70, 6)

    folder = tmp_path / "out" / "projector"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (log,) = config.embeddings
    with open(folder / log.tensor_path) as file:
        vectors = [[float(value) for value in row] for row in csv.reader(file, delimiter="\t")]
    assert np.array_equal(np.array(vectors, dtype=np.float32), roots)
    with open(folder / log.metadata_path) as file:
        header, *rows = csv.reader(file, delimiter="\t")
    assert header == ["label", "tokens", "row"]
    expected = [
        [str(label), "16", str(row)] for label, row in zip(labels, found["row"], strict=True)
    ]
    assert rows == expected
    pixels = (imread(folder / log.sprite.image_path)[..., :3] * 255).round().astype(np.uint8)
    width, height = log.sprite.single_image_dim
    expected = thumbnails(decoded["tokens"], decoded["present"], "patches")
    assert pixels.shape == (9 * height, 9 * width, 3)  # the smallest square of at least 70
    for index in range(70):
        top, left = height * (index // 9), width * (index % 9)
        assert np.array_equal(pixels[top : top + height, left : left + width], expected[index])


def test_embed_again_replaces_what_it_wrote(trees):
    for samples in (9, 5):
        arguments = ["--samples", samples, "--split", "validation", "--format", "pdf", "--pictures"]
        assert status("embed", trees, *arguments) == 0
    out = trees / "embeddings"
    found = arrays(out / "embeddings.npz")
    assert set(found) == {"row", "split", "root", "error"}
    assert found["root"].shape == (5, 8)
    assert len((out / "trees.nwk").read_text().splitlines()) == 5
    assert len(list((out / "projector").glob("events.out.tfevents.*"))) == 1
    rows = (out / "projector" / "00000" / "roots" / "metadata.tsv").read_text().splitlines()
    assert rows[0] == "tokens\trow"
    assert len(rows) == 6
    assert {path.name for path in out.iterdir()} == {*FILES, "pca.pdf", "projector"}


def test_embed_refuses_what_it_cannot_do(run, tmp_path, capsys):
    assert status("embed", run, "--samples", 0) == 2
    assert "--samples is 0; expected at least 1" in capsys.readouterr().err
    assert status("embed", run, "--search", -1) == 2
    assert status("embed", run, "--samples", 1, "--pictures", "--out", tmp_path) == 1
    assert "at least 2 embeddings, not 1" in capsys.readouterr().err
    assert status("embed", run, "--split", "holdout") == 2
    assert status("embed", tmp_path) == 1
    capsys.readouterr()
    (tmp_path / "projector").mkdir()
    (tmp_path / "projector" / "thesis.txt").write_text("mine")
    assert status("embed", run, "--out", tmp_path, "--pictures") == 1
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
    shutil.copytree(tmp_path / "a", tmp_path / f".a.{2**22 + 1}-0.tmp")  # of a process that ended
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

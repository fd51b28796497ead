"""``htm generate``: what it writes, what it says, and that it says the same again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import status
from safetensors import safe_open

from agents.generation.options import GenerateOptions
from agents.generation.samples import RunSamples
from agents.generation.scores import SetScores, gaussian_tokens
from agents.registry import load_learner
from htm_env import MergeTree, make_dataset
from htm_env.generation.mixture import RootMixture

FEW = [
    "--n",
    "40",
    "--real",
    "12",
    "--roots",
    "120",
    "--components",
    "1",
    "3",
    "--max-depth",
    "4",
    "--covariance-types",
    "full",
    "diag",
]
ROWS = ["generated", "unrefined", "real", "reconstruction", "gaussian", "untrained"]


def train(folder, env: str, algo: str = "nearest", **kwargs) -> None:
    arguments = [
        "train",
        "--env",
        env,
        "--env-kwargs",
        json.dumps(kwargs),
        "--algo",
        algo,
        "--merges",
        "200",
        "--out",
        folder,
    ]
    width = "hidden_dim" if algo == "flat" else "autoencoder.hidden_dim"
    assert status(*arguments, "--set", f"{width}=8") == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder, "HTM-Crosses-v0", num_crosses=[1, 2])
    return folder


@pytest.fixture(scope="module")
def made(run):
    """The folder of generated samples, and what the command printed."""
    assert status("generate", run, *FEW) == 0
    return run / "generated"


def test_it_writes_samples_measures_a_mixture_and_pictures(made):
    assert {path.name for path in made.iterdir()} == {
        "samples.npz",
        "metrics.json",
        "mixture.safetensors",
        "bic.png",
        "samples.png",
        "interpolation.png",
        "denoising.png",
    }
    with np.load(made / "samples.npz") as samples:
        assert samples["tokens"].shape[0] == 40 and samples["tokens"].shape[2] == 4
        assert samples["truncated"].dtype == bool
        for merges, present in zip(samples["merges"], samples["present"], strict=True):
            tree = MergeTree(merges, int(present.sum()))
            assert len(tree.merges) == tree.num_leaves - 1
            assert tree.height <= 4
    for picture in made.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    with safe_open(made / "mixture.safetensors", "pt") as file:
        assert set(file.keys()) == {"weights", "means", "covariances", "covariance_of"}


def test_metrics_have_every_measure_of_every_row(made):
    metrics = json.loads((made / "metrics.json").read_text())
    assert list(metrics["rows"]) == ROWS
    names = {
        "valid",
        "valid_with_angles",
        "valid_within_20_percent",
        "undecided",
        "token_count_distance",
        "mean_tokens",
        "distance_to_training",
        *(
            f"{distance}_{measure}"
            for distance in ("chamfer", "earth_movers")
            for measure in ("minimum_matching_distance", "coverage", "nearest_neighbour_accuracy")
        ),
    }
    for row, scores in metrics["rows"].items():
        generated = row in ("generated", "unrefined", "untrained")
        for name in ("plausible_stroke_lengths", "plausible_strokes"):
            assert scores.pop(name) is None  # these are segments
        assert set(scores) == names | ({"truncated"} if generated else set())
        assert all(np.isfinite(value) for value in scores.values())
    assert metrics["rows"]["real"]["valid"] == 1.0
    assert metrics["rows"]["gaussian"]["valid"] == 0.0
    real, copy = metrics["rows"]["real"], metrics["rows"]["reconstruction"]
    assert real["distance_to_training"] == 1.0
    assert real["mean_tokens"] == copy["mean_tokens"]
    assert metrics["env_kwargs"] == {"num_crosses": [1, 2]}
    assert metrics["max_depth"] == 4 and metrics["max_tokens"] == 8  # twice the data's
    mixture = metrics["mixture"]
    assert (mixture["roots"], len(mixture["candidates"])) == (120, 4)
    assert mixture["bic"] == min(candidate["bic"] for candidate in mixture["candidates"])
    kinds = ("leaf_encoder", "internal_encoder", "leaf_decoder", "internal_decoder")
    assert set(metrics["classifier"]) == {f"classifier_{kind}" for kind in kinds}
    assert metrics["denoising"]["noisy_nmse"] == pytest.approx(0.01, rel=0.3)
    with np.load(made / "samples.npz") as samples:
        share = samples["truncated"].mean()
    assert max(metrics["truncated"].values()) <= share <= sum(metrics["truncated"].values())


def test_the_same_seed_gives_the_same_files_and_another_seed_others(run, made, tmp_path):
    def files(*seed):
        assert status("generate", run, *FEW, "--out", tmp_path, *seed) == 0
        return {
            name: (tmp_path / name).read_bytes()
            for name in ("samples.npz", "metrics.json", "mixture.safetensors")
        }

    first = {name: (made / name).read_bytes() for name in ("samples.npz", "metrics.json")}
    again = files()
    assert first == {name: again[name] for name in first}
    assert files("--seed", "1")["samples.npz"] != first["samples.npz"]


def test_components_are_at_training_roots_under_the_runs_own_merges(run, made, tmp_path):
    learner = load_learner(run)
    samples = RunSamples(learner, GenerateOptions(run))
    training = samples.encoded(learner.task.dataset("train").fixed(120))
    roots = training.roots.double()
    smoothed = RootMixture.load(made / "mixture.safetensors")
    assert torch.allclose(smoothed.means, roots, atol=1e-5)
    assert 0.02 < smoothed.bandwidth <= 1
    assert status("generate", run, *FEW, "--no-smoothed", "--out", tmp_path) == 0
    mixture = RootMixture.load(tmp_path / "mixture.safetensors")
    assert mixture.bandwidth is None
    assert torch.allclose(mixture.weights @ mixture.means, roots.mean(0), atol=1e-4)
    metrics, plain = (
        json.loads((folder / "metrics.json").read_text()) for folder in (made, tmp_path)
    )
    log_density = float(mixture.log_density(training.roots).mean())
    for found in (metrics, plain):
        assert found["mixture"]["log_density"] == pytest.approx(log_density)
    assert metrics["mixture"]["bandwidth"] == smoothed.bandwidth


def test_where_held_out_samples_are_copies_the_mixture_is_not_smoothed(tmp_path):
    """Rows of zeros and ones with few different values: most are in every split."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, size=(200, 2, 1)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", tokens=rows)
    train(tmp_path / "run", "HTM-v0", algo="chain", dataset=str(tmp_path / "mine.npz"))
    assert status("generate", tmp_path / "run", "--n", "5", "--components", "1") == 0
    metrics = json.loads((tmp_path / "run" / "generated" / "metrics.json").read_text())
    assert metrics["mixture"]["bandwidth"] is None
    assert metrics["rows"]["generated"]["distance_to_training"] is None


def test_what_is_reconstructed_like_most_real_samples_is_not_refined(run, made):
    learner = load_learner(run)
    samples = RunSamples(learner, GenerateOptions(run))
    training = samples.encoded(learner.task.dataset("train").fixed(120))
    present = training.batch.present[..., None]
    difference = (training.reconstruction - training.batch.tokens) / learner.std * present
    errors = difference.square().sum((1, 2)) / (present.sum((1, 2)) * 4)
    metrics = json.loads((made / "metrics.json").read_text())
    expected = float(np.quantile(errors.numpy(), 0.9))
    assert metrics["refined_above_nmse"] == pytest.approx(expected, rel=1e-4)


def test_it_prints_a_table(run, made, tmp_path, capsys):
    assert status("generate", run, *FEW, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    for expected in (
        *ROWS,
        "earth_movers_coverage",
        "classifier_leaf_decoder",
        "cut off by depth",
        str(tmp_path),
    ):
        assert expected in printed


def test_own_data_has_all_but_validity(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", tokens=rng.normal(size=(60, 3, 3)).astype(np.float32))
    train(tmp_path / "run", "HTM-v0", algo="chain", dataset=str(tmp_path / "mine.npz"))
    capsys.readouterr()
    # 48 rows to train on: two components of twenty roots each. Six to test: three on each side.
    assert status("generate", tmp_path / "run", "--n", "5", "--covariance-types", "diag") == 0
    assert "valid" not in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "generated" / "metrics.json").read_text())
    assert [row["components"] for row in metrics["mixture"]["candidates"]] == [1, 2]
    for scores in metrics["rows"].values():
        assert scores["valid"] is None
        assert scores["chamfer_coverage"] * 3 == pytest.approx(
            round(scores["chamfer_coverage"] * 3)
        )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--n", "1"], "--n is 1"),
        (["--real", "0"], "--real is 0"),
        (["--temperature", "-1"], "--temperature"),
        (["--threshold", "2"], "--threshold is 2"),
        (["--covariance-types", "round"], "spherical"),
        (["--threads", "0"], "--threads"),
        (["--max-depth", "-1"], "--max-depth"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--components", "0"], "--components"),
        (["--noise-std", "nan"], "--noise-std"),
    ],
)
def test_wrong_usage_is_one_line_and_status_two(run, arguments, says, capsys):
    assert status("generate", run, *arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_failures_are_one_line_and_status_one(run, tmp_path, capsys):
    assert status("generate", tmp_path / "nothing") == 1
    assert "holds no run" in capsys.readouterr().err
    assert status("generate", run, *FEW, "--components", "121", "--out", tmp_path / "out") == 1
    assert "120 roots are fewer than 121 components" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    train(tmp_path / "flat", "HTM-Trees-v0", algo="flat", heights=[2])
    capsys.readouterr()
    assert status("generate", tmp_path / "flat") == 1
    assert "makes no trees" in capsys.readouterr().err


def test_a_model_of_one_leaf_still_gives_pictures(run, tmp_path):
    one_leaf = "--threshold", "0", "--format", "svg"
    assert status("generate", run, *FEW, *one_leaf, "--out", tmp_path) == 0
    pictures = {path.name for path in tmp_path.glob("*.svg")}
    assert pictures == {"bic.svg", "samples.svg", "interpolation.svg", "denoising.svg"}
    assert not list(tmp_path.glob("*.png"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["rows"]["generated"]["mean_tokens"] == 1.0
    assert metrics["rows"]["generated"]["token_count_distance"] == 1.0


# ---------------------------------------------------------------- scores


def test_scores_compare_with_other_real_samples():
    training = make_dataset("HTM-Trees-v0").fixed(50)
    scores = SetScores(make_dataset("HTM-Trees-v0", split="test"), 30, training)
    assert scores.count == 30
    assert not any(
        torch.equal(one, other) for one in scores.reference.tokens for other in scores.others.tokens
    )
    copy = scores.of(scores.reference.tokens, scores.reference.present)
    assert copy["earth_movers_minimum_matching_distance"] == 0.0
    assert copy["chamfer_nearest_neighbour_accuracy"] == 0.0
    assert copy["token_count_distance"] == 0.0
    learned_by_heart = scores.of(training.tokens, training.present)
    assert learned_by_heart["distance_to_training"] == 0.0
    assert scores.of(scores.others.tokens, scores.others.present)["distance_to_training"] == 1.0
    with pytest.raises(ValueError, match="at least 4"):
        SetScores(make_dataset(np.arange(72.0).reshape(12, 2, 3), split="test"), 30, training)


def test_gaussian_tokens_have_the_datas_mean_covariance_and_counts():
    training = make_dataset("HTM-Trees-v0").fixed(500)
    training.tokens[..., 1] = 2 * training.tokens[..., 0]  # one direction never varies
    tokens, present = gaussian_tokens(training, 3000, torch.Generator().manual_seed(0))
    made, data = (
        tokens[present].double().numpy(),
        training.tokens[training.present].double().numpy(),
    )
    assert np.allclose(made.mean(0), data.mean(0), atol=2.0)
    assert np.allclose(np.cov(made.T), np.cov(data.T), rtol=0.1)
    assert np.allclose(made[:, 1] - made[:, 0] * 2, 0.0, atol=1e-3)
    assert set(present.sum(1).tolist()) == {3, 7, 15}
    assert (tokens[~present] == 0).all()


def test_every_purpose_has_numbers_of_its_own(run):
    samples = RunSamples(load_learner(run), GenerateOptions(run, seed=3))
    drawn = {float(torch.rand((), generator=samples.stream(k))) for k in range(5)}
    assert len(drawn) == 5

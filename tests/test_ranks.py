"""Two processes learn one model: what one learns of both batches, and go on where they were."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import refusal

from agents.cli.command import run as run_command
from agents.config.budget import Budget
from agents.config.run import RunConfig
from agents.encoders.config import GlomConfig
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.flat import Flat, FlatConfig
from agents.learners.glom import GlomOrder, GlomOrderConfig
from agents.learners.imitation import Contestant
from agents.learners.reinforce import EntropyConfig, Reinforce, ReinforceConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.optim.optimizers import OptimizerConfig
from agents.optim.ranks import VARIABLES, Processes, Ranks
from agents.registry import build_learner
from agents.rollouts.rollout import follow
from agents.runs.checkpoint import load_state, save_state
from agents.runs.directory import RunDirectory
from agents.runs.loop import Training
from agents.runs.session import resume_run, start_run
from agents.runs.together import assist, difference, with_difference
from benchmarks import ranks as benchmark
from htm_env.losses import LossWeights
from htm_env.types import TokenBatch

ROOT = Path(__file__).parent.parent
SEVEN = {"heights": (2, 3)}
"""Trees of 3 and of 7 nodes, so that ranks have different numbers of tokens."""
ALL_LOSSES = LossWeights(cycle=0.1, transport=0.1, magnitude=0.1)
SLOWLY = OptimizerConfig(learning_rate=1e-3, warm_up_updates=0)
AUTOENCODER = AutoencoderConfig(
    hidden_dim=8,
    loss=ALL_LOSSES,
    subtree_share=((0.0, 1.0),),
    lifter=SLOWLY,
    merger=SLOWLY,
    classifier=SLOWLY,
)
UPDATES, ROWS = 4, 12
"""Updates of a comparison, and samples of an update in all ranks together."""


def forked(count: int, work: Callable[[Processes], Any], folder: Path, timeout: float = 60.0):
    """Start processes that learn together; gives them, each with the path of its result."""
    import pytorch_optimizer  # noqa: F401  # takes a second, which the children then need not wait

    store = folder / f"store{time.monotonic_ns()}"

    def run(index: int) -> None:
        processes = Processes(index, count, dist.FileStore(str(store), count), timeout)
        save_state(folder / f"{store.name}.{index}", work(processes))
        os._exit(0)

    started = [get_context("fork").Process(target=run, args=[index]) for index in range(count)]
    for process in started:
        process.start()
    return started, [folder / f"{store.name}.{index}" for index in range(count)]


def together(count: int, work: Callable[[Processes], Any], folder: Path) -> list[Any]:
    """What every one of these processes gives."""
    started, paths = forked(count, work, folder)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * count
    return [load_state(path) for path in paths]


# ---------------------------------------------------------------- what a step is


def test_sums_means_and_messages_of_two_ranks(tmp_path):
    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        ranks = Ranks()
        ranks.join(processes)
        mine = ranks.index + 1.0  # 1 and 2
        generator = torch.Generator().manual_seed(5)
        ranks.diverge(generator)
        return {
            "sums": ranks.sums(mine, 10 * mine),
            "mean": ranks.mean(torch.tensor([mine])).item(),
            "first": ranks.first(mine),
            "balance": ranks.balance(mine),
            "of nothing": ranks.balance(0),
            "gathered": ranks.gathered(torch.full([int(mine)], mine)).tolist(),
            "records": ranks.records({"mine": mine}),
            "told": processes.broadcast(b"of the first" if not ranks.index else b"").decode(),
            "drawn": float(torch.rand((), generator=generator)),
        }

    first, second = together(2, work, tmp_path)
    for one in (first, second):
        assert one["sums"] == [3.0, 30.0]
        assert one["mean"] == 1.5 and one["first"] == 1.0
        assert one["of nothing"] == 0.0
        assert one["gathered"] == [1.0, 2.0, 2.0]
        assert one["told"] == "of the first"
    assert first["balance"] == pytest.approx(2 / 3)
    assert second["balance"] == pytest.approx(4 / 3)
    assert first["records"] == [{"mine": 1.0}, {"mine": 2.0}] and second["records"] == []
    alone = torch.Generator().manual_seed(5)
    assert first["drawn"] == float(torch.rand((), generator=alone))
    assert second["drawn"] != first["drawn"]


def test_other_sums_may_come_between_the_beginning_and_the_end_of_a_mean(tmp_path):
    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        ranks = Ranks()
        ranks.join(processes)
        mine = torch.tensor([ranks.index + 1.0])
        finish = ranks.begin_mean(mine)
        between = ranks.sums(10.0 * (ranks.index + 1))
        return {"mean": finish().item(), "between": between, "mine": mine.item()}

    found = together(2, work, tmp_path)
    assert [one["mean"] for one in found] == [1.5, 1.5]
    assert [one["between"] for one in found] == [[30.0], [30.0]]
    assert [one["mine"] for one in found] == [1.0, 2.0]
    alone = Ranks()
    assert alone.begin_mean(torch.tensor([3.0]))().item() == 3.0


def test_a_gradient_is_the_mean_over_ranks_and_missing_ones_count_as_zero(tmp_path):
    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        ranks = Ranks()
        ranks.join(processes)
        everywhere, once, never = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
        everywhere.grad = torch.tensor([1.0, 3.0]) * (ranks.index + 1)
        once.grad = torch.ones(2) if ranks.index else None
        loss = torch.tensor(4.0 * ranks.index)
        before = processes.messages
        losses = ranks.average([everywhere, once, never], {"loss": loss})
        return {
            "everywhere": everywhere.grad,
            "once": once.grad,
            "never": never.grad,
            "loss": float(losses["loss"]),
            "messages": processes.messages - before,
        }

    for found in together(2, work, tmp_path):
        assert found["everywhere"].tolist() == [1.5, 4.5]
        assert found["once"].tolist() == [0.5, 0.5]
        assert found["never"] is None
        assert found["loss"] == 2.0
        assert found["messages"] == 1


def test_alone_nothing_is_shared():
    ranks, values = Ranks(), torch.ones(2)
    assert ranks.count == 1 and ranks.index == 0
    assert ranks.sum(values) is values and ranks.mean(values) is values
    assert ranks.sums(3.0) == [3.0] and ranks.balance(7) == 1.0


# ---------------------------------------------------------------- what is learned


class GivenRows:
    """A learner whose samples come from a stream that all ranks know: each takes its share."""

    def sample(self, count: int) -> TokenBatch:
        stream = torch.Generator().manual_seed(7 + self.updates)
        rows = torch.arange(self.ranks.index, ROWS, self.ranks.count)
        return self.dataset.sample(ROWS, stream).rows(rows)


class GivenOrder(GivenRows, FixedOrder):
    """Learns the trees of a fixed order."""


class Exact(Contestant):
    """Follows its order without noise, which every rank would draw for itself."""

    def learn(self, batch: TokenBatch, followed: TokenBatch, *how: Any) -> Any:
        return super().learn(batch, batch, *how)


class GivenSets(GivenRows, Flat):
    """Learns the sets without trees."""


class GivenTrees(GivenRows, Reinforce):
    """Learns from the trees of fixed orders as if the policy had drawn them."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.curriculum = WithoutCurriculum(self)

    @cached_property
    def contestants(self) -> dict[str, Contestant]:
        made = super().contestants
        return {name: Exact(one.planner, one.trainer) for name, one in made.items()}

    def sampled_episodes(self, batch: TokenBatch, num_merges: Any) -> Any:
        order = "nearest_sorted" if self.updates % 2 else "balanced_sorted"
        made = follow(self.seen, batch, self.demonstrators[order].plan(batch, self.generator))
        self.merges_made += int(made.steps.sum())
        return made, self.terms_of(batch, made).measured(self.config.entropy.ordered)


class WithoutCurriculum:
    """All merges of the learner's own samples."""

    def __init__(self, learner: GivenTrees) -> None:
        self.learner = learner

    def sample(self, *_: Any) -> TokenBatch:
        return self.learner.sample(ROWS)

    def num_merges(self, num_tokens: torch.Tensor, progress: float) -> torch.Tensor:
        return num_tokens - 1


class Interrupted(FixedOrder):
    """Ctrl-C in the middle of the first update."""

    def update(self, progress: float) -> dict[str, float]:
        raise KeyboardInterrupt


class Slow(FixedOrder):
    """Counts its own merges; the updates of other ranks than the first take longer."""

    own = 0

    def update(self, progress: float) -> dict[str, float]:
        time.sleep(0.02 * self.ranks.index)
        before = self.merges_made
        scalars = super().update(progress)
        self.own += self.merges_made - before
        return scalars


POLICY = ReinforceConfig(
    autoencoder=AUTOENCODER,
    policy=SLOWLY,
    policy_hidden_dim=8,
    batch_growth=0.0,
    trees_per_sample=1,
    trees_per_step=ROWS,
    baseline="none",
    failure=0.0,
    demonstrations=("nearest_sorted", "balanced_sorted"),
    demonstration_share=((0.0, 0.0),),
)
LEARNERS: dict[str, tuple[type, Any]] = {
    "fixed order": (GivenOrder, FixedOrderConfig(AUTOENCODER, "nearest_sorted")),
    "flat": (GivenSets, FlatConfig(hidden_dim=8, optimizer=SLOWLY)),
    "rewards": (GivenTrees, POLICY),
    "selection, then cloning": (
        GivenTrees,
        replace(POLICY, demonstration_share=((0.0, 1.0),), demonstration_race=0.5),
    ),
    "critic": (GivenTrees, replace(POLICY, baseline="value")),
    "average": (GivenTrees, replace(POLICY, baseline="exponential")),
    "normaliser": (
        GivenTrees,
        replace(POLICY, baseline="moving_normaliser", entropy=EntropyConfig(target=((0.0, 0.5),))),
    ),
}


def learned(name: str, processes: Processes | None) -> dict[str, Any]:
    """The gradients of the first update, the weights after a few, and the scalars of the last.

    Adam makes steps of one length of gradients that are nothing but rounding, so that weights alone
    would tell little.
    """
    kind, config = LEARNERS[name]
    learner = kind("HTM-Trees-v0", config, env_kwargs=SEVEN, embedding_dim=4, seed=3)
    if processes is not None:
        learner.join(processes)
    modules = {"autoencoder": learner.autoencoder}
    if isinstance(learner, Reinforce):
        modules["policy"] = learner.policy
    named = {
        f"{part}.{key}": parameter
        for part, module in modules.items()
        for key, parameter in module.named_parameters()
    }
    learner.update(0.0)
    gradients = {key: one.grad.clone() for key, one in named.items() if one.grad is not None}
    for update in range(1, UPDATES):
        scalars = learner.update(update / UPDATES)
    kept = ("loss/", "gradient_norm/")
    return {
        "gradients": gradients,
        "weights": {key: one.detach() for key, one in named.items()},
        "scalars": {tag: value for tag, value in scalars.items() if tag.startswith(kept)},
    }


def test_two_ranks_learn_what_one_learns_of_both_batches(tmp_path):
    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        return {name: learned(name, processes) for name in LEARNERS}

    found = together(2, work, tmp_path)
    for name in LEARNERS:
        alone = learned(name, None)
        first, second = (each[name] for each in found)
        assert first["gradients"].keys() == alone["gradients"].keys()
        for key, value in alone["gradients"].items():
            torch.testing.assert_close(first["gradients"][key], value, rtol=1e-3, atol=2e-6)
        for key, value in first["weights"].items():
            assert torch.equal(value, second["weights"][key]), (name, key)
        assert first["scalars"].keys() == alone["scalars"].keys()
        for tag, value in alone["scalars"].items():
            assert first["scalars"][tag] == pytest.approx(value, rel=1e-3, abs=1e-5), (name, tag)


def test_the_columns_of_a_glom_are_the_same_in_all_ranks(tmp_path):
    """Its losses are those of a rank's own scenes, so one process would learn other columns."""

    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        glom = GlomConfig(levels=2, level_width=8)
        config = GlomOrderConfig(AUTOENCODER, glom, optimizer=SLOWLY, glom_batch_size=4)
        learner = GlomOrder("HTM-Trees-v0", config, env_kwargs=SEVEN, embedding_dim=4)
        before = {key: one.clone() for key, one in learner.glom.state_dict().items()}
        learner.join(processes)
        own = learner.sample(4).tokens  # of its own random numbers
        for update in range(2):
            learner.update(update / 10)
        return {"before": before, "after": learner.glom.state_dict(), "own": own}

    first, second = together(2, work, tmp_path)
    assert not torch.equal(first["own"], second["own"])
    for key, value in first["after"].items():
        assert torch.equal(value, second["after"][key]), key
    assert any(not torch.equal(first["before"][key], one) for key, one in first["after"].items())


# ---------------------------------------------------------------- whole runs


def run_of(algo: str, budget: Budget, **config: Any) -> RunConfig:
    tiny = {"autoencoder": {"hidden_dim": 8}, "batch_size": 4, **config}
    return RunConfig(
        "HTM-Trees-v0",
        {"heights": [2, 3]},
        embedding_dim=4,
        algo=algo,
        config=tiny,
        budget=budget,
    )


REPLAY = run_of(
    "replay",
    Budget(merges=600),
    policy_hidden_dim=8,
    replay_batch_size=8,
    replays=1,
    demonstrations=["nearest_sorted"],
)


def runs(run: RunConfig, folder: Path, resumes: bool = False) -> Callable[[Processes], Any]:
    """The work of every process of a run."""

    def work(processes: Processes) -> dict[str, Any]:
        if processes.index:
            assist(build_learner, processes)
            return {}
        if resumes:
            return resume_run(folder, build_learner, progress_bar=False, processes=processes)
        learner = build_learner(run)
        return start_run(learner, run.budget, folder, progress_bar=False, processes=processes)

    return work


def table(folder: Path) -> list[dict[str, str]]:
    """``metrics.csv`` without what a clock decided."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if name != "seconds" and "time/" not in name}
        for row in rows
    ]


def without_clock(value: Any) -> Any:
    if isinstance(value, list):
        return [without_clock(each) for each in value]
    if isinstance(value, dict):
        clock = ("seconds", "update_seconds", "spent", "time/merges_per_second")
        return {key: without_clock(each) for key, each in value.items() if key not in clock}
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def test_every_rank_reads_its_own_shards(tmp_path):
    for shard in range(4):
        tokens = np.random.default_rng(shard).normal(size=(20, 3, 2))
        np.save(tmp_path / f"{shard}.npy", tokens)

    def shards(processes: Processes) -> dict[str, Any]:
        kwargs = {"dataset": str(tmp_path), "shards_held": 1}
        learner = FixedOrder("HTM-v0", env_kwargs=kwargs, embedding_dim=2)
        learner.join(processes)
        return {"shards": sorted(set((learner.dataset.rows // 20).tolist()))}

    assert together(2, shards, tmp_path) == [{"shards": [0, 2]}, {"shards": [1, 3]}]


def test_more_ranks_than_shards_is_the_same_line_in_all(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        np.save(shards / f"{shard}.npy", np.random.default_rng(shard).normal(size=(20, 3, 2)))
    run = replace(
        run_of("nearest", Budget(merges=100)),
        env="HTM-v0",
        env_kwargs={"dataset": str(shards), "shards_held": 1},
    )

    def work(processes: Processes) -> str:
        with pytest.raises(ValueError, match="process 2 of 3 in its 2 shards") as error:
            runs(run, tmp_path / "run")(processes)
        return str(error.value)

    assert len(set(together(3, work, tmp_path))) == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_learner_of_one_process_is_refused_by_all_before_anything_is_written(tmp_path):
    folder, run = tmp_path / "run", RunConfig("HTM-Trees-v0", algo="ppo", budget=Budget(merges=99))

    def work(processes: Processes) -> str:
        with pytest.raises(ValueError, match="ppo learns in one process; expected") as error:
            runs(run, folder)(processes)
        return str(error.value)

    assert len(set(together(2, work, tmp_path))) == 1
    RunDirectory(folder).check_free()


def test_a_run_goes_on_bit_for_bit_after_one_of_its_processes_was_killed(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = together(2, runs(REPLAY, whole), tmp_path)[0]
    assert result["ranks"] == RunDirectory(whole).load_ranks() == 2
    started, _ = forked(2, runs(REPLAY, broken), tmp_path)
    deadline = time.monotonic() + 60
    while not (broken / "checkpoint.before").exists():
        assert time.monotonic() < deadline and started[1].is_alive()
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    for process in started:
        process.join(60)
    assert started[0].exitcode not in (0, None)  # it does not wait for the dead one for ever
    assert not (broken / "result.json").exists()
    with pytest.raises(ValueError, match=r"of 2 processes.*this is 1.*torchrun --nproc-per-node 2"):
        resume_run(broken, build_learner, progress_bar=False)
    again = together(2, runs(REPLAY, broken, resumes=True), tmp_path)[0]
    assert again["weights_hash"] == result["weights_hash"]
    assert again["test"] == result["test"]
    assert table(broken) == table(whole)
    checkpoints = [
        load_state(folder / "checkpoint" / "training.safetensors") for folder in (whole, broken)
    ]
    assert without_clock(checkpoints[0]) == without_clock(checkpoints[1])
    [other] = checkpoints[0]["ranks"]
    learner = other["in"]["learner"]["in"]
    assert {"generator", "buffer"} <= learner.keys()  # its own, unlike all weights
    assert not {"autoencoder", "policy", "trainer", "optimizer", "updates"} & learner.keys()


def test_a_run_without_a_checkpoint_keeps_its_number_of_ranks(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    with directory.locked():
        directory.save_config(REPLAY, ranks=2)
    assert directory.load_config() == REPLAY
    with pytest.raises(ValueError, match=r"of 2 processes.*this is 1.*torchrun --nproc-per-node 2"):
        resume_run(directory.path, build_learner, progress_bar=False)


def test_seconds_are_those_of_the_first_and_merges_those_of_all(tmp_path):
    def work(processes: Processes) -> dict[str, Any]:
        processes.connect(torch.device("cpu"))
        config = FixedOrderConfig(AUTOENCODER, "nearest", batch_size=4)
        learner = Slow("HTM-Trees-v0", config, env_kwargs=SEVEN, embedding_dim=4)
        learner.join(processes)
        for _ in Training(learner, Budget(seconds=1.5), ranks=learner.ranks).events():
            pass
        return {"updates": learner.updates, "merges": learner.merges_made, "own": learner.own}

    first, second = together(2, work, tmp_path)
    assert first["updates"] == second["updates"] > 1
    assert first["merges"] == second["merges"] == first["own"] + second["own"]


def test_a_rank_that_does_not_answer_is_named(tmp_path):
    def work(processes: Processes) -> str:
        processes.connect(torch.device("cpu"))
        if processes.index == 1:
            time.sleep(8)
            return ""
        with pytest.raises(ConnectionError) as error:
            processes.sum(torch.ones(1))
        return str(error.value)

    started, paths = forked(2, work, tmp_path, timeout=2.0)
    started[0].join(30)
    said = load_state(paths[0])
    started[1].join(30)
    assert "rank 0 of 2" in said and "rank 1 ended, or did not answer within 2 s" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_rank_without_a_gpu_says_so():
    processes = Processes(0, 1, dist.HashStore())
    with pytest.raises(ValueError, match=r"rank 0 of 1 has no GPU.*--device cpu"):
        processes.connect(torch.device("cuda"))


def test_the_command_of_as_many_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert Processes(0, 4).command == "torchrun --nproc-per-node 4 -m agents.cli"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert Processes(0, 4).command == "torchrun --nnodes 2 --nproc-per-node 2 -m agents.cli"


def test_an_interrupted_run_of_several_processes_says_how_to_go_on(tmp_path):
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    algo, out = f"{__name__}:Interrupted", str(tmp_path / "run")

    def work(processes: Processes) -> str:
        values = (str(processes.index), "2", "localhost", port)
        os.environ.update(zip(VARIABLES, values, strict=True))
        with pytest.raises(KeyboardInterrupt) as interruption:
            run_command(["train", "--env", "HTM-Trees-v0", "--algo", algo, "--out", out])
        return str(interruption.value)

    first, _ = together(2, work, tmp_path)
    says = "continue with: torchrun --nproc-per-node 2 -m agents.cli train --resume"
    assert first == f"interrupted, {says} {out}"


@pytest.mark.parametrize("algo", ["ppo", "maskable_ppo"])
def test_who_learns_in_one_process_says_so(algo):
    learner = build_learner(RunConfig("HTM-Trees-v0", algo=algo))
    with pytest.raises(ValueError, match=f"{algo} learns in one process; expected"):
        learner.join(Processes(0, 2))


def test_a_difference_gives_the_value_back():
    other = {"a": torch.zeros(2), "b": {"c": 1, "d": [1.0]}, "e": 0.0}
    value = {"a": torch.zeros(2), "b": {"c": 2, "d": [1.0]}, "e": -0.0}
    found = difference(value, other)
    assert found == {"in": {"b": {"in": {"c": {"is": 2}}}, "e": {"is": -0.0}}}
    assert repr(with_difference(other, found)) == repr(value)
    assert difference(value, value) == {}


@pytest.mark.parametrize("command", [["compare"], ["tune", "--space", '{"batch_size": [2]}']])
def test_what_starts_its_own_processes_refuses_torchrun(command, tmp_path, monkeypatch, capsys):
    for name, value in dict(zip(VARIABLES, ("1", "4", "localhost", "29500"), strict=True)).items():
        monkeypatch.setenv(name, value)
    line = refusal(capsys, *command, "--out", tmp_path / "out")
    assert "starts processes of its own" in line and "rank 1 of 4" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torchrun_trains_one_model(tmp_path):
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("-m", "agents.cli", "train", "--env", "HTM-Trees-v0", "--algo", "nearest"),
        *("--merges", "2000", "--batch-size", "4", "--set", "autoencoder.hidden_dim=8"),
        *("--out", str(tmp_path / "run")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out test data") == 1
    assert (tmp_path / "run" / "result.json").exists()


def test_the_table_has_the_speed_of_ranks_and_a_model_of_more():
    """A second an update alone, in five gradient steps; of two ranks, 10 messages and 4 MB. By the
    model two ranks take 2 steps of a millisecond for each message, and 4 MB at 10 MB/s, so 1 + 0.02
    + 0.4 seconds; eight 14 steps and 7 MB, so 1 + 0.14 + 0.7. Two processes that share nothing make
    100 and 60 merges a second, so the machine allows 160."""
    alone = benchmark.Speed(1000, 10, 50, 10.0, 0, 0, 0.0, 0.0)
    two = benchmark.Speed(1200, 10, 50, 10.0, 100, 40_000_000, 1e-3, 1e7)
    apart = [alone, benchmark.Speed(300, 3, 15, 5.0, 0, 0, 0.0, 0.0)]
    first, each, second, model, eight, _ = benchmark.rows_of({1: alone, 2: two}, apart)
    assert (first["merges/s"], first["efficiency"]) == (100.0, 1.0)
    assert (each["ranks"], each["merges/s"]) == ("2, each alone", 160.0)
    assert (each["times one rank"], each["efficiency"], each["messages an update"]) == (1.6, 0.8, 0)
    assert (second["times one rank"], second["efficiency"]) == (1.2, 0.6)
    assert second["share of each alone"] == 0.75
    assert (second["messages an update"], second["MB an update"]) == (10.0, 4.0)
    assert second["MB a step"] == 0.8
    assert (model["ranks"], model["how"]) == (2, "model")
    assert model["efficiency"] == pytest.approx(1 / 1.42)
    assert (eight["ranks"], eight["how"]) == (8, "model")
    assert eight["efficiency"] == pytest.approx(1 / 1.84)


def test_the_speed_of_one_rank_is_measured():
    size = benchmark.FIFTEEN._replace(trees=4)
    found = benchmark.rank(0, 1, "", 0.0, size)
    assert (found.updates, found.merges, found.bytes) == (1, 4 * 14, 0)
    assert found.steps == 2  # one of the policy, and one on all four trees


def test_processes_that_learn_a_model_each_exchange_nothing(tmp_path):
    size = benchmark.FIFTEEN._replace(trees=4)
    store = str(tmp_path / "store")
    with ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(benchmark.rank, index, 2, store, 0.0, size, shares=False)
            for index in range(2)
        ]
        speeds = [each.result(60) for each in running]
    for speed in speeds:  # each counts its own merges
        assert (speed.updates, speed.merges, speed.messages, speed.bytes) == (1, 4 * 14, 0, 0)

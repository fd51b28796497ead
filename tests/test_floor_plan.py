"""Who may import whom: rooms stand in one order, files form no circle, learning reads few files.

Imports inside functions and under ``if TYPE_CHECKING`` count as any other.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("htm_env", "replay", "agents")

# From the bottom up: a room (a folder, or a file beside the folders) imports itself, the rooms of
# lines before its own, and nothing else of its package.
PLAN: dict[str, tuple[set[str], ...]] = {
    "htm_env": (
        {"checks", "posed", "registration", "softmax", "trees", "types"},
        {"files"},
        {"datasets", "forest"},
        {"candidates", "membership", "recurrence"},
        {"actions"},
        {"autoencoder"},
        {"known"},
        {"best_known", "losses", "measures", "population", "weights"},
        {"views"},
        {"generation", "observation", "rewards"},
        {"jets"},
        {"simulator", "specs"},
        {"drawing", "single_simulator"},
        {"env"},
        {"vector_env"},
        {"wrappers"},
    ),
    "replay": ({"importance", "trajectory", "tree_probability"}, {"buffer"}),
    "agents": (
        {"config", "fixed"},
        {"search"},
        {"encoders", "evaluation", "optim"},
        {"rollouts", "runs"},
        {"likelihood"},
        {"demonstrations", "networks"},
        {"learners"},
        {"inspection", "ppo"},
        {"stable_baselines"},
        {"registry"},
        {"engines"},
        {"comparison", "estimator", "generation"},
        {"tuning"},
        {"cli"},
    ),
}
OF_THE_ENVIRONMENT = {"candidates", "checks", "files", "forest", "softmax", "trees", "types"}
"""What ``replay`` may import of ``htm_env``."""
DRAWING = "htm_env/drawing/"
"""The only room of ``htm_env`` that may import matplotlib."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    """Every module of the three packages by its name."""
    return {name_of(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


@cache
def imported(name: str) -> frozenset[str]:
    """The full names of all that a module imports: modules of the project, or libraries."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} has a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & set(modules()) or {node.module}
    return frozenset(found)


def room_of(name: str) -> str:
    """The part of its package that a module belongs to; the package itself for its face."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def arrows() -> Iterator[tuple[str, str]]:
    """Every import of one module of the project by another."""
    for name in modules():
        for other in imported(name) & set(modules()):
            if other != name:
                yield name, other


def importers(*libraries: str) -> set[str]:
    """The files that import one of these libraries, or a part of it."""
    return {
        str(modules()[name].relative_to(ROOT))
        for name in modules()
        for found in imported(name)
        if any(found == library or found.startswith(f"{library}.") for library in libraries)
    }


def in_subprocess(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return done.stdout


# ---------------------------------------------------------------- rooms


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_in_the_plan_and_exists(package):
    planned = [room for level in PLAN[package] for room in level]
    assert len(planned) == len(set(planned))
    assert set(planned) == {room_of(name) for name in modules() if name.startswith(package)} - {""}


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_downwards(package):
    height = {room: level for level, rooms in enumerate(PLAN[package]) for room in rooms}
    upward = [
        f"{name} imports {other}"
        for name, other in arrows()
        if name.startswith(f"{package}.") and other.split(".")[0] == package
        if room_of(name) != room_of(other)
        and (not room_of(other) or height[room_of(other)] >= height[room_of(name)])
        and room_of(name) != "__main__"
    ]
    assert not upward


def test_no_import_goes_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for name, other in arrows():
        graph[name].add(other)
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"among these modules some import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


def test_packages_point_one_way():
    wrong = [
        f"{name} imports {other}"
        for name, other in arrows()
        if PACKAGES.index(other.split(".")[0]) > PACKAGES.index(name.split(".")[0])
        or (
            name.startswith("replay")
            and other.split(".")[0] == "htm_env"
            and room_of(other) not in OF_THE_ENVIRONMENT
        )
    ]
    assert not wrong


def test_few_files_lie_beside_the_folders_of_the_agents():
    assert len([path for path in (ROOT / "agents").iterdir() if path.is_file()]) <= 3


# ---------------------------------------------------------------- what learning reads


def test_importing_reinforce_loads_few_files():
    loaded = in_subprocess(
        "import json, sys, agents.learners.reinforce\n"
        f"print(json.dumps([name for name in sys.modules if name.split('.')[0] in {PACKAGES}]))"
    )
    assert len(json.loads(loaded)) <= 73, sorted(json.loads(loaded))


UPDATE = """
import json, sys
from agents import Reinforce, ReinforceConfig
config = ReinforceConfig(batch_size=4, demonstration_share=((0.0, 0.0),))
agent = Reinforce("HTM-Trees-v0", config, env_kwargs={"heights": [3]}, embedding_dim=6)
agent.update(0.5)  # what is imported or compiled at first use is there by now
files = set()
sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
agent.update(0.5)
sys.setprofile(None)
print(json.dumps(sorted(files)))
"""


def files_of_an_update() -> list[str]:
    """The files of the project that one update of REINFORCE among all pairs runs through."""
    files = [Path(file) for file in json.loads(in_subprocess(UPDATE)) if Path(file).exists()]
    return sorted(
        str(file.relative_to(ROOT))
        for file in files
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES
    )


def test_an_update_of_reinforce_runs_through_few_files():
    files = files_of_an_update()
    assert "agents/learners/reinforce.py" in files
    assert len(files) <= 22, files  # one of them compiled, where numba is


# ---------------------------------------------------------------- the faces of the packages


def test_examples_use_public_names_only():
    faces = (*PACKAGES, "htm_env.wrappers", "agents.engines", "agents.ppo")
    public = {package: set(face(package.replace(".", "/"))) for package in faces}
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in PACKAGES:
                names = {alias.name for alias in node.names}
                assert names <= public.get(node.module, set()), f"{path.name}: {node.module}"


def face(package: str) -> list[str]:
    """``__all__`` as it is written."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return names


# ---------------------------------------------------------------- libraries


def test_one_file_imports_tensorboard():
    found = importers("tensorboard", "torch.utils.tensorboard", "tensorboardX")
    assert found == {"agents/runs/tensorboard.py"}


def test_few_files_import_matplotlib():
    found = importers("matplotlib")
    assert len({path for path in found if path.startswith("agents/")}) <= 2, found
    assert all(path.startswith(("agents/", DRAWING)) for path in found), found


def test_two_rooms_import_stable_baselines():
    found = importers("stable_baselines3", "sb3_contrib")
    rooms = ("agents/ppo/", "agents/stable_baselines/")
    assert found
    assert all(path.startswith(rooms) for path in found), found


def test_importing_the_environment_loads_nothing_heavy():
    """Drawing, Stable-Baselines3 and scikit-learn wait until they are needed."""
    loaded = in_subprocess(
        "import sys, gymnasium as gym, htm_env\n"
        "env = gym.make('HTM-Trees-v0', autoencoder='untrained')\n"
        "env.reset(seed=0); env.step(0)\n"
        "vector = gym.make_vec('HTM-Trees-v0', autoencoder='untrained')\n"
        "vector.reset(seed=0)\n"
        "heavy = ('matplotlib', 'stable_baselines3', 'sklearn', 'networkx', 'tensorboard',\n"
        "         'agents', 'replay', 'scipy', 'htm_env.drawing.rendering',\n"
        "         'htm_env.measures.metrics')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert loaded.strip() == "[]"

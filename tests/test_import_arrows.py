"""Who may import whom: the packages point one way, and so do the modules of the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("htm_env", "replay", "agents")

# From the bottom up. A module may import its own layer and those below it.
LAYERS = (
    {"types", "files", "networks", "brackets", "tree_formats"},
    {"merge_tree", "forest", "datasets", "weights_file", "candidates"},
    {"levels", "actions", "neighbours", "merging", "standing", "sample_rows"},
    {"autoencoder"},
    {"weights", "population", "losses"},
    {"rewards", "observation"},
    {"simulator"},
    {"env"},
    {"vector_env"},
    {"registration"},
)
# They look at the world from the side; nothing in the layers needs them to be imported.
BESIDE = {
    "metrics",
    "trace",
    "semantics",
    "glyphs",
    "rendering",
    "viewer",
    "thumbnails",
    "figures",
    "page",
    "generation",
    "denoising",
    "root_mixture",
    "classifier_scores",
    "set_distances",
    "tree_search",
    "validity",
}
DRAWING = {"glyphs", "rendering", "thumbnails", "figures"}
"""The modules of ``htm_env`` that may import matplotlib."""


class Import(NamedTuple):
    module: str
    """Full name of what is imported, as in ``htm_env.forest``."""
    at_import_time: bool
    """False inside a function, or under ``if TYPE_CHECKING``."""
    names: tuple[str, ...]
    """What ``from module import ...`` takes; empty for ``import module``."""


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file; relative ones are an error, since the packages use none."""

    def visit(node: ast.AST, now: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, now, ())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            names = tuple(alias.name for alias in node.names)
            yield Import(node.module, now, names)
            for name in names:  # "from htm_env import forest" imports a module
                if (ROOT / node.module.replace(".", "/") / f"{name}.py").exists():
                    yield Import(f"{node.module}.{name}", now, ())
        else:
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            for child in ast.iter_child_nodes(node):
                yield from visit(child, now and not lazy)

    yield from visit(ast.parse(path.read_text()), True)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def package(module: str) -> str:
    return module.split(".")[0]


def part(module: str) -> str:
    """The module directly inside its package: ``datasets`` of ``htm_env.datasets.trees``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[1]
    return first.removesuffix(".py")


def layer(name: str) -> int:
    return next(height for height, names in enumerate(LAYERS) if name in names)


def breaches(folder: str, forbidden) -> list[str]:
    """``file imports module`` for every import that ``forbidden(path, import)`` refuses."""
    return [
        f"{path.relative_to(ROOT)} imports {found.module}"
        for path in files(folder)
        for found in imports(path)
        if forbidden(path, found)
    ]


# ---------------------------------------------------------------- between the packages


def test_the_files_are_found():
    assert {"env", "forest", "autoencoder"} <= {part_of(path) for path in files("htm_env")}
    assert any(found.module == "torch" for found in imports(ROOT / "htm_env" / "forest.py"))


def test_the_environment_knows_neither_replay_nor_agents():
    assert not breaches("htm_env", lambda path, found: package(found.module) in PACKAGES[1:])


def test_replay_uses_what_the_environment_is_made_of_and_nothing_else_of_it():
    allowed = {"types", "forest", "trees", "softmax", "candidates", "files"}

    def forbidden(path: Path, found: Import) -> bool:
        if package(found.module) == "agents":
            return True
        return package(found.module) == "htm_env" and part(found.module) not in allowed

    assert not breaches("replay", forbidden)


def test_examples_use_public_names_only():
    import htm_env

    public = {"htm_env": set(htm_env.__all__)}
    for name in ("agents", "replay"):
        tree = ast.parse((ROOT / name / "__init__.py").read_text())
        (names,) = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        public[name] = set(names)

    def forbidden(path: Path, found: Import) -> bool:
        if package(found.module) not in PACKAGES:
            return False
        return found.module not in public or not set(found.names) <= public[found.module]

    assert not breaches("examples", forbidden)


# ---------------------------------------------------------------- inside the environment


@pytest.mark.parametrize("path", files("htm_env"), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_of_the_environment_import_downwards(path):
    name = part_of(path)
    inside = [found for found in imports(path) if package(found.module) == "htm_env"]
    if name == "__init__":
        return  # the face of the package names whatever is public
    for found in inside:
        other = part(found.module)
        assert other, f"{name} imports the whole package"
        if name in BESIDE or name == other:
            continue
        assert name in set().union(*LAYERS), f"{name} has no place in LAYERS or BESIDE"
        if other in BESIDE:
            assert not found.at_import_time, f"{name} imports {other} at import time"
        else:
            assert layer(other) <= layer(name), f"{name} imports {other}, which stands above it"


def test_no_module_stands_beside_itself():
    """The layers are disjoint, and each names files that exist."""
    names = [name for names in (*LAYERS, BESIDE) for name in names]
    assert len(names) == len(set(names))
    assert set(names) == {part_of(path) for path in files("htm_env")} - {"__init__"}


def test_no_import_goes_in_a_circle():
    """Layers allow imports among their own; those must not close a ring."""
    graph = {
        part_of(path): {
            part(found.module)
            for found in imports(path)
            if package(found.module) == "htm_env" and found.at_import_time
        }
        - {part_of(path)}
        for path in files("htm_env")
        if path.name != "__init__.py" and path.parent.name == "htm_env"
    }
    while graph:
        free = [name for name, needs in graph.items() if not needs & set(graph)]
        assert free, f"these modules import each other: {sorted(graph)}"
        for name in free:
            del graph[name]


# ---------------------------------------------------------------- libraries


def importers(folder: str, *libraries: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in files(folder)
        for found in imports(path)
        if any(found.module == name or found.module.startswith(f"{name}.") for name in libraries)
    }


def test_one_file_imports_tensorboard():
    found = importers("agents", "tensorboard", "torch.utils.tensorboard", "tensorboardX")
    assert len(found) == 1, found
    assert not importers("htm_env", "tensorboard", "torch.utils.tensorboard")
    assert not importers("replay", "tensorboard", "torch.utils.tensorboard")


def test_few_files_import_matplotlib():
    assert len(importers("agents", "matplotlib")) <= 2
    assert not importers("replay", "matplotlib")
    assert {part_of(ROOT / path) for path in importers("htm_env", "matplotlib")} <= DRAWING


def test_only_ppo_imports_stable_baselines():
    libraries = ("stable_baselines3", "sb3_contrib")
    outside = {
        path for path in importers("agents", *libraries) if not path.startswith("agents/ppo/")
    }
    assert not outside
    assert not importers("htm_env", *libraries) | importers("replay", *libraries)


def test_importing_the_environment_loads_nothing_heavy():
    """Drawing, Stable-Baselines3 and scikit-learn wait until they are needed."""
    code = (
        "import sys, gymnasium as gym, htm_env\n"
        "env = gym.make('HTM-Trees-v0', autoencoder='untrained')\n"
        "env.reset(seed=0); env.step(0)\n"
        "vector = gym.make_vec('HTM-Trees-v0', autoencoder='untrained')\n"
        "vector.reset(seed=0)\n"
        "heavy = ('agents', 'matplotlib', 'stable_baselines3', 'sklearn', 'scipy', 'networkx',\n"
        "         'tensorboard', 'replay', 'htm_env.drawing.rendering', 'htm_env.drawing.viewer',\n"
        "         'htm_env.measures.metrics')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"

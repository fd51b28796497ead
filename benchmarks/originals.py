"""Other people's packages to compare with, each in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(".venv-originals")


def python_with(*requirements: str) -> Path:
    """The Python of a new or known environment that has these packages, in these versions.

    Only what is named is installed; all else is that of this environment, so that the original
    computes with the same PyTorch. Raises ``subprocess.CalledProcessError`` where pip fails.
    """
    folder = (FOLDER / "-".join(sorted(requirements)).replace("==", "-")).resolve()
    python = folder / "bin" / "python"
    done = folder / "installed"
    if not done.exists():
        venv.create(folder, clear=True, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--no-deps", *requirements]
        subprocess.run([python, *install], check=True)
        own = sysconfig.get_path("purelib")
        paths = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        found = subprocess.run(paths, check=True, capture_output=True, text=True).stdout.strip()
        (Path(found) / "beside.pth").write_text(f"{own}\n")
        done.touch()
    return python


if __name__ == "__main__":
    print(python_with(*sys.argv[1:]))

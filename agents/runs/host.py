"""The processor that a run ran on, and how fast it multiplies matrices."""

from __future__ import annotations

import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from agents.config.dataclasses_json import check_bounds, config_from_dict
from agents.runs.lock import locked
from htm_env.files import cache_folder, read_json, write_json

CALIBRATION_SECONDS = 2.0
CALIBRATION_WIDTH = 256
"""Rows and columns of the matrices that are multiplied, of 32-bit numbers."""
VALID_SECONDS = 86_400.0
"""A calibration is measured again after a day."""


@dataclass(frozen=True)
class Host:
    """What decides how much a run does in a second."""

    processor: str
    """Model of the processor, and that of the GPU where the run uses one."""
    torch: str
    """Version of PyTorch."""
    threads: int
    """Of one operation."""
    gigaflops: float | None = None
    """Billions of operations a second in products of matrices; None where it was not measured."""

    def __post_init__(self) -> None:
        check_bounds(self, threads=1)
        if self.gigaflops is not None:
            check_bounds(self, gigaflops=(0, 1e12))

    @property
    def key(self) -> tuple[str, str, int]:
        """Everything but the measurement."""
        return self.processor, self.torch, self.threads


def this_host(
    device: torch.device | str = "cpu",
    *,
    calibrate: bool = False,
    seconds: float = CALIBRATION_SECONDS,
) -> Host:
    """The host of a run on this device, with the calibration of the last day where there is one.

    With ``calibrate``, one is made where there is none: it takes ``seconds`` a day and machine, and
    is kept in :func:`htm_env.files.cache_folder`.
    """
    device = torch.device(device)
    processor = processor_model()
    if device.type == "cuda":
        processor = f"{processor}, {torch.cuda.get_device_name(device)}"
    host = Host(processor, torch.__version__, torch.get_num_threads())
    folder = cache_folder() / "calibration" / (platform.node() or "machine")
    known = _kept(folder / _file_name(host), host)
    if known is not None or not calibrate:
        return known or host
    try:
        # Who comes second waits, instead of disturbing the first.
        with locked(folder, waits=True):
            known = _kept(folder / _file_name(host), host)
            if known is None:
                known = _measured(host, device, seconds)
                write_json(folder / _file_name(host), vars(known) | {"time": time.time()})
    except (OSError, ValueError):  # nothing can be kept there
        known = known or _measured(host, device, seconds)
    return known


def processor_model() -> str:
    """The processor's name as its maker gives it, or at least its kind."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return " ".join(value.split())
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]  # macOS
        told = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout
        if told.strip():
            return " ".join(told.split())
    return platform.processor() or platform.machine() or "unknown"


def matrix_gigaflops(
    device: torch.device | str = "cpu", seconds: float = CALIBRATION_SECONDS
) -> float:
    """Billions of additions and multiplications a second in products of two matrices."""
    generator = torch.Generator().manual_seed(0)
    width = CALIBRATION_WIDTH
    left, right = (torch.rand(width, width, generator=generator).to(device) for _ in range(2))
    products, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        for _ in range(10):
            product = left @ right
        float(product[0, 0])  # waits for the device
        products += 10
    return 2 * width**3 * products / elapsed / 1e9


def _measured(host: Host, device: torch.device, seconds: float) -> Host:
    return Host(*host.key, round(matrix_gigaflops(device, seconds), 2))


def _file_name(host: Host) -> str:
    name = "-".join(map(str, host.key))
    plain = (letter if letter.isalnum() or letter in "-." else "_" for letter in name)
    return f"{''.join(plain)[:200]}.json"


def _kept(path: Path, host: Host) -> Host | None:
    """The calibration of this host in a file, if it has one that is young enough."""
    try:
        values = read_json(path)
        age = time.time() - values.pop("time")
        found = config_from_dict(Host, values)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.key == host.key and 0 <= age < VALID_SECONDS else None

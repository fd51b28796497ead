"""The number format in which an autoencoder's training multiplies matrices."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = ("float32", "bfloat16")


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether this device multiplies bfloat16 matrices itself, instead of imitating it slowly."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        mkldnn = torch.backends.mkldnn.is_available()  # not on every build
        return mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def check_precision(precision: str) -> None:
    """Raises ``ValueError`` for an unknown one."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {list(PRECISIONS)}")


def usable_precision(precision: str, device: str | torch.device) -> str:
    """What is asked for; float32, with a ``RuntimeWarning``, where the device does not have it."""
    if precision == "bfloat16" and not has_bfloat16(device):
        warnings.warn(f"{device} has no bfloat16; training in float32", RuntimeWarning, 2)
        return "float32"
    return precision


def products_in(precision: str, device: str | torch.device) -> AbstractContextManager[object]:
    """Where linear layers multiply in this precision; weights and gradients stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)

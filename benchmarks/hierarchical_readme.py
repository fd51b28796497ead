"""The README of the original package with our import: ``python -m benchmarks.hierarchical_readme``.

``simple-hierarchical-transformer`` 0.4.0 is installed into an environment of its own
(``originals.py``) for the text of its README alone. Every block of Python without a placeholder is
executed as it is, at its full size, in one namespace as a reader would, but for the line that
imports ``HierarchicalTransformer``, which is ours, and ``.cuda()`` where there is no GPU. Of each
model come then: the shape of its logits, the largest gradient that later tokens have in a
prediction (exactly 0), and whether tokens are the same with and without the cache.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from agents import HierarchicalTransformer
from benchmarks.hierarchical_original import ORIGINAL, REQUIREMENTS
from benchmarks.originals import python_with
from benchmarks.table import RESULTS, origin, report

IMPORT = f"from {ORIGINAL} import"
GENERATED = 16


def readme(python: Path) -> str:
    """The description of the installed original."""
    code = f"from importlib.metadata import metadata; print(metadata({ORIGINAL!r}).get_payload())"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout


def blocks(text: str) -> list[str]:
    """Blocks of Python without a placeholder, our import in them."""
    found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    usable = [block for block in found if not re.search(r"^\s+\.\.\.", block, re.MULTILINE)]
    ours = [block.replace(IMPORT, "from agents import") for block in usable]
    return ours if torch.cuda.is_available() else [each.replace(".cuda()", "") for each in ours]


def latest_gradient(model: HierarchicalTransformer, ids: torch.Tensor) -> float:
    """The largest gradient that a token after the middle one has in the prediction at that."""
    middle = ids.shape[1] // 2
    embedded = model.embed(ids).detach().requires_grad_()
    logits = model.logits(model.read(embedded))[:, middle]
    (gradient,) = torch.autograd.grad(logits.square().sum(), embedded)
    if not gradient[:, : middle + 1].any():
        raise RuntimeError("no gradient reaches the tokens before; expected some")
    return float(gradient[:, middle + 1 :].abs().max())


@torch.no_grad()
def same_with_cache(model: HierarchicalTransformer, prompt: torch.Tensor, length: int) -> bool:
    """Whether greedy and drawn tokens are the same with and without it."""
    for temperature in (0.0, 1.0):
        written = []
        for cached in (True, False):
            drawn = torch.Generator(model.device).manual_seed(0)
            options: dict[str, Any] = {"generator": drawn, "cached": cached}
            written.append(model.generate(prompt, length, temperature, **options))
        if not torch.equal(*written):
            return False
    return True


def checked(code: list[str], generated: int = GENERATED) -> list[dict[str, Any]]:
    """Rows of the blocks, executed one after the other."""
    rows = []
    names: dict[str, Any] = {"torch": torch, "HierarchicalTransformer": HierarchicalTransformer}
    for number, block in enumerate(code, start=1):
        torch.manual_seed(0)
        names.pop("model", None)
        start = time.process_time()
        exec(compile(block, f"block {number}", "exec"), names)
        seconds = time.process_time() - start
        model = names["model"]
        vocabulary, length = model.config.vocabulary, model.seq_len
        ids = torch.randint(vocabulary, (1, length), device=model.device)
        with torch.no_grad():
            shape = tuple(model(ids).shape)
        rows.append(
            {
                "block": number,
                "hierarchies": " ".join(str(each.rate) for each in model.config.hierarchies),
                "parameters": sum(each.numel() for each in model.parameters()),
                "seconds of the block": seconds,
                "shape of the logits": " x ".join(map(str, shape)),
                "largest gradient of later tokens": latest_gradient(model, ids),
                "same tokens with a cache": same_with_cache(model, ids[:, :100], generated),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = checked(blocks(readme(python_with(*REQUIREMENTS))))
    made_by = origin("benchmarks.hierarchical_readme", sys.argv[1:])
    report("hierarchical_readme", rows, options.out, made_by=made_by)


if __name__ == "__main__":
    main()

"""A language model that reads bytes at three rates at once, and writes with a cache."""

import sys
import time
from pathlib import Path
from pydoc_data import topics

import torch

from agents import HierarchicalTransformer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
torch.set_num_threads(1)
torch.manual_seed(0)
text = torch.frombuffer(bytearray(Path(topics.__file__).read_bytes()), dtype=torch.uint8)
drawn = torch.Generator().manual_seed(0)

# The words of the package simple-hierarchical-transformer; a number is that of all hierarchies.
model = HierarchicalTransformer(
    num_tokens=256,
    dim=64,
    depth=2,
    seq_len=512,
    dim_head=16,
    heads=4,
    ff_mult=2,
    hierarchies=(1, 2, 8),  # bytes, pairs of bytes, eights
    hierarchical_stride=(1, 1, 8),  # eights do not overlap
    window_sizes=(16, 16, None),  # what is far is read in eights
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(steps):
    starts = torch.randint(len(text) - 129, (8,), generator=drawn)
    loss, parts = model(text[starts[:, None] + torch.arange(129)], return_loss=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == steps - 1:
        print(f"step {step}: {parts.token.item():.2f} nats a byte")

prompt = text[None, 2000:2064]
print(bytes(prompt[0].tolist()).decode(), end=" ... ")
written = {}
for cached in (True, False):
    start = time.process_time()
    drawn.manual_seed(1)
    written[cached] = model.generate(prompt, 200, 0.7, top_p=0.9, generator=drawn, cached=cached)
    seconds = time.process_time() - start
    print(f"200 bytes {'with' if cached else 'without'} a cache: {seconds:.2f} s")
print(bytes(written[True][0].tolist()).decode("utf-8", "replace"))
print("the same text:", torch.equal(written[True], written[False]))

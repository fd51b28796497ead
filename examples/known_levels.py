"""Structure that you know: characters to words to sentences, as vectors and as merge trees."""

import re
import sys
from itertools import pairwise

import numpy as np
import torch

from agents import FixedOrder, FixedOrderConfig, HierarchyReduction, ReductionLevel, join_samples
from htm_env import make_dataset

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
torch.set_num_threads(1)
torch.manual_seed(0)
drawn = np.random.default_rng(0)


def spans_of(text: str) -> list[list[tuple[int, int]]]:
    """Words over characters (blanks and points are in none), sentences over words, the whole."""
    words = [word.span() for word in re.finditer(r"\w+", text)]
    points = [point.start() for point in re.finditer(r"\.", text)]
    ends = [0, *(sum(end <= point for _, end in words) for point in points)]
    return [words, list(pairwise(ends)), [(0, len(points))]]


WORDS = ["tree", "root", "leaf", "my", "bough", "yew", "node"]
sentences = [
    [" ".join(drawn.choice(WORDS, drawn.integers(1, 4))) for _ in range(drawn.integers(1, 4))]
    for _ in range(400)
]
texts = [". ".join(text) + "." for text in sentences]
levels = [spans_of(text) for text in texts]

# As vectors: which sentences have a word with a y? All spans of all texts are reduced together.
has_y = torch.tensor([float("y" in sentence) for text in sentences for sentence in text])
characters = [torch.tensor([ord(character) for character in text]) for text in texts]
letters, head = torch.nn.Embedding(128, 8), torch.nn.Linear(16, 1)
kinds = [ReductionLevel("attention", "mlp", 16), ReductionLevel("max"), ReductionLevel("mean")]
reduction = HierarchyReduction(8, kinds)
learned = [*letters.parameters(), *reduction.parameters(), *head.parameters()]
optimizer = torch.optim.Adam(learned, lr=1e-2)
for _ in range(100):
    words, vectors, wholes = reduction(*join_samples([letters(c) for c in characters], levels))
    answers = head(vectors).squeeze(1)
    optimizer.zero_grad()
    torch.nn.functional.binary_cross_entropy_with_logits(answers, has_y).backward()
    optimizer.step()
print(f"{len(words)} words, {len(vectors)} sentences, {len(wholes)} texts")
print(f"right sentences: {float(((answers > 0) == (has_y > 0)).float().mean()):.0%}")

# As merge trees: the same levels give HTM its merges; a token is a character and its place.
sets = [np.array([(place, ord(c)) for place, c in enumerate(text)]) for text in texts]
data = {"dataset": sets, "spans": levels}
agent = FixedOrder("HTM-v0", FixedOrderConfig(policy="spans"), env_kwargs=data, embedding_dim=16)
agent.train(seconds=seconds)
scores = agent.evaluate(make_dataset("HTM-v0", split="test", **data))
print(f"nmse {scores['nmse']:.3f}, clades found: {scores['tree_recall']:.0%}")

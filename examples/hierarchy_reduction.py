"""Characters to words to sentences to one vector, with a transformer at two of the levels."""

import re
from itertools import pairwise

import torch
from torch import nn

from agents import HierarchyReduction, ReductionLevel

torch.manual_seed(0)
texts = [
    "The tree has a root. Its leaves are tokens.",
    "A merge makes two nodes one. The root is all that is left. It has numbers.",
    "order matters. matters order.",
]


def spans_of(text: str) -> list[list[tuple[int, int]]]:
    """Words over characters (blanks and points are in none), sentences over words, the whole."""
    words = [word.span() for word in re.finditer(r"\w+", text)]
    points = [point.start() for point in re.finditer(r"\.", text)]
    ends = [0, *(sum(end <= point for _, end in words) for point in points)]
    return [words, list(pairwise(ends)), [(0, len(points))]]


letters = nn.Embedding(128, 32)
characters = [letters(torch.tensor([ord(letter) for letter in text])) for text in texts]
levels = [spans_of(text) for text in texts]

# An encoder of your own is called with (spans, length, width), one row a span.
layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
of_words = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
reduction = HierarchyReduction(
    32,
    [
        ReductionLevel("attention", "transformer", positions="sinusoidal"),
        ReductionLevel("mean", of_words, positions="learned"),
        ReductionLevel("mean"),
    ],
)
words, sentences, roots = reduction(characters, levels)
for text, ws, ss in zip(texts, words, sentences, strict=True):
    print(f"{len(text)} characters, {len(ws)} words, {len(ss)} sentences: {text}")
alone = torch.cat([reduction(c, spans)[-1] for c, spans in zip(characters, levels, strict=True)])
together = torch.cat(roots)
print(f"together or one by one differs by at most {(together - alone).abs().max():.0e}")
one, other = sentences[2]
print(f"'order matters' and 'matters order' differ by {(one - other).norm():.2f}")

# One level a call, as the original does it; nested tensors come out as they went in.
reduce = HierarchyReduction(reducer=lambda spans: torch.sum(spans, dim=-1, keepdim=True))
words = torch.nested.as_nested_tensor([torch.ones(n, 32) for n in (2, 3, 1)], layout=torch.jagged)
print("words in each sentence:", [len(one) for one in reduce(words, [(0, 2), (2, 3)]).unbind()])

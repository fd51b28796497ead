"""``HierarchyReduction`` against a loop over spans, and what it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import Largest
from torch import nn

from agents import HierarchyReduction, ReductionLevel, join_samples
from agents.encoders.config import REDUCERS

REDUCER_NAMES = list(REDUCERS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def span_lists(draw, count: int) -> list[tuple[int, int]]:
    """Spans over ``count`` things, in order, with gaps wherever one is left out."""
    cuts = sorted(draw(st.sets(st.integers(0, count), min_size=2, max_size=count + 1)))
    pairs = list(pairwise(cuts))
    kept = draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    return [pair for pair, keep in zip(pairs, kept, strict=True) if keep] or pairs[:1]


@st.composite
def ragged_samples(draw) -> list[tuple[int, list[list[tuple[int, int]]]]]:
    """Samples of characters with three levels of spans; the last is the whole sample."""
    samples = []
    for _ in range(draw(st.integers(1, 4))):
        characters = draw(st.integers(1, 14))
        words = draw(span_lists(characters))
        sentences = draw(span_lists(len(words)))
        samples.append((characters, [words, sentences, [(0, len(sentences))]]))
    return samples


def by_loops(
    reduction: HierarchyReduction, values: torch.Tensor, levels: list, reducer: str
) -> list[torch.Tensor]:
    """One sample, span by span."""
    found = []
    for number, spans in enumerate(levels):
        vectors = []
        for start, end in spans:
            inside = reduction.encoders[number](values[start:end], np.array([end - start]))
            if reducer == "attention":
                query = reduction.reducers[number].query
                scores = inside @ query / math.sqrt(len(query))
                vectors.append((scores.softmax(0)[:, None] * inside).sum(0))
            else:
                plain = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[reducer]
                vectors.append(plain(inside, 0))
        values = torch.stack(vectors)
        found.append(values)
    return found


@pytest.mark.parametrize("reducer", REDUCER_NAMES)
@settings(max_examples=20)
@given(samples=ragged_samples(), seed=st.integers(0, 2**16))
def test_three_ragged_levels_equal_the_loop_with_its_gradient(reducer, samples, seed):
    drawn = generator(seed)
    levels = [
        ReductionLevel(reducer),
        ReductionLevel(reducer, "mlp", 4),
        ReductionLevel(reducer, nn.Linear(4, 2), 2),
    ]
    reduction = HierarchyReduction(3, levels, generator=drawn).double()
    for parameter in reduction.parameters():
        parameter.data.normal_(generator=drawn)
    drawn_values = [torch.randn(count, 3, generator=drawn) for count, _ in samples]
    values = [each.double().requires_grad_() for each in drawn_values]
    reduced = reduction(*join_samples(values, [spans for _, spans in samples]))
    assert [one.shape[1] for one in reduced] == reduction.widths == [3, 4, 2]
    alone = [
        by_loops(reduction, vectors, spans, reducer)
        for vectors, (_, spans) in zip(values, samples, strict=True)
    ]
    expected = [torch.cat(vectors) for vectors in zip(*alone, strict=True)]
    inputs = (*values, *reduction.parameters())
    gradients = []
    for found in (reduced, expected):
        drawn.manual_seed(seed)
        loss = sum((one * torch.randn(one.shape, generator=drawn)).sum() for one in found)
        gradients.append(torch.autograd.grad(loss, inputs))
    for one, other in zip((*reduced, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


LEVELS = [[(0, 3), (4, 6), (6, 7), (8, 11)], [(0, 2), (2, 4)], [(0, 2)]]
"""Eleven characters, two of them blanks; four words, two sentences, one text."""


@pytest.mark.parametrize("reducer", ["sum", "mean", "attention"])
@pytest.mark.parametrize(
    ("character", "ancestors"),
    [(1, (0, 0, 0)), (5, (1, 0, 0)), (6, (2, 1, 0)), (10, (3, 1, 0)), (3, None), (7, None)],
)
def test_a_change_reaches_its_ancestors_and_nothing_else(reducer, character, ancestors):
    levels = [ReductionLevel(reducer, "mlp") for _ in LEVELS]
    reduction = HierarchyReduction(5, levels, generator=generator())
    values = torch.randn(11, 5, generator=generator(1))
    changed = values.clone()
    changed[character] += 1.0
    with torch.no_grad():
        pairs = zip(reduction(values, LEVELS), reduction(changed, LEVELS), strict=True)
        different = [(one != other).any(1).nonzero().ravel().tolist() for one, other in pairs]
    assert different == ([[], [], []] if ancestors is None else [[at] for at in ancestors])


def test_reduction_by_hand():
    reduction = HierarchyReduction(1, [ReductionLevel("sum"), ReductionLevel("max")])
    values = torch.tensor([[1.0], [2.0], [100.0], [5.0]])  # the third is in no span
    words, text = reduction(values, [[(0, 2), (3, 4)], [(0, 2)]])
    assert (words.tolist(), text.tolist()) == ([[3.0], [5.0]], [[5.0]])
    for spans in (np.array([[0, 2], [3, 4]]), torch.tensor([[0, 2], [3, 4]])):
        assert torch.equal(reduction(values, [spans, [(0, 2)]])[0], words)


def test_the_same_generator_makes_the_same_weights():
    levels = [ReductionLevel("mean", "mlp", 6), ReductionLevel("attention", "linear")]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = (HierarchyReduction(4, levels, generator=generator(7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.widths == [6, 6]  # the second is as wide as what comes in
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_a_batch_without_a_sample_gives_no_vectors():
    reduction = HierarchyReduction(2, [ReductionLevel(name) for name in REDUCER_NAMES])
    reduced = reduction(torch.zeros(0, 2), [[]] * len(REDUCER_NAMES))
    assert [tuple(one.shape) for one in reduced] == [(0, 2)] * len(REDUCER_NAMES)


@pytest.mark.parametrize(
    ("level", "spans", "message"),
    [
        (0, [(0, 3), (4, 4)], r"spans, level 0, span 1, \(4, 4\), is empty"),
        (0, [(0, 3), (6, 4)], r"span 1, \(6, 4\), is empty: expected a start below the end"),
        (0, [(0, 3), (2, 6)], r"level 0, span 1, \(2, 6\), overlaps span 0, \(0, 3\)"),
        (0, [(4, 6), (0, 3)], r"level 0, span 1, \(0, 3\), is unordered: it .* span 0, \(4, 6\)"),
        (0, [(0, 3), (9, 12)], r"span 1, \(9, 12\), is out of range: .* end <= 11"),
        (0, [(-1, 3)], r"level 0, span 0, \(-1, 3\), is out of range"),
        (1, [(0, 2), (2, 5)], r"level 1, span 1, \(2, 5\), is out of range: .* end <= 4"),
        (2, [(0, 0)], r"level 2, span 0, \(0, 0\), is empty"),
        (1, [(0, 2.5)], r"level 1 has float64 numbers of shape \(1, 2\): expected spans"),
        (1, [0, 2, 4], r"level 1 has int64 numbers of shape \(3,\): expected spans \(start, end"),
        (1, [(0, 2), (3,)], "level 1 is not a list of spans"),
    ],
)
def test_spans_that_cannot_be_used_are_named(level, spans, message):
    reduction = HierarchyReduction(2, [ReductionLevel()] * 3)
    levels = [*LEVELS[:level], spans, *LEVELS[level + 1 :]]
    with pytest.raises(ValueError, match=message):
        reduction(torch.zeros(11, 2), levels)


def test_samples_that_do_not_fit_together_are_named():
    good = (torch.zeros(3, 2), [[(0, 2)], [(0, 1)]])
    values, levels = zip(good, good, strict=True)
    with pytest.raises(ValueError, match=r"sample 1, level 1, span 0, \(0, 2\), is out of range"):
        join_samples(values, [levels[0], [[(0, 2)], [(0, 2)]]])
    with pytest.raises(ValueError, match="sample 1 has spans of 1 levels; expected 2, as in sam"):
        join_samples(values, [levels[0], [[(0, 2)]]])
    with pytest.raises(ValueError, match="sample 1 has spans of 2 levels; expected 1, as in sam"):
        join_samples(values, [[[(0, 2)]], levels[1]])
    with pytest.raises(ValueError, match="values of 2 samples and spans of 1"):
        join_samples(values, levels[:1])
    joined, spans = join_samples(values, levels)
    assert joined.shape == (6, 2)
    assert [one.tolist() for one in spans] == [[[0, 2], [3, 5]], [[0, 1], [1, 2]]]


def test_levels_that_do_not_fit_together_are_named():
    with pytest.raises(ValueError, match="has no levels"):
        HierarchyReduction(2, [])
    with pytest.raises(ValueError, match="width is 0: expected a whole number from 1"):
        HierarchyReduction(0, [ReductionLevel()])
    with pytest.raises(ValueError, match="the width of level 1 is 0: expected a whole"):
        HierarchyReduction(2, [ReductionLevel(), ReductionLevel(encoder="mlp", width=0)])
    with pytest.raises(ValueError, match="unknown reducer 'mode'"):
        HierarchyReduction(2, [ReductionLevel("mode")])
    with pytest.raises(ValueError, match="unknown encoder 'lstm'; choose from linear, mlp"):
        HierarchyReduction(2, [ReductionLevel("sum", "lstm")])
    with pytest.raises(ValueError, match="level 1 has width 3 and no encoder; expected 2"):
        HierarchyReduction(2, [ReductionLevel(), ReductionLevel(width=3)])
    reduction = HierarchyReduction(2, [ReductionLevel("mean", nn.Linear(2, 5), 4)])
    with pytest.raises(ValueError, match=r"level 0 gave shape \(1, 3, 5\); expected \(1, 3, 4\)"):
        reduction(torch.zeros(3, 2), [[(0, 3)]])
    with pytest.raises(ValueError, match=r"values have shape \(3, 4\); expected \(K, 2\)"):
        reduction(torch.zeros(3, 4), [[(0, 3)]])
    with pytest.raises(ValueError, match="spans of 2 levels; expected 1"):
        reduction(torch.zeros(3, 2), [[(0, 3)], [(0, 1)]])
    with pytest.raises(ValueError, match="one of the two"):
        HierarchyReduction(2, [ReductionLevel()], reducer="sum")
    with pytest.raises(ValueError, match="width is None; expected that of the vectors"):
        HierarchyReduction(levels=[ReductionLevel()])
    with pytest.raises(ValueError, match="width is None; expected a number for reducer 'att"):
        HierarchyReduction(reducer="attention")
    with pytest.raises(ValueError, match="unknown positions 'rotary'; choose from sinusoidal, le"):
        HierarchyReduction(2, [ReductionLevel(positions="rotary")])
    with pytest.raises(ValueError, match=r"level 0: network.*batch_first=False; expected True"):
        HierarchyReduction(4, [ReductionLevel(encoder=nn.TransformerEncoderLayer(4, 2, 8))])
    with pytest.raises(ValueError, match=r"network.0 is a BatchNorm1d, which mixes the spans"):
        HierarchyReduction(4, [ReductionLevel(encoder=nn.Sequential(nn.BatchNorm1d(3)))])
    gru = HierarchyReduction(2, [ReductionLevel(encoder=nn.GRU(2, 2, batch_first=True))])
    with pytest.raises(ValueError, match=r"level 0 gave a tuple; expected \(1, 3, 2\)"):
        gru(torch.zeros(3, 2), [[(0, 3)]])
    for levels in (["mean"], "mean", ReductionLevel()):
        with pytest.raises(ValueError, match="expected a list of ReductionLevel"):
            HierarchyReduction(2, levels)
    for width in (2.5, "a", True):
        with pytest.raises(ValueError, match=r"width is .*: expected a whole number from 1"):
            HierarchyReduction(width)
    with pytest.raises(ValueError, match="and 'sum'; expected one of the two"):
        HierarchyReduction(torch.sum, reducer="sum")
    learned = HierarchyReduction(2, [ReductionLevel(positions="learned")])
    with pytest.raises(ValueError, match="a span has 600 vectors; expected at most 512"):
        learned(torch.zeros(600, 2), [[(0, 600)]])
    with pytest.raises(ValueError, match=r"reducer gave shape \(1, 3\) .* expected \(1, 2\)"):
        HierarchyReduction(reducer=lambda spans: spans.mean(1))(torch.zeros(3, 2), [(0, 3)])


# ---------------------------------------------------------------- encoders of spans


def ragged(count: int, seed: int) -> tuple[list[torch.Tensor], list[list[list[tuple[int, int]]]]]:
    """Samples of one to five spans of one to six vectors, and the whole sample above them."""
    drawn = np.random.default_rng(seed)
    values, levels = [], []
    for _ in range(count):
        ends = np.cumsum(drawn.integers(1, 7, size=drawn.integers(1, 6))).tolist()
        levels.append([list(pairwise([0, *ends])), [(0, len(ends))]])
        values.append(torch.from_numpy(drawn.normal(size=(ends[-1], 8)).astype(np.float32)))
    return values, levels


def with_transformers(**options) -> HierarchyReduction:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    levels = [
        ReductionLevel("mean", nn.TransformerEncoder(layer, 2), positions="sinusoidal"),
        ReductionLevel("attention", "transformer", positions="learned"),
    ]
    return HierarchyReduction(8, levels, **options)


def test_samples_at_once_are_samples_one_by_one():
    reduction, (values, levels) = with_transformers(), ragged(64, seed=0)
    joined = reduction(values, levels)
    for sample in range(64):
        alone = reduction(values[sample], levels[sample])
        for one, other in zip(joined, alone, strict=True):
            torch.testing.assert_close(one[sample], other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_change_of_one_sample_changes_no_other():
    reduction, (values, levels) = with_transformers(), ragged(64, seed=1)
    before = reduction(values, levels)
    values[17] = values[17] + 1.0
    for one, other in zip(before, reduction(values, levels), strict=True):
        different = [not torch.equal(*pair) for pair in zip(one, other, strict=True)]
        assert [at for at, differs in enumerate(different) if differs] == [17]


def test_spans_in_several_calls_are_spans_in_one():
    """Also the gradients, for which the activations are computed again."""
    values, levels = ragged(5, seed=2)
    results = []
    for at_once in (2**16, 7):
        reduction = with_transformers(at_once=at_once)
        roots = torch.cat(reduction(values, levels)[-1])
        gradients = torch.autograd.grad(roots.square().sum(), list(reduction.parameters()))
        results.append((roots, *gradients))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_memory_of_an_encoder_is_that_of_one_call():
    """40,000 vectors at 64 hidden units each, 1,000 at a time: none but those of width 4 are of all
    vectors."""
    hidden = nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4))
    reduction = HierarchyReduction(4, [ReductionLevel("sum", hidden)], at_once=1_000)
    values = torch.zeros(40_000, 4, requires_grad=True)
    with Largest() as largest:
        (sums,) = reduction(values, [[(at, at + 40) for at in range(0, 40_000, 40)]])
        sums.sum().backward()
    assert largest.size <= 40_040 * 4


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", nn.Embedding(3, 6)])
def test_positions_make_order_count(positions):
    def root(values, at):
        reduction = HierarchyReduction(
            6, [ReductionLevel("sum", "mlp", positions=at)], generator=generator()
        )
        return reduction(values, [[(0, 3)]])[0]

    values = torch.randn(3, 6, generator=generator(1))
    swapped = values[[1, 0, 2]]
    torch.testing.assert_close(root(values, None), root(swapped, None))
    assert (root(values, positions) - root(swapped, positions)).abs().max() > 1e-4


def test_sinusoidal_positions_begin_anew_in_every_span():
    reduction = HierarchyReduction(2, [ReductionLevel("sum", positions="sinusoidal")])
    (sums,) = reduction(torch.zeros(5, 2), [[(0, 2), (3, 5)]])
    one = [math.sin(1), 1 + math.cos(1)]  # the places 0 and 1, at rate 1
    torch.testing.assert_close(sums, torch.tensor([one, one]))


def test_seven_levels_of_pairs_are_sums_of_128():
    spans = [[(at, at + 2) for at in range(0, 2**level, 2)] for level in range(7, 0, -1)]
    levels = [ReductionLevel("sum")] * 7
    (root,) = HierarchyReduction(1, levels)(torch.arange(128.0)[:, None], spans)[-1]
    assert root.item() == 127 * 64


# ---------------------------------------------------------------- one level a call


REDUCERS_OF_ONE_CALL = {
    "default": {},
    "name": {"reducer": "sum"},
    "kept dimension": {"reducer": lambda input: torch.sum(input, dim=-1, keepdim=True)},
    "reduced dimension": {"reducer": lambda input: input.sum(-1)},
}


def test_a_function_may_come_first():
    """As in the original."""
    reduction = HierarchyReduction(lambda input: torch.sum(input, dim=-1, keepdim=True))
    assert reduction(torch.ones(3, 2), [(0, 1), (1, 3)]).tolist() == [[1.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize("options", REDUCERS_OF_ONE_CALL.values(), ids=REDUCERS_OF_ONE_CALL)
def test_a_call_is_a_level(options):
    reduction = HierarchyReduction(**options)
    characters = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    words = reduction(characters, [(0, 1), (1, 4)])
    assert words.tolist() == [[1.0, 2.0], [15.0, 18.0]]
    assert reduction(words, [(0, 2)]).tolist() == [[16.0, 20.0]]


PACKED = {
    "list": list,
    "strided": lambda each: torch.nested.as_nested_tensor(each),
    "jagged": lambda each: torch.nested.as_nested_tensor(each, layout=torch.jagged),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_sequences_of_characters_become_sequences_of_words(pack):
    """Three words, of which the last two are a sentence; what comes out is packed as what went
    in, and gradients are exact."""
    words = [torch.full((length, 2), 1.0, requires_grad=True) for length in (2, 3, 1)]
    given = pack(words)
    sentences = HierarchyReduction()(given, [(0, 1), (1, 3)])
    assert type(sentences) is type(given)
    assert isinstance(sentences, list) or sentences.layout == given.layout
    unpacked = list(sentences) if isinstance(sentences, list) else sentences.unbind()
    assert [one.tolist() for one in unpacked] == [[[2.0, 2.0]], [[3.0, 3.0], [1.0, 1.0]]]
    gradients = torch.autograd.grad(sum(one.square().sum() for one in unpacked), words)
    assert [float(gradient.unique()) for gradient in gradients] == [4.0, 6.0, 2.0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_samples_come_back_as_they_were_packed(pack):
    values, levels = ragged(5, seed=3)
    reduced = with_transformers()(pack(values), levels)
    expected = with_transformers()(values, levels)
    for found, wanted in zip(reduced, expected, strict=True):
        unpacked = found if isinstance(found, list) else found.unbind()
        for one, other in zip(unpacked, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_a_block_of_sequences_is_as_many_sequences():
    spans = HierarchyReduction(reducer="max")(torch.arange(12.0).view(3, 2, 2), [(0, 3)])
    assert spans.is_nested and spans.unbind()[0].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_sequences_that_cannot_be_used_are_named():
    with pytest.raises(ValueError, match=r"shapes \[\(2, 3\), \(2, 4\)\]; expected"):
        HierarchyReduction()([torch.zeros(2, 3), torch.zeros(2, 4)], [(0, 2)])
    with pytest.raises(
        ValueError, match=r"input has shape \(3,\); expected \(K, W\) or \(B, n, W\)"
    ):
        HierarchyReduction()(torch.zeros(3), [(0, 2)])
    for wrong, kind in ((None, "NoneType"), ([[1.0]], "list")):
        with pytest.raises(
            ValueError, match=f"the input is a {kind}; expected a tensor, or a list"
        ):
            HierarchyReduction()(wrong, [(0, 2)])
    with pytest.raises(ValueError, match=r"slices, span 0, \(0, 3\), is out of range"):
        HierarchyReduction()([torch.zeros(2, 3), torch.zeros(2, 3)], [(0, 3)])
    with pytest.raises(ValueError, match=r"the sequences of the input, span 1, .* is empty"):
        HierarchyReduction()([torch.zeros(2, 3), torch.zeros(0, 3)], [(0, 2)])

"""Characters as sets of strokes: the parser, its cache, tokens, groups and labels.

Most of it on small files that are drawn here; the counts are those of the package itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from conftest import needs_kanji
from hypothesis import given
from hypothesis import strategies as st

from agents.cli.pretrain import PretrainOptions, pretrain
from agents.config.errors import UsageError
from htm_env.datasets import SPLITS, kanji, kanjivg, make_dataset
from htm_env.datasets.kanji import KanjiDataset, group_merges, resampled
from htm_env.datasets.kanjivg import (
    Characters,
    Group,
    cached_characters,
    parse_character,
    parse_path,
)

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment -->
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/x.dtd" [
<!ATTLIST g xmlns:kvg CDATA #FIXED "http://kanjivg.tagaini.net" kvg:part CDATA #IMPLIED >
]>
"""
DECLARED = ' xmlns:kvg="http://kanjivg.tagaini.net"'
SVG = """<svg xmlns="http://www.w3.org/2000/svg"{declared}>
<g id="kvg:StrokePaths_1">{body}</g><g id="kvg:StrokeNumbers_1"><text>1</text></g></svg>"""


def path(stroke: int, kind: str = "㇐a") -> str:
    """A straight stroke, one below the other."""
    return f'<path kvg:type="{kind}" d="M10,{10 * stroke}c10,0 20,0 30,0"/>'


def group(inside: str, **about: str) -> str:
    said = " ".join(f'kvg:{name}="{value}"' for name, value in about.items())
    return f"<g {said}>{inside}</g>"


def svg(body: str, head: str = HEAD, declared: str = DECLARED) -> bytes:
    return (head + SVG.format(declared=declared, body=body)).encode()


def parsed(body: str, **kwargs: str) -> kanjivg.Character:
    return parse_character(svg(body, **kwargs), "own.svg", 0x4E00)


def bits(*strokes: int) -> int:
    return sum(1 << stroke for stroke in strokes)


NESTED = group(
    group(path(1) + group(path(2) + path(3), element="B"), element="A", radical="general")
    + path(4, "㇑/㇒")
    + group(path(5), element="D", radical="tradit"),
    element="X",
)
"""Five strokes: B is strokes 1 and 2, A is B and stroke 0."""


# ---------------------------------------------------------------- paths


def test_a_relative_curve_is_counted_from_where_it_starts():
    (curve,) = parse_path("M10,20c1,2 3,4 5,6")
    assert curve.tolist() == [[10, 20], [11, 22], [13, 24], [15, 26]]


def test_letters_may_be_left_out_and_numbers_touch():
    expected = parse_path("M 1 2 C 3 4 5 6 7 8 C 9 10 11 12 13 14.5")
    assert parse_path("M1,2C3,4,5,6,7,8,9,10,11,12,13,14.5").tolist() == expected.tolist()
    assert parse_path("m1 2c2,2-1-1.5.5.5")[0].tolist() == [[1, 2], [3, 4], [0, 0.5], [1.5, 2.5]]


def test_a_smooth_curve_mirrors_the_last_control_point():
    _, second = parse_path("M0,0C0,5 5,10 10,10S25,5 20,0")
    assert second.tolist() == [[10, 10], [15, 10], [25, 5], [20, 0]]
    assert parse_path("M0,0c0,5 5,10 10,10s15,-5 10,-10")[1].tolist() == second.tolist()
    assert parse_path("M1,1s2,2 3,3")[0].tolist() == [[1, 1], [1, 1], [3, 3], [4, 4]]


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "M1,1",
        "C1,2 3,4 5,6",
        "M1,1L2,2",
        "M1,1c1,2 3,4",
        "M1,1 2,2c1,2 3,4 5,6",
        "M1,1c1;2",
        "M0,0c1,1 2,2 1e999,3",
        "1,1c1,2 3,4 5,6",
        "M1,1z",
    ],
)
def test_any_other_path_is_refused(wrong):
    with pytest.raises(ValueError, match="path"):
        parse_path(wrong)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("declared", [DECLARED, DECLARED.replace("http:", "https:"), ""])
def test_the_groups_of_a_file(declared):
    """The namespace may be declared in the document type alone, which is not read."""
    found = parsed(NESTED, declared=declared)
    assert found.groups == [(bits(1, 2), "B"), (bits(0, 1, 2), "A")]
    assert found.types == ["㇐", "㇐", "㇐", "㇑", "㇐"]
    assert found.components == {"X", "A", "B", "D"}
    assert found.radical == "A"  # the tradition that comes first
    assert [stroke[0, 0].tolist() for stroke in found.strokes] == [
        [10, 10 * stroke] for stroke in range(1, 6)
    ]


def test_types_are_strokes_of_unicode():
    """The character one is taken for the stroke, anything else for none."""
    kinds = ["㇐b/㇔", "一", "６", "", "㇔㇐", "㇣", "丶"]  # noqa: RUF001
    found = parsed(group("".join(path(n, kind) for n, kind in enumerate(kinds, 1))))
    assert found.types == ["㇐", "㇐", "", "", "", "㇣", ""]


def test_the_usual_form_of_the_radical_counts():
    assert parsed(group(path(1), element="a", original="b", radical="nelson")).radical == "b"
    assert parsed(group(path(1), element="a")).radical == ""


def test_of_groups_with_the_same_strokes_the_outer_name_counts():
    body = group(group(group(path(1) + path(2), element="B"), element="A") + path(3))
    assert parsed(body).groups == [(bits(0, 1), "A")]
    unnamed = group(group(group(path(1) + path(2), element="B")) + path(3))
    assert parsed(unnamed).groups == [(bits(0, 1), "B")]


def test_parts_of_a_component_are_joined():
    body = group(
        group(path(1) + path(2), element="A", part="1")
        + path(3)
        + group(path(4), element="A", part="2")
        + path(5)
    )
    assert parsed(body).groups == [(bits(0, 1), ""), (bits(0, 1, 3), "A")]


def test_parts_of_two_copies_are_not_mixed():
    halves = [
        group(path(2 * n) + path(2 * n + 1), element="A", part=str(1 + n % 2)) for n in range(4)
    ]
    found = parsed(group("".join(halves) + path(9))).groups
    assert found[-2:] == [(bits(0, 1, 2, 3), "A"), (bits(4, 5, 6, 7), "A")]
    numbered = [
        group(path(n), element="A", part=part, number=number)
        for n, (part, number) in enumerate([("1", "1"), ("1", "2"), ("2", "2"), ("2", "1")])
    ]
    found = parsed(group("".join(numbered) + path(9))).groups
    assert found == [(bits(0, 3), "A"), (bits(1, 2), "A")]


def test_parts_that_cross_another_group_are_not_joined():
    body = group(
        group(path(1) + path(2), element="A", part="1")
        + group(group(path(3), element="A", part="2") + path(4), element="B")
        + path(5)
    )
    assert parsed(body).groups == [(bits(0, 1), ""), (bits(2, 3), "B")]


BOMB = """<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (svg(group(path(1)))[:-30], "own.svg is not a readable character"),
        (svg(group("&c;" + path(1)), head=BOMB), "undefined entity"),
        (svg(group(path(1)), head=2 * BOMB), "more than one document type"),
        (svg(group("")), "0 strokes; expected 1 to 62"),
        (svg(group(path(1)) + group(path(2))), "2 outermost groups"),
        (svg(100_000 * "<g>" + path(1) + 100_000 * "</g>"), "own.svg"),
        (svg(group(path(1), part="two")), "own.svg"),
        (svg(group('<path d="M1,1"/>')), "the path 'M1,1'"),
        (b"<svg/>", "no group of strokes"),
        (b"\xff\xfe", "own.svg"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, says):
    with pytest.raises(ValueError, match=r"own\.svg") as error:
        parse_character(content, "own.svg", 0x4E00)
    assert says in str(error.value)


# ---------------------------------------------------------------- the cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two characters, and files that are none, with a cache of their own."""
    monkeypatch.setenv("HTM_CACHE", str(tmp_path / "cache"))
    files = tmp_path / "kanji"
    files.mkdir()
    (files / "04e00.svg").write_bytes(svg(NESTED))
    (files / "04e8c.svg").write_bytes(svg(group(path(1) + path(2), element="二")))
    for other in ("04e00-Kaisho.svg", "03042.svg", "0ff01.svg", "notes.txt"):
        (files / other).write_bytes(b"not read")
    return files


def parses(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "1") -> int:
    """The files that are parsed to read the folder."""
    names: list[str] = []

    def counted(content: bytes, name: str, code: int) -> kanjivg.Character:
        names.append(name)
        return parse_character(content, name, code)

    with monkeypatch.context() as patch:
        patch.setattr(kanjivg, "parse_character", counted)
        found = cached_characters(folder, version)
    assert found.codes.tolist() == [0x4E00, 0x4E8C]
    assert found.stroke_counts.tolist() == [5, 2]
    assert found.group_names.tolist() == ["B", "A"]
    return len(names)


def test_files_are_parsed_once(folder, monkeypatch, capsys):
    assert parses(folder, monkeypatch) == 2
    assert parses(folder, monkeypatch) == 0
    assert parses(folder, monkeypatch, version="2") == 2
    (folder / "04e00.svg").write_bytes(svg(NESTED) + b"\n")
    assert parses(folder, monkeypatch, version="2") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = "reading 2 characters of KanjiVG, once\n"
    assert captured.err == 3 * line  # no terminal, no progress bar


def test_contents_are_read_only_where_size_or_time_differs(folder, monkeypatch):
    parses(folder, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        assert parses(folder, monkeypatch) == 0
    file = folder / "04e00.svg"
    os.utime(file, (1, 1))
    assert parses(folder, monkeypatch) == 0  # read, but the contents are the same
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
        assert parses(folder, monkeypatch) == 0
    file.write_bytes(svg(NESTED).replace(b"c10,0 20,0 30,0", b"c10,0 20,0 30,1"))
    assert parses(folder, monkeypatch) == 2  # of the same size


@pytest.mark.parametrize("damage", [lambda all: all[:-100], lambda all: b"", lambda all: b"x" * 99])
def test_a_damaged_cache_is_parsed_again(folder, monkeypatch, damage):
    parses(folder, monkeypatch)
    (cache,) = folder.parent.joinpath("cache").iterdir()
    cache.write_bytes(damage(cache.read_bytes()))
    assert parses(folder, monkeypatch) == 2
    assert parses(folder, monkeypatch) == 0


def test_whatever_byte_of_the_cache_is_damaged_the_characters_are_the_same(folder):
    right = cached_characters(folder, "1")
    (cache,) = folder.parent.joinpath("cache").iterdir()
    content, rng = bytearray(cache.read_bytes()), np.random.default_rng(0)
    for place in rng.integers(len(content), size=80).tolist():
        damaged = content.copy()
        damaged[place] ^= int(rng.integers(1, 256))
        cache.write_bytes(damaged)
        for found, expected in zip(cached_characters(folder, "1"), right, strict=True):
            assert np.array_equal(found, expected)


def test_a_cache_whose_numbers_were_changed_is_parsed_again(folder, monkeypatch):
    parses(folder, monkeypatch)
    (cache,) = folder.parent.joinpath("cache").iterdir()
    with np.load(cache) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(cache, **{**arrays, "groups": arrays["groups"][::-1]})
    assert parses(folder, monkeypatch) == 2


def test_a_folder_that_cannot_be_written_costs_only_time(folder, monkeypatch):
    cache = folder.parent / "cache"
    cache.write_text("a file in the way")
    for _ in range(2):
        with pytest.warns(UserWarning, match=rf"{cache}/kanjivg\.npz .* HTM_CACHE"):
            assert parses(folder, monkeypatch) == 2


def test_a_folder_without_characters_is_refused(tmp_path):
    for empty in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match=f"{empty} has no characters"):
            cached_characters(empty, "1")


def test_without_the_package_one_line_says_what_to_install():
    code = (
        "import importlib.metadata as m\n"
        "found = m.distribution\n"
        "def without(name):\n"
        "    if name == 'kanjivg':\n"
        "        raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.distribution = without\n"
        "from agents.cli import main\n"
        "main(['train', '--env', 'HTM-Kanji-v0', '--algo', 'chain', '--merges', '10'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    assert "HTM-Kanji-v0 needs the strokes of KanjiVG: pip install 'htm-rl[kanji]', or" in said
    assert "pip install '.[kanji]' in a checkout" in said
    assert "Traceback" not in said


def test_trained_weights_need_a_folder_of_their_own():
    with pytest.raises(UsageError, match=r"HTM-Kanji-v0 do not belong to the package: .* --out"):
        pretrain(PretrainOptions(env="HTM-Kanji-v0"))


# ---------------------------------------------------------------- tokens


def test_points_are_evenly_spaced_along_a_stroke():
    straight, bent = parse_path("M0,0c10,0 20,0 30,0"), parse_path("M0,0c0,3 0,6 0,9c4,0 8,0 12,0")
    curves, counts = np.concatenate([straight, bent]), np.array([1, 2])
    points = resampled(curves, counts, 4)
    assert points[0] == pytest.approx(np.array([[0, 0], [10, 0], [20, 0], [30, 0]]), abs=1e-6)
    assert points[1] == pytest.approx(np.array([[0, 0], [0, 7], [5, 9], [12, 9]]), abs=1e-6)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 4), points=st.integers(2, 9))
def test_resampled_points_are_on_the_curve_from_end_to_end(seed, count, points):
    rng = np.random.default_rng(seed)
    curves = rng.uniform(0, 109, (count, 4, 2))
    curves[1:, 0] = curves[:-1, 3]
    found = resampled(curves, np.array([count]), points)[0]
    assert found[[0, -1]] == pytest.approx(curves[[0, -1], [0, 3]])
    t = np.linspace(0, 1, 2001)[:, None]
    a, b, c, d = (curves[:, None, place] for place in range(4))
    dense = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3
    apart = np.linalg.norm(found[:, None] - dense.reshape(1, -1, 2), axis=2)
    assert apart.min(axis=1).max() < 1.0  # of 109
    # As long a way from each to the next: the point that should be there is there.
    moves = np.linalg.norm(np.diff(dense.reshape(-1, 2), axis=0), axis=1)
    way = np.append(0, moves.cumsum())
    even = np.searchsorted(way, np.linspace(0, way[-1], points)).clip(max=len(way) - 1)
    assert np.abs(found - dense.reshape(-1, 2)[even]).max() < 1.0


# ---------------------------------------------------------------- merges


def test_groups_are_joined_by_first_strokes_level_by_level():
    assert group_merges(2, ()) == [(0, 1)]
    assert group_merges(5, ()) == [(0, 1), (2, 3), (5, 6), (7, 4)]
    # Strokes 1 and 3 first, then with 0 and 2 in the order of first strokes: 0, (1 3), 2.
    assert group_merges(5, (bits(1, 3), bits(0, 1, 2, 3))) == [(1, 3), (0, 5), (6, 2), (7, 4)]


@st.composite
def laminar(draw):
    """A number of strokes, and groups of which one holds the other or they share nothing."""
    count = draw(st.integers(2, 12))
    nodes = [1 << stroke for stroke in range(count)]
    groups: list[int] = []
    while len(nodes) > 2 and draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(nodes), min_size=2, unique=True))
        if len(chosen) < len(nodes):
            nodes = [node for node in nodes if node not in chosen] + [sum(chosen)]
            groups.append(sum(chosen))
    return count, tuple(sorted(groups, key=int.bit_count))


@given(laminar())
def test_the_merges_are_a_tree_that_has_every_group(given_groups):
    count, groups = given_groups
    under = [1 << stroke for stroke in range(count)]
    used = []
    for one, other in group_merges(count, groups):
        assert not under[one] & under[other]
        assert (under[one] & -under[one]) < (under[other] & -under[other])  # written first
        used += [one, other]
        under.append(under[one] | under[other])
    assert sorted(used) == list(range(2 * count - 2))
    assert set(groups) <= set(under)


# ---------------------------------------------------------------- the data set


def drawn(count: int) -> list[kanjivg.Character]:
    """Characters like ``NESTED``, each shifted, of which every third has a component more."""
    found = []
    for number in range(count):
        extra = "女" if number % 3 == 0 else "忄" if number % 3 == 1 else "口"
        own = parsed(NESTED)
        found.append(
            own._replace(
                code=0x4E00 + number,
                strokes=[stroke + number / 10 for stroke in own.strokes],
                components=own.components | {extra},
                radical=extra,
            )
        )
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch):
    """``KanjiDataset`` on 60 small characters of five strokes."""
    characters = Characters.of(drawn(60))
    monkeypatch.setattr(kanji, "load_characters", lambda: characters)
    kanji._characters.cache_clear()
    yield KanjiDataset
    kanji._characters.cache_clear()


def test_tokens_are_points_in_the_box_with_y_upwards(small):
    data = small("train", points=3)
    batch = data.fixed(1)
    number = int(ord(data.row_names[0]) - 0x4E00) / 10
    tokens = batch.tokens[0][batch.present[0]].numpy()
    assert tokens.shape == (5, 6) and data.max_tokens == 12 and data.kind == "strokes"
    expected = [
        [
            10 + number,
            109 - y - number,
            25 + number,
            109 - y - number,
            40 + number,
            109 - y - number,
        ]
        for y in (10, 20, 30, 40, 50)
    ]
    found = tokens[np.argsort(-tokens[:, 1])]
    assert found == pytest.approx(np.array(expected), abs=1e-4)


def test_clades_labels_and_merges_follow_the_shuffled_strokes(small):
    data = small("train")
    for key in range(20):
        keys = np.array([key])
        batch, strokes = data.episodes(keys), data.places(keys)[0]
        clades = [frozenset(strokes[clade].tolist()) for clade in batch.clades[0].numpy()]
        names = [data.clade_label_names[label] for label in data.clade_labels(keys)[0]]
        assert dict(zip(clades, names, strict=True)) == {
            frozenset({1, 2}): "B",
            frozenset({0, 1, 2}): "A",
        }
        types = {
            int(stroke): data.token_label_names[label]
            for stroke, label in zip(strokes[:5], data.token_labels(keys)[0][:5], strict=True)
        }
        assert types == {0: "㇐", 1: "㇐", 2: "㇐", 3: "㇑", 4: "㇐"}
        assert (data.token_labels(keys)[0][5:] == -1).all()
        nodes = [*strokes[:5].tolist(), *range(5, 9)]
        merges = [[nodes[node] for node in pair] for pair in batch.merges[0, :4].tolist()]
        assert merges == [[1, 2], [0, 5], [6, 3], [7, 4]]
    label = data.labels(np.array([0]))[0]
    assert data.label_names[label] in {"女", "忄", "口"}


def test_splits_are_disjoint_and_do_not_depend_on_the_range(small):
    rows = {split: set(small(split).row_names) for split in SPLITS}
    assert sum(map(len, rows.values())) == len(set().union(*rows.values())) == 60
    assert rows == {split: set(small(split, (2, 5)).row_names) for split in SPLITS}


def test_components_are_held_out(small):
    for split, component in (("test", "女"), ("validation", "忄"), ("train", "口")):
        data = small(split, split_by="components")
        labels = data.labels(data.fixed_keys(100))
        assert {data.label_names[label] for label in labels} == {component}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"strokes": (1, 5)}, "strokes is 1: expected a whole number from 2 to 30"),
        ({"strokes": (5, 2)}, "the fewest and the most"),
        ({"strokes": 5}, "the fewest and the most"),
        (
            {"strokes": "2,12"},
            r"strokes is '2,12': expected the fewest and the most, as in \(2, 12\)",
        ),
        ({"strokes": (6, 9)}, r"strokes is \(6, 9\): no character has so many"),
        ({"points": 1}, "points is 1"),
        ({"split_by": "radicals"}, "unknown split_by 'radicals'"),
    ],
)
def test_wrong_arguments(small, arguments, says):
    with pytest.raises(ValueError, match=says):
        make_dataset("HTM-Kanji-v0", **arguments)


@pytest.mark.parametrize("number", range(3))
def test_the_order_of_writing_cannot_be_observed(monkeypatch, number):
    """The same characters written in another order: the observed order is that of the same places.

    Clades and merges move with the strokes, but the order within pairs and among open groups is
    that of writing: it is what the data knows, and no observation has it.
    """
    characters = drawn(60)
    order = ([0, 2, 4, 1, 3], [4, 3, 2, 1, 0], [1, 0, 3, 2, 4])[number]

    def moved(group: Group) -> Group:
        return Group(
            bits(*(order.index(s) for s in range(5) if group.strokes >> s & 1)), group.name
        )

    rewritten = [
        one._replace(
            strokes=[one.strokes[stroke] for stroke in order],
            groups=[moved(group) for group in one.groups],
        )
        for one in characters
    ]
    observed = []
    for written in (characters, rewritten):
        monkeypatch.setattr(kanji, "load_characters", lambda own=written: Characters.of(own))
        kanji._characters.cache_clear()
        env = gym.make(
            "HTM-Kanji-v0", autoencoder="untrained", observe=("order", "leaves", "centroids")
        )
        for key in range(20):
            seen, _ = env.reset(options={"key": key})
            ranks = seen["order"][seen["active"] == 1]
            leaves = seen["leaves"][seen["active"] == 1].round(3)
            observed.append(leaves[np.argsort(ranks)].tolist())
    kanji._characters.cache_clear()
    assert observed[:20] == observed[20:]


def test_the_slots_of_strokes_are_as_random_as_of_any_token(small):
    """Stroke 0 is in each of the five slots a fifth of the time: 1,000 keys, 4.5 deviations."""
    places = small("train").places(np.arange(1000))
    counts = np.bincount(np.argmax(places == 0, axis=1), minlength=5)
    assert counts.sum() == 1000 and np.abs(counts - 200).max() < 4.5 * np.sqrt(1000 * 0.16)


# ---------------------------------------------------------------- the package itself


@needs_kanji
@pytest.mark.usefixtures("unchecked")
def test_the_characters_of_the_package():
    """Of version 20260714; fewer by up to three in those since 20250422."""
    every = kanjivg.load_characters()
    small_ones = (every.stroke_counts >= 2) & (every.stroke_counts <= 12)
    assert 6410 <= len(every.codes) <= 6413 and 3496 <= small_ones.sum() <= 3498
    assert every.stroke_counts.min() == 1 and every.stroke_counts.max() == 30
    assert np.median(every.stroke_counts) == 12
    assert 5.45 < every.group_counts.mean() < 5.55
    assert chr(every.codes[0]) == "一" and every.codes[-1] <= 0x9FFF
    assert set(map(len, every.types)) == {0, 1} and 11 <= (every.types == "").sum() <= 20
    assert len(np.unique(every.types)) == 27 + 1  # and none
    radicals, counts = np.unique(every.radicals, return_counts=True)
    assert len(radicals) == 218 and (counts >= 20).sum() == 70 and "" not in radicals
    components, uses = np.unique(every.group_names, return_counts=True)
    assert (uses[components != ""] >= 20).sum() == pytest.approx(220, abs=2)


@needs_kanji
def test_its_splits():
    sizes = {
        rule: [make_dataset("HTM-Kanji-v0", split, split_by=rule).size for split in SPLITS]
        for rule in kanji.SPLIT_RULES
    }
    total = sum(sizes["characters"])
    assert total == sum(sizes["components"])
    shares = [[size / total for size in of_rule] for of_rule in sizes.values()]
    assert shares[0] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)
    assert shares[1] == pytest.approx([0.76, 0.1, 0.14], abs=0.01)


@needs_kanji
def test_no_training_character_has_a_component_that_is_held_out():
    every = kanjivg.load_characters()
    named = dict(
        zip(
            map(chr, every.codes),
            np.split(every.components, np.cumsum(every.component_counts)[:-1]),
            strict=True,
        )
    )
    own = {
        split: {
            component
            for character in make_dataset("HTM-Kanji-v0", split, split_by="components").row_names
            for component in named[character]
        }
        for split in SPLITS
    }
    held_out = kanji.VALIDATION_COMPONENTS | kanji.TEST_COMPONENTS
    assert not own["train"] & held_out
    assert own["validation"] >= kanji.VALIDATION_COMPONENTS
    assert not own["validation"] & kanji.TEST_COMPONENTS
    assert own["test"] >= kanji.TEST_COMPONENTS


@needs_kanji
def test_forest_of_trees():
    """A tree, two trees, three trees: 木, 林, 森."""
    for split in SPLITS:
        data = make_dataset("HTM-Kanji-v0", split)
        if "森" in data.row_names:
            break
    keys = np.array([data.row_names.index("森")])
    batch = data.episodes(keys)
    sizes = batch.clades[0].sum(1).tolist()
    names = [data.clade_label_names[label] for label in data.clade_labels(keys)[0] if label >= 0]
    assert sorted(zip(sizes, names, strict=False)) == [(4, "木"), (4, "木"), (4, "木"), (8, "林")]
    assert data.label_names[data.labels(keys)[0]] == "木"
    assert data.mean.shape == (8,) and (data.std > 15).all() and (data.std < 30).all()
    # The first tree, which is not part of the pair, is above the other two: y grows upwards.
    trees = [clade for clade, size in zip(batch.clades[0], sizes, strict=True) if size == 4]
    heights = [float(batch.tokens[0, tree][:, 1::2].mean()) for tree in trees]
    pair = batch.clades[0, sizes.index(8)]
    outside = [not bool((tree & pair).any()) for tree in trees]
    assert heights[outside.index(True)] == max(heights)

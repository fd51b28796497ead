"""Characters of KanjiVG: strokes as curves, and the groups of strokes that experts made.

Ulrich Apel's KanjiVG (https://kanjivg.tagaini.net, CC BY-SA 3.0) comes with the package ``kanjivg``
as one SVG a character. Nothing in a file is executed, no entity is expanded.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float32, Float64, Int64

from htm_env.datasets.base import arrays_hash
from htm_env.datasets.files import Memory, read_arrays
from htm_env.files import atomic_write_bytes, cache_folder

FORMAT = 2
"""Of the cache: another number when what is made of a file changes."""
FIRST, LAST = 0x4E00, 0x9FFF
"""Code points of the characters, ends included: the block CJK Unified Ideographs."""
MOST_STROKES = 62
"""Strokes of a character: a group is the bits of one number."""
RADICAL_KINDS = ("general", "tradit", "nelson")
"""Traditions in which a group may be marked as the radical, by preference."""

_TYPE = re.compile("[\u31c0-\u31ef]")  # the block CJK Strokes
_MISTYPED = {"一": "㇐"}  # the character one, for the stroke that it is
_NAME = re.compile(r"([0-9a-f]{5})\.svg")  # variants have more than the code point
_DOCTYPE = re.compile(r"<!DOCTYPE[^\[>]*(\[.*?\]\s*)?>", re.DOTALL)
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_PATH = re.compile(rf"([A-Za-z])|({_NUMBER})|[\s,]+")
_SIZES = {"M": 2, "C": 6, "S": 4}
_KVG = "https://kanjivg.tagaini.net/"


class Group(NamedTuple):
    """Strokes of a character that belong together."""

    strokes: int
    """Bit ``s`` <--> stroke ``s``, in the order of writing from 0, is in the group."""
    name: str
    """The component that the strokes are; empty where the experts name none, or it is a fragment
    of one."""


class Character(NamedTuple):
    """One character."""

    code: int
    """Its code point."""
    radical: str
    """The radical that dictionaries list it under, in its usual form; empty where none is given."""
    strokes: list[Float64[np.ndarray, "_ 4 2"]]
    """Cubic curves of every stroke, each by its control points, in the order of writing; y grows
    downwards."""
    types: list[str]
    """The type of every stroke, without its variant; empty where none is given."""
    groups: list[Group]
    """Groups of two strokes or more that are not the whole character, smaller ones first; of any
    two, one holds the other or they share nothing."""
    components: frozenset[str]
    """Names of all components, of one stroke and of the whole character as well."""


class Characters(NamedTuple):
    """Many characters as arrays; what comes of each follows that of the one before."""

    codes: Int64[np.ndarray, "N"]
    radicals: np.ndarray
    stroke_counts: Int64[np.ndarray, "N"]
    curve_counts: Int64[np.ndarray, "strokes"]
    curves: Float32[np.ndarray, "curves 4 2"]
    types: np.ndarray
    group_counts: Int64[np.ndarray, "N"]
    groups: Int64[np.ndarray, "groups"]
    group_names: np.ndarray
    component_counts: Int64[np.ndarray, "N"]
    components: np.ndarray

    @classmethod
    def of(cls, characters: Sequence[Character]) -> Characters:
        """The same characters."""
        strokes = [stroke for character in characters for stroke in character.strokes]
        groups = [group for character in characters for group in character.groups]
        components = [sorted(character.components) for character in characters]
        return cls(
            codes=_whole([character.code for character in characters]),
            radicals=_texts(character.radical for character in characters),
            stroke_counts=_whole([len(character.strokes) for character in characters]),
            curve_counts=_whole([len(stroke) for stroke in strokes]),
            curves=np.concatenate(strokes or [np.zeros((0, 4, 2))]).astype(np.float32),
            types=_texts(kind for character in characters for kind in character.types),
            group_counts=_whole([len(character.groups) for character in characters]),
            groups=_whole([group.strokes for group in groups]),
            group_names=_texts(group.name for group in groups),
            component_counts=_whole([len(names) for names in components]),
            components=_texts(name for names in components for name in names),
        )


def _whole(values: Sequence[int]) -> Int64[np.ndarray, "_"]:
    return np.array(values, dtype=np.int64)


def _texts(values: Any) -> np.ndarray:
    return np.array(list(values), dtype=np.str_)


# ---------------------------------------------------------------- the package and the cache


def load_characters() -> Characters:
    """All characters of the installed package, parsed once into :func:`cache_folder`.

    Raises ``ValueError``, which says what to install, where the package is not there.
    """
    try:
        package = distribution("kanjivg")
    except PackageNotFoundError:
        raise ValueError(
            "HTM-Kanji-v0 needs the strokes of KanjiVG: pip install 'htm-rl[kanji]', or "
            "pip install '.[kanji]' in a checkout"
        ) from None
    return cached_characters(Path(str(package.locate_file("kanji"))), package.version)


def cached_characters(folder: Path, version: str) -> Characters:
    """The characters of a folder of SVG files; parsed where the cache is of others, or damaged.

    Contents are read only where names, sizes or times of change are not those that the cache was
    made of. Where the cache cannot be written a warning says so.

    Raises ``ValueError`` where the folder has none, or naming a file that cannot be parsed.
    """
    files = {
        int(match[1], 16): folder / name
        for name in (sorted(os.listdir(folder)) if folder.is_dir() else [])
        if (match := _NAME.fullmatch(name)) and FIRST <= int(match[1], 16) <= LAST
    }
    if not files:
        raise ValueError(f"{folder} has no characters: expected files such as 04e00.svg")
    cache = cache_folder() / "kanjivg.npz"
    stored = _read(cache)
    listing = _listing(files, version)
    if stored is not None and stored.listing == listing:
        return stored.characters
    contents = {code: path.read_bytes() for code, path in files.items()}
    source = _source(contents, version)
    if stored is not None and stored.source == source:
        found = stored.characters
    else:
        found = Characters.of(
            [parse_character(content, str(files[code]), code) for code, content in _shown(contents)]
        )
    _write(cache, _Stored(found, listing, source))
    return found


class _Stored(NamedTuple):
    """What a cache holds."""

    characters: Characters
    listing: str
    """Hash of the files' names, sizes and times of change."""
    source: str
    """Hash of the files' contents."""


def _listing(files: dict[int, Path], version: str) -> str:
    """What tells without reading a file that a cache is of the same ones."""
    digest = hashlib.sha256(f"{FORMAT} {version}".encode())
    for code, path in files.items():
        about = path.stat()
        digest.update(f" {code} {about.st_size} {about.st_mtime_ns}".encode())
    return digest.hexdigest()


def _source(contents: dict[int, bytes], version: str) -> str:
    """What a cache is made of: the files' contents, and the versions of package and format."""
    digest = hashlib.sha256(f"{FORMAT} {version}".encode())
    for code, content in contents.items():
        digest.update(f" {code} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _read(path: Path) -> _Stored | None:
    """What a cache holds; None where it is missing or damaged."""
    known = (*Characters._fields, "listing", "source", "sha256")
    try:
        arrays = read_arrays(path, known, Memory(str(path)))
        listing, source = str(arrays.pop("listing")), str(arrays.pop("source"))
        if str(arrays.pop("sha256")) != arrays_hash(arrays):
            return None
        return _Stored(Characters(**arrays), listing, source)
    except (OSError, LookupError, TypeError, ValueError):
        return None


def _write(path: Path, stored: _Stored) -> None:
    """Write a cache, or warn that it cannot be written."""
    arrays = stored.characters._asdict()
    content = io.BytesIO()
    np.savez_compressed(
        content,
        listing=stored.listing,
        source=stored.source,
        sha256=arrays_hash(arrays),
        **arrays,
    )
    try:
        atomic_write_bytes(path, content.getvalue())
    except OSError as error:
        warnings.warn(
            f"every process has to read KanjiVG again, since {path} cannot be written: {error}; "
            "HTM_CACHE names another folder",
            stacklevel=2,
        )


def _shown(contents: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """The files one after another, with a progress bar on a terminal, elsewhere after one line."""
    if not sys.stderr.isatty():
        print(f"reading {len(contents):,} characters of KanjiVG, once", file=sys.stderr)
        yield from contents.items()
        return
    from rich.console import Console  # only here, since this happens once
    from rich.progress import track

    title = "reading KanjiVG, once"
    yield from track(contents.items(), title, console=Console(stderr=True), transient=True)


# ---------------------------------------------------------------- a file


class _Marked(NamedTuple):
    """A group as it is in the file."""

    strokes: int
    name: str
    part: int | None
    number: str | None
    radical: str | None
    usual: str
    """The usual form of the component."""


def parse_character(content: bytes, name: str, code: int) -> Character:
    """The character of an SVG file; ``name`` is what an error calls it.

    Raises ``ValueError`` for what is no such file.
    """
    try:
        return _parsed(_root(content.decode()), code)
    except (ElementTree.ParseError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not a readable character of KanjiVG: {error}") from error


def _root(text: str) -> ElementTree.Element:
    """The outermost group of strokes. The document type goes, and with it all entities."""
    text = _DOCTYPE.sub("", text, count=1)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares more than one document type")
    if "xmlns:kvg=" not in text:  # declared in the document type alone
        text = text.replace("<svg", f'<svg xmlns:kvg="{_KVG}"', 1)
    for holder in ElementTree.fromstring(text):
        if "StrokePaths" in holder.get("id", ""):
            groups = [child for child in holder if _local(child.tag) == "g"]
            if len(groups) != 1:
                raise ValueError(f"it has {len(groups)} outermost groups; expected 1")
            return groups[0]
    raise ValueError("it has no group of strokes")


def _local(name: Any) -> str:
    """A name without its namespace, which comes with http as well as https."""
    return str(name).rpartition("}")[2]


def _parsed(root: ElementTree.Element, code: int) -> Character:
    strokes: list[Float64[np.ndarray, "_ 4 2"]] = []
    types: list[str] = []
    marked: list[_Marked] = []

    def walk(element: ElementTree.Element) -> None:
        first, place = len(strokes), len(marked)
        about = {_local(key): value for key, value in element.attrib.items()}
        marked.append(_Marked(0, "", None, None, None, ""))  # its place: outer groups come first
        for child in element:
            if _local(child.tag) == "g":
                walk(child)
            elif _local(child.tag) == "path":
                own = {_local(key): value for key, value in child.attrib.items()}
                strokes.append(parse_path(own.get("d", "")))
                types.append(_type(own.get("type", "")))
        component = about.get("element", "")
        part = about.get("part")
        marked[place] = _Marked(
            (1 << len(strokes)) - (1 << first),
            component,
            None if part is None else int(part),
            about.get("number"),
            about.get("radical"),
            about.get("original", component),
        )

    walk(root)
    if not 1 <= len(strokes) <= MOST_STROKES:
        raise ValueError(f"it has {len(strokes)} strokes; expected 1 to {MOST_STROKES}")
    radicals = {group.radical: group.usual for group in reversed(marked) if group.radical}
    return Character(
        code,
        next((radicals[kind] for kind in RADICAL_KINDS if kind in radicals), ""),
        strokes,
        types,
        _groups(marked, len(strokes)),
        frozenset(group.name for group in marked if group.name),
    )


def _type(named: str) -> str:
    """The first type that a stroke is given, without its variant: ㇐ of ``㇐b/㇔``; empty where it
    is none."""
    first = named.partition("/")[0].rstrip(ascii_lowercase)
    first = _MISTYPED.get(first, first)
    return first if _TYPE.fullmatch(first) else ""


def _groups(marked: Sequence[_Marked], num_strokes: int) -> list[Group]:
    """The groups that are clades, without repetition; see :attr:`Character.groups`.

    Groups that are parts of one component are joined to one more group, which has its name, unless
    that crosses another group. The parts stay as groups without a name.
    """
    names: dict[int, str] = {}
    for group in marked:
        name = group.name if group.part is None else ""
        if group.strokes:  # outer ones come first, and name what holds the same strokes
            names[group.strokes] = names.get(group.strokes) or name
    for strokes, name in _joined_parts(marked):
        if not any(_crosses(strokes, other) for other in names):
            names[strokes] = names.get(strokes) or name
    found = [Group(*item) for item in names.items() if 2 <= item[0].bit_count() < num_strokes]
    return sorted(found, key=lambda group: (group.strokes.bit_count(), _first(group.strokes)))


def _joined_parts(marked: Sequence[_Marked]) -> Iterator[tuple[int, str]]:
    """The strokes and the name of every component that is given in parts.

    Part ``k + 1`` goes with the first part ``k`` of the same component and number that has no such
    part yet.
    """
    wholes: list[tuple[tuple[str, str | None], list[_Marked]]] = []
    for group in marked:
        if group.part is None or not group.name:
            continue
        own = (group.name, group.number)
        for component, parts in wholes:
            if component == own and parts[-1].part == group.part - 1:
                parts.append(group)
                break
        else:
            wholes.append((own, [group]))
    for (name, _), parts in wholes:
        strokes = 0
        for group in parts:
            strokes |= group.strokes
        if len(parts) > 1:
            yield strokes, name


def _crosses(one: int, other: int) -> bool:
    """True <--> they share strokes, but neither holds the other."""
    return bool(one & other and one & ~other and other & ~one)


def _first(strokes: int) -> int:
    """The first stroke of a group."""
    return (strokes & -strokes).bit_length() - 1


def parse_path(path: str) -> Float64[np.ndarray, "_ 4 2"]:
    """The cubic curves of an SVG path of one line: one M, then C and S, or the same in relative
    numbers, m, c and s.

    Raises ``ValueError`` for any other path.
    """
    commands = _commands(path)
    if not commands or commands[0][0] not in "Mm" or len(commands[0][1]) != 2:
        raise ValueError(f"the path {path[:40]!r} does not start at one point")
    here = np.array(commands[0][1])
    curves: list[Float64[np.ndarray, "4 2"]] = []
    for letter, numbers in commands[1:]:
        size = _SIZES.get(letter.upper(), 0)
        if size not in (4, 6) or not numbers or len(numbers) % size:
            raise ValueError(f"the path {path[:40]!r} has {len(numbers)} numbers behind {letter!r}")
        for points in np.array(numbers).reshape(-1, size // 2, 2):
            if letter.islower():
                points = points + here
            if size == 4:  # the first control point mirrors the last one
                mirrored = 2 * here - curves[-1][2] if curves else here
                points = np.concatenate([mirrored[None], points])
            curves.append(np.concatenate([here[None], points]))
            here = points[-1]
    if not curves or not np.isfinite(curves).all():
        raise ValueError(f"the path {path[:40]!r} has no curve, or numbers that are not finite")
    return np.stack(curves)


def _commands(path: str) -> list[tuple[str, list[float]]]:
    """The letters of a path, each with the numbers behind it."""
    found: list[tuple[str, list[float]]] = []
    end = 0
    for match in _PATH.finditer(path):
        if match.start() != end or (match[2] and not found):
            break
        end = match.end()
        if match[1]:
            found.append((match[1], []))
        elif match[2]:
            found[-1][1].append(float(match[2]))
    if end != len(path):
        raise ValueError(f"the path {path[:40]!r} has {path[end : end + 10]!r} in it")
    return found

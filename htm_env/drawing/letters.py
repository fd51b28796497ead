"""Letters that a font may lack: names of the user's data can be in any script."""

from __future__ import annotations

from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

OTHER_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans", "IPAexGothic", "Hiragino Sans"),
    *("Yu Gothic", "MS Gothic", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS"),
)
"""Fonts with Chinese characters, of which those that are installed are used where others end."""


def make_readable(figure: Figure) -> None:
    """Give the figure's texts fonts that have their letters, and write letters that none has by
    their code points, as in ``U+6728``, instead of as empty boxes with a warning each."""
    for text in figure.findobj(Text):
        letters = text.get_text()
        if letters.isascii():
            continue
        own = text.get_fontproperties()
        missing = {letter for letter in letters if not _has(own, letter)}
        others = _installed() if missing else []
        if others:
            text.set_fontfamily([*own.get_family(), *others])
            missing -= {letter for name in others for letter in missing if _has_name(name, letter)}
        for letter in missing:
            letters = letters.replace(letter, f"U+{ord(letter):04X}")
        text.set_text(letters)


def _has(font: FontProperties, letter: str) -> bool:
    return letter.isspace() or ord(letter) in _letters(findfont(font))


def _has_name(name: str, letter: str) -> bool:
    return _has(FontProperties(family=name), letter)


@cache
def _letters(path: str) -> frozenset[int]:
    """The code points that a font file has."""
    return frozenset(get_font(path).get_charmap())


@cache
def _installed() -> list[str]:
    """Those of ``OTHER_FONTS`` that are on this machine."""
    found = []
    for name in OTHER_FONTS:
        try:
            findfont(FontProperties(family=name), fallback_to_default=False)
        except ValueError:
            continue
        found.append(name)
    return found

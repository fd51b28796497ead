"""One HTML page that steps through episodes: it needs no network, no server and no other file.

The page is written as ``page.html``, ``page.css`` and the scripts beside this file, which are
joined here with the episodes as a block of JSON. A content security policy in its head forbids it
to load anything.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files

from htm_env.drawing.page.content import page_content
from htm_env.drawing.page.lists import Course, lists_section
from htm_env.drawing.trace import Trace

SCRIPTS = (
    "episode.js",
    "drawing.js",
    "plane.js",
    "dendrogram.js",
    "choices.js",
    "charges.js",
    "player.js",
)
"""In the order in which they build upon each other."""


def viewer_page(
    traces: Mapping[str, Trace], title: str, about: str = "", course: Course = ()
) -> str:
    """The page as one text, to be written to a file of its own.

    Args:
        traces: the samples by name, in the order in which they are offered. The name is part of
            links to a step: ``page.html#sample=NAME&step=5``.
        title: the heading.
        about: one line under the heading.
        course: nested lists of validation samples over the training.

    Raises:
        ValueError: there is no sample, or one with numbers that are not finite.
    """
    folder = files(__name__)
    parts = {
        "title": html.escape(title),
        "about": html.escape(about),
        "style": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "script": "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS),
        "lists": lists_section(traces, course),
        "content": _json_in_html(page_content(traces)),
    }
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    # All at once, so that braces inside of a part are left alone.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _json_in_html(content: object) -> str:
    """JSON that cannot end the script element around it, nor open a comment in it."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")

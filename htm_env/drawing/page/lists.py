"""Trees as nested lists: several samples side by side, and the same samples over their training."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from htm_env.drawing.trace import Trace

SHOWN = 6
"""Samples side by side."""
Course = Sequence[tuple[int, Sequence[str]]]
"""Merges that a run had made, and the nested lists of the same samples then."""


def lists_section(traces: Mapping[str, Trace], course: Course = ()) -> str:
    """What opens on the page, in HTML: the trees of the first samples, and under it the course."""
    shown = list(traces.items())[:SHOWN]
    parts = [
        '<details class="lists">',  # closed, so that all else fits on a screen
        "<summary>Trees as nested lists</summary>",
        _table([f"sample {name}" for name, _ in shown], [[str(trace.tree) for _, trace in shown]]),
    ]
    if course:
        names = [f"sample {number}" for number in range(len(course[0][1]))]
        rows = [[f"{made:,}", *lists] for made, lists in course]
        parts += [
            "<h2>The same validation samples over the training</h2>",
            _table(["merges made", *names], rows),
        ]
    return "\n".join([*parts, "</details>"])


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

"""The figures of a comparison; colours and marks that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from agents.comparison.problems import task_name
from agents.comparison.results import Task
from agents.comparison.statistics import Estimate
from agents.comparison.table import ERROR, Comparison, is_fixed
from htm_env.drawing.glyphs import COLOURS
from htm_env.drawing.rendering import new_figure, plain

MARKS = "osD^vP*X<>hp"
DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
"""Dashes of lines whose merges are fixed; those of learned policies are solid."""
COLUMNS = 2


def styles(algos: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, a mark and a line for each algorithm; no two are the same for up to 84 of them."""
    dashes = cycle(DASHES)
    return {
        algo: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKS[number % len(MARKS)],
            "linestyle": next(dashes) if is_fixed(algo) else "solid",
        }
        for number, algo in enumerate(algos)
    }


def errors_figure(comparison: Comparison) -> Figure:
    """Every run's held-out error, and the median of each algorithm, a panel a task."""
    style = styles(comparison.algos)

    def draw(axes: Axes, task: Task) -> None:
        measure = comparison.measure(task)
        algos = sorted(
            comparison.algos_on(task), key=lambda algo: -np.median(comparison.errors(task, algo))
        )
        for row, algo in enumerate(algos):
            errors = measure.sign * comparison.errors(task, algo)
            mark = {name: style[algo][name] for name in ("color", "marker")}
            axes.plot(errors, np.full(len(errors), row), linestyle="none", alpha=0.6, **mark)
            axes.plot([np.median(errors)] * 2, [row - 0.35, row + 0.35], color="black", lw=1.5)
        axes.set_yticks(range(len(algos)), algos)
        if measure is ERROR:
            _logarithmic(axes, horizontal=True)
        axes.set_xlabel(f"held-out {measure.name}")
        axes.grid(axis="x", alpha=0.3)

    rows = max(len(comparison.algos_on(task)) for task in comparison.tasks)
    return _panels(_titled(comparison), draw, height=1.0 + 0.24 * rows)


def curves_figure(comparison: Comparison, along: str) -> Figure:
    """Validation error along ``merges`` or ``seconds``: median and range of the runs."""
    style = styles(comparison.algos)

    def draw(axes: Axes, task: Task) -> None:
        measure = comparison.measure(task)
        for algo in comparison.algos_on(task):
            curve = comparison.curve(task, algo, along)
            if curve is None:
                continue
            look = style[algo] | {"markevery": (len(curve.grid) // 8, len(curve.grid) // 4)}
            scores = measure.sign * curve.runs
            middle, low, high = np.median(scores, 0), scores.min(axis=0), scores.max(axis=0)
            axes.plot(curve.grid, middle, label=algo, lw=1.5, ms=4, **look)
            axes.fill_between(curve.grid, low, high, color=look["color"], alpha=0.12, lw=0)
        if measure is ERROR:
            _logarithmic(axes, horizontal=False)
        if along == "merges" and _has_positive(axes.xaxis):
            axes.set_xscale("log")
        axes.set_xlabel("merges for learning" if along == "merges" else "seconds of training")
        axes.set_ylabel(f"validation {measure.name}")
        axes.grid(alpha=0.3)

    return _panels(_titled(comparison), draw, height=3.4, algos=comparison.algos)


def widths_figure(comparison: Comparison) -> Figure:
    """Held-out error against the width of an embedding: median and range of the runs, a panel for
    each problem that has several widths."""
    style = styles(comparison.algos)

    def draw(axes: Axes, tasks: Sequence[Task]) -> None:
        for algo in comparison.algos:
            known = [task for task in tasks if comparison.ends(task, algo)]
            if not known:
                continue
            dims = [task.embedding_dim for task in known]
            errors = [comparison.errors(task, algo) for task in known]
            axes.plot(dims, [*map(np.median, errors)], label=algo, lw=1.5, ms=5, **style[algo])
            low, high = [*map(np.min, errors)], [*map(np.max, errors)]
            axes.fill_between(dims, low, high, color=style[algo]["color"], alpha=0.12, lw=0)
        _logarithmic(axes, horizontal=False)
        axes.set_xscale("log", base=2)
        axes.set_xticks([task.embedding_dim for task in tasks])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("D, numbers of an embedding")
        axes.set_ylabel("held-out nmse")
        axes.grid(alpha=0.3)

    groups = list(comparison.widths.items())
    return _panels(groups, draw, height=3.4, algos=comparison.algos)


def intervals_figure(estimates: dict[str, Estimate], label: str) -> Figure:
    """A point and an interval for each algorithm, the smallest on top."""
    algos = sorted(estimates, key=lambda algo: -float(estimates[algo].value))
    style = styles(list(estimates))
    figure = _figure(6.4, 1.0 + 0.26 * len(algos))
    axes = figure.subplots()
    for row, algo in enumerate(algos):
        value, low, high = (float(number) for number in estimates[algo])
        look = {name: style[algo][name] for name in ("color", "marker")}
        axes.plot([low, high], [row, row], color=look["color"], lw=4, alpha=0.35)
        axes.plot([value], [row], ms=5, **look)
    axes.axvline(1.0, color="black", lw=0.8)
    _logarithmic(axes, horizontal=True)
    axes.set_yticks(range(len(algos)), algos)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    return figure


def profiles_figure(
    thresholds: Float[np.ndarray, "K"], profiles: dict[str, Estimate], label: str
) -> Figure:
    """The share of runs with an error ratio of at most each threshold."""
    style = styles(list(profiles))
    figure = _figure(6.4, 3.8)
    axes = figure.subplots()
    for algo, profile in profiles.items():
        look = style[algo] | {"markevery": (len(thresholds) // 10, len(thresholds) // 5)}
        axes.step(thresholds, profile.value, where="post", label=algo, lw=1.5, ms=4, **look)
        shade: dict[str, Any] = {"color": look["color"], "alpha": 0.08, "lw": 0}
        axes.fill_between(thresholds, profile.low, profile.high, step="post", **shade)
    _logarithmic(axes, horizontal=True)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(label)
    axes.set_ylabel("runs at or below")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def matrix_figure(
    values: Float[np.ndarray, "rows columns"],
    names: Sequence[str],
    labels: tuple[str, str],
    *,
    logarithmic: bool = False,
) -> Figure:
    """A square table in colours, with its numbers; NaN stays empty."""
    size = 1.6 + 0.52 * len(names)
    figure = _figure(size + 0.8, size)
    axes = figure.subplots()
    shown = np.log10(values) if logarithmic else values
    finite = shown[np.isfinite(shown)]
    low, high = (finite.min(), finite.max()) if logarithmic and finite.size else (0.0, 1.0)
    axes.imshow(shown, cmap="cividis", vmin=low, vmax=high if high > low else low + 1)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            bright = shown[row, column] > (low + high) / 2
            text = f"{value:.2g}" if logarithmic else f"{value:.2f}"
            look: dict[str, Any] = {"fontsize": 7, "color": "black" if bright else "white"}
            axes.text(column, row, text, ha="center", va="center", **look)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    return figure


def _titled(comparison: Comparison) -> list[tuple[str, Task]]:
    return [(plain(task_name(task).title), task) for task in comparison.tasks]


def _panels(
    panels: Sequence[tuple[str, Any]],
    draw: Callable[[Axes, Any], None],
    height: float,
    algos: Sequence[str] = (),
) -> Figure:
    """A panel for each title and what is drawn under it, two in a row, with one legend for all;
    none without ``algos``."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(4.4 * columns + (1.6 if algos else 0.0), height * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, drawn) in zip(grid.flat, panels, strict=False):
        draw(axes, drawn)
        axes.set_title(title, fontsize=10)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if algos:
        ordered = [algo for algo in algos if algo in handles]
        named = [handles[algo] for algo in ordered]
        figure.legend(named, ordered, loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _logarithmic(axes: Axes, *, horizontal: bool) -> None:
    """A logarithmic axis with plain numbers, at 1, 2 and 5 where it spans few decades."""
    if not _has_positive(axes.xaxis if horizontal else axes.yaxis):
        return
    (axes.set_xscale if horizontal else axes.set_yscale)("log")
    axis = axes.xaxis if horizontal else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    few = high < 200 * max(low, 1e-300)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _has_positive(axis: Axis) -> bool:
    """True <--> a finite point is drawn that a logarithmic axis can show."""
    return bool(np.isfinite(axis.get_minpos()))


def _figure(width: float, height: float) -> Figure:
    return new_figure((width, height), dpi=150, constrained=True)

"""``htm compare``: trains algorithms side by side, and reports which is better and by how much."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.comparison.diagnoses import CrossPlayRow, cross_play, retrained_runs, up_to_date
from agents.comparison.live_table import LiveTable, Watched
from agents.comparison.options import CompareOptions
from agents.comparison.plan import RETRAINED, RUNS, PlannedRun, check_folder, found_runs, plan_runs
from agents.comparison.report import write_report
from agents.comparison.results import (
    ResultRow,
    changed_options,
    read_results,
    run_rows,
    write_table,
)
from agents.comparison.searched import search_runs, searched_rows
from agents.config.errors import UsageError, as_usage_error, json_object
from agents.config.files import quoted, write_file
from agents.engines import Progress, Site, Unit, UnitState, make_engine, run_units
from agents.engines.registry import check_options, engine_class
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked

RESULTS, RETRAIN_RESULTS, CROSS_PLAY = "results.csv", "retrained.csv", "cross_play.csv"
SEARCHED = "searched.csv"
TURN = ".turn"
"""The lock of what one process at a time does in a folder that several share."""


def compare(options: CompareOptions) -> None:
    """Train what is not trained yet, then write ``results.csv``, ``report.md`` and figures.

    Raises :class:`UsageError` for options that make no sense, ``ValueError`` for a folder that
    belongs to another comparison or is in use, ``ChildProcessError`` naming the runs that failed
    (all others are finished and reported), and ``KeyboardInterrupt`` when interrupted.
    """
    if options.save_config is not None:
        write_file(options.save_config, options.given)
        return
    if options.report:
        folder = _folder_of_report(options)
        with locked(folder):
            report_again(options.report, folder)
        return
    folder = options.folder
    try:
        with engine_of(options, folder) as engine:
            with engine.turn():
                runs, left_out = plan_runs(options)
                for line in left_out:
                    print(line, file=sys.stderr)
                check_folder(runs, folder)
            failed = engine.train(runs, "htm compare")
            if options.retrain:
                failed += engine.train(retrained_runs(runs, folder), "retraining")
            with engine.turn():
                if options.cross_play:
                    cross_play(runs, folder / CROSS_PLAY, lambda line: print(line, flush=True))
                if options.search:
                    path = folder / SEARCHED
                    search_runs(runs, path, options.search, lambda line: print(line, flush=True))
                rows = collect(folder)
                if any(row.split == "test" for row in rows):
                    report_again([folder], folder)
    except KeyboardInterrupt as interruption:
        raise type(interruption)("interrupted, continue with the same command") from None
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of the runs failed, the same command tries again: {'; '.join(failed)}"
        )


@contextmanager
def engine_of(options: CompareOptions, folder: Path) -> Iterator[Workshop]:
    """The engine of a folder, which is locked meanwhile: alone, or with others of the same engine.

    Raises :class:`UsageError` for an engine that does not exist or whose library is missing, and
    for options that it does not have; ``ValueError`` for a folder that is in use.
    """
    given = json_object("--engine-options", options.engine_options)
    if options.address is not None:
        given["address"] = options.address
    with as_usage_error():
        check_options(options.engine, given)
    shared = not engine_class(options.engine).exclusive
    with locked(folder, shared=shared) as lock:
        yield Workshop(options.engine, given, Site(folder.resolve(), options.jobs, (lock,)))


def collect(out: Path) -> list[ResultRow]:
    """Gather the rows of all runs of a comparison into its tables; returns those of the first."""
    runs = found_runs(out, RUNS)
    rows = [row for directory in runs for row in run_rows(directory)]
    rows += searched_rows(out / SEARCHED, runs)
    write_table(out / RESULTS, ResultRow, rows)
    retrained = [row for found in found_runs(out, RETRAINED) for row in _retrained_rows(found)]
    if retrained:
        write_table(out / RETRAIN_RESULTS, ResultRow, retrained)
    return rows


def report_again(paths: Sequence[Path], out: Path) -> None:
    """Write the report of tables, or folders that hold them, of one machine or several."""
    tables = [path / RESULTS if path.is_dir() else path for path in paths]
    beside = [path for path in paths if path.is_dir()]
    rows = read_results(tables)
    retrained = read_results(
        [path / RETRAIN_RESULTS for path in beside if (path / RETRAIN_RESULTS).exists()]
    )
    hashes = {
        (row.task, row.algo, row.seed): row.weights_hash for row in rows if row.split == "test"
    }
    crossed: dict[tuple, CrossPlayRow] = {}
    for path in beside:
        crossed |= {row.pair: row for row in up_to_date(path / CROSS_PLAY, hashes)}
    if [path.resolve() for path in tables] != [(out / RESULTS).resolve()]:
        write_table(out / RESULTS, ResultRow, rows)
        if retrained:
            write_table(out / RETRAIN_RESULTS, ResultRow, retrained)
        if crossed:
            write_table(out / CROSS_PLAY, CrossPlayRow, crossed.values())
    report = write_report(out, rows, retrained, list(crossed.values()))
    print(f"results   {quoted(out / RESULTS)}")
    print(f"report    {quoted(report)}")
    if (out / RUNS).exists():
        print(f"logs      tensorboard --logdir {quoted(out / RUNS)}")


def _folder_of_report(options: CompareOptions) -> Path:
    """``--out`` of a report; :class:`UsageError` where it is missing or holds runs of its own, and
    for options of training, which would be ignored."""
    ignored = [
        f"--{name.replace('_', '-')}" for name in options.given if name not in ("report", "out")
    ]
    if ignored:
        raise UsageError(f"--report trains nothing; leave out {', '.join(ignored)}")
    if options.out is None:
        raise UsageError("--report needs --out, a folder for the report")
    if (options.out / RUNS).exists():
        raise UsageError(f"{options.out} holds runs of its own; choose another --out for --report")
    return options.out


@dataclass(frozen=True)
class Workshop:
    """How the runs of a folder are brought to their end: an engine, and the locks of the folder."""

    name: str
    """Of the engine."""
    options: dict[str, Any]
    site: Site

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others that share the folder waiting: what is in the block, one process does."""
        if engine_class(self.name).exclusive:
            yield
        else:
            with locked(self.site.folder, TURN, waits=True):
                yield

    def train(self, runs: Sequence[PlannedRun], title: str) -> list[str]:
        """Bring every run to its end; returns a line for each one that failed."""
        with self.turn():
            watched = [self._prepared(run) for run in runs]
        units = [
            Unit(run.name, run.directory.path.resolve())
            for run in watched
            if not run.progress.state.ended
        ]
        if not units:
            return []
        engine = make_engine(self.name, self.site, self.options)
        table = LiveTable(title, watched)
        try:
            ends = run_units(units, engine, table.update)
        finally:
            table.close()
        return [
            f"{name} ({end.reason})" for name, end in ends.items() if end.state is UnitState.FAILED
        ]

    @staticmethod
    def _prepared(run: PlannedRun) -> Watched:
        """A run that can be started: with its configuration. One that has no checkpoint beside it
        starts from the beginning."""
        run.directory.check_own_files()
        if not run.directory.holds_run:
            run.directory.save_config(run.config)
        state = UnitState.DONE if run.finished else UnitState.WAITING
        return Watched(run.name, run.directory, Progress(state))


def _retrained_rows(directory: RunDirectory) -> list[ResultRow]:
    """The rows of a retrained run under the name and options of the run whose trees it took."""
    problem, name = directory.path.parts[-2:]
    source = RunDirectory(directory.path.parents[2] / RUNS / problem / name)
    if source.holds_run:
        run = source.load_config()
        options, algo = changed_options(run), run.algo
    else:
        options, algo = "", name.rpartition("-")[0]
    return [replace(row, algo=algo, options=options) for row in run_rows(directory)]

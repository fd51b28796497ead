"""``htm compare``: trains algorithms side by side, and reports which is better and by how much."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents.comparison.diagnoses import CrossPlayRow, cross_play, retrained_runs, up_to_date
from agents.comparison.options import CompareOptions
from agents.comparison.plan import RETRAINED, RUNS, check_folder, found_runs, plan_runs
from agents.comparison.report import write_report
from agents.comparison.results import (
    ResultRow,
    changed_options,
    read_results,
    run_rows,
    write_table,
)
from agents.comparison.searched import search_runs, searched_rows
from agents.comparison.workshop import check_alone, engine_of
from agents.config.errors import UsageError
from agents.config.files import quoted, write_file
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked

RESULTS, RETRAIN_RESULTS, CROSS_PLAY = "results.csv", "retrained.csv", "cross_play.csv"
SEARCHED = "searched.csv"


def compare(options: CompareOptions) -> None:
    """Train what is not trained yet, then write ``results.csv``, ``report.md`` and figures.

    Raises :class:`UsageError` for options that make no sense, ``ValueError`` for a folder that
    belongs to another comparison or is in use, ``ChildProcessError`` naming the runs that failed
    (all others are finished and reported), and ``KeyboardInterrupt`` when interrupted.
    """
    check_alone("htm compare")
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

"""``htm evaluate --semantics``: what roots, nodes and trees mean, as tables, files and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.cli.options import EvaluateOptions
from agents.cli.tables import print_table
from agents.comparison.markdown import MISSING, code, plain, table
from agents.config.files import check_run, quoted
from agents.inspection.semantic_report import THIS_RUN, SemanticReport
from agents.learners.base import Learner
from agents.registry import load_learner
from htm_env.files import atomic_write_text, write_json
from htm_env.measures.intervals import Interval, Mean
from htm_env.measures.semantics import DRAWS
from htm_env.measures.stability import JITTER

SHOWN_SCORES = {
    "linear_probe": "linear probe",
    "five_nearest_standardised": "5-NN",
    "nmi_standardised": "NMI",
}
"""Scores of an embedding, and what their columns are called."""
SHOWN_AGREEMENT = {
    "tree_f1": "tree_f1",
    "tree_recall": "tree_recall",
    "tree_robinson_foulds": "tree_robinson_foulds",
}
SHOWN_CHANGES = {"jittered": "jittered tokens", "one_token_dropped": "one token dropped"}
SHOWN_PARTS = {
    "found": "parts found",
    "retrieval": "mAP",
    "retrieval_of_found": "mAP of found",
    "probe": "probe",
    "probe_of_found": "probe of found",
}

NO_RUNS = rf"{THIS_RUN}|tokens|pooled|pca_\d+"
"""Names of embeddings that are no other runs."""
PICTURES = {
    "roots_map": "Roots in the plane, with the most frequent labels in colours",
    "roots_nearest": "Samples and those with the nearest roots",
    "parts_nearest": "Parts and the nearest nodes of other samples",
    "parts_map": "Inner nodes in the plane, with the most frequent parts in colours",
    "trees": "Samples with the groups of the data, beside their trees",
}
"""What each picture shows."""

Rows = list[dict[str, str]]


def other_runs(options: EvaluateOptions, learner: Learner) -> dict[str, Learner]:
    """The learners of ``--against`` by the names of their folders; where two have the same name by
    their paths, and as ``run NAME`` where an embedding that is no run has it.

    Raises ``FileNotFoundError`` without a run, and ``ValueError`` for one that cannot be read or is
    of tokens of another dimension.
    """
    names = [path.resolve().name for path in options.against]
    learners = {}
    for path, name in zip(options.against, names, strict=True):
        check_run(path)
        other = load_learner(path, options.data, needs_data=True)
        if other.autoencoder.token_dim != learner.autoencoder.token_dim:
            raise ValueError(
                f"tokens of {path} have {other.autoencoder.token_dim} coordinates; those of "
                f"{options.directory} have {learner.autoencoder.token_dim}"
            )
        shown = name if names.count(name) == 1 else str(path)
        learners[f"run {shown}" if re.fullmatch(NO_RUNS, shown) else shown] = other
    return learners


@dataclass(frozen=True)
class Meaning:
    """The report of a run as tables and files."""

    directory: Path
    about: Mapping[str, Any]
    """What was evaluated."""
    report: SemanticReport
    against: Mapping[str, Learner]
    pictures: Mapping[str, Any]
    """Figures by their names."""

    @property
    def json_path(self) -> Path:
        return self.directory / "semantics.json"

    @property
    def markdown_path(self) -> Path:
        return self.directory / "semantics.md"

    def write(self) -> None:
        """Write the files and pictures; the caller holds the lock of the folder."""
        from agents.evaluation.figures import write_figure  # loads matplotlib

        others = {
            name: {"algo": other.algo, "weights_hash": other.autoencoder.weights_hash()}
            for name, other in self.against.items()
        }
        about = {**self.about, "against": others}
        write_json(self.json_path, about | self.report.as_dict())
        for name, figure in self.pictures.items():
            write_figure(self._picture(name), figure, None)
        atomic_write_text(self.markdown_path, self._markdown())

    def show(self) -> None:
        """Print the tables, and where the files are."""
        for title, rows in self._tables():
            print(title)
            print_table([{re.sub("[ _]", "\n", name): of[name] for name in of} for of in rows])
        print(f"report    {quoted(self.markdown_path)}, {quoted(self.json_path)}")
        for name in self.pictures:
            print(f"picture   {quoted(self._picture(name))}")

    def _picture(self, name: str) -> Path:
        return self.directory / "figures" / f"semantics_{name}.png"

    def _markdown(self) -> str:
        about = self.about
        kwargs = json.dumps(about["env_kwargs"], default=str)
        lines = [
            f"# What {plain(str(about['algo']))} on {plain(str(about['env']))} means",
            f"Data: {code(kwargs)}. Seed {about['seed']}, {about['mode']}, "
            f"{about['embedding_dim']} numbers an embedding, weights "
            f"{code(about['weights_hash'][:12])}.",
        ]
        for title, rows in self._tables():
            escaped = [{name: plain(cell) for name, cell in row.items()} for row in rows]
            lines += [f"{title[0].upper()}{title[1:]}.", table(escaped)]
        for name in self.pictures:
            path = self._picture(name).relative_to(self.directory)
            lines.append(f"![{PICTURES[name]}]({path.as_posix()})")
        return "\n\n".join(lines) + "\n"

    def _tables(self) -> Iterator[tuple[str, Rows]]:
        """Every table that the data has something for, under its title."""
        report = self.report
        yield (
            "embeddings of samples",
            [{"embedding": name} | self._scores(name) for name in report.embeddings],
        )
        if report.few_shot:
            title = (
                f"few labels: accuracy on {report.few_shot_samples} test samples of "
                f"{report.few_shot_classes} labels, with standard errors over {DRAWS} draws"
            )
            rows = [
                {"embedding": name}
                | {f"{count} label{'s' * (count > 1)} a class": _mean(of[count]) for count in of}
                for name, of in report.few_shot.items()
            ]
            yield title, rows
        if report.parts:
            title = (
                f"parts: {report.part_queries} labelled clades of test samples through the inner "
                "nodes of the trees; what a tree lacks counts 0, but under 'of found'"
            )
            yield (
                title,
                [
                    {"run": _run(name)}
                    | {shown: _share(getattr(of, score)) for score, shown in SHOWN_PARTS.items()}
                    for name, of in report.parts.items()
                ],
            )
        if any(report.agreement.values()):
            yield (
                "agreement of trees with the data's own clades, with 95 % intervals",
                [
                    {"run": _run(name)}
                    | {shown: _interval(of.get(score)) for score, shown in SHOWN_AGREEMENT.items()}
                    for name, of in report.agreement.items()
                ],
            )
        if any(report.stability.values()):
            title = (
                "stability of trees: share of clades that are still there, with standard errors "
                f"(jitter: {JITTER:.0%} of the standard deviation)"
            )
            yield (
                title,
                [
                    {"run": _run(name)}
                    | {shown: _mean(of.get(change)) for change, shown in SHOWN_CHANGES.items()}
                    for name, of in report.stability.items()
                ],
            )

    def _scores(self, name: str) -> dict[str, str]:
        scores, every = self.report.embeddings[name], self.report.embeddings.values()
        cells = {
            shown: _share(scores.get(score))
            for score, shown in SHOWN_SCORES.items()
            if any(score in row for row in every)
        }
        return cells | {"effective rank": f"{scores['effective_rank']:.1f}"}


def _run(name: str) -> str:
    return "this run" if name == THIS_RUN else name


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _mean(found: Mean | None) -> str:
    if found is None:
        return MISSING
    error = "" if found.error is None else f" ± {found.error:.3f}"
    return f"{found.mean:.3f}{error}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return MISSING
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"

"""Tables of settings, metrics and confusion matrices."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscoop.evaluation.records import compared_branches, figures_of, in_words, per_class_of
from crosscoop.files import shorten
from crosscoop.network.outputs import main_output
from crosscoop.report.runs import Run, Settings

PROMINENT = (
    *("network.branches", "network.strategy", "network.fusion", "network.channels", "network.output_stride"),
    *("data.dataset", "data.batch_size", "data.crop_size", "model.optimizer", "model.optimizer.lr"),
    *("trainer.max_epochs", "seed_everything"),
)
SILENT = (
    *("run", "resume", "ckpt_path", "checkpoint.", "last.", "nonfinite.", "comparison.", "pictures."),
    *("data.num_workers", "trainer.enable_", "trainer.default_root_dir"),
)
"""Prefixes of settings that do not affect any metric."""


Figures = Mapping[str, Any]
"""Metrics by name; each may be None."""


@dataclass(frozen=True)
class Setting:
    """A setting of all runs.

    Attributes:
        name: Its name on the command line.
        values: Its value in each run.
    """

    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs differ in it."""
        return len(set(self.values)) > 1

    @property
    def folded(self) -> bool:
        """Whether it is collapsed: it is not prominent, and the runs agree in it."""
        return self.name not in PROMINENT and not self.differs


@dataclass(frozen=True)
class Column:
    """An output of a run in the table of metrics.

    Attributes:
        run: The run's index.
        output: The output's name.
        figures: Its metrics in `metrics.json`.
        reference: The metrics that they are compared with; None for the reference itself.
        main: Whether it is the run's main output.
    """

    run: int
    output: str
    figures: Figures
    reference: Figures | None
    main: bool


@dataclass(frozen=True)
class Value:
    """The value of a metric.

    Attributes:
        share: The value as a share of 1; None if missing.
        difference: The difference from the reference; None if either is missing.
        best: Whether it is the highest in its row, and the values differ.
    """

    share: float | None
    difference: float | None
    best: bool


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        output: The output's name.
        names: The predicted classes.
        rows: For each true class, its name, its number of pixels, and how many were predicted as each of `names`.
    """

    output: str
    names: list[str]
    rows: list[tuple[str, int, list[int]]]


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Return the settings of all runs, the prominent ones first."""
    configs = [dict(flatten(run.config)) for run in runs]
    known = dict.fromkeys(name for config in configs for name in config if not name.startswith(SILENT))
    names = dict.fromkeys([*(name for name in PROMINENT if name in known), *known])
    return [Setting(name, [config.get(name, "-") for config in configs]) for name in names]


def flatten(config: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield settings by their name on the command line, such as `model.optimizer.lr`."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, prefix if key == "init_args" else f"{prefix}{key}.")
        elif key == "class_path":
            yield prefix.removesuffix("."), str(value).rpartition(".")[2]
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value).replace('"', "")


def columns(runs: Sequence[Run]) -> list[Column]:
    """Return the outputs of all runs that were measured.

    The first run is the reference. Each output of another run is compared with the reference's output of that name or,
    if there is none, with its main output, provided that both were measured on the same classes of the same split. A
    single run's outputs are compared with its first output.
    """
    measured = [(i, run.metrics) for i, run in enumerate(runs) if run.metrics]
    if not measured:
        return []
    first, record = measured[0]
    baseline, names = record["outputs"], list(record["outputs"])

    def reference(place: int, other: Figures, output: str) -> Figures | None:
        alone = len(measured) == 1
        if _subject(other) != _subject(record) or (place == first and not (alone and output != names[0])):
            return None
        compared: Figures = baseline[names[0] if alone else output if output in names else main_output(names)]
        return compared

    return [
        Column(i, name, figures, reference(i, other, name), name == main_output(other["outputs"]))
        for i, other in measured
        for name, figures in other["outputs"].items()
    ]


def figure_rows(columns: Sequence[Column]) -> list[tuple[str, list[Value]]]:
    """Return name and values of each metric over all classes, mIoU first."""
    return _rows(columns, lambda figures: {in_words(key): figure for key, figure in figures_of(figures).items()})


def class_rows(columns: Sequence[Column]) -> dict[str, list[tuple[str, list[Value]]]]:
    """Return the rows of class names and values of each metric per class, IoU first."""

    def of(figure: str) -> Callable[[Figures], Figures]:
        return lambda figures: per_class_of(figures).get(figure, {})

    names = dict.fromkeys(figure for column in columns for figure in per_class_of(column.figures))
    return {in_words(figure): _rows(columns, of(figure)) for figure in names}


def branch_peak(runs: Sequence[Run]) -> float:
    """Return the largest share of a class's pixels that only one branch labels correctly, which scales the bars."""
    rows = [row for run in runs if run.branches for row in run.branches.values()]
    shares = [row[f"only_{branch}"] or 0 for row in rows for branch in compared_branches(row)]
    return max(shares, default=0) or 1


def matrices(run: Run) -> list[Matrix]:
    """Return the confusion matrices of a run, the main output's first; empty columns for no class are omitted."""
    if run.confusion is None:
        return []
    names, outputs = list(run.confusion["class_names"]), run.confusion["outputs"]
    found = []
    for output, counts in sorted(outputs.items(), key=lambda item: item[0] != main_output(outputs)):
        seen = [*names, "none of them"] if any(row[-1] for row in counts) else names
        rows = [(name, sum(row), row[: len(seen)]) for name, row in zip(names, counts, strict=True)]
        found.append(Matrix(output, seen, rows))
    return found


def warnings(runs: Sequence[Run]) -> list[str]:
    """Describe differences between runs that make their metrics incomparable."""
    facts = {
        run.name: {**run.metrics["protocol"], "classes": tuple(run.metrics["iou_per_class"])}
        for run in runs
        if run.metrics
    }
    found = []
    for key in ("dataset", "split", "num_images", "evaluation", "inference", "classes"):
        values = {name: fact[key] for name, fact in facts.items()}
        if len(set(values.values())) > 1:
            words = "; ".join(f"{n}: {shorten(v) if isinstance(v, tuple) else v}" for n, v in values.items())
            found.append(f"{key.replace('num_', 'number of ')} ({words})")
    return found


def _subject(record: Figures) -> tuple[str, str, list[str]]:
    """Return what was measured: data set, split and classes."""
    return record["protocol"]["dataset"], record["protocol"]["split"], list(record["iou_per_class"])


def _rows(columns: Sequence[Column], select: Callable[[Figures], Figures]) -> list[tuple[str, list[Value]]]:
    """Return rows of the metrics that `select` takes from each column."""
    own = [select(column.figures) for column in columns]
    references = [select(column.reference) if column.reference else {} for column in columns]
    rows = []
    for name in dict.fromkeys(name for figures in own for name in figures):
        shares = [figures.get(name) for figures in own]
        known = [share for share in shares if share is not None]
        best = max(known) if known and max(known) > min(known) else None
        values = []
        for share, reference in zip(shares, (figures.get(name) for figures in references), strict=True):
            difference = None if share is None or reference is None else share - reference
            values.append(Value(share, difference, best is not None and share == best))
        rows.append((name, values))
    return rows

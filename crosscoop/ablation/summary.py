"""Results of an ablation: means and deviations over seeds, and paired comparisons with the baselines."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import ttest_1samp

from crosscoop.ablation.grid import Ablation
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.records import ALL, branch_shares, compared_branches, describe, figures_of, per_class_of
from crosscoop.evaluation.scores import SECONDARY
from crosscoop.network.outputs import CASCADE, branches_of, main_output


@dataclass
class Figures:
    """The values of one metric of a row.

    Attributes:
        values: The values by seed.
    """

    values: dict[int, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean over seeds."""
        return fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over seeds; None for fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def minus(self, other: "Figures") -> "Figures":
        """Return the differences, paired by seed."""
        return Figures(
            {seed: value - other.values[seed] for seed, value in self.values.items() if seed in other.values}
        )

    @property
    def p_value(self) -> float | None:
        """The p value of differences in a two-sided paired t-test; None for fewer than two, or if all are equal."""
        return None if (self.deviation or 0) < 1e-9 else float(ttest_1samp(list(self.values.values()), 0).pvalue)


@dataclass
class Row:
    """A row of the table.

    Attributes:
        name: The row's name.
        outputs: mIoU by output.
        further: Further metrics by name and output.
        classes: Metrics per class of the main output by name and class, IoU first.
        gain: Difference between the ensemble and the best branch.
        branches: How the branches differ, as shares of all labelled pixels, by the keys of `branch_shares`.
        seconds: Training time in seconds.
        protocols: How each seed was measured.
        parameters: Number of parameters of the network.
        macs: Multiply-adds for one training crop.
        costs: Multiply-adds for one training crop at inference, by output.
    """

    name: str
    outputs: dict[str, Figures] = field(default_factory=dict)
    further: dict[str, dict[str, Figures]] = field(default_factory=dict)
    classes: dict[str, dict[str, Figures]] = field(default_factory=dict)
    gain: Figures = field(default_factory=Figures)
    branches: dict[str, Figures] = field(default_factory=dict)
    seconds: Figures = field(default_factory=Figures)
    protocols: list[str] = field(default_factory=list)
    parameters: int | None = None
    macs: int | None = None
    costs: dict[str, Figures] = field(default_factory=dict)

    @property
    def main(self) -> str | None:
        """The output that represents the row: the ensemble or the single network; None before any test."""
        return main_output(self.outputs) if self.outputs else None

    @property
    def own(self) -> Figures:
        """The mIoU of the main output."""
        return self.outputs[self.main] if self.main else Figures()


@dataclass
class Summary:
    """All rows of one test, read from the run folders.

    Attributes:
        ablation: The ablation.
        test: The test's name.
        rows: The rows.
    """

    ablation: Ablation
    test: str
    rows: list[Row]

    @property
    def protocols(self) -> list[str]:
        """How the runs were measured; more than one if they differ."""
        return list(dict.fromkeys(protocol for row in self.rows for protocol in row.protocols))

    @property
    def baselines(self) -> list[Row]:
        """The rows that the others are compared with, in the order of the configuration."""
        rows = {row.name: row for row in self.rows}
        return [rows[name] for name in self.ablation.baseline]

    @property
    def outputs(self) -> list[str]:
        """The names of all outputs."""
        return list(dict.fromkeys(name for row in self.rows for name in row.outputs))

    @property
    def further(self) -> list[str]:
        """The names of further metrics."""
        return list(dict.fromkeys(name for row in self.rows for name in row.further))

    @property
    def class_figures(self) -> list[str]:
        """The names of the metrics per class, IoU first."""
        return list(dict.fromkeys(name for row in self.rows for name in row.classes))

    @property
    def branches(self) -> list[str]:
        """The names of all compared branches."""
        return list(dict.fromkeys(name for row in self.rows for name in compared_branches(row.branches)))

    @property
    def classes(self) -> list[str]:
        """The names of all classes."""
        return self.classes_with("iou")

    def classes_with(self, figure: str) -> list[str]:
        """Return the names of the classes that have a metric."""
        return list(dict.fromkeys(name for row in self.rows for name in row.classes.get(figure, ())))

    def caption(self, what: str = "mIoU in %") -> str:
        """Return what is shown, its protocol, the missing runs, and the configurations' digest."""
        seeds = len(self.ablation.seeds)
        missing = {row.name: seeds - len(row.own.values) for row in self.rows if len(row.own.values) < seeds}
        sentences = [
            f"{what}, mean and standard deviation over {'up to ' * bool(missing)}{seeds} seed{'s' * (seeds > 1)}",
            *(self.protocols or ["no run has been tested yet"]),
            f"tested: {self.ablation.checkpoint}",
            *filter(None, [self.ablation.note]),
        ]
        if missing:
            sentences.append(f"missing: {', '.join(f'{count} of {name!r}' for name, count in missing.items())}")
        if len(self.protocols) > 1:
            sentences.append("THE PROTOCOLS DIFFER: the rows are not comparable")
        return "; ".join([*sentences, f"configurations {self.ablation.digest}"]) + "."


def summarise(ablation: Ablation, runs: Path, test: str | None = None) -> Summary:
    """Summarise the records in the run folders.

    Args:
        ablation: The ablation.
        runs: The folder of all runs.
        test: The test to read; None selects the first.

    Raises:
        CrosscoopError: A run's record is damaged.
    """
    test = test or next(iter(ablation.tests))
    rows = {name: Row(name) for name in ablation.rows}
    for cell in ablation.all_cells(runs):
        tested = cell.test_folders[test]
        for path, take in (
            (cell.folder / "cost.json", _take_cost),
            (tested / "metrics.json", _take_metrics),
            (tested / "branches.json", _take_branches),
        ):
            if not path.is_file():
                continue
            try:
                record = json.loads(path.read_text("utf-8"))
                take(record, rows[cell.name], cell.seed)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                costs = "that file; the row's costs are then taken from its other seeds."
                remedy = f"{tested}; `crosscoop ablate` then repeats the test." if path.parent == tested else costs
                raise CrosscoopError(
                    f"{path}: cannot be read ({type(error).__name__}: {error}), expected a record written by "
                    f"crosscoop. Remove {remedy}"
                ) from error
    return Summary(ablation, test, list(rows.values()))


def _take_cost(record: Any, row: Row, seed: int) -> None:
    row.parameters, row.macs = record["parameters"], record["macs"]
    for name, macs in record.get("outputs", {}).items():  # missing in records of earlier versions
        row.costs.setdefault(name, Figures()).values[seed] = float(macs)
    if "seconds" in record:
        row.seconds.values[seed] = record["seconds"]


def _take_metrics(record: Any, row: Row, seed: int) -> None:
    row.protocols.append(describe(record["protocol"]))
    outputs = record["outputs"]
    for name, output in outputs.items():
        row.outputs.setdefault(name, Figures()).values[seed] = float(output["miou"])
        for figure, value in figures_of(output).items():
            if figure not in ("miou", "pixel_accuracy", *SECONDARY) and value is not None:
                row.further.setdefault(figure, {}).setdefault(name, Figures()).values[seed] = float(value)
    cascade = record.get("cascade")
    if cascade and cascade["cost"] is not None and row.macs:
        row.costs.setdefault(CASCADE, Figures()).values[seed] = cascade["cost"] * row.macs
    for figure, classes in per_class_of(record).items():
        for name, value in classes.items():
            if value is not None:
                row.classes.setdefault(figure, {}).setdefault(name, Figures()).values[seed] = float(value)
    if len(outputs) > 1:
        best = max(outputs[name]["miou"] for name in branches_of(outputs))
        row.gain.values[seed] = outputs[main_output(outputs)]["miou"] - best


def _take_branches(record: Any, row: Row, seed: int) -> None:
    for name in branch_shares(compared_branches(record[ALL])):
        row.branches.setdefault(name, Figures()).values[seed] = float(record[ALL][name])

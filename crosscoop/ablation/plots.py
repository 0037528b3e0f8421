"""Plots of a summary."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crosscoop.ablation.summary import Figures, Row, Summary
from crosscoop.evaluation.records import in_words


def plot_outputs(summary: Summary, caption: str, path: Path) -> None:
    """Plot every row's outputs: a dot per seed, a bar at the mean, and a dashed line at the first baseline's mean."""
    figure, axes = _figure(summary, caption, 8, 1 + 0.45 * len(summary.rows))
    colours = {name: f"C{i}" for i, name in enumerate(summary.outputs)}
    for i, row in enumerate(summary.rows):
        for j, (name, figures) in enumerate(row.outputs.items()):
            height = i + (j - (len(row.outputs) - 1) / 2) * 0.2
            seeds = [100 * value for value in figures.values.values()]
            axes.scatter(seeds, [height] * len(seeds), s=14, color=colours[name])
            axes.scatter(100 * (figures.mean or 0), height, s=60, marker="|", color=colours[name])
    for name, colour in colours.items():
        axes.scatter([], [], s=14, color=colour, label=name)
    for baseline in summary.baselines[:1]:
        if baseline.own.mean is not None:
            axes.axvline(100 * baseline.own.mean, color="0.7", zorder=0, linestyle="--", label=baseline.name)
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axes.set_ylim(len(summary.rows) - 0.5, -0.5)
    axes.set_xlabel("mIoU (%); dots: seeds, bars: means")
    axes.grid(axis="x", alpha=0.3)
    if colours:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def plot_costs(summary: Summary, caption: str, path: Path) -> None:
    """Plot mIoU over the multiply-adds at inference: mean and deviation over seeds, a mark per row and output."""
    figure, axes = _figure(summary, caption, 8, 4)
    marks = dict(zip(summary.outputs, "ovsD^<>Pphd8X*" * len(summary.outputs), strict=False))
    for i, row in enumerate(summary.rows):
        for name, cost in row.costs.items():
            if (miou := row.outputs.get(name)) and miou.mean is not None and cost.mean is not None:
                error = 100 * (miou.deviation or 0)
                place = (cost.mean / 1e9, 100 * miou.mean)
                axes.errorbar(*place, yerr=error, color=f"C{i % 10}", marker=marks[name], capsize=2, alpha=0.8)
    for i, row in enumerate(summary.rows):
        axes.scatter([], [], color=f"C{i % 10}", label=row.name)
    for name, mark in marks.items():
        axes.scatter([], [], color="0.4", marker=mark, label=name)
    axes.set_xlabel("multiply-adds at inference (G per training crop)")
    axes.set_ylabel("mIoU (%)")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def plot_classes(summary: Summary, caption: str, path: Path, figure_name: str = "iou") -> None:
    """Plot a cell per row and class: the difference from the first baseline, in parentheses if its sign varies by seed.

    Without a baseline or any other row, the metric itself is shown; IoU by default.
    """
    names = summary.classes_with(figure_name)
    rows = [row for row in summary.rows if row.classes.get(figure_name)]
    baseline = next((row for row in summary.baselines[:1] if set(row.own.values) & _seeds(rows, row)), None)
    rows = [row for row in rows if row is not baseline]
    figures = [[_compared(row, baseline, figure_name, name) for name in names] for row in rows]
    means = np.array([[100 * each.mean if each.mean is not None else np.nan for each in line] for line in figures])
    reach = max(np.nanmax(np.abs(means)), 1e-9)
    low, high, colours = (-reach, reach, "RdBu") if baseline else (0, 100, "Blues")
    figure, axes = _figure(summary, caption, 3 + 0.75 * len(names), 1.8 + 0.4 * len(rows))
    axes.imshow(means, aspect="auto", cmap=colours, vmin=low, vmax=high)
    for (i, j), mean in np.ndenumerate(means):
        if not np.isnan(mean):
            values = figures[i][j].values.values()
            text = f"{mean:+.1f}" if baseline else f"{mean:.1f}"
            text = f"({text})" if baseline and min(values) < 0 < max(values) else text
            colour = "white" if abs(mean) > 0.7 * high else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    what = f"difference from {baseline.name} in points; in parentheses: sign varies by seed" if baseline else "in %"
    axes.set_xlabel(f"{in_words(figure_name)} by class, {what}")
    figure.savefig(path, dpi=120, format="png")


def plot_branches(summary: Summary, caption: str, path: Path) -> None:
    """Plot a bar per row of several branches: the pixels on which only one branch is right, averaged over seeds."""
    rows = [row for row in summary.rows if row.branches]
    figure, axes = _figure(summary, caption, 8, 1.2 + 0.35 * len(rows))
    left = np.zeros(len(rows))
    for name in summary.branches:
        widths = np.array([100 * (row.branches.get(f"only_{name}", Figures()).mean or 0) for row in rows])
        axes.barh(range(len(rows)), widths, left=left, label=f"only {name} is right")
        left += widths
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("% of the labelled pixels, mean over seeds")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def _figure(summary: Summary, caption: str, width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with the title above its axes and the table's caption below."""
    lines = textwrap.wrap(caption, int(15 * width))
    figure = Figure(figsize=(width, height + 0.15 * len(lines)), layout="constrained")
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.4")
    axes = figure.add_subplot()
    axes.set_title(f"{summary.ablation.title}, {summary.test}", fontsize=10)
    return figure, axes


def _seeds(rows: list[Row], but: Row) -> set[int]:
    return {seed for row in rows if row is not but for seed in row.own.values}


def _compared(row: Row, baseline: Row | None, figure_name: str, name: str) -> Figures:
    own, other = (each.classes.get(figure_name, {}).get(name, Figures()) for each in (row, baseline or row))
    return own.minus(other) if baseline else own

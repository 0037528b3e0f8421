"""The summary as pictures."""

from pathlib import Path

import numpy as np

from crosscoop.ablation.summary import Figures, Row, Summary


def plot_outputs(summary: Summary, path: Path) -> None:
    """Every row's outputs: a dot per seed, a line at the mean."""
    from matplotlib.figure import Figure

    names = summary.outputs
    figure = Figure(figsize=(8, 1 + 0.45 * len(summary.rows)), layout="constrained")
    axes = figure.add_subplot()
    for j, name in enumerate(names):
        shown = [(i + (j - (len(names) - 1) / 2) * 0.2, row.outputs[name]) for i, row in enumerate(summary.rows)
                 if name in row.outputs]  # fmt: skip
        dots = [(100 * value, height) for height, figures in shown for value in figures.values.values()]
        means = [(100 * (figures.mean or 0), height) for height, figures in shown]
        (x, y), (mean_x, mean_y) = np.array(dots).T, np.array(means).T
        axes.scatter(x, y, s=14, color=f"C{j}", label=name)
        axes.scatter(mean_x, mean_y, s=60, marker="|", color=f"C{j}")
    for baseline in summary.baselines:
        if baseline.own.mean is not None:
            axes.axvline(100 * baseline.own.mean, color="0.7", zorder=0, linestyle="--")
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU in per cent; a dot per seed, a bar at the mean")
    axes.set_title(summary.ablation.title)
    axes.grid(axis="x", alpha=0.3)
    if names:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def plot_classes(summary: Summary, path: Path) -> None:
    """A field per row and class: the difference to the first baseline, grey where the seeds differ in its sign.

    Without a baseline, or with that alone, the IoU itself.
    """
    from matplotlib.figure import Figure

    rows = [row for row in summary.rows if row.classes]
    baseline = next((row for row in summary.baselines[:1] if row in rows and len(rows) > 1), None)
    rows = [row for row in rows if row is not baseline]
    figures = [[_compared(row, baseline, name) for name in summary.classes] for row in rows]
    means = np.array([[100 * each.mean if each.mean is not None else np.nan for each in line] for line in figures])
    reach = max(np.nanmax(np.abs(means)), 1e-9)
    low, high, colours = (-reach, reach, "RdBu") if baseline else (0, 100, "Blues")
    figure = Figure(figsize=(3 + 0.75 * len(summary.classes), 1.8 + 0.4 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(means, aspect="auto", cmap=colours, vmin=low, vmax=high)
    for (i, j), mean in np.ndenumerate(means):
        if not np.isnan(mean):
            signs = {value > 0 for value in figures[i][j].values.values()}
            strong = abs(mean) > 0.7 * high
            colour = "0.55" if len(signs) > 1 else "white" if strong else "black"
            text = f"{mean:+.1f}" if baseline else f"{mean:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(summary.classes)), summary.classes, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    what = f"difference to {baseline.name} in points; grey: the seeds differ in sign" if baseline else "per cent"
    axes.set_title(f"{summary.ablation.title}\nIoU by class, {what}", fontsize=10)
    figure.savefig(path, dpi=120, format="png")


def plot_branches(summary: Summary, path: Path) -> None:
    """A bar per pair: the pixels that one branch alone names rightly, which is all that an ensemble could gain from."""
    from matplotlib.figure import Figure

    rows = [row for row in summary.rows if row.branches]
    figure = Figure(figsize=(8, 1.2 + 0.35 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(rows))
    for name in ("top", "bottom"):
        widths = np.array([100 * (row.branches[f"only_{name}"].mean or 0) for row in rows])
        axes.barh(range(len(rows)), widths, left=left, label=f"only {name} is right")
        left += widths
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("per cent of the labelled pixels")
    axes.set_title(summary.ablation.title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def _compared(row: Row, baseline: Row | None, name: str) -> Figures:
    own = row.classes.get(name, Figures())
    return own.minus(baseline.classes.get(name, Figures())) if baseline else own

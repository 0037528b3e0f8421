"""The summary as Markdown, CSV, LaTeX and a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crosscoop.ablation.summary import Figures, Row, Summary
from crosscoop.data.files import replacing

Table = list[list[str]]
"""Lines of cells, the heading first. Cells hold plain text; `±` and `-` (nothing there) are put for each format."""


def write_tables(summary: Summary, folder: Path) -> list[Path]:
    """Write `table.md`, `table.csv`, `table.tex` and `table.png`; for further tests with the test's name.

    Args:
        summary: The summary.
        folder: Where to.

    Returns:
        The files.
    """
    first = summary.test == next(iter(summary.ablation.tests))
    stem = "table" if first else f"table_{summary.test.replace(' ', '_')}"
    table = LAYOUTS[summary.ablation.layout](summary)
    texts = {".md": markdown(table, summary), ".csv": values(summary), ".tex": latex(table, summary)}
    for suffix, text in texts.items():
        with replacing(folder / f"{stem}{suffix}") as temporary:
            temporary.write_text(text, "utf-8")
    with replacing(folder / f"{stem}.png") as temporary:
        plot(summary, temporary)
    return [folder / f"{stem}{suffix}" for suffix in (*texts, ".png")]


def by_row(summary: Summary) -> Table:
    """A line per row: every output, the difference to the baseline, and the costs."""
    baseline = summary.baseline
    branches = [name for name in _outputs(summary.rows) if name not in ("network", "ensemble")]
    heading = ["", *branches, "ensemble or single network"]
    if baseline:
        heading += [f"difference to {baseline.name}", "p"]
    table = [[*heading, "gain of the ensemble", "branches disagree", "parameters", "MACs", "training"]]
    for row in summary.rows:
        cells = [row.name, *(percent(row.outputs.get(name)) for name in branches), percent(row.own)]
        if baseline:
            other = row is not baseline
            cells.append(percent(row.own.minus(baseline.own), signed=True) if other else "-")
            cells.append(number(row.own.p_value(baseline.own), "{:.3f}") if other else "-")
        cells += [percent(row.gain, signed=True), percent(row.disagreement), *_costs(row)]
        table.append(cells)
    return table


def by_output(summary: Summary) -> Table:
    """A line per row and output, in the manner of the paper's tables 1 and 3."""
    table = [["method", "output", "mIoU", "parameters", "MACs"]]
    for row in summary.rows:
        for i, name in enumerate(row.outputs or ["-"]):
            costs = _costs(row)[:2] if i == 0 else ["", ""]
            table.append([row.name if i == 0 else "", name, percent(row.outputs.get(name)), *costs])
    return table


def by_connection(summary: Summary) -> Table:
    """A line per row with C1 and C2 ticked, in the manner of the paper's table 5."""
    from crosscoop.network.strategy import get_strategy

    table = [["", "Connection 1", "Connection 2", "mIoU", *(["gain"] if summary.baseline else [])]]
    for row in summary.rows:
        strategy = row.options.get("network.strategy", summary.ablation.base.get("network", {}).get("strategy"))
        points = get_strategy(strategy or "cross_c1_c2").points
        line = [row.name, *("x" if point in points else "" for point in ("connection1", "connection2"))]
        line.append(percent(row.own))
        if summary.baseline:
            line.append(percent(row.own.minus(summary.baseline.own), signed=True))
        table.append(line)
    return table


LAYOUTS = {"summary": by_row, "outputs": by_output, "connections": by_connection}


def markdown(table: Table, summary: Summary) -> str:
    """A Markdown table with its title and caption."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in table]
    lines = [f"| {' | '.join(line)} |" for line in escaped]
    lines.insert(1, "|---|" + "---:|" * (len(table[0]) - 1))
    return f"**{summary.ablation.title}**\n\n" + "\n".join(lines) + f"\n\n{summary.caption}\n"


def latex(table: Table, summary: Summary) -> str:
    """A LaTeX table; it needs the package booktabs."""
    heading, *lines = [" & ".join(map(_tex, line)) + r" \\" for line in table]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            f"  \\begin{{tabular}}{{l{'r' * (len(table[0]) - 1)}}}",
            r"    \toprule",
            f"    {heading}",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            f"  \\caption{{{_tex(summary.ablation.title)}. {_tex(summary.caption)}}}",
            r"\end{table}",
            "",
        ]
    )


def values(summary: Summary) -> str:
    """Every measured value, a line per row, seed and output: the table for other programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "seed", "output", "miou", "gain", "disagreement", "parameters", "macs", "seconds"])
    for row in summary.rows:
        for name, figures in row.outputs.items():
            for seed, value in figures.values.items():
                others = [each.values.get(seed, "") for each in (row.gain, row.disagreement)]
                costs = [row.parameters or "", row.macs or "", row.seconds.values.get(seed, "")]
                writer.writerow([row.name, seed, name, value, *others, *costs])
    return text.getvalue()


def plot(summary: Summary, path: Path) -> None:
    """Every row's outputs: a dot per seed, a line at the mean."""
    from matplotlib.figure import Figure

    names = _outputs(summary.rows)
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
    if summary.baseline and summary.baseline.own.mean is not None:
        axes.axvline(100 * summary.baseline.own.mean, color="0.7", zorder=0, linestyle="--")
    axes.set_yticks(range(len(summary.rows)), [row.name for row in summary.rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU in per cent; a dot per seed, a bar at the mean")
    axes.set_title(summary.ablation.title)
    axes.grid(axis="x", alpha=0.3)
    if names:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120, format="png")


def percent(figures: Figures | None, signed: bool = False) -> str:
    """Mean and standard deviation in per cent; a dash where there is nothing."""
    if figures is None or figures.mean is None:
        return "-"
    mean = f"{100 * figures.mean:{'+' if signed else ''}.2f}"
    return mean if figures.deviation is None else f"{mean} ± {100 * figures.deviation:.2f}"


def number(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else form.format(value)


def _costs(row: Row) -> list[str]:
    return [
        number(row.parameters and row.parameters / 1e6, "{:.2f} M"),
        number(row.macs and row.macs / 1e9, "{:.2f} G"),
        number(row.seconds.mean and row.seconds.mean / 60, "{:.1f} min"),
    ]


def _outputs(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.outputs))


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash "), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"),
                           ("{", r"\{"), ("}", r"\}"), ("$", r"\$"), ("±", r"$\pm$")):  # fmt: skip
        text = text.replace(plain, escaped)
    return text

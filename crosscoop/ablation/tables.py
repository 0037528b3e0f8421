"""The summary as Markdown, CSV, LaTeX and plots."""

import csv
import io
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from crosscoop.ablation.grid import slug
from crosscoop.ablation.plots import plot_branches, plot_classes, plot_costs, plot_outputs
from crosscoop.ablation.summary import Figures, Row, Summary
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.records import branch_shares, in_words
from crosscoop.files import replacing

Table = list[list[str]]
"""Lines of cells, the heading first. Cells contain plain text, in which each format replaces `±` and `-` (missing)."""
MIOU = "mIoU in %"
NOTES = " (p: two-sided paired t-test over seeds, not corrected for multiple comparisons; gain: over the better branch)"
SHARES = (
    "% of the labelled pixels (saves: the ensemble and at most one branch are right; loses: the ensemble is wrong and "
    "at least one branch is right)"
)
TEX = {
    **{letter: f"\\{letter}" for letter in "&%_#{}$"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "<": "$<$", ">": "$>$"},
}
"""Characters that LaTeX needs escaped."""
Lines = Iterable[Iterable[object]]
"""Lines of a CSV."""
Layout = Callable[[Summary], Table]
Values = Callable[[Summary], Lines]
Plot = Callable[[Summary, str, Path], None]


def write_tables(summary: Summary, folder: Path) -> list[Path]:
    """Write `table`, `classes`, `costs` and `branches` as .md, .csv, .tex and .png.

    After the first test, the files are named after the test. `costs` is left out if every output costs the same.
    If the ablation asks for one of the paper's layouts, `paper` is written too, as the first file.

    Args:
        summary: The summary.
        folder: The folder to write to.

    Returns:
        The written files.
    """
    first = summary.test == next(iter(summary.ablation.tests))
    suffix = "" if first else f"_{slug(summary.test)}"
    paper = LAYOUTS[summary.ablation.layout]
    kinds: list[tuple[str, Layout, Values | None, Plot | None, str]] = []
    if paper is not by_row:
        kinds.append(("paper", paper, None, None, MIOU))
    kinds.append(("table", by_row, values, plot_outputs, MIOU + NOTES))
    for figure in summary.class_figures:
        stem, what = "classes" if figure == "iou" else f"classes_{figure}", f"{in_words(figure)} in %"
        layouts = partial(by_class, figure=figure), partial(class_values, figure=figure)
        kinds.append((stem, *layouts, partial(plot_classes, figure_name=figure), what))
    if any(len({cost.mean for name, cost in row.costs.items() if name in row.outputs}) > 1 for row in summary.rows):
        kinds.append(("costs", by_cost, None, plot_costs, f"{MIOU}; multiply-adds of one training crop"))
    if any(row.branches for row in summary.rows):
        kinds.append(("branches", by_branch, branch_values, plot_branches, SHARES))
    files: list[Path] = []
    for stem, layout, lines, plot, what in kinds:
        table, title, caption = layout(summary), summary.ablation.title, summary.caption(what)
        texts = {".md": markdown(table, title, caption), ".tex": latex(table, title, caption)}
        texts |= {".csv": comma_separated(lines(summary))} if lines else {}
        for kind, text in texts.items():
            files.append(folder / f"{stem}{suffix}{kind}")
            with replacing(files[-1]) as temporary:
                temporary.write_text(text, "utf-8")
        if plot:
            files.append(folder / f"{stem}{suffix}.png")
            with replacing(files[-1]) as temporary:
                plot(summary, caption, temporary)
    return files


def by_row(summary: Summary) -> Table:
    """Return a line per row: every output, the differences from the baselines, and the costs."""
    branches = list(dict.fromkeys(name for row in summary.rows for name in row.outputs if name != row.main))
    heading = ["", *branches, "ensemble or single network"]
    for baseline in summary.baselines:
        heading += [f"difference from {baseline.name}", "p"]
    further = [in_words(name) for name in summary.further]
    table = [[*heading, "gain of the ensemble", *further, "branches disagree", "parameters", "MACs", "training"]]
    for row in summary.rows:
        cells = [row.name, *(shown(summary, row.outputs.get(name)) for name in branches), shown(summary, row.own)]
        for baseline in summary.baselines:
            difference = row.own.minus(baseline.own) if row is not baseline else Figures()
            cells += [shown(summary, difference, signed=True), p_value(difference)]
        others = [row.further.get(name, {}).get(row.main or "") for name in summary.further]
        cells += [shown(summary, row.gain, signed=True), *(shown(summary, other) for other in others)]
        table.append([*cells, shown(summary, row.branches.get("disagree")), *_costs(row)])
    return table


def by_output(summary: Summary) -> Table:
    """Return a line per row and output, in the layout of the paper's tables 1 and 3."""
    table = [["method", "output", "mIoU", "parameters", "MACs"]]
    for row in summary.rows:
        for i, name in enumerate(row.outputs or ["-"]):
            costs = _costs(row)[:2] if i == 0 else ["", ""]
            table.append([row.name if i == 0 else "", name, shown(summary, row.outputs.get(name)), *costs])
    return table


def by_cost(summary: Summary) -> Table:
    """Return a line per row and output, the cheapest at inference first."""
    lines = [
        (
            cost.mean or 0,
            [row.name, name, number((cost.mean or 0) / 1e9, "{:.2f} G"), shown(summary, row.outputs[name])],
        )
        for row in summary.rows
        for name, cost in row.costs.items()
        if name in row.outputs
    ]
    return [["", "output", "MACs at inference", "mIoU"], *(line for _, line in sorted(lines, key=lambda line: line[0]))]


def by_connection(summary: Summary) -> Table:
    """Return a line per row with C1 and C2 ticked, in the layout of the paper's table 5."""
    from crosscoop.network.strategy import get_strategy

    heading = ["", "Connection 1", "Connection 2", "mIoU"]
    table = [[*heading, *(f"difference from {each.name}" for each in summary.baselines[:1])]]
    for row in summary.rows:
        network = summary.ablation.config(row.name, summary.ablation.seeds[0]).get("network") or {}
        try:
            points = get_strategy(network.get("strategy", "cross_c1_c2")).points
            ticks = ["x" if point in points else "" for point in ("connection1", "connection2")]
        except CrosscoopError:  # the row failed with this error, which is in its log
            ticks = ["?", "?"]
        differences = [shown(summary, row.own.minus(each.own), signed=True) for each in summary.baselines[:1]]
        table.append([row.name, *ticks, shown(summary, row.own), *differences])
    return table


def by_class(summary: Summary, figure: str = "iou") -> Table:
    """Return a line per row: a metric of each class, for the ensemble or the single network."""
    names = summary.classes_with(figure)
    lines = [
        [row.name, *(shown(summary, row.classes.get(figure, {}).get(name)) for name in names)] for row in summary.rows
    ]
    return [["", *names], *lines]


def by_branch(summary: Summary) -> Table:
    """Return a line per row of several branches: where they differ and the effect of the ensemble, in %."""
    rows, shares = [row for row in summary.rows if row.branches], branch_shares(summary.branches)
    lines = [[row.name, *(shown(summary, row.branches.get(key)) for key in shares)] for row in rows]
    return [["", *shares.values()], *lines]


LAYOUTS = {"summary": by_row, "outputs": by_output, "connections": by_connection}


def markdown(table: Table, title: str, caption: str) -> str:
    """Format a table in Markdown, with its title and caption."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in table]
    lines = [f"| {' | '.join(line)} |" for line in escaped]
    lines.insert(1, "|---|" + "---:|" * (len(table[0]) - 1))
    return f"**{title}**\n\n" + "\n".join(lines) + f"\n\n{caption}\n"


def latex(table: Table, title: str, caption: str) -> str:
    """Format a table in LaTeX, for the package booktabs."""
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
            f"  \\caption{{{_tex(title)}. {_tex(caption)}}}",
            r"\end{table}",
            "",
        ]
    )


def values(summary: Summary) -> Lines:
    """Yield every value for other programs: a line per row, seed and output, with empty cells for missing values."""
    costs = ("gain", "disagreement", "parameters", "macs", "seconds")
    yield "row", "seed", "output", "miou", *costs, *summary.further
    for row in summary.rows:
        for seed in summary.ablation.seeds:
            if seed not in row.own.values:
                yield row.name, seed, *[""] * (2 + len(costs) + len(summary.further))
        for name, figures in row.outputs.items():
            further = [row.further.get(figure, {}).get(name, Figures()) for figure in summary.further]
            for seed, value in figures.values.items():
                others = [each.values.get(seed, "") for each in (row.gain, row.branches.get("disagree", Figures()))]
                others += [row.parameters or "", row.macs or "", row.seconds.values.get(seed, "")]
                yield row.name, seed, name, value, *others, *(each.values.get(seed, "") for each in further)


def class_values(summary: Summary, figure: str = "iou") -> Lines:
    """Yield a metric of every class: a line per row, seed and class."""
    yield "row", "seed", "class", figure
    for row in summary.rows:
        for name, figures in row.classes.get(figure, {}).items():
            for seed, value in figures.values.items():
                yield row.name, seed, name, value


def branch_values(summary: Summary) -> Lines:
    """Yield how the branches differ: a line per row and seed, with empty cells for branches that a row lacks."""
    shares = branch_shares(summary.branches)
    yield "row", "seed", *shares
    for row in summary.rows:
        for seed in row.branches["disagree"].values if row.branches else ():
            yield row.name, seed, *(row.branches.get(key, Figures()).values.get(seed, "") for key in shares)


def comma_separated(lines: Lines) -> str:
    """Format lines as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def shown(summary: Summary, figures: Figures | None, signed: bool = False) -> str:
    """Format a metric as the tables show it; if seeds are missing, with the number present."""
    count, seeds = len(figures.values) if figures else 0, len(summary.ablation.seeds)
    return percent(figures, signed) + f" ({count} of {seeds})" * (0 < count < seeds)


def percent(figures: Figures | None, signed: bool = False) -> str:
    """Format mean and standard deviation in %; a dash if there are no values."""
    if figures is None or figures.mean is None:
        return "-"
    mean = f"{100 * figures.mean:{'+' if signed else ''}.2f}"
    return mean if figures.deviation is None else f"{mean} ± {100 * figures.deviation:.2f}"


def number(value: float | None, form: str) -> str:
    """Format a number; a dash for None."""
    return "-" if value is None else form.format(value)


def p_value(difference: Figures) -> str:
    """Format the p value of a difference; a dash if it has none."""
    p = difference.p_value
    return "<0.001" if p is not None and p < 0.001 else number(p, "{:.3f}")


def _costs(row: Row) -> list[str]:
    return [
        number(row.parameters and row.parameters / 1e6, "{:.2f} M"),
        number(row.macs and row.macs / 1e9, "{:.2f} G"),
        number(row.seconds.mean and row.seconds.mean / 60, "{:.1f} min"),
    ]


def _tex(text: str) -> str:
    text = "".join(TEX.get(letter, letter) for letter in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", text)  # a minus, not a hyphen

"""The figures of docs/camvid-study.md that `crosscoop ablate --tables` does not write, from the same files."""

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from crosscoop.ablation.cell import tests
from crosscoop.ablation.grid import read_ablation
from crosscoop.ablation.summary import Figures, summarise
from crosscoop.ablation.tables import Table, markdown, p_value, percent

STUDY = Path(__file__).parent
ABLATION = read_ablation(STUDY / "ablation.yaml")
CONTRASTS = [
    ("`cross_c1_c2` - better single network", "more than +1.4", {"cross_c1_c2": 1, "ResNet-50 V2 alone": -1}),
    ("`cross_c1_c2` - `none`", "+1.0", {"cross_c1_c2": 1, "none": -1}),
    ("`none` - better single network", "about +0.4", {"none": 1, "ResNet-50 V2 alone": -1}),
    ("`cross` - `none`", "about -0.1", {"cross": 1, "none": -1}),
    ("`cross_c1` - `cross`", "+0.16", {"cross_c1": 1, "cross": -1}),
    ("`cross_c1_c2` - `cross`", "+1.15", {"cross_c1_c2": 1, "cross": -1}),
    ("C1, with and without C2", "-", {"cross_c1": 0.5, "cross": -0.5, "cross_c1_c2": 0.5, "cross_c2": -0.5}),
    ("C2, with and without C1", "-", {"cross_c2": 0.5, "cross": -0.5, "cross_c1_c2": 0.5, "cross_c1": -0.5}),
    ("both ways with `add`, mean of the four - `none`", "-",
     {"cross": 0.25, "cross_c1": 0.25, "cross_c2": 0.25, "cross_c1_c2": 0.25, "none": -1}),
    ("both ways with `add`, mean of the four - better single network", "-",
     {"cross": 0.25, "cross_c1": 0.25, "cross_c2": 0.25, "cross_c1_c2": 0.25, "ResNet-50 V2 alone": -1}),
    ("`cross` - `one_way`, top to bottom", "more than 0", {"cross": 1, "one_way, top to bottom": -1}),
    ("`cross` - `one_way`, bottom to top", "-", {"cross": 1, "one_way, bottom to top": -1}),
    ("`one_way`, top to bottom: bottom - top", "more than 0",
     {"one_way, top to bottom/bottom": 1, "one_way, top to bottom/top": -1}),
    ("`one_way`, bottom to top: top - bottom", "-",
     {"one_way, bottom to top/top": 1, "one_way, bottom to top/bottom": -1}),
    ("top of `cross` - top of `none`", "-", {"cross/top": 1, "none/top": -1}),
    ("bottom of `cross` - bottom of `none`", "-", {"cross/bottom": 1, "none/bottom": -1}),
    ("top of `cross_c1_c2` - top of `none`", "-", {"cross_c1_c2/top": 1, "none/top": -1}),
    ("bottom of `cross_c1_c2` - bottom of `none`", "-", {"cross_c1_c2/bottom": 1, "none/bottom": -1}),
    ("control, one head - `cross_c1_c2`", "-", {"control, one head": 1, "cross_c1_c2": -1}),
    ("control, one head - better single network", "-", {"control, one head": 1, "ResNet-50 V2 alone": -1}),
    ("`cross_c1_c2`: `gate` - `add`", "-", {"cross_c1_c2, gate": 1, "cross_c1_c2": -1}),
    ("`cross_c1_c2`: `cross_stitch` - `add`", "-", {"cross_c1_c2, cross_stitch": 1, "cross_c1_c2": -1}),
    ("`cross_c1_c2`: `concat` - `add`", "-", {"cross_c1_c2, concat": 1, "cross_c1_c2": -1}),
    ("`cross_c2`: `concat` - `add`", "-", {"cross_c2, concat": 1, "cross_c2": -1}),
]  # fmt: skip
"""What is compared, the paper's figure, and the weight of each row."""
CLAIMS = (
    "mIoU in points: mean and standard deviation of the differences paired by seed, p of their t-test; the interval is "
    "of Student's t with the spread of all rows together (what is left when each row's and each seed's mean is off)."
)
ACCURACIES = (
    "Per cent of the labelled pixels; the last two: where at least one branch is right, and what the sum lacks of it."
)
DISAGREEMENTS = (
    "Per cent of the class's pixels that only one branch names rightly, that the ensemble saves, and that it loses."
)
PAIRS = [name for name, options in ABLATION.cells.items() if "network.branches" not in options]


def claims(test: str) -> Table:
    """Differences of mIoU, beside those of the paper's tables 1 and 5."""
    rows = summarise(ABLATION, STUDY, test).rows
    spread, freedom = residual([row.own for row in rows])
    measured = {row.name: row.own for row in rows}
    for row in rows:
        measured |= {f"{row.name}/{output}": figures for output, figures in row.outputs.items()}
    table = [["difference", "paper, VOC", "here", "95 % interval", "p"]]
    for what, paper, weights in CONTRASTS:
        difference = weigh(measured, weights)
        error = spread * sqrt(sum(weight**2 for weight in weights.values()) / len(difference.values))
        reach = t.ppf(0.975, freedom) * error
        ends = [f"{100 * (difference.mean + end):+.1f}" for end in (-reach, reach)]
        table.append([what, paper, percent(difference, signed=True), " to ".join(ends), p_value(difference)])
    return table


def accuracies(test: str) -> Table:
    """Pixels that the outputs of each pair name rightly, and what choosing between the branches could reach."""
    outputs = ("top", "bottom", "ensemble")
    table = [["", *outputs, "top or bottom", "the ensemble lacks"]]
    for pair in PAIRS:
        right = [read(pair, test, "metrics.json", lambda all, name=name: all["outputs"][name]["pixel_accuracy"])
                 for name in outputs]  # fmt: skip
        either = read(pair, test, "branches.json", lambda all: 1 - all["all"]["neither"])
        table.append([pair, *map(percent, [*right, either, either.minus(right[-1])])])
    return table


def disagreements(test: str) -> Table:
    """By class: what only one branch names rightly, side by side and cooperating."""
    shares = {"only_top": "only top right", "only_bottom": "only bottom right", "saved": "saves", "lost": "loses"}
    pairs = ("none", "cross_c1_c2")
    table = [["class", *(f"`{pair}`: {words}" for pair in pairs for words in shares.values())]]
    for name in summarise(ABLATION, STUDY, test).classes:
        figures = [read(pair, test, "branches.json", lambda all, key=key, name=name: all[name][key])
                   for pair in pairs for key in shares]  # fmt: skip
        table.append([name, *map(percent, figures)])
    return table


def read(row: str, test: str, file: str, pick: Callable[[Any], float]) -> Figures:
    """A figure of each seed of a row, out of its record."""
    folders = {cell.seed: tests(ABLATION, cell)[test] for cell in ABLATION.all_cells(STUDY) if cell.name == row}
    return Figures(
        {seed: pick(json.loads((folder / file).read_text())) for seed, folder in folders.items() if folder.is_dir()}
    )


def weigh(measured: dict[str, Figures], weights: dict[str, float]) -> Figures:
    """The weighted sum of rows, seed by seed."""
    seeds = set.intersection(*(set(measured[name].values) for name in weights))
    return Figures(
        {seed: sum(weight * measured[name].values[seed] for name, weight in weights.items()) for seed in seeds}
    )


def residual(rows: list[Figures]) -> tuple[float, int]:
    """Standard deviation and degrees of freedom of what neither the row nor the seed explains."""
    seeds = set.intersection(*(set(row.values) for row in rows))
    table = np.array([[row.values[seed] for seed in seeds] for row in rows])
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(rows) - 1) * (len(seeds) - 1)
    return float(np.sqrt((left**2).sum() / freedom)), freedom


if __name__ == "__main__":
    full, half = ABLATION.tests
    print(markdown(claims(full), full, CLAIMS))
    print(markdown(claims(half), half, CLAIMS))
    print(markdown(accuracies(full), full, ACCURACIES))
    print(markdown(disagreements(full), full, DISAGREEMENTS))

"""Rebuild every table and plot of docs/camvid-study.md, and the README's table of the study, from results.csv.

python docs/camvid-study/rebuild.py           # rewrites the marked tables of both pages, and the plots
python docs/camvid-study/rebuild.py FOLDER    # also writes the tables to FOLDER as .md, .csv, .tex and .png
"""

import csv
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill

import numpy as np
from scipy.stats import t

from crosscoop.ablation.grid import Ablation, Cell, slug
from crosscoop.ablation.summary import Figures, Summary, summarise
from crosscoop.ablation.tables import (
    MIOU,
    NOTES,
    SHARES,
    Table,
    by_branch,
    by_class,
    by_row,
    markdown,
    number,
    p_value,
    percent,
    write_tables,
)
from crosscoop.files import load_yaml, write_json

STUDY = Path(__file__).parent
PAGES = (STUDY.parent / "camvid-study.md", STUDY.parents[1] / "README.md")
FULL, HALF = "seen at full size", "seen at the training size"
"""Names of the tests in the records of the runs."""
RESOLUTIONS = {FULL: "full resolution", HALF: "training resolution"}
"""How the pages and plots call the tests."""
MEASURED = {
    test: {
        "dataset": "CamVid",
        "split": "test",
        "num_images": 233,
        "official_num_images": 233,
        "evaluation": "whole images at their own size",
        "inference": inference,
    }
    for test, inference in ((FULL, "single scale, no flip"), (HALF, "scales 0.5, no flip"))
}
"""How each test was measured, as the runs recorded it."""
MOBILE, RESNET, CONTROL = "MobileNetV2 alone", "ResNet-50 V2 alone", "control, one head"
SUM = "sum of the single networks' logits"
CONTRASTS = [
    ("`cross_c1_c2` - better single network", "more than +1.4", {"cross_c1_c2": 1, RESNET: -1}),
    ("`cross_c1_c2` - `none`", "+1.0", {"cross_c1_c2": 1, "none": -1}),
    ("`none` - better single network", "about +0.4", {"none": 1, RESNET: -1}),
    ("`cross` - `none`", "about -0.1", {"cross": 1, "none": -1}),
    ("`cross_c1` - `cross`", "+0.16", {"cross_c1": 1, "cross": -1}),
    ("`cross_c1_c2` - `cross`", "+1.15", {"cross_c1_c2": 1, "cross": -1}),
    ("C1, with and without C2", "-", {"cross_c1": 0.5, "cross": -0.5, "cross_c1_c2": 0.5, "cross_c2": -0.5}),
    ("C2, with and without C1", "-", {"cross_c2": 0.5, "cross": -0.5, "cross_c1_c2": 0.5, "cross_c1": -0.5}),
    ("both ways with `add`, mean of the four - `none`", "-",
     {"cross": 0.25, "cross_c1": 0.25, "cross_c2": 0.25, "cross_c1_c2": 0.25, "none": -1}),
    ("both ways with `add`, mean of the four - better single network", "-",
     {"cross": 0.25, "cross_c1": 0.25, "cross_c2": 0.25, "cross_c1_c2": 0.25, RESNET: -1}),
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
    ("control, one head - `cross_c1_c2`", "-", {CONTROL: 1, "cross_c1_c2": -1}),
    ("control, one head - better single network", "-", {CONTROL: 1, RESNET: -1}),
    ("`cross_c1_c2`: `gate` - `add`", "-", {"cross_c1_c2, gate": 1, "cross_c1_c2": -1}),
    ("`cross_c1_c2`: `cross_stitch` - `add`", "-", {"cross_c1_c2, cross_stitch": 1, "cross_c1_c2": -1}),
    ("`cross_c1_c2`: `concat` - `add`", "-", {"cross_c1_c2, concat": 1, "cross_c1_c2": -1}),
    ("`cross_c2`: `concat` - `add`", "-", {"cross_c2, concat": 1, "cross_c2": -1}),
]  # fmt: skip
"""What is compared, the paper's value, and the weight of each row."""
CLAIMS = (
    "mIoU in points: mean and standard deviation of the differences paired by seed, and the p value of their t-test. "
    "The interval uses Student's t with the spread pooled over all rows (the residual after subtracting the mean of "
    "each row and of each seed)."
)
ACCURACIES = (
    "Pixel accuracy (% of the labelled pixels). Top or bottom: at least one branch is right; the last column is the "
    "difference between that and the ensemble."
)
DISAGREEMENTS = (
    "Share of the class's pixels (%) that only one branch labels correctly, and that the ensemble saves and loses."
)
README_ROWS = {
    MOBILE: MOBILE,
    RESNET: RESNET,
    "`none`, their ensemble": "none",
    "`one_way`, `add`": "one_way, top to bottom",
    "`cross`, `add`": "cross",
    "`cross_c1_c2`, `add`": "cross_c1_c2",
    "`cross_c1_c2`, `gate`": "cross_c1_c2, gate",
    "`cross_c1_c2`, `cross_stitch`": "cross_c1_c2, cross_stitch",
    "`cross_c1_c2`, `concat`": "cross_c1_c2, concat",
    "both backbones summed in front of one head": CONTROL,
}
"""The cells that the README shows, by their name there."""


def read_results() -> dict[tuple[str, ...], Figures]:
    """Read results.csv: values over seeds by protocol, cell, test, output, class and metric."""
    results: dict[tuple[str, ...], Figures] = {}
    with (STUDY / "results.csv").open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key = tuple(line[column] for column in ("protocol", "cell", "test", "output", "class", "metric"))
            results.setdefault(key, Figures()).values[int(line["seed"])] = float(line["value"])
    return results


RESULTS = read_results()
ABLATION = Ablation(**load_yaml(STUDY / "protocols.yaml")["fourth"])


def figures(
    cell: str, test: str, metric: str, output: str = "", class_name: str = "", protocol: str = "fourth"
) -> Figures:
    """Return one metric of a cell over its seeds; empty if it was not measured."""
    return RESULTS.get((protocol, cell, test, output, class_name, metric), Figures())


def outputs(cell: str, test: str, protocol: str = "fourth") -> dict[str, Figures]:
    """Return mIoU by output, the cell's own (the ensemble or the single network) last."""
    found = {name: figures(cell, test, "miou", name, protocol=protocol)
             for name in ("top", "bottom", "ensemble", "network")}  # fmt: skip
    return {name: each for name, each in found.items() if each.values}


def restore(runs: Path) -> None:
    """Write the records of the study's runs that `crosscoop ablate --tables` reads."""
    classes = list(dict.fromkeys(key[4] for key in RESULTS if key[4]))
    for cell in ABLATION.all_cells(runs):

        def value(test: str, metric: str, output: str = "", class_name: str = "", cell: Cell = cell) -> float:
            return figures(cell.name, test, metric, output, class_name).values[cell.seed]

        costs = {metric: int(value("training", metric)) for metric in ("parameters", "macs")}
        write_json(cell.folder / "cost.json", {**costs, "seconds": value("training", "seconds")})
        for test, folder in cell.test_folders.items():
            miou = {name: {"miou": value(test, "miou", name)} for name in outputs(cell.name, test)}
            iou = {name: value(test, "iou", list(miou)[-1], name) for name in classes}
            write_json(folder / "metrics.json", {"protocol": MEASURED[test], "outputs": miou, "iou_per_class": iou})
            if "ensemble" in miou:
                shares = {
                    "only_top": value(test, "only_right", "top"),
                    "only_bottom": value(test, "only_right", "bottom"),
                    "neither": value(test, "neither_right"),
                    "saved": value(test, "saved", "ensemble"),
                    "lost": value(test, "lost", "ensemble"),
                    "disagree": value(test, "disagree"),
                }
                write_json(folder / "branches.json", {"all": shares})


with TemporaryDirectory() as folder:
    restore(Path(folder))
    SUMMARIES = {test: summarise(ABLATION, Path(folder), test) for test in ABLATION.tests}
PAIRS = [row.name for row in SUMMARIES[FULL].rows if row.branches]


def claims(test: str) -> Table:
    """Return differences in mIoU, beside those of the paper's tables 1 and 5."""
    rows = SUMMARIES[test].rows
    spread, freedom = residual([row.own for row in rows])
    measured = {row.name: row.own for row in rows}
    for row in rows:
        measured |= {f"{row.name}/{output}": each for output, each in row.outputs.items()}
    table = [["difference", "paper, VOC", "here", "95 % interval", "p"]]
    for what, paper, weights in CONTRASTS:
        difference = weigh(measured, weights)
        error = spread * sqrt(sum(weight**2 for weight in weights.values()) / len(difference.values))
        reach = t.ppf(0.975, freedom) * error
        ends = [f"{100 * (difference.mean + end):+.1f}" for end in (-reach, reach)]
        table.append([what, paper, percent(difference, signed=True), " to ".join(ends), p_value(difference)])
    return table


def weigh(measured: dict[str, Figures], weights: dict[str, float]) -> Figures:
    """Sum rows by weight, seed by seed."""
    seeds = set.intersection(*(set(measured[name].values) for name in weights))
    return Figures(
        {seed: sum(weight * measured[name].values[seed] for name, weight in weights.items()) for seed in seeds}
    )


def residual(rows: list[Figures]) -> tuple[float, int]:
    """Return standard deviation and degrees of freedom of the residual after removing row and seed means."""
    seeds = set.intersection(*(set(row.values) for row in rows))
    table = np.array([[row.values[seed] for seed in seeds] for row in rows])
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (len(rows) - 1) * (len(seeds) - 1)
    return float(np.sqrt((left**2).sum() / freedom)), freedom


def accuracies() -> Table:
    """Return pixel accuracy of each pair's outputs, and of the best possible choice between the branches."""
    names = ("top", "bottom", "ensemble")
    table = [["", *names, "top or bottom", "ensemble's shortfall"]]
    for pair in PAIRS:
        right = [figures(pair, FULL, "pixel_accuracy", name) for name in names]
        neither = figures(pair, FULL, "neither_right")
        either = Figures({seed: 1 - value for seed, value in neither.values.items()})
        table.append([pair, *map(percent, [*right, either, either.minus(right[-1])])])
    return table


def disagreements() -> Table:
    """Return the pixels of each class that only one branch labels correctly, without and with cooperation."""
    shares = {
        "only top right": ("only_right", "top"),
        "only bottom right": ("only_right", "bottom"),
        "saves": ("saved", "ensemble"),
        "loses": ("lost", "ensemble"),
    }
    pairs = ("none", "cross_c1_c2")
    table = [["class", *(f"`{pair}`: {words}" for pair in pairs for words in shares)]]
    for name in SUMMARIES[FULL].classes:
        found = [figures(pair, FULL, *share, name) for pair in pairs for share in shares.values()]
        table.append([name, *map(percent, found)])
    return table


def learning_rates(protocol: str, chosen: str, trainings: list[tuple[str, int]]) -> Table:
    """Return mIoU on val of the two single networks after their last epoch, for seed 0."""
    table = [["learning rate (backbone; tenfold for heads)", "epochs", "MobileNetV2", "ResNet-50 V2", "mean"]]
    for rate, epochs in trainings:
        found = []
        for network in (MOBILE, RESNET):
            cell = network if epochs == 32 else f"{network}, lr {rate}, {epochs} epochs"  # 32: a cell of the study
            miou = figures(cell, f"val after {epochs} epochs", "miou", "network", protocol=protocol)
            found.append(miou.values.get(0))
        cells = ["" if value is None else f"{100 * value:.1f}" for value in found]
        mean = "" if None in found else f"{50 * sum(found):.1f}"
        bold = "**" * (rate == chosen and epochs == 24)
        table.append([f"{bold}{rate}{bold}", str(epochs), *cells, mean])
    return table


def seed0(cell: str, protocol: str, test: str = FULL) -> str:
    """Format mIoU of every output in %, for seed 0."""
    return " / ".join(f"{100 * each.values[0]:.2f}" for each in outputs(cell, test, protocol).values())


def third() -> Table:
    """Return the third protocol's pairs beside their single networks."""
    single = [seed0(cell, "fourth") for cell in (MOBILE, RESNET, SUM)]
    return [
        ["", "top / bottom / ensemble"],
        [f"{MOBILE}, {RESNET}, sum of their logits", " / ".join(single)],
        ["`none`, one norm", seed0("none", "third")],
        ["`cross_c1_c2`, `add`, one norm", seed0("cross_c1_c2", "third")],
    ]


def second() -> Table:
    """Return the second protocol's cells."""
    cells = {MOBILE: MOBILE, RESNET: RESNET, "`none`": "none", "`cross_c1_c2`, `add`": "cross_c1_c2"}
    return [["", "top / bottom / ensemble"], *([words, seed0(cell, "second")] for words, cell in cells.items())]


def first() -> Table:
    """Return the first protocol's cells."""
    cells = {MOBILE: MOBILE, RESNET: RESNET, "`none`": "none", "`cross_c1_c2`, `add`": "cross_c1_c2", CONTROL: CONTROL}
    table = [
        [
            "",
            *(f"{size}: top / bottom / ensemble" for size in ("training resolution", "full resolution")),
            "branches disagree at full resolution (%)",
        ]
    ]
    for words, cell in cells.items():
        disagree = figures(cell, FULL, "disagree", protocol="first").values.get(0)
        share = number(disagree and 100 * disagree, "{:.1f}")
        table.append([words, seed0(cell, "first", HALF), seed0(cell, "first"), share])
    return table


def readme() -> Table:
    """Return the most relevant cells at both resolutions."""
    full, half = ({row.name: row for row in SUMMARIES[test].rows} for test in (FULL, HALF))
    table = [["network", *RESOLUTIONS.values(), "branches disagree (% of pixels)", "parameters",
              "multiply-adds"]]  # fmt: skip
    for words, name in README_ROWS.items():
        row = full[name]
        costs = [f"{row.parameters / 1e6:.2f} M", f"{row.macs / 1e9:.2f} G"]
        table.append([words, *map(percent, (row.own, half[name].own, row.branches.get("disagree"))), *costs])
    return table


def shown(layout: Callable[[Summary], Table], test: str, what: str) -> tuple[Table, str]:
    """Return one of `crosscoop ablate`'s tables and its caption."""
    return layout(SUMMARIES[test]), SUMMARIES[test].caption(what)


TABLES = {
    "full size": shown(by_row, FULL, MIOU + NOTES),
    "half size": shown(by_row, HALF, MIOU + NOTES),
    "classes": shown(by_class, FULL, "IoU in %"),
    "branches": shown(by_branch, FULL, SHARES),
    "claims, full size": (claims(FULL), CLAIMS),
    "claims, half size": (claims(HALF), CLAIMS),
    "accuracies": (accuracies(), ACCURACIES),
    "disagreements": (disagreements(), DISAGREEMENTS),
    "learning rate": (
        learning_rates("fourth", "0.04", [("0.02", 24), ("0.04", 24), ("0.08", 24), ("0.04", 32), ("0.04", 48)]),
        "",
    ),
    "learning rate, second protocol": (
        learning_rates(
            "second", "0.02", [("0.01", 24), ("0.02", 24), ("0.04", 24), ("0.01", 48), ("0.02", 32), ("0.02", 48)]
        ),
        "",
    ),
    "third protocol": (third(), ""),
    "second protocol": (second(), ""),
    "first protocol": (first(), ""),
    "README": (readme(), ""),
}
"""Table and caption by the name in the page's mark."""


def rebuild(page: str) -> str:
    """Replace the text between `<!-- table: NAME -->` and `<!-- end of table -->` by that table."""

    def table(mark: re.Match[str]) -> str:
        lines, caption = TABLES[mark["name"]]
        text = markdown(lines, "", "").split("\n\n")[1]
        caption = fill(caption, 120, break_on_hyphens=False)
        return "\n\n".join(filter(None, [f"<!-- table: {mark['name']} -->", text, caption, "<!-- end of table -->"]))

    return re.sub(r"<!-- table: (?P<name>.+?) -->.*?<!-- end of table -->", table, page, flags=re.DOTALL)


def main(folder: Path) -> None:
    """Write all tables to a folder, and rewrite the pages' tables and plots."""
    for test, summary in SUMMARIES.items():
        write_tables(replace(summary, test=RESOLUTIONS[test]), folder)
    for name in ("table", "classes", "branches"):
        shutil.copyfile(folder / f"{name}_{slug(RESOLUTIONS[FULL])}.png", STUDY / f"{name}.png")
    for page in PAGES:
        page.write_text(rebuild(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if sys.argv[1:] else temporary))

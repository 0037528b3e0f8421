"""docs/benchmarks.md, from the results."""

import json
from pathlib import Path

from benchmarks.measure import Row

SECTIONS = {
    "metric": "Mean IoU",
    "pipelines": "Training pipelines",
    "training": "Training steps",
    "start": "Start",
}
"""The comparisons in order, by the name of their module."""


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def amount(quartiles: list[float], row: Row) -> str:
    """A median with its unit: items per second, milliseconds, or what the row says."""
    median = quartiles[1]
    if row["items"]:
        return f"{number(row['items'] / median)} / s"
    if row["unit"] == "s":
        return f"{number(median)} s" if median >= 1 else f"{number(1000 * median)} ms"
    return f"{number(median)} {row['unit']}"


def line(row: Row) -> str:
    """A row as a line of a table."""
    low, high = row["quartiles"]
    ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    if row["target"] is None:
        target = ""
    else:
        target = f"at {'least' if row['faster'] else 'most'} {row['target']:g}: {'yes' if row['reached'] else '**no**'}"
    ours, theirs = (amount(row[side], row) for side in ("ours", "theirs"))
    what = "times as fast" if row["faster"] else "ours : theirs"
    return f"| {row['what']} | {row['against']} | {ours} | {theirs} | {ratio} {what} | {target} |"


def write(a, b):
    pass

"""Results as tables for people and records for programs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from crosscoop.evaluation.scores import PER_CLASS, Scores
from crosscoop.network.outputs import main_output


def to_record(stage: str, scores: Mapping[str, Scores], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of `metrics.json`: the metrics of the main output (the ensemble), then those of each output.

    Args:
        stage: The command: fit, validate, test or score.
        scores: The scores by output name.
        protocol: How they were measured.
    """
    outputs = {name: score.to_dict() for name, score in scores.items()}
    return {
        "stage": stage,
        **outputs[main_output(outputs)],
        "num_images": protocol["num_images"],
        "protocol": dict(protocol),
        "outputs": outputs,
    }


def confusion_record(stage: str, scores: Mapping[str, Scores], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of `confusion.json`: pixels by true class (row) and predicted class (column) of each output.

    Args:
        stage: The command: validate or test.
        scores: The scores by output name.
        protocol: How they were measured.
    """
    class_names = list(next(iter(scores.values())).class_names)
    outputs = {name: score.counts.tolist() for name, score in scores.items()}
    return {"stage": stage, "protocol": dict(protocol), "class_names": class_names, "outputs": outputs}


def describe(protocol: Mapping[str, Any]) -> str:
    """Describe a protocol in one line, to be shown beside every metric."""
    official = protocol["official_num_images"]
    count = f"{protocol['num_images']} images"
    if official not in (None, protocol["num_images"]):
        count += f" (official: {official})"
    return f"{protocol['dataset']} {protocol['split']}, {count}, {protocol['evaluation']}, {protocol['inference']}"


def figures_of(output: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the metrics over all classes in an output's record, the built-in ones first."""
    return {key: value for key, value in output.items() if value is None or isinstance(value, (int, float))}


def per_class_of(output: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the metrics per class in an output's record, by name and class, IoU first."""
    return {key.removesuffix(PER_CLASS): value for key, value in output.items() if key.endswith(PER_CLASS)}


def in_words(figure: str) -> str:
    """Return the name of a metric as tables show it."""
    return re.sub(r"\b(m?)iou\b", r"\1IoU", figure.replace("_", " "))


def to_table(record: Mapping[str, Any]) -> Table:
    """Return a table of the metrics of every output (%), with the protocol below."""
    outputs: Mapping[str, Mapping[str, Any]] = record["outputs"]
    main = outputs[main_output(outputs)]
    caption = f"{describe(record['protocol'])}; metrics in %"
    if record["absent_classes"]:
        caption += f"; absent and left out of the mean: {', '.join(record['absent_classes'])}"
    table = Table("class", caption=caption, title=f"crosscoop {record['stage']}")
    for name in outputs:
        table.add_column(name, justify="right")
    iou, *further = per_class_of(main)
    for figure in (iou, *further):
        if figure in further:
            table.add_section()
            table.add_row(in_words(figure), style="bold")
        for class_name in main[figure + PER_CLASS]:
            table.add_row(class_name, *(percent(output[figure + PER_CLASS][class_name]) for output in outputs.values()))
    table.add_section()
    for figure in figures_of(main):
        values = (percent(output[figure]) for output in outputs.values())
        table.add_row(in_words(figure), *values, style="bold" if figure == "miou" else None)
    return table


NEAR_OUTLINES = "near outlines"
ALL = "all"
"""Rows of `branch_record` over all classes: of the pixels near the outlines in the masks, and of all pixels."""


def branch_record(
    counts: tuple[Tensor, Tensor], near: tuple[Tensor, Tensor], class_names: Sequence[str], branches: Sequence[str]
) -> dict[str, Any]:
    """Return how the branches differ, per class, near outlines and everywhere, as shares of the labelled pixels.

    `only_NAME`: only that branch is right. `neither`: all branches are wrong. `saved`: the ensemble is right where at
    most one branch is. `lost`: the ensemble is wrong where at least one branch is right. `disagree`: the branches do
    not all predict the same class.

    Args:
        counts: Pixels as from `BranchComparison.compute`.
        near: The same of the pixels near outlines.
        class_names: One name per class.
        branches: The branches' names.
    """
    rows = {}
    for name, case, differ in [
        *zip(class_names, *counts, strict=True),
        *((name, right.sum(0), differ.sum()) for name, (right, differ) in ((NEAR_OUTLINES, near), (ALL, counts))),
    ]:
        total = int(case.sum())
        pixels = {
            **{f"only_{branch}": count for branch, count in zip(branches, case[1:-1].sum(1), strict=True)},
            "neither": case[0].sum(),
            "saved": case[:-1, 1].sum(),
            "lost": case[1:, 0].sum(),
            "disagree": differ,
        }
        rows[name] = {"pixels": total, **{key: int(count) / total if total else None for key, count in pixels.items()}}
    return rows


def compared_branches(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the branches that a row of `branch_record` compares."""
    return [key.removeprefix("only_") for key in row if key.startswith("only_")]


def branch_shares(branches: Sequence[str]) -> dict[str, str]:
    """Return the table headings of the shares of `branch_record`, by key."""
    return {
        **{f"only_{branch}": f"only {branch} right" for branch in branches},
        "neither": f"{none_of(branches)} right",
        "saved": "ensemble saves",
        "lost": "ensemble loses",
        "disagree": "disagree",
    }


def none_of(branches: Sequence[str]) -> str:
    """Return the word for none of the branches."""
    return "neither" if len(branches) == 2 else "none"


def branch_table(record: Mapping[str, Any]) -> Table:
    """Return a table of `branch_record` (%)."""
    branches = compared_branches(record[ALL])
    title = f"{', '.join(branches[:-1])} and {branches[-1]}"
    table = Table("class", title=title, caption="% of the labelled pixels of each class")
    shares = branch_shares(branches)
    for heading in shares.values():
        table.add_column(heading, justify="right")
    for name, row in record.items():
        if name == NEAR_OUTLINES:
            table.add_section()
        table.add_row(name, *(percent(row[key]) for key in shares))
    return table


def percent(share: float | None) -> str:
    """Format a share of 1 in %; a dash if it is missing."""
    return "-" if share is None else f"{100 * share:.2f}"

"""Results as people print them and programs read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from crosscoop.evaluation.metrics import Scores


def to_record(stage: str, scores: Mapping[str, Scores], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics.json` holds: the last output's figures (the ensemble's) on top, each output's below.

    Args:
        stage: What was run: fit, validate or test.
        scores: The scores by output name, the ensemble last.
        protocol: How they were measured.
    """
    outputs = {name: score.to_dict() for name, score in scores.items()}
    return {
        "stage": stage,
        **list(outputs.values())[-1],
        "num_images": protocol["num_images"],
        "protocol": dict(protocol),
        "outputs": outputs,
    }


def confusion_record(stage: str, scores: Mapping[str, Scores], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What `confusion.json` holds: per output the pixels by true class (row) and predicted class (column).

    Args:
        stage: What was run: validate or test.
        scores: The scores by output name.
        protocol: How they were measured.
    """
    class_names = list(next(iter(scores.values())).class_names)
    outputs = {name: score.counts.tolist() for name, score in scores.items()}
    return {"stage": stage, "protocol": dict(protocol), "class_names": class_names, "outputs": outputs}


def describe(protocol: Mapping[str, Any]) -> str:
    """A protocol in words, to stand beside every figure."""
    official = protocol["official_num_images"]
    count = f"{protocol['num_images']} images"
    if official not in (None, protocol["num_images"]):
        count += f" (official: {official})"
    return f"{protocol['dataset']} {protocol['split']}, {count}, {protocol['evaluation']}, {protocol['inference']}"


def to_table(record: Mapping[str, Any]) -> Table:
    """IoU per class and mIoU of every output in per cent, with the protocol below."""
    outputs = record["outputs"]
    caption = f"{describe(record['protocol'])}; in per cent"
    if record["absent_classes"]:
        caption += f"; absent and left out of the mean: {', '.join(record['absent_classes'])}"
    table = Table("class", caption=caption, title=f"crosscoop {record['stage']}")
    for name in outputs:
        table.add_column(name, justify="right")
    for class_name in record["iou_per_class"]:
        table.add_row(class_name, *(percent(o["iou_per_class"][class_name]) for o in outputs.values()))
    table.add_section()
    table.add_row("mIoU", *(percent(output["miou"]) for output in outputs.values()), style="bold")
    if "boundary_miou" in record:
        table.add_row("boundary mIoU", *(percent(output["boundary_miou"]) for output in outputs.values()))
    for key in ("pixel_accuracy", "mean_class_accuracy", "frequency_weighted_iou"):
        table.add_row(
            key.replace("_", " ").replace("iou", "IoU"), *(percent(output[key]) for output in outputs.values())
        )
    return table


BRANCH_SHARES = {
    "only_top": "only top right",
    "only_bottom": "only bottom right",
    "neither": "neither right",
    "saved": "ensemble saves",
    "lost": "ensemble loses",
    "disagree": "disagree",
}
"""The shares of `branch_record` in words."""


def branch_record(right: Tensor, disagreeing: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
    """What the branches do differently, per class and over all, as shares of the labelled pixels.

    `only_top` and `only_bottom`: just that branch is right. `saved`: the ensemble is right where at most
    one branch is; `lost`: it is wrong where at least one branch is right. `disagree`: the branches name
    different classes.

    Args:
        right: Pixels `(num_classes, 2, 2, 2)`, see `BranchComparison`.
        disagreeing: Pixels `(num_classes,)`, see `BranchComparison`.
        class_names: One name per class.
    """
    rows = {}
    for name, case, differ in [
        *zip(class_names, right, disagreeing, strict=True),
        ("all", right.sum(0), disagreeing.sum()),
    ]:
        total = int(case.sum())
        pixels = {
            "only_top": case[1, 0].sum(),
            "only_bottom": case[0, 1].sum(),
            "neither": case[0, 0].sum(),
            "saved": case[0, 1, 1] + case[1, 0, 1] + case[0, 0, 1],
            "lost": case[0, 1, 0] + case[1, 0, 0] + case[1, 1, 0],
            "disagree": differ,
        }
        rows[name] = {"pixels": total, **{key: int(count) / total if total else None for key, count in pixels.items()}}
    return rows


def branch_table(record: Mapping[str, Any]) -> Table:
    """`branch_record` in per cent."""
    table = Table("class", title="top and bottom", caption="per cent of the class's labelled pixels")
    for heading in BRANCH_SHARES.values():
        table.add_column(heading, justify="right")
    for name, row in record.items():
        if name == "all":
            table.add_section()
        table.add_row(name, *(percent(row[key]) for key in BRANCH_SHARES))
    return table


def percent(share: float | None) -> str:
    """A share of 1 in per cent; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.2f}"

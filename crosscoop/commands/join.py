"""`crosscoop join`: trained networks as one, with an ensemble and a cascade fitted on val."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from crosscoop.checkpoints.join import joined
from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.data.loaders import open_data
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.combine import Operation, fit, operations, sample_pixels
from crosscoop.files import replacing
from crosscoop.network.cost import branch_macs
from crosscoop.network.outputs import branch_names
from crosscoop.version import __version__


def join(
    runs: Sequence[str],
    output: str | None = None,
    branch: str | None = None,
    ensemble: str = "sum",
    cascade_loss: float | None = None,
    cascade_cost: float | None = None,
    split: str | None = None,
) -> None:
    """Join trained networks in one, without training: crosscoop join runs/a runs/b --output runs/pair.

    The branches of all runs become those of one network without connections, which test, predict, export and push take
    like any other. A single run keeps its network, connections included, and gets another ensemble or cascade.

    What has to be fitted is fitted on the validation split: the ensembles weighted and most_confident, and the
    cascade's confidence. A table shows what cascades would do there. A single branch can be fitted, too, by weighted.

    Args:
        runs: Folders of the runs, whose best.ckpt is read, or checkpoints.
        output: The new run's folder.
        branch: Of a single run, keep this branch alone (top, bottom, branch0, ...).
        ensemble: How the branches' logits become one prediction: their sum, mean_probability, weighted (a sum with
            weights per class and branch and a bias per class), most_confident (at each pixel the most confident branch
            after temperature scaling), or the import path of a `crosscoop.Ensemble`.
        cascade_loss: Let the cheapest branch answer where it is confident enough that mIoU on val falls by at most so
            many points, at the lowest cost.
        cascade_cost: The same for a mean cost of at most this share of the whole network's multiply-adds, at the
            highest mIoU.
        split: The split to fit on; by default the data set's val_split.

    Raises:
        CrosscoopError: The runs cannot be joined, the output exists, or no cascade reaches the target.
    """
    if output is None:
        raise CrosscoopError("join: got no output, expected --output FOLDER for the new run.")
    path = Path(output) / "best.ckpt"
    if path.parent.exists():
        raise CrosscoopError(f"--output: got {output}, which exists, expected a new folder.")
    if cascade_loss is not None and cascade_cost is not None:
        raise CrosscoopError("got both --cascade-loss and --cascade-cost, expected at most one. Omit one of them.")
    if branch is not None and len(runs) > 1:
        raise CrosscoopError(f"--branch: got {branch} of {len(runs)} runs, expected a single run. Give one of them.")
    network, content = joined([find(run) for run in runs], ensemble, branch)
    names = branch_names(len(network.branches))
    cascade = cascade_loss is not None or cascade_cost is not None
    if cascade and len(names) < 2:
        raise CrosscoopError(
            "--cascade-loss, --cascade-cost: got a single branch, expected two or more. Give further runs, or omit the "
            "cascade."
        )
    if cascade or list(network.ensemble.parameters()):
        data = open_data(content["config"])
        data.prepare_data()
        chosen = split or data.dataset.val_split
        images = data.evaluation_set(chosen)
        content["fitted"] = data.protocol(chosen, len(images))
        if list(network.ensemble.parameters()):
            before, after = fit(network.ensemble, *sample_pixels(network, images))
            print(f"Ensemble {ensemble}: loss {before:.4f} before the fit, {after:.4f} after, on {len(images)} images.")
        if cascade:
            height, width = images[0]["image"].shape[-2:]
            costs = branch_macs(network, height, width)
            if costs is None:
                raise CrosscoopError("the multiply-adds of a branch cannot be counted, so that none is the cheapest.")
            first = costs.index(min(costs))
            curve = operations(network, first, images, content["class_names"])
            best = choose(curve, costs, first, cascade_loss, cascade_cost)
            Console().print(to_table(curve, costs, first, best, names[first]))
            content["config"]["network"]["cascade"] = {"branch": names[first], "confidence": best.confidence}
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    with replacing(path) as temporary:
        torch.save(
            {
                "state_dict": weights, "crosscoop": {**content, "version": __version__}, "epoch": 0, "global_step": 0,
                "pytorch-lightning_version": version("pytorch-lightning"), "callbacks": {}, "loops": None,
            },
            temporary,
        )  # fmt: skip
    print(f"{path}: {', '.join(names)}. To measure it: crosscoop test --run {output}")


def find(run: str) -> Path:
    """Return the checkpoint that a folder or file names."""
    return find_checkpoint(None, run) if Path(run).is_dir() else find_checkpoint(run, None)


def cost(operation: Operation, costs: Sequence[int], first: int) -> float:
    """Return a cascade's mean cost as a share of the whole network's."""
    return (costs[first] + operation.sent * (sum(costs) - costs[first])) / sum(costs)


def choose(
    curve: Sequence[Operation],
    costs: Sequence[int],
    first: int,
    cascade_loss: float | None,
    cascade_cost: float | None,
) -> Operation:
    """Return the cascade that reaches a target.

    Args:
        curve: What cascades do, see `operations`.
        costs: Multiply-adds of the branches.
        first: The index of the branch that answers first.
        cascade_loss: Largest loss of mIoU against the whole network, in points.
        cascade_cost: Largest mean cost, as a share of the whole network's.

    Raises:
        CrosscoopError: None of them reaches it.
    """
    if cascade_loss is not None:
        least = curve[-1].miou - cascade_loss / 100
        return min((each for each in curve if each.miou >= least), key=lambda each: each.sent)
    assert cascade_cost is not None
    cheap = [each for each in curve if cost(each, costs, first) <= cascade_cost]
    if not cheap:
        raise CrosscoopError(
            f"--cascade-cost: got {cascade_cost:g}, expected at least {costs[first] / sum(costs):.2f}, the share of "
            "the cheapest branch."
        )
    return max(cheap, key=lambda each: each.miou)


def to_table(curve: Sequence[Operation], costs: Sequence[int], first: int, best: Operation, name: str) -> Table:
    """Return a table of a curve at every tenth of the images, and of the chosen operation."""
    table: Any = Table(title=f"Cascade: {name} answers first")
    for heading in ("confidence", "sent on (%)", "cost (%)", "mIoU (%)"):
        table.add_column(heading, justify="right")
    step = max((len(curve) - 1) // 10, 1)
    for each in sorted({*curve[::step], curve[-1], best}, key=lambda each: each.sent):
        share = 100 * cost(each, costs, first)
        row = [f"{each.confidence:.4f}", f"{100 * each.sent:.1f}", f"{share:.1f}", f"{100 * each.miou:.2f}"]
        table.add_row(*row, style="bold" if each is best else None)
    return table  # type: ignore[no-any-return]

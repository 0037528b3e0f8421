"""The cost of the network, printed before training."""

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from crosscoop.network.cost import PartCost, cost_by_part


class NetworkSummary(pl.Callback):
    """Table of the parameters and multiply-adds of each backbone, each head and the exchanges.

    Args:
        crop_size: Side of the training crops, in pixels, for which multiply-adds are counted.
    """

    def __init__(self, crop_size: int = 513) -> None:
        self.crop_size = crop_size

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table."""
        costs = cost_by_part(pl_module.network, self.crop_size, self.crop_size)  # type: ignore[arg-type]
        Console().print(to_table(costs, self.crop_size))


def to_table(costs: dict[str, PartCost], side: int) -> Table:
    """Return a table of the costs of a network's parts, with the complete network last.

    Args:
        costs: Costs by part name.
        side: Side of the crop in pixels.
    """
    counted = all(cost.macs is not None for cost in costs.values())
    caption = None if counted else "multiply-adds: not counted, as the network does not run on torch's meta device"
    table = Table(caption=caption)
    table.add_column("network")
    table.add_column("parameters", justify="right")
    if counted:
        table.add_column(f"multiply-adds at {side} x {side}", justify="right")
    for name, cost in costs.items():
        if name == list(costs)[-1]:
            table.add_section()
        amounts = [f"{cost.parameters / 1e6:.2f} M", f"{(cost.macs or 0) / 1e9:.2f} G"]
        table.add_row(name, *amounts[: 1 + counted])
    return table

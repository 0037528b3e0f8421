"""Supervised learning, the paper's objective."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import CooperativeNetwork
from crosscoop.network.layers import ConvNormAct, resize
from crosscoop.network.outputs import branch_names
from crosscoop.training.objective.contract import Objective


class Supervised(Objective):
    """Supervised learning of every branch: the sum of the branches' losses (the paper's equation 1).

    Args:
        auxiliary: Exchange points at which every branch gets an auxiliary head, such as connection1, the backbone's
            output. It is trained with the branch, and left out of inference and export.
        auxiliary_weight: Factor on the loss of an auxiliary head.
        auxiliary_channels: Channels within an auxiliary head.

    Raises:
        CrosscoopError: The weight is not above 0, or there is not at least one channel.
    """

    heads: Mapping[str, Mapping[str, nn.Module]]

    def __init__(
        self, auxiliary: Sequence[str] = (), auxiliary_weight: float = 0.4, auxiliary_channels: int = 256
    ) -> None:
        super().__init__()
        if not 0 < auxiliary_weight < float("inf"):
            raise CrosscoopError(f"objective.auxiliary_weight: got {auxiliary_weight}, expected a number above 0.")
        if auxiliary_channels < 1:
            raise CrosscoopError(f"objective.auxiliary_channels: got {auxiliary_channels}, expected 1 or more.")
        self.points = list(auxiliary)
        self.auxiliary_weight, self.auxiliary_channels = auxiliary_weight, auxiliary_channels

    def build(self, network: CooperativeNetwork, num_classes: int) -> None:
        """Create the auxiliary heads.

        Args:
            network: The network that is trained.
            num_classes: Channels of the logits.
        """
        self.heads = nn.ModuleDict()  # type: ignore[assignment]
        for name, branch in zip(branch_names(len(network.branches)), network.branches, strict=True):
            points = [point for point in branch.points if point.name in self.points]
            self.heads[name] = nn.ModuleDict(  # type: ignore[index]
                {point.name: auxiliary_head(point.channels, self.auxiliary_channels, num_classes) for point in points}
            )

    def forward(
        self, logits: Mapping[str, Tensor], mask: Tensor, maps: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Return each branch's loss by its name, and those of its auxiliary heads by branch and point.

        Args:
            logits: Each branch's, by its name, `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
            maps: Maps `(N, channels, h, w)` by point name and branch name.
        """
        losses = {branch: self.loss(each, mask) for branch, each in logits.items()}
        for point, own in (maps or {}).items():
            for branch, feature in own.items():
                auxiliary = resize(self.heads[branch][point](feature), mask.shape[-2:])
                losses[f"{branch}_{point}"] = self.auxiliary_weight * self.loss(auxiliary, mask)
        return losses

    def branch_parameters(self, branch: str) -> Iterable[nn.Parameter]:
        """Return the parameters of a branch's auxiliary heads.

        Args:
            branch: The branch's name.
        """
        heads: nn.Module = self.heads[branch]  # type: ignore[assignment]
        return heads.parameters()


def auxiliary_head(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    """Create a head that turns a map into logits of the map's size, like mmsegmentation's FCN head.

    Args:
        in_channels: Channels of the map.
        channels: Channels within.
        num_classes: Channels of the logits.
    """
    return nn.Sequential(
        ConvNormAct(in_channels, channels, 3),
        nn.Dropout2d(0.1),  # mmsegmentation's rate
        nn.Conv2d(channels, num_classes, 1),
    )

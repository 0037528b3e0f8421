"""Objectives: the logits of all branches and the mask in, named losses out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import CooperativeNetwork
from crosscoop.network.layers import ConvNormAct, resize
from crosscoop.network.outputs import branch_names
from crosscoop.training.loss import Loss


class Objective(nn.Module, ABC):
    """Contract of an objective: all branches' logits and the mask in, named losses out. Subclass it to define your own.

    The sum of the losses is optimised. Parameters of an objective are trained with the heads and saved in the
    checkpoint; inference and export ignore them.

    Attributes:
        loss: The loss of one branch, `model.loss`; set before `build` is called.
        points: Names of the exchange points whose maps it needs. `forward` then also receives `maps`: by point name and
            branch name, `(N, channels, h, w)`, after the exchange.
    """

    loss: Loss
    points: Sequence[str] = ()

    def build(self, network: CooperativeNetwork, num_classes: int) -> None:
        """Create modules that depend on the network, such as auxiliary heads.

        Args:
            network: The network that is trained.
            num_classes: Channels of the logits.
        """

    @abstractmethod
    def forward(self, logits: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Return scalar losses by name; each is logged as `train/loss_NAME`.

        Args:
            logits: Each branch's, by its name, `(N, num_classes, H, W)`.
            mask: `(N, H, W)` class indices, `VOID` (255) where there is no label.
        """

    def branch_parameters(self, branch: str) -> Iterable[nn.Parameter]:
        """Return the parameters that belong to one branch, as part of which gradient clipping counts them.

        Args:
            branch: The branch's name.
        """
        return ()


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


def check_objective(objective: Objective, loss: Loss, network: CooperativeNetwork) -> None:
    """Check that objective and loss are initialised, and that the network has the requested exchange points.

    Raises:
        CrosscoopError: A constructor does not call super().__init__(), or the network lacks a point.
    """
    for option, module in (("loss", loss), ("objective", objective)):
        if "_modules" not in vars(module):
            raise CrosscoopError(
                f"model.{option}: the constructor of {type(module).__name__} does not call super().__init__(). Call it "
                "first."
            )
    known = list(dict.fromkeys(point.name for branch in network.branches for point in branch.points))
    if unknown := [point for point in objective.points if point not in known]:
        raise CrosscoopError(
            f"model.objective: got the exchange point {unknown[0]!r} from {type(objective).__name__}, expected points "
            f"that the network has: {', '.join(known)}."
        )


def sum_losses(objective: Objective, losses: object) -> Tensor:
    """Return the sum of an objective's losses.

    Raises:
        CrosscoopError: They are not a dict of named scalars, or none of them can be optimised.
    """
    name = type(objective).__name__
    remedy = 'Return named scalar losses from forward, such as {"top": top_loss, "bottom": bottom_loss}.'
    if not isinstance(losses, Mapping) or not losses:
        got = "no losses" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
        raise CrosscoopError(f"model.objective: got {got} from {name}, expected a dict of losses. {remedy}")
    for key, loss in losses.items():
        if not isinstance(key, str) or not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CrosscoopError(f"model.objective: got {got} as {key!r} from {name}, expected a scalar. {remedy}")
    scalars: list[Tensor] = list(losses.values())
    total: Tensor = sum(scalars[1:], scalars[0])
    if not total.requires_grad:
        raise CrosscoopError(
            f"model.objective: got losses without gradients from {name} ({', '.join(losses)}), expected one that "
            "depends on the logits. Do not detach all of them."
        )
    return total

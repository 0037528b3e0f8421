"""The contract of an objective, and what is checked of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network import CooperativeNetwork
from crosscoop.training.loss import Loss


class Objective(nn.Module, ABC):
    """Contract of an objective: all branches' logits and the mask in, named losses out. Subclass it to define your own.

    The sum of the losses is optimised. Parameters of an objective are trained with the heads and saved in the
    checkpoint; inference and export ignore them.

    Attributes:
        loss: The loss of one branch, `model.loss`; set before `build` is called.
        points: Names of the exchange points whose maps it needs. `forward` then also receives `maps`: by point name and
            branch name, `(N, channels, h, w)`, after the exchange.
        teachers: Whether branches learn from predictions. `forward` then also receives `teachers`: the logits of each
            branch, without gradients, of the images' weak views where `data.strong` or `data.cutmix` makes views.
    """

    loss: Loss
    points: Sequence[str] = ()
    teachers: bool = False

    def build(self, network: CooperativeNetwork, num_classes: int) -> None:
        """Create modules that depend on the network, such as auxiliary heads.

        Args:
            network: The network that is trained.
            num_classes: Channels of the logits.
        """

    @abstractmethod
    def forward(self, logits: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Return scalar losses by name; each is logged as `train/loss/NAME`.

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
    own = getattr(objective, "loss", None)
    name = type(objective).__name__ + (f" with the loss {type(own).__name__}" if own is not None else "")
    remedy = 'Return named scalar losses from forward, such as {"top": top_loss, "bottom": bottom_loss}.'
    if not isinstance(losses, Mapping) or not losses:
        got = "no losses" if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
        raise CrosscoopError(f"model.objective: got {got} from {name}, expected a dict of losses. {remedy}")
    for key, loss in losses.items():
        if not isinstance(key, str) or not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise CrosscoopError(
                f"model.objective: got {got} as {key!r} from {name}, expected a scalar tensor. {remedy}"
            )
    scalars: list[Tensor] = list(losses.values())
    total: Tensor = sum(scalars[1:], scalars[0])
    if not total.requires_grad:
        raise CrosscoopError(
            f"model.objective: got losses without gradients from {name} ({', '.join(losses)}), expected one that "
            "depends on the logits. Do not detach all of them."
        )
    return total

"""Parts of a network that keep their weights at first, or throughout a training."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from crosscoop.errors import CrosscoopError
from crosscoop.network.outputs import branch_names


@dataclass(frozen=True)
class Freeze:
    """Parts that do not train.

    Attributes:
        parts: `backbones`, the name of a branch, or the path of a module, such as `top.backbone` or `exchanges`.
        epochs: Number of epochs for which they do not train; None for the entire training.
    """

    parts: Sequence[str] = ()
    epochs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.parts, str):
            raise CrosscoopError(f"network.freeze: got {self.parts!r}, expected a list of parts, such as [backbones].")
        if self.epochs is not None and (self.epochs < 1 or not self.parts):
            raise CrosscoopError(
                f"network.freeze_epochs: got {self.epochs} for network.freeze {list(self.parts)}, expected 1 or more "
                "epochs of some parts. Leave it out to freeze them throughout."
            )

    def modules(self, network: nn.Module) -> list[nn.Module]:
        """Return the modules of a cooperative network that do not train.

        Raises:
            CrosscoopError: The network does not have a part.
        """
        branches: Sequence[nn.Module] = network.branches  # type: ignore[assignment]
        names = branch_names(len(branches))
        found = []
        for part in self.parts:
            if part == "backbones":
                found += [branch.get_submodule("backbone") for branch in branches]
                continue
            first, dot, rest = part.partition(".")
            path = f"branches.{names.index(first)}{dot}{rest}" if first in names else part
            try:
                found.append(network.get_submodule(path))
            except AttributeError as error:
                within = [f"{names[0]}.{name}" for name, _ in branches[0].named_children()]
                raise CrosscoopError(
                    f"network.freeze: got {part!r}, which the network does not have; expected backbones, one of "
                    f"{', '.join(names)}, a part such as {', '.join(within)}, or exchanges."
                ) from error
        return found

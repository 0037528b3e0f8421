"""The outputs of a network by name: the branches and their ensemble."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from crosscoop.network.layers import resize

ENSEMBLE = "ensemble"

CASCADE = "cascade"

ALONE = "_alone"
"""Suffix to a branch's name: the branch without its connections."""


def branch_names(num_branches: int) -> list[str]:
    """Return the names of a number of branches: network; top and bottom; or branch0, branch1, ..."""
    few = {1: ["network"], 2: ["top", "bottom"]}
    return few.get(num_branches) or [f"branch{i}" for i in range(num_branches)]


def backbone_names(branches: Sequence[str | Mapping[str, Any]]) -> dict[str, str]:
    """Return the backbone of each branch by the branch's name; `a + b` if it sums several.

    Args:
        branches: The branches as `create_network` receives them.
    """
    given = [branch if isinstance(branch, str) else branch.get("backbone") for branch in branches]
    words = [" + ".join(map(str, each)) if isinstance(each, list) else str(each) for each in given]
    return dict(zip(branch_names(len(words)), words, strict=True))


def output_names(num_branches: int) -> list[str]:
    """Return the names of the outputs of a number of branches: the branches and, if there are several, the ensemble."""
    return branch_names(num_branches) + [ENSEMBLE] * (num_branches > 1)


def outputs_of(logits: Sequence[Tensor], ensemble: Callable[[Sequence[Tensor]], Tensor]) -> dict[str, Tensor]:
    """Return the branches' logits and, if there are several, their ensemble, by name.

    Args:
        logits: Each branch's, `(N, num_classes, h, w)`.
        ensemble: Computes the ensemble of logits of one size, the highest of them; of a single branch, its only output.
    """
    names = output_names(len(logits))
    if len(logits) == 1:
        return {names[0]: ensemble(logits)}
    size = max((each.shape[-2:] for each in logits), key=lambda size: size[0])
    return dict(zip(names, [*logits, ensemble([resize(each, size) for each in logits])], strict=True))


def main_output(names: Iterable[str]) -> str:
    """Return the name of the output that represents the network: the cascade, the ensemble, or the first output.

    Args:
        names: The names of the available outputs, at least one; an exported network may lack some.
    """
    names = list(names)
    return next((name for name in (CASCADE, ENSEMBLE) if name in names), names[0])


def branches_of(names: Iterable[str]) -> list[str]:
    """Return the names of the outputs that are branches of the whole network."""
    return [name for name in names if name not in (ENSEMBLE, CASCADE) and not name.endswith(ALONE)]

"""The outputs of a network by name: the branches, and their sum, the ensemble."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from crosscoop.network.layers import resize

ENSEMBLE = "ensemble"


def branch_names(num_branches: int) -> list[str]:
    """Return the names of a number of branches: network; top and bottom; or branch0, branch1, ..."""
    few = {1: ["network"], 2: ["top", "bottom"]}
    return few.get(num_branches) or [f"branch{i}" for i in range(num_branches)]


def output_names(num_branches: int) -> list[str]:
    """Return the names of the outputs of a number of branches: the branches and, if there are several, the ensemble."""
    return branch_names(num_branches) + [ENSEMBLE] * (num_branches > 1)


def outputs_of(logits: Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the branches' logits and their sum, the ensemble, by name; logits that already have names keep them.

    If the logits are not upsampled and the branches' resolutions differ, the sum has the highest resolution.
    """
    if isinstance(logits, Mapping):
        return dict(logits)
    names = output_names(len(logits))
    if len(logits) == 1:
        return {names[0]: logits[0]}
    size = max((each.shape[-2:] for each in logits), key=lambda size: size[0])
    first, *others = [resize(each, size) for each in logits]
    return dict(zip(names, [*logits, sum(others, first)], strict=True))


def main_output(names: Iterable[str]) -> str:
    """Return the name of the output that represents the network: the ensemble, otherwise the first output.

    Args:
        names: The names of the available outputs, at least one; an exported network may lack some.
    """
    names = list(names)
    return ENSEMBLE if ENSEMBLE in names else names[0]


def branches_of(names: Iterable[str]) -> list[str]:
    """Return the names of the outputs that are branches."""
    return [name for name in names if name != ENSEMBLE]

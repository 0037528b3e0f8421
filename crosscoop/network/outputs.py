"""The outputs of a network by name: the branches, and their sum, the ensemble."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from crosscoop.network.layers import resize

ENSEMBLE = "ensemble"


def branch_names(num_branches: int) -> list[str]:
    """Return the names of so many branches: network; top and bottom; or branch0, branch1, ..."""
    few = {1: ["network"], 2: ["top", "bottom"]}
    return few.get(num_branches) or [f"branch{i}" for i in range(num_branches)]


def output_names(num_branches: int) -> list[str]:
    """Return the names of the outputs of so many branches: theirs, and that of the ensemble if there are several."""
    return branch_names(num_branches) + [ENSEMBLE] * (num_branches > 1)


def outputs_of(logits: Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the branches' logits by name, with their sum, the ensemble; logits that have names keep them.

    Where the logits are not upsampled and the branches' resolutions differ, the sum has the highest one.
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
    """Return the name of the output that stands for the network: the ensemble, or else the first one.

    Args:
        names: The names of the outputs that there are, at least one; an exported network may lack some.
    """
    names = list(names)
    return ENSEMBLE if ENSEMBLE in names else names[0]


def branches_of(names: Iterable[str]) -> list[str]:
    """Return the names of those outputs that are branches."""
    return [name for name in names if name != ENSEMBLE]

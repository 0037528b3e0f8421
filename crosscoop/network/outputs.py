"""The outputs of a network by name."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def branch_names(num_branches: int) -> list[str]:
    """Name so many branches."""
    if num_branches == 1:
        return ["network"]
    return ["top", "bottom"] if num_branches == 2 else [f"branch{i}" for i in range(num_branches)]


def output_names(num_branches: int) -> list[str]:
    """Name the outputs of so many branches: the branches first, their ensemble last."""
    return branch_names(num_branches) + (["ensemble"] if num_branches > 1 else [])


def outputs_of(logits: Sequence[Tensor] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The branches' logits by name, and their sum, the ensemble, last; logits that have names keep them."""
    if isinstance(logits, Mapping):
        return dict(logits)
    ensemble = [sum(logits[1:], logits[0])] if len(logits) > 1 else []
    return dict(zip(output_names(len(logits)), [*logits, *ensemble], strict=True))

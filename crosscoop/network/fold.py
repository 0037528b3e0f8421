"""Batch norm folded into the preceding convolutions: the same outputs with fewer operations."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from crosscoop.network.layers import BatchNorm2d

Network = TypeVar("Network", bound=nn.Module)

REMAINS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: lambda norm: nn.Identity(),
    BatchNorm2d: lambda norm: nn.Identity(),
    BatchNormAct2d: lambda norm: nn.Sequential(norm.drop, norm.act),
}
"""What replaces a folded batch norm."""


def fold_batch_norm(network: Network) -> Network:
    """Return a copy for evaluation whose batch norms are folded into the preceding convolutions.

    A batch norm is folded if its input is the output of a convolution that nothing else uses, and if both run once in
    a forward pass, which is traced for this purpose. Others remain. The outputs equal the network's up to rounding.

    Args:
        network: Any module that accepts `(N, 3, H, W)` RGB in [0, 1].

    Returns:
        A copy in evaluation mode, not meant to be trained.
    """
    folded = deepcopy(network).eval()
    example = next(folded.parameters()).new_zeros(1, 3, 64, 64)
    with torch.no_grad(), Uses() as uses:
        folded(example)
    convolutions = {id(module.weight): module for module in folded.modules() if isinstance(module, nn.Conv2d)}
    norms = {id(norm.running_mean): (name, norm) for name, norm in folded.named_modules() if type(norm) in REMAINS}
    for output, mean in uses.normed.items():
        weight = uses.convolved.get(output)
        once = uses.count[output] == uses.count[weight] == uses.count[mean] == 1
        if weight in convolutions and mean in norms and once:
            convolution, (name, norm) = convolutions[weight], norms[mean]
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, *statistics
            )
            folded.set_submodule(name, REMAINS[type(norm)](norm))
    return folded


class Uses(TorchFunctionMode):
    """A trace of a forward pass: the tensors that the functions of torch receive, by the tensors' ids.

    Attributes:
        count: How often each tensor was an argument.
        convolved: The weight that produced each convolution's output.
        normed: The running mean that each batch norm's input was normalised with.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int | None] = Counter()
        self.convolved: dict[int, int] = {}
        self.normed: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no later tensor gets an earlier one's id

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function and record its arguments."""
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, (Tensor, list)) and type(result) is not tuple:
            return result  # a shape, or another property
        for taken in [*args, *(kwargs or {}).values()]:
            tensors = [t for t in (taken if isinstance(taken, (list, tuple)) else [taken]) if isinstance(t, Tensor)]
            self.count.update(map(id, tensors))
            self.alive += tensors
        if func is torch.conv2d:
            self.alive.append(result)
            self.convolved[id(result)] = id(args[1])
        if func is nn.functional.batch_norm:
            self.normed[id(args[0])] = id(args[1])
        return result

"""Batch norm folded into the convolutions before it: the same function of an image, in fewer steps."""

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
"""What is left of a batch norm that was folded."""


def fold_batch_norm(network: Network) -> Network:
    """A copy for evaluation whose batch norms are part of the convolutions before them.

    A batch norm is folded if it takes a convolution's output that goes nowhere else, and both run once in a forward,
    which is followed to see it. Others stay. The outputs are the network's, up to rounding.

    Args:
        network: Turns `(N, 3, H, W)` RGB in [0, 1] into anything.

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
    """Follows a forward: which tensors the functions of torch take, by the tensors' ids.

    Attributes:
        count: How often each tensor was taken.
        convolved: The weight behind each convolution's output.
        normed: The running mean that each batch norm's input met.
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
        """Run a function and note what it takes."""
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

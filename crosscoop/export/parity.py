"""Whether an exported network says what the network said."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

SIZES = ((1, 64, 64), (3, 65, 98), (1, 161, 50))
"""Batch, height and width of the images, none of which is the exporter's example."""

TOLERANCE = 1e-3
"""Largest difference of probabilities; rounding makes about 1e-5."""

EQUAL = 0.999
"""Least share of equal labels; rounding decides where two classes are equally probable."""

Network = Callable[[Tensor], Mapping[str, Tensor]]


def parity(expected: Network, exported: Network) -> tuple[bool, list[str]]:
    """Compare two networks on random images.

    Args:
        expected: Gives logits `(N, num_classes, H, W)` by output name.
        exported: Gives some of these outputs.

    Returns:
        Whether they agree, and a line for each size.
    """
    agreed, lines = True, []
    for size in SIZES:
        image = random_image(*size)
        with torch.no_grad():
            wanted, got = expected(image), exported(image)
        difference = max(float((wanted[name].softmax(1) - got[name].softmax(1)).abs().max()) for name in got)
        equal = min(float((wanted[name].argmax(1) == got[name].argmax(1)).float().mean()) for name in got)
        agreed &= difference <= TOLERANCE and equal >= EQUAL  # not so for nan
        lines.append(
            f"{' x '.join(map(str, size))}: largest difference of probabilities {difference:.1e}, "
            f"equal labels {100 * equal:.3f} %"
        )
    return agreed, lines


def random_image(batch: int, height: int, width: int) -> Tensor:
    """Patches of colour under noise: `(N, 3, H, W)` in [0, 1], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(batch, 3, 5, 7, generator=generator)
    noise = 0.1 * torch.randn(batch, 3, height, width, generator=generator)
    shape: Sequence[int] = (height, width)
    return (functional.interpolate(patches, size=tuple(shape), mode="bilinear") + noise).clamp(0, 1)

"""Comparison of an exported network with the original."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

SIZES = ((1, 64, 64), (3, 65, 98), (1, 161, 50))
"""Batch size, height and width of the images; all differ from the exporter's example."""

TOLERANCE = 1e-3
"""Maximum difference between probabilities; rounding causes about 1e-5."""

EQUAL = 0.999
"""Minimum share of equal labels; where two classes are equally probable, rounding decides."""

Network = Callable[[Tensor], Mapping[str, Tensor]]


def parity(expected: Network, exported: Network) -> tuple[bool, list[str]]:
    """Compare two networks on random images.

    Args:
        expected: The original network, which returns logits `(N, num_classes, H, W)` by output name.
        exported: The exported network, which returns some of these outputs.

    Returns:
        Whether they agree, and a line for each image size.
    """
    agreed, lines = True, []
    for size in SIZES:
        image = random_image(*size)
        with torch.no_grad():
            wanted, got = expected(image), exported(image)
        difference = max(float((wanted[name].softmax(1) - got[name].softmax(1)).abs().max()) for name in got)
        equal = min(float((wanted[name].argmax(1) == got[name].argmax(1)).float().mean()) for name in got)
        agreed &= difference <= TOLERANCE and equal >= EQUAL  # False for nan
        lines.append(
            f"{' x '.join(map(str, size))}: largest difference between probabilities {difference:.1e}, "
            f"equal labels {100 * equal:.3f} %"
        )
    return agreed, lines


def random_image(batch: int, height: int, width: int) -> Tensor:
    """Return noisy patches of colour, `(N, 3, H, W)` in [0, 1], the same in every call."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(batch, 3, 5, 7, generator=generator)
    noise = 0.1 * torch.randn(batch, 3, height, width, generator=generator)
    shape: Sequence[int] = (height, width)
    return (functional.interpolate(patches, size=tuple(shape), mode="bilinear") + noise).clamp(0, 1)

"""Class-balanced sampling: rare classes are drawn as often as frequent ones."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from crosscoop.data.check import THREADS
from crosscoop.data.dataset import VOID, Sample
from crosscoop.errors import CrosscoopError


class ClassBalance:
    """Choice of a class, each with equal probability, then of a sample that contains it.

    Uniform sampling of classes as of Zhu et al. (CVPR 2019, https://arxiv.org/abs/1812.01593).

    Args:
        pixels: Pixels of each class in each sample, `(samples, num_classes)`, see `count_classes`.

    Raises:
        CrosscoopError: No sample contains a class.
    """

    def __init__(self, pixels: NDArray[np.int64]) -> None:
        self.containing = {int(index): np.flatnonzero(pixels[:, index]) for index in np.flatnonzero(pixels.any(0))}
        if not self.containing:
            raise CrosscoopError("data.balance: got no labelled pixels, expected masks with classes to balance.")

    def choose(self, seed: Sequence[int]) -> tuple[int, int]:
        """Return the index of a sample, and the class on one of whose pixels its crop is placed.

        Args:
            seed: Integers that alone determine the choice.
        """
        random = np.random.default_rng((*seed, 4))
        chosen = int(random.choice(list(self.containing)))
        return int(random.choice(self.containing[chosen])), chosen


def count_classes(samples: Sequence[Sample], num_classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class in each sample, `(samples, num_classes)`; none in masks that cannot be read.

    Args:
        samples: The samples; their masks are decoded.
        num_classes: The number of classes.
    """

    def count(sample: Sample) -> NDArray[np.int64]:
        try:
            mask = sample.mask()
        except (OSError, ValueError):  # reported, or skipped, when it is drawn
            mask = None
        values = np.zeros(0, np.uint8) if mask is None else mask.ravel()
        return np.bincount(values, minlength=VOID + 1)[:num_classes]

    with ThreadPoolExecutor(THREADS) as pool:
        counted = track(pool.map(count, samples), "Counting classes", total=len(samples), transient=True)
        return np.array(list(counted), np.int64).reshape(len(samples), num_classes)

"""The order of the samples and their distribution among the ranks."""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class TrainingSampler(DistributedSampler[tuple[int, int]]):
    """A sampler that shuffles in each epoch, distributes the samples among the ranks, and adds the epoch to each index.

    From the epoch, a data set can derive the augmentation of (seed, epoch, index): different in every epoch and on
    every rank, the same for any number of workers. Lightning calls `set_epoch` and does not replace the sampler.
    Samples that do not make up one for every rank are left to other epochs: repeated ones would be augmented alike.

    Args:
        dataset: The data set to draw from.
        world_size: Number of ranks.
        rank: This rank.
        seed: Seed of the order.
    """

    def __init__(self, dataset: Sized, world_size: int, rank: int, seed: int) -> None:
        whole = len(dataset) >= world_size
        super().__init__(dataset, world_size, rank, shuffle=True, seed=seed, drop_last=whole)  # type: ignore[arg-type]
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (index, epoch), from `start` on."""
        return ((index, self.epoch) for index in islice(super().__iter__(), self.start, None))  # type: ignore[misc]


class TrainingLoader(DataLoader[Any]):
    """A data loader that can resume within an epoch without reading the earlier samples again.

    Its sampler is a `TrainingSampler`. The workers start when the first batch is requested, because Lightning creates
    the iterator of a resumed run before it sets the sampler's epoch.
    """

    skip = 0  # batches to skip in the next epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the epoch's batches."""
        self.sampler.start = self.skip * (self.batch_size or 1)  # type: ignore[attr-defined]
        self.skip = 0
        yield from super().__iter__()


class EvaluationSampler(DistributedSampler[int]):
    """A sampler that distributes the samples among the ranks without repetition, so that each counts exactly once.

    Some ranks may receive one sample more than others. DDP tolerates this: outside training, it synchronises only the
    buffers, at the first forward pass.

    Args:
        dataset: The data set to draw from.
        world_size: Number of ranks.
        rank: This rank.
    """

    def __init__(self, dataset: Sized, world_size: int, rank: int) -> None:
        super().__init__(dataset, world_size, rank, shuffle=False)  # type: ignore[arg-type]
        self.indices = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices."""
        return iter(self.indices)

    def __len__(self) -> int:
        """Return the number of this rank's samples."""
        return len(self.indices)

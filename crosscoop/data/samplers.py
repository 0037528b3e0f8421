"""Which sample comes when, on which rank."""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


class TrainingSampler(DistributedSampler[tuple[int, int]]):
    """Shuffles anew in each epoch, shares the samples among the ranks, and tells each draw its epoch.

    With the epoch in hand a data set can derive the augmentation from (seed, epoch, index): different in every
    epoch and rank, the same for any number of workers. Lightning calls `set_epoch` and leaves the sampler in place.
    Samples that do not make up one for every rank are left to other epochs: repeated ones would be augmented alike.

    Args:
        dataset: What to draw from.
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
    """Can go on within an epoch, without reading again what came before.

    Its sampler is a `TrainingSampler`. The workers begin when the first batch is asked for: Lightning makes the
    iterator of a resumed run before it tells the sampler the epoch.
    """

    skip = 0  # batches to leave out of the next epoch

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the epoch's batches."""
        self.sampler.start = self.skip * (self.batch_size or 1)  # type: ignore[attr-defined]
        self.skip = 0
        yield from super().__iter__()


class EvaluationSampler(DistributedSampler[int]):
    """Shares the samples among the ranks without repeating any, so that each counts exactly once.

    Ranks may get one sample more than others. DDP bears that: outside training it synchronises nothing but the
    buffers, at the first forward.

    Args:
        dataset: What to draw from.
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
        """The number of this rank's samples."""
        return len(self.indices)

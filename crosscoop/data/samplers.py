"""The order of the samples and their distribution among the ranks."""

from collections.abc import Iterator, Sized
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler
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


class MixedSampler(Sampler[tuple[int, int]]):
    """A sampler whose batches contain labelled and unlabelled samples, in this order.

    Labelled and unlabelled samples are each a stream of passes, every pass in another order. An epoch has as many steps
    as the longer of the two passes takes. Each draw is (index, pass), so that a sample is augmented differently in
    every pass, for any number of workers; the ranks take turns in the streams.

    Args:
        labelled: Number of labelled samples, whose indices come first.
        unlabelled: Number of unlabelled samples.
        batch_size: Samples per batch and rank.
        labelled_per_batch: How many of them are labelled.
        world_size: Number of ranks.
        rank: This rank.
        seed: Seed of the order.
    """

    def __init__(
        self,
        labelled: int,
        unlabelled: int,
        batch_size: int,
        labelled_per_batch: int,
        world_size: int,
        rank: int,
        seed: int,
    ) -> None:
        self.batch_size, self.world_size, self.rank, self.seed = batch_size, world_size, rank, seed
        shares = (labelled_per_batch, batch_size - labelled_per_batch)
        self.streams = list(zip((labelled, unlabelled), (0, labelled), shares, strict=True))
        self.steps = max(number // (share * world_size) for number, _, share in self.streams) or 1
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples of this rank in an epoch."""
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (index, pass), batch after batch, from `start` on."""
        first = self.epoch * self.steps
        draws = [
            self._draws(first * share * self.world_size, number, offset, share)
            for number, offset, share in self.streams
        ]
        batches = (draw for _ in range(self.steps) for stream, (*_, share) in zip(draws, self.streams, strict=True)
                   for draw in islice(stream, share))  # fmt: skip
        return islice(batches, self.start, None)

    def _draws(self, position: int, number: int, offset: int, share: int) -> Iterator[tuple[int, int]]:
        """Yield this rank's part of a stream from a position on; the ranks take `share` draws in turns."""
        order, current = np.arange(0), -1
        for step in count():
            for place in range(share):
                turn, index = divmod(position + (step * self.world_size + self.rank) * share + place, number)
                if turn != current:
                    order, current = np.random.default_rng((self.seed, offset, turn)).permutation(number), turn
                yield int(order[index]) + offset, turn


class TrainingLoader(DataLoader[Any]):
    """A data loader that can resume within an epoch without reading the earlier samples again.

    Its sampler is a `TrainingSampler` or `MixedSampler`. The workers start when the first batch is requested, because
    Lightning creates the iterator of a resumed run before it sets the sampler's epoch.
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

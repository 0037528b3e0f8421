"""`crosscoop prepare-data`: a data set decoded once, for faster training."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import track

from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.data.prepared import PreparedSample, decode, fingerprint, only_files, read_index, write_index
from crosscoop.errors import CrosscoopError


def prepare_data(data: SegmentationLoaders, output: str, splits: str | None = None) -> None:
    """Decode a data set once, for faster training.

      crosscoop prepare-data --config configs/cityscapes/cross_c1_c2.yaml --output data/cityscapes_prepared
      crosscoop fit --config configs/cityscapes/cross_c1_c2.yaml --data.prepared data/cityscapes_prepared

    Every image and mask is written as an array, 4 bytes per pixel: about 25 GB for the 2,975 training images of
    Cityscapes, 8 GB for the 10,582 of VOC. The same command resumes an interrupted run, and updates what has changed
    since.

    Args:
        data: The data set, usually from --config.
        output: The folder to write to.
        splits: Splits to decode, separated by commas; by default the training split.

    Raises:
        CrosscoopError: The data set does not consist of files, a file is damaged, or the folder cannot be written to.
    """
    data.prepare_data()
    for split in (splits or data.dataset.train_split).split(","):
        samples, folder = only_files(data.dataset.samples(split)), Path(output) / split
        known = read_index(folder)
        todo = [PreparedSample(sample, folder) for sample in samples if known.get(sample.name) != fingerprint(sample)]
        try:
            with write_index(folder, known), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                for sample in track(pool.map(decode, todo), f"Decoding {split}", total=len(todo)):
                    known[sample.name] = fingerprint(sample)
        except OSError as error:
            raise CrosscoopError(f"{folder}: cannot be written ({error}). Give another --output.") from error
        print(f"{folder}: {len(samples)} samples, {len(todo)} of them new. Use them with --data.prepared {output}")

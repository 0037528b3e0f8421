"""The data as Lightning's data module."""

import pytorch_lightning as pl

from crosscoop.data.loaders import SegmentationLoaders


class SegmentationData(SegmentationLoaders, pl.LightningDataModule):  # noqa: D101
    __doc__ = SegmentationLoaders.__doc__

"""Data sets and their loading in batches."""

import importlib
from typing import TYPE_CHECKING

from crosscoop.data.dataset import VOID, Sample, SegmentationDataset
from crosscoop.data.datasets.camvid import CamVid
from crosscoop.data.datasets.cityscapes import Cityscapes
from crosscoop.data.datasets.folder import Folder
from crosscoop.data.datasets.streets import Streets
from crosscoop.data.datasets.voc import PascalVOC
from crosscoop.data.samples import FileSample

if TYPE_CHECKING:
    from crosscoop.data.datamodule import SegmentationData
    from crosscoop.data.loaders import SegmentationLoaders
else:

    def __getattr__(name: str) -> object:
        """Import a class on first use: reading an image needs neither loaders nor Lightning."""
        modules = {"SegmentationData": "datamodule", "SegmentationLoaders": "loaders"}
        if name not in modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"crosscoop.data.{modules[name]}"), name)


__all__ = [
    "VOID",
    "CamVid",
    "Cityscapes",
    "FileSample",
    "Folder",
    "PascalVOC",
    "Sample",
    "SegmentationData",
    "SegmentationDataset",
    "SegmentationLoaders",
    "Streets",
]

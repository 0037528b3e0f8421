"""Data sets and their loading in batches."""

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
else:

    def __getattr__(name: str) -> object:
        """Import SegmentationData on first use: it imports Lightning, which reading an image does not need."""
        if name != "SegmentationData":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from crosscoop.data.datamodule import SegmentationData

        return SegmentationData


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
    "Streets",
]

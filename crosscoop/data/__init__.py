"""Data sets and how they become batches."""

from typing import TYPE_CHECKING

from crosscoop.data.camvid import CamVid
from crosscoop.data.cityscapes import Cityscapes
from crosscoop.data.dataset import VOID, Sample, SegmentationDataset
from crosscoop.data.folder import Folder
from crosscoop.data.streets import Streets
from crosscoop.data.voc import PascalVOC

if TYPE_CHECKING:
    from crosscoop.data.datamodule import SegmentationData
else:

    def __getattr__(name: str) -> object:
        """SegmentationData only when asked for: it brings Lightning along, which reading an image does without."""
        if name != "SegmentationData":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from crosscoop.data.datamodule import SegmentationData

        return SegmentationData


__all__ = [
    "VOID",
    "CamVid",
    "Cityscapes",
    "Folder",
    "PascalVOC",
    "Sample",
    "SegmentationData",
    "SegmentationDataset",
    "Streets",
]

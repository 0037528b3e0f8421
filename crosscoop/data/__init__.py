"""Data sets and how they become batches."""

from crosscoop.data.camvid import CamVid
from crosscoop.data.cityscapes import Cityscapes
from crosscoop.data.datamodule import SegmentationData
from crosscoop.data.dataset import VOID, Sample, SegmentationDataset
from crosscoop.data.folder import Folder
from crosscoop.data.streets import Streets
from crosscoop.data.voc import PascalVOC

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

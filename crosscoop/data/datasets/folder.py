"""Your own data: folders or lists of images and masks."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crosscoop.data.dataset import VOID, Color, Legend, SegmentationDataset, colormap
from crosscoop.data.images import UNKNOWN, lookup_table
from crosscoop.data.samples import (
    FileSample,
    MissingFilesError,
    UnknownSplitError,
    check_samples,
    images_below,
    read_list,
    read_pairs,
    without_suffix,
)
from crosscoop.errors import CrosscoopError
from crosscoop.files import scan, shorten

Found = tuple[str, Path, Path | None]
"""Name, image and mask of a sample."""


MASKS = re.compile("mask|label|anno|gt|seg", re.IGNORECASE)
"""What names of folders with masks usually contain."""


@dataclass(frozen=True)
class Split:
    """The files of a split: folders of images and masks, a list, or both; paths are relative to the data set's root.

    Args:
        images: Folder of images, including its subfolders.
        masks: Folder of masks, which may be the same one; the mask of the image `a/b.jpg` is `a/b.png` (with any image
            suffix). Without it, the split is unlabelled. Masks without an image are ignored.
        list: Text file. With `images`, it contains one sample name per line, such as `a/b`; without, "image mask" or,
            for unlabelled samples, "image" per line, relative to the root. A tab separates names that contain blanks.
        image_suffix: The end of the images' file names after the sample's name: `.jpg`, `_leftImg8bit`. Other files
            are ignored.
        mask_suffix: The end of the masks' file names after the sample's name: `.png`, `_mask`, `_labelIds.png`.
    """

    images: str | None = None
    masks: str | None = None
    list: str | None = None
    image_suffix: str = ""
    mask_suffix: str = ""

    def is_valid(self) -> bool:
        """Return whether the fields can be combined."""
        if self.images is None:
            return self.list is not None and not (self.masks or self.image_suffix or self.mask_suffix)
        return self.masks is not None or not self.mask_suffix


class Folder(SegmentationDataset):
    """Your own data. Masks are lossless images of class indices (grey or palette), or in the colours of the classes.

    In YAML: `splits: {train: {images: images/train, masks: masks/train}, val: {list: val.txt}}`. Images and masks in
    the same folder are distinguished by suffixes: `{images: train, masks: train, image_suffix: .jpg, mask_suffix:
    _mask}`.

    Args:
        root: The folder that all paths are relative to.
        class_names: The names of the classes, in index order.
        splits: The files of each split, by the split's name.
        palette: One RGB colour per class; VOC's colours by default. If given, it is used to read masks in colours, and
            a mask whose own palette contradicts it is rejected.
        mask_values: The mask value of each class, 0, 1, 2, ... by default; use `[0, 255]` for black and white masks,
            and `[1, 2, 3]` with `void: [0]` for masks that count from 1.
        mask_colors: Whether to read the colours of the masks instead of their values, for files in colours and for
            palette files whose indices differ from file to file; requires `palette`.
        reduce_zero_label: Whether masks count from 1 and 0 is void, as in ADE20K: short for `mask_values: [1, 2, ...]`
            and `void: [0]`.
        void: Mask values to ignore, or colours such as `[[0, 0, 0]]`. 255 is always ignored unless `mask_values`
            contains it; so is VOC's void colour, `[224, 224, 192]`.
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
        reduce_zero_label: bool = False,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
    ) -> None:
        count = len(class_names)
        if not 1 <= len(set(class_names)) == count <= UNKNOWN:
            raise CrosscoopError(
                f"class_names: got {class_names}, expected 1 to {UNKNOWN} different names. Correct them."
            )
        if palette is not None and len(palette) != count:
            raise CrosscoopError(
                f"palette: got {len(palette)} colours, expected one for each of the {count} classes. Correct it, or "
                "leave it out."
            )
        if reduce_zero_label:
            if mask_values is not None or mask_colors:
                raise CrosscoopError(
                    "reduce_zero_label: got true with mask_values or mask_colors, which also say what the masks' "
                    "values mean; expected one of them. Leave the others out."
                )
            mask_values, void = list(range(1, count + 1)), [0, *(void or [])]
        values, void = range(count) if mask_values is None else mask_values, void or []
        ignored = [value for value in void if isinstance(value, int)]
        colors = [color for color in void if not isinstance(color, int)]
        distinct = {tuple(color) for color in (*(palette or ()), *colors)}
        if (mask_colors or colors) and (palette is None or len(distinct) != count + len(colors)):
            raise CrosscoopError(
                f"palette: got {palette} and void {colors}, expected a different colour for each of the {count} "
                "classes, and none of them in void. Correct them."
            )
        if mask_colors and (mask_values is not None or ignored):
            raise CrosscoopError(
                f"mask_colors: got mask_values {mask_values} and void {void}, expected no values, because masks are "
                "read by their colours. Leave them out."
            )
        if len(values) != count or len({*values, *ignored}) != count + len(set(ignored)):
            raise CrosscoopError(
                f"mask_values: got {list(values)} and void {ignored}, expected a different value for each of "
                f"the {count} classes, and none of them in void. Correct them."
            )
        if wrong := sorted(value for value in {*values, *ignored} if not 0 <= value <= 255):
            raise CrosscoopError(f"mask_values and void: got {shorten(wrong)}, expected 0 to 255. Correct them.")
        for name, split in splits.items():
            if not split.is_valid():
                raise CrosscoopError(
                    f'splits: got "{name}" as {split}, expected images (and masks), or list, or both. Combine '
                    "image_suffix with images, and mask_suffix with masks."
                )
        self.root = root
        self.class_names = class_names
        self.splits = splits
        self.palette = colormap(count) if palette is None else palette
        self.legend = None if palette is None else Legend(class_names, palette, colors)
        self.mask_colors = mask_colors
        self.lookup = lookup_table({value: index for index, value in enumerate(values)} | dict.fromkeys(ignored, VOID))
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split

    def samples(self, split: str) -> Sequence[FileSample]:
        """Return the samples of a split: those of a list in its order, those of a folder sorted by name.

        Args:
            split: A name in `splits`.

        Raises:
            CrosscoopError: The split is unknown, or files are missing or duplicated.
        """
        if split not in self.splits:
            raise UnknownSplitError(
                f'splits: got "{split}", expected one of {", ".join(self.splits)}. Add it to splits.'
            )
        root, where = Path(self.root), self.splits[split]
        source = root / str(where.list or where.images)
        if where.images is None:
            found = _listed(source, root)
        else:
            found = _paired(root / where.images, None if where.masks is None else root / where.masks, where)
            found = found if where.list is None else _chosen(found, source)
        legend = self.legend and replace(self.legend, only=self.mask_colors)
        samples = [FileSample(name, image, mask, self.num_classes, self.lookup, legend) for name, image, mask in found]
        if where.masks is not None and (alone := [each for each in samples if not _exists(each.mask_path)]):
            raise MissingFilesError(
                f"{root / where.masks}: {len(alone)} of {len(samples)} images do not have a mask there "
                f"({shorten(each.image_path for each in alone)}), expected one with the same subfolder and name for "
                f"each. Add them, set mask_suffix to the end of the masks' names (got {where.mask_suffix!r}), or list "
                "the pairs in a file.",
                samples,
            )
        return check_samples(samples, source)


def _listed(source: Path, root: Path) -> list[Found]:
    """Read name, image and mask of each sample of a list of files."""
    pairs = read_pairs(source, root)
    if bare := [image.name for image, _ in pairs if image.parent == root and not image.is_file()]:
        name = without_suffix(Path(bare[0]))
        files = [path.relative_to(root) for path in scan(root) if without_suffix(Path(path.name)) == name]
        if files:
            folders = sorted({path.parent.as_posix() for path in files}, key=lambda folder: bool(MASKS.search(folder)))
            guess = ", ".join(f"{key}: {folder}" for key, folder in zip(("images", "masks"), folders, strict=False))
            raise CrosscoopError(
                f"{source}: got {bare[0]}, expected the path of a file, relative to {root}. Found {shorten(files)}: "
                f"specify the folders in addition to the list, as in {{{guess}, list: {source.relative_to(root)}}}, or "
                "list complete paths."
            )
    return [(without_suffix(image.relative_to(root)), image, mask) for image, mask in pairs]


def _paired(images: Path, masks: Path | None, split: Split) -> list[Found]:
    """Find name, image and mask of each image in a folder; for a missing mask, return its most likely path."""
    labels = {} if masks is None else _by_name(masks, split.mask_suffix, "mask_suffix")
    together = masks is not None and masks.resolve().is_relative_to(images.resolve())
    files = _by_name(images, split.image_suffix, "image_suffix", {*labels.values()} if together else ())
    ending = split.mask_suffix if Path(split.mask_suffix).suffix else f"{split.mask_suffix}.png"
    return [(name, file, masks and labels.get(name, masks / f"{name}{ending}")) for name, file in files.items()]


def _chosen(found: Sequence[Found], source: Path) -> list[Found]:
    """Return the samples that a list names, in its order."""
    by_name = {each[0]: each for each in found}
    names = [line if line in by_name else without_suffix(Path(line)) for line in read_list(source)]
    if missing := [name for name in names if name not in by_name]:
        raise CrosscoopError(
            f"{source}: got {len(missing)} names without an image ({shorten(missing)}), expected names such as "
            f"{found[0][0]}. Correct the list, or images and image_suffix."
        )
    return [by_name[name] for name in names]


def _exists(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _by_name(folder: Path, suffix: str, option: str, masks: Collection[Path] = ()) -> dict[str, Path]:
    """Find the images below a folder, by their relative path without suffix.

    Args:
        folder: The folder.
        suffix: The end of the names of its files.
        option: The option that sets this end, for the message.
        masks: Files to leave out because they are masks.
    """
    files: dict[str, Path] = {}
    for path in images_below(folder):
        name = _without_ending(path.relative_to(folder), suffix)
        if name is None or path in masks:
            continue
        if name in files:
            raise CrosscoopError(
                f"{folder}: got {files[name].name} and {path.name} for {name}, expected one file. Set {option} to the "
                f"end of the names of the files to use, such as {option}: {path.suffix}, or list the files."
            )
        files[name] = path
    if not files:
        ending = f" whose names end in {suffix}" if suffix else ""
        beside, remedy = "", "Correct root or splits."
        if masks:
            beside, remedy = " beside the masks", "Set mask_suffix to the end of the masks' names."
        raise CrosscoopError(f"{folder}: got no images{ending}{beside}, expected files such as .png and .jpg. {remedy}")
    return files


def _without_ending(path: Path, ending: str) -> str | None:
    """Return a file's name without an ending, which may include the suffix; None if the name ends differently."""
    names = (without_suffix(path), path.as_posix())
    fits = (name for name in names if name.lower().endswith(ending.lower()))
    return next((name[: len(name) - len(ending)] for name in fits), None)

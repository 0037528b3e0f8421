"""A data set of files, and all that can go wrong with one of its samples."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import NETWORK, QUIET, crosscoop

from crosscoop.data import Folder, Sample, Streets
from crosscoop.data.samples import FileSample

SIZE = (32, 48)
CLASSES = ["ground", "tree", "house"]


def write(root: Path, train: int = 4, val: int = 2, suffix: str = "jpg") -> Path:
    """Images and masks, train by a list and val by its folders; returns a YAML file of the data's options."""
    generator = np.random.default_rng(0)
    splits = {"train": {"list": "train.txt"}, "val": {"images": "images/val", "masks": "masks/val"}}
    for split, number in (("train", train), ("val", val)):
        for index in range(number):
            blocks = generator.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            save(image_of(root, split, index, suffix), blocks)
            save(mask_of(root, split, index), generator.choice(np.array([0, 1, 1, 2, 255], np.uint8), SIZE))
    (root / "train.txt").write_text(
        "".join(f"images/train/train{index}.{suffix} masks/train/train{index}.png\n" for index in range(train))
    )
    init = {"root": str(root), "class_names": CLASSES, "splits": splits, "test_split": "val"}
    data = {"dataset": {"class_path": "Folder", "init_args": init}}
    (root / "data.yaml").write_text(yaml.safe_dump({**data, "batch_size": 2, "crop_size": 32, "num_workers": 0}))
    return root / "data.yaml"


def save(path: Path, pixels: "np.ndarray", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def image_of(root: Path, split: str, index: int, suffix: str = "jpg") -> Path:
    return root / "images" / split / f"{split}{index}.{suffix}"


def mask_of(root: Path, split: str, index: int) -> Path:
    return root / "masks" / split / f"{split}{index}.png"


def fit_options(config: Path) -> str:
    """Options to train the tiny network on the data."""
    return " ".join([*NETWORK, *QUIET, "--trainer.max_epochs 1 --data", str(config)])


def refusal(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The message of a command that ends with exit code 2: the last thing on stderr, in one piece."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        crosscoop(*options)  # type: ignore[arg-type]
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert "Traceback" not in errors
    return errors.rpartition("crosscoop: error: ")[2]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def enlarge(path: Path) -> None:
    save(path, np.zeros((SIZE[0], SIZE[1] + 1), np.uint8))


FAULTS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "truncated image": ("image", truncate, ["bytes that cannot be decoded", "Restore the file"]),
    "empty image": ("image", lambda path: path.write_bytes(b""), ["0 bytes", "Restore the file"]),
    "vanished image": ("image", Path.unlink, ["file not found", "restore the file"]),
    "truncated mask": ("mask", truncate, ["bytes that cannot be decoded", "Restore the file"]),
    "empty mask": ("mask", lambda path: path.write_bytes(b""), ["0 bytes", "Restore the file"]),
    "vanished mask": ("mask", Path.unlink, ["file not found", "restore the file"]),
    "mask of another size": ("mask", enlarge, ["32 x 49", "32 x 48", "Fix or remove"]),
    "unknown class": ("mask", lambda path: save(path, np.full(SIZE, 3, np.uint8)), ["values 3", "3 classes", "orrect"]),
    "turned image": ("image", turn, ["48 x 32", "EXIF rotates", "-Orientation="]),
    "lossy mask": (
        "mask",
        lambda path: save(path, np.ones(SIZE, np.uint8), format="JPEG"),
        ["lossy", "Save the class"],
    ),
    "16-bit mask": ("mask", lambda path: save(path, np.full(SIZE, 300, np.uint16)), ["values 300", "3 classes"]),
    "RGB mask": ("mask", lambda path: save(path, np.full((*SIZE, 3), [9, 8, 7], np.uint8)), ["in colours", "palette"]),
}
"""By name: which file of a sample, what happens to it, and what a message says beside the file's name."""

IN_THE_HEADER = [name for name in FAULTS if name.split()[0] not in ("truncated", "unknown", "16-bit", "RGB")]
"""Faults that show without decoding."""


class Breaking(Folder):
    """Breaks a sample after its split was looked up and listed, as if in the run; `BREAK` is "split fault"."""

    looked_up: ClassVar[set[tuple[str, str]]] = set()

    def samples(self, split: str) -> Sequence[FileSample]:
        samples = super().samples(split)
        where, _, name = os.environ["BREAK"].partition(" ")
        if where == split and (self.root, split) in self.looked_up:
            break_sample(Path(self.root), split, 1, name)
        self.looked_up.add((self.root, split))
        return samples


def break_sample(root: Path, split: str, index: int, name: str) -> Path:
    """Let a fault happen; returns the file."""
    what, happen, _ = FAULTS[name]
    path = (image_of if what == "image" else mask_of)(root, split, index)
    happen(path)
    return path


def copy_image(root: Path, source: tuple[str, int], target: tuple[str, int]) -> None:
    """The same image twice."""
    shutil.copy(image_of(root, *source), image_of(root, *target))


class Unreadable(Streets):
    """Street scenes of which the second cannot be read: by class path."""

    def samples(self, split: str) -> Sequence[Sample]:
        return [super().samples(split)[0], FileSample(f"{split}/bad", Path("bad.png"), None, 12)]


class Small(Streets):
    """Street scenes of two classes: by class path."""

    class_names, palette = ("ground", "tree"), Streets.palette[:2]


class Renamed(Streets):
    """Street scenes with the classes in another order: by class path."""

    class_names = (*Streets.class_names[1:], Streets.class_names[0])

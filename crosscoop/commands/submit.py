"""`crosscoop submit`: the archive to upload to a benchmark's server."""

import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image

from crosscoop.data import VOID, Cityscapes, PascalVOC
from crosscoop.data.dataset import colormap
from crosscoop.data.datasets.cityscapes import TRAIN_TO_LABEL
from crosscoop.data.images import read_mask
from crosscoop.data.loaders import SegmentationLoaders
from crosscoop.data.samples import FileSample
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.label_files import check_size, each_prediction
from crosscoop.files import replacing

PALETTE = bytes(channel for color in colormap(256) for channel in color)
"""PASCAL VOC's colours, three bytes each."""


def submit(
    predictions: str,
    data: SegmentationLoaders,
    output: str,
    split: str = "test",
    competition: Literal["comp5", "comp6"] = "comp6",
    overwrite: bool = False,
) -> None:
    """Pack label PNGs into an archive for the Cityscapes or PASCAL VOC server.

      crosscoop submit --predictions labels --config configs/cityscapes/parts/data.yaml --output cityscapes.zip
      crosscoop submit --predictions labels --config configs/voc/parts/data.yaml --output voc.tgz

    The label PNGs are those that crosscoop predict writes and crosscoop score reads, as large as the images. To write
    those of the test split:

      crosscoop predict --run RUN --split test

    For Cityscapes, the .zip contains labelIds, with 0 (unlabeled) for no class, under the images' names. For VOC, the
    .tar, .tgz or .tar.gz contains palette PNGs as results/VOC2012/Segmentation/comp6_test_cls/NAME.png.

    Args:
        predictions: The folder of label PNGs.
        data: The data set that they belong to, usually from --config; single options override it, such as
            --data.dataset.root FOLDER.
        output: The archive to write; an error leaves no partial archive.
        split: The split that they belong to.
        competition: VOC's competition: comp5 for networks trained on VOC alone, comp6 for all others, such as those
            pretrained on ImageNet or trained on trainaug.
        overwrite: Replace the archive if it exists.

    Raises:
        CrosscoopError: The data set has no server, the archive exists or is of another kind, or label files are
            missing, ambiguous, of another size than their images, or contain other values.
    """
    path, dataset = Path(output), data.dataset
    if not isinstance(dataset, Cityscapes | PascalVOC):
        raise CrosscoopError(f"data.dataset: got {type(dataset).__name__}, expected Cityscapes or PascalVOC.")
    voc = isinstance(dataset, PascalVOC)
    kinds = (".tar", ".tgz", ".tar.gz") if voc else (".zip",)
    if not path.name.endswith(kinds):
        raise CrosscoopError(f"output: got {path}, expected a name that ends in {' or '.join(kinds)}.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise CrosscoopError(f"{path} exists, expected a new file. Give another --output, or add --overwrite.")

    def encode(sample: FileSample, file: Path) -> tuple[str, bytes]:
        labels = read_mask(file, dataset.num_classes, None, dataset.legend)
        try:
            with Image.open(sample.image_path) as image:  # reads the header only
                size = image.size[::-1]
        except OSError as error:
            raise CrosscoopError(f"{sample.image_path}: got {error}, expected an image. Restore the file.") from error
        check_size(file, labels, size)
        if not voc:
            return f"{sample.image_path.stem}.png", png(Image.fromarray(TRAIN_TO_LABEL[labels]))
        if (labels == VOID).any():
            raise CrosscoopError(
                f"{file}: got pixels without a class ({VOID}), expected a class at every pixel, as the server requires."
            )
        colored = Image.fromarray(labels)
        colored.putpalette(PALETTE)
        return f"results/VOC2012/Segmentation/{competition}_{split}_cls/{Path(sample.name).name}.png", png(colored)

    samples = dataset.samples(split)
    with archive(path) as add:
        for name, content in each_prediction(Path(predictions), samples, encode, "Packing"):
            add(name, content)
    print(f"{path}: {len(samples)} images of {type(dataset).__name__} {split}, {path.stat().st_size / 1e6:.2f} MB")


@contextmanager
def archive(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Yield a function that adds a file to a zip or tar archive, which appears when the block ends without an error.

    Args:
        path: The archive; its suffix determines the format.
    """
    with replacing(path) as temporary:
        if path.suffix == ".zip":
            with zipfile.ZipFile(temporary, "w") as packed:  # PNGs are already compressed
                yield packed.writestr
            return
        with tarfile.open(temporary, "w" if path.suffix == ".tar" else "w:gz") as tar:

            def add(name: str, content: bytes) -> None:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))

            yield add


def png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

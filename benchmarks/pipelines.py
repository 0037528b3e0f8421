"""Training pipelines: from files to batches of crops, in one worker."""

import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock
from zlib import decompress

import albumentations
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks.document import number
from benchmarks.measure import Row, Setting, compare, in_turn, quartiles
from crosscoop.commands.prepare_data import prepare_data
from crosscoop.data import Cityscapes, Folder, PascalVOC, SegmentationData, SegmentationDataset, images
from crosscoop.data.datasets.folder import Split
from crosscoop.data.loaders import collate
from crosscoop.data.samples import FileSample

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 4
VOID = 255


def run(setting: Setting) -> list[Row]:
    """Measure VOC at 513 and Cityscapes at 768, from files and from prepared data."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, root, shape, crop, count in (
            ("VOC", setting.voc, (375, 500), 513, 40),
            ("Cityscapes", setting.cityscapes, (1024, 2048), 768, 4),
        ):
            if setting.quick:
                shape, crop, count = (48, 64), 32, 4
            place = Path(folder) / name
            dataset = real(name, root) if root else generated(place / "files", name, shape, count)
            prepare_data(SegmentationData(dataset), str(place / "prepared"))
            samples = [s for s in dataset.samples(dataset.train_split) if isinstance(s, FileSample)][:count]
            png = samples[0].image_path.suffix == ".png"
            extra = ["decoding files with pyspng"] if png and find_spec("pyspng") else []
            for form in ("decoding files", *extra, "prepared"):
                data = SegmentationData(
                    dataset, crop_size=crop, prepared=str(place / form) if form == "prepared" else None
                )
                training_set = data.train_dataloader().dataset
                draws = [(index, 0) for index in range(len(samples))]
                own = worker(draws, training_set.__getitem__, collate)  # type: ignore[attr-defined]
                if form not in extra:
                    own = without_pyspng(own)
                for peer, transform in (
                    ("torchvision's reference", torchvision(crop)),
                    ("albumentations", naive(crop)),
                ):
                    row = compare(
                        f"{name} at {crop}, {form}",
                        own,
                        peer,
                        worker(samples, transform, torch.utils.data.default_collate),
                        setting,
                        times=1.5 if png and "files" in form else 2,
                        items=len(samples),
                        repeats=9 if png else 7,
                    )
                    rows.append(row)
                if form == "decoding files":
                    row["note"] = f"decoding alone, ms per image of {name}: {decoding([s.image_path for s in samples])}"
            batch = collate([training_set[0, 0]] * BATCH)
            row["note"] = f"{name}: {device_work(data, batch):.1f} ms per image for float and normalisation on this CPU"
    return rows


def without_pyspng(work: Callable[[], None]) -> Callable[[], None]:
    """Return a function that works as if the extra `png` were not installed."""

    def limited() -> None:
        with mock.patch.object(images, "_libspng", lambda: None):
            work()

    return limited


def decoding(paths: list[Path]) -> str:
    """Measure decoders, whose time limits what any pipeline reaches from files; median of seven runs."""
    contents = [np.fromfile(path, np.uint8) for path in paths]
    decoders: dict[str, Callable[[Any], Any]] = {
        "PIL": lambda content: np.asarray(Image.open(BytesIO(content)).convert("RGB")),
        "OpenCV": lambda content: cv2.imdecode(content, cv2.IMREAD_COLOR),
        "torchvision": lambda content: decode_image(torch.from_numpy(content)),
    }
    if paths[0].suffix == ".png":
        decoders["zlib, without the filters"] = lambda content: decompress(pixels_of(content.tobytes()))
        if find_spec("pyspng"):
            decoders["pyspng"] = lambda content: images._libspng()(content.tobytes())  # type: ignore[misc]
    else:
        decoders["OpenCV at half the size"] = lambda content: cv2.imdecode(content, cv2.IMREAD_REDUCED_COLOR_2)
        decoders["OpenCV at an eighth"] = lambda content: cv2.imdecode(content, cv2.IMREAD_REDUCED_COLOR_8)
    works = [lambda decode=decode: [decode(content) for content in contents] for decode in decoders.values()]
    medians = [1000 * quartiles(times)[1] / len(paths) for times in in_turn(works, 7)]
    return ", ".join(f"{name} {number(ms)}" for name, ms in zip(decoders, medians, strict=True))


def pixels_of(content: bytes) -> bytes:
    """Return the compressed pixels of a PNG file."""
    position, pixels = 8, []
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] == b"IDAT":
            pixels.append(content[position + 8 : end - 4])
        position = end
    return b"".join(pixels)


def worker(draws: Iterable[Any], load: Callable[[Any], Any], join: Callable[[list[Any]], Any]) -> Callable[[], None]:
    """Return a function that does a data loader worker's job: load each sample and collate batches."""
    draws = list(draws)

    def work() -> None:
        for start in range(0, len(draws), BATCH):
            join([load(draw) for draw in draws[start : start + BATCH]])

    return work


def device_work(data: SegmentationData, batch: dict[str, Any]) -> float:
    """Measure milliseconds per image for what our pipeline leaves to the device and the others do in the worker."""
    import time

    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    times = []
    for _ in range(5):
        begin = time.process_time()
        image = data.on_after_batch_transfer(batch, 0)["image"]
        image.sub_(mean).div_(std)
        times.append(time.process_time() - begin)
    return 1000 * quartiles(times)[1] / BATCH


def read_mask(sample: FileSample) -> np.ndarray[Any, Any]:
    """Read a mask as most data sets do."""
    values = np.array(Image.open(str(sample.mask_path)))
    return values if sample.lookup is None else sample.lookup[values]


def torchvision(crop: int) -> Callable[[FileSample], tuple[Tensor, Tensor]]:
    """Reproduce `SegmentationPresetTrain` of torchvision's references/segmentation/presets.py (v2, PIL images)."""
    kind = {tv_tensors.Mask: torch.int64, torch.Tensor: torch.float32, "others": None}
    finish = v2.Compose([v2.PILToTensor(), v2.ToDtype(kind, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()])

    def load(sample: FileSample) -> tuple[Tensor, Tensor]:
        image = Image.open(sample.image_path).convert("RGB")
        mask = tv_tensors.Mask(torch.from_numpy(read_mask(sample)))
        side = min(image.size)
        first = v2.Compose([v2.RandomResize(int(0.5 * side), int(2 * side)), v2.RandomHorizontalFlip(0.5)])
        image, mask = first(image, mask)
        missing = [max(crop - length, 0) for length in image.size]
        if any(missing):  # the references' PadIfSmaller
            image, mask = v2.Pad([0, 0, *missing], fill={tv_tensors.Mask: VOID, "others": 0})(image, mask)
        image, mask = v2.RandomCrop(crop)(image, mask)
        result: tuple[Tensor, Tensor] = finish(image, mask)
        return result

    return load


def naive(crop: int) -> Callable[[FileSample], tuple[Tensor, Tensor]]:
    """Compose the same augmentation in albumentations, with OpenCV as in its documentation."""
    compose = albumentations.Compose(
        [
            albumentations.RandomScale((-0.5, 1.0), p=1),
            albumentations.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=VOID),
            albumentations.RandomCrop(crop, crop),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Normalize(MEAN, STD),
            ToTensorV2(),
        ],
        seed=0,
    )

    def load(sample: FileSample) -> tuple[Tensor, Tensor]:
        image = cv2.cvtColor(cv2.imread(str(sample.image_path)), cv2.COLOR_BGR2RGB)
        augmented = compose(image=image, mask=read_mask(sample))
        return augmented["image"], augmented["mask"].long()

    return load


def real(name: str, root: str) -> SegmentationDataset:
    """Open a data set on disk."""
    return PascalVOC(root, train_split="train") if name == "VOC" else Cityscapes(root)


def generated(folder: Path, name: str, shape: tuple[int, int], number: int) -> Folder:
    """Generate files of a data set's size and type: smooth noisy colours, which compress about as well as photos."""
    random, suffix = np.random.default_rng(0), "jpg" if name == "VOC" else "png"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(number):
        coarse = random.integers(256, size=(12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
        image = cv2.add(image, random.integers(12, size=image.shape, dtype=np.uint8))
        Image.fromarray(image).save(folder / "images" / f"{index}.{suffix}", quality=92)
        mask = cv2.resize(coarse[..., 0] % 19, shape[::-1], interpolation=cv2.INTER_NEAREST)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    return Folder(str(folder), [str(i) for i in range(19)], {"train": Split("images", "masks")})

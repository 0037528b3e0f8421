"""The data sets on disk: layouts, class indices, and an error for all that can be wrong with a file."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from jsonargparse import auto_cli
from PIL import Image
from tiny import ROOT

from crosscoop.data import images
from crosscoop.data.dataset import VOID, Array, SegmentationDataset, colormap
from crosscoop.data.datasets.camvid import CamVid
from crosscoop.data.datasets.cityscapes import CLASSES, LABEL_TO_TRAIN, TRAIN_TO_LABEL, Cityscapes
from crosscoop.data.datasets.folder import Folder, Split
from crosscoop.data.datasets.streets import SPLITS, Streets, StreetScene, render
from crosscoop.data.datasets.voc import PascalVOC, download_to
from crosscoop.data.images import lookup_table, read_image, read_mask, write_mask
from crosscoop.data.loaders import open_data
from crosscoop.data.samples import FileSample, image_suffixes, read_list, read_pairs
from crosscoop.errors import CrosscoopError
from crosscoop.files import load_yaml, scan

DATA = ROOT.parent / "shared" / "data"
GREY = np.array([[0, 1, 2], [3, 10, 255]], np.uint8)


def real(folder: str) -> Path:
    path = DATA / folder
    return path if path.exists() else pytest.skip(f"needs the real data in {path}")


def save(path: Path, pixels: Array, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def picture(path: Path) -> Path:
    return save(path, np.full((2, 3, 3), 90, np.uint8))


def text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def values(sample: FileSample) -> list[list[int]]:
    mask = sample.mask()
    assert mask is not None and mask.dtype == np.uint8
    return mask.tolist()


def refused(call: Callable[[], object], *parts: object) -> None:
    """The call raises a CrosscoopError that holds every part: the file, what was got, what was expected."""
    with pytest.raises(CrosscoopError) as caught:
        call()
    for part in (*parts, "expected"):
        assert str(part) in str(caught.value)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_images_of_all_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (3, 2), "white").convert(mode)
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    white.save(path)
    image = read_image(path)
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert (image == 255).all()


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "image.png", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "image.png").tolist() == [[[9, 9, 9], [200, 0, 0]]]


def test_16_bit_images_are_scaled(tmp_path: Path) -> None:
    path = save(tmp_path / "deep.png", np.array([[0, 7 * 257, 65535]], np.uint16))
    assert read_image(path)[..., 0].tolist() == [[0, 7, 255]]


def test_32_bit_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.ones((2, 2), np.float32)).save(path)
    refused(lambda: read_image(path), path, "got 32-bit pixels (mode F)", "8-bit RGB")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(path)
    refused(lambda: read_image(path), path, "got 32-bit pixels (mode I)")


@pytest.mark.parametrize(("suffix", "options"), [
    ("jpg", {}), ("jpg", {"progressive": True, "subsampling": 0}), ("png", {}), ("png", {"transparency": (1, 2, 3)}),
])  # fmt: skip
def test_fast_decoders_return_the_pixels_of_pil_and_reject_what_it_rejects(
    tmp_path: Path, suffix: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "png":
        pytest.importorskip("pyspng")
    random = np.random.default_rng(0)
    smooth = random.integers(0, 200, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path / f"image.{suffix}"
    content = save(path, smooth + random.integers(0, 9, smooth.shape, np.uint8), **options).read_bytes()
    with images.open_image(path) as image:
        assert images._decode_fast(image, path, None) is not None
    damaged = [bytearray(content) for _ in range(60)]
    for each, place in zip(damaged, random.integers(2, len(content), len(damaged)), strict=True):
        each[place] ^= 8
    for each in (content, *damaged, *(content[:end] for end in range(2, len(content), len(content) // 20))):
        path.write_bytes(each)
        found = outcome(path)
        with monkeypatch.context() as only_pil:
            only_pil.setattr(images, "_decode_fast", lambda *given: None)
            assert found == outcome(path)


def outcome(path: Path) -> object:
    """The pixels of an image, or the error."""
    try:
        return read_image(path).tolist()
    except CrosscoopError as error:
        return str(error)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown upright after a quarter turn clockwise
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    path = save(tmp_path / "turned.png", pixels, exif=exif)
    assert np.array_equal(read_image(path), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    refused(lambda: read_image(path), path, "file not found")
    path.touch()
    refused(lambda: read_image(path), path, "got 0 bytes that cannot be decoded", "Restore")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = save(path, noise).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: read_image(path), path, f"got {len(whole) // 2} bytes", "a complete image")
    path.write_bytes(b"<html>404</html>")
    refused(lambda: read_mask(path, 3), path, "got 16 bytes")


def test_palette_masks_give_the_index_never_the_colour(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    write_mask(path, GREY, colormap(21))
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array(image.convert("RGB"))[1, 2].tolist() == [224, 224, 192]
        assert np.array(image.convert("RGB"))[0, 1].tolist() == [128, 0, 0]
    assert np.array_equal(read_mask(path, 11), GREY)
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays


def test_a_mask_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = save(tmp_path / "mask.png", GREY)
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask(path, GREY, colormap(21))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_masks_are_looked_up(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", GREY)
    lookup = lookup_table({0: 1, 1: 0, 2: 2, 3: VOID, 10: VOID})
    sample = FileSample("mask", path, path, 3, lookup)
    mask = sample.mask()
    assert mask is not None and mask.dtype == np.uint8 and mask.flags.writeable
    assert mask.tolist() == [[1, 0, 2], [VOID, VOID, VOID]]
    assert sample.image().shape == (2, 3, 3)
    assert FileSample("unlabelled", path, None, 3).mask() is None
    assert pickle.loads(pickle.dumps(sample)) == sample  # DataLoader workers


def test_unknown_mask_values_are_named_as_they_are_in_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", GREY)
    refused(lambda: read_mask(path, 3), path, "got the mask values 3, 10,", "one of the 3 classes or void (255)")
    table = lookup_table({0: 0, 1: 1, 2: 2, 3: 0})
    refused(lambda: read_mask(path, 3, table), path, "got the mask values 10,")


def test_jpeg_masks_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.jpg", GREY)
    refused(lambda: read_mask(path, 11), path, "format JPEG", "lossless")


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    refused(lambda: read_list(path), path, "got an unreadable list", "one sample per line")
    text(path, "", "  ")
    refused(lambda: read_list(path), path, "got an empty list")
    path.write_bytes(b"\xff\x00a")
    refused(lambda: read_list(path), path, "got an unreadable list")
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \r\n")  # as Windows editors save it
    assert read_list(path) == ["a", "b"]
    for encoding in ("utf-16", "utf-16-be"):
        path.write_bytes(b"\xfe\xff"[: 2 * (encoding == "utf-16-be")] + "é\r\nb\r\n".encode(encoding))
        assert read_list(path) == ["é", "b"]


def test_pairs(tmp_path: Path) -> None:
    path = text(tmp_path / "list.txt", "a.jpg m/a.png", "b.jpg", "my image.jpg\tmy mask.png")
    assert read_pairs(path, tmp_path) == [
        (tmp_path / "a.jpg", tmp_path / "m/a.png"),
        (tmp_path / "b.jpg", None),
        (tmp_path / "my image.jpg", tmp_path / "my mask.png"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        *(
            "i/a b.jpg\tm/a,1.png",
            "i/a b.jpg,m/x.png",
            "i/a b.jpg;m/x.png",
            "i\\a b.jpg\tm\\x.png",
            "i\\c.jpg,m\\x.png",
        ),
        *("i/c.jpg m/x.png", "i/c.jpg m/a,1.png", "i/c.jpg, m/x.png", '"i/c.jpg","m/x.png"', "i/d\\e.jpg m/x.png"),
    ],
)
def test_pairs_as_spreadsheets_and_windows_write_them(tmp_path: Path, line: str) -> None:
    for name in ("i/a b.jpg", "i/c.jpg", "i/d\\e.jpg", "m/x.png", "m/a,1.png"):
        text(tmp_path / name)
    ((image, mask),) = read_pairs(text(tmp_path / "list.txt", line), tmp_path)
    assert image.is_file() and mask is not None and mask.is_file()
    absent = line.replace("/", "/0").replace("\\", "\\0")
    assert len(read_pairs(text(tmp_path / "list.txt", absent.replace("a b", "a")), tmp_path)[0]) == 2


def test_a_name_alone_may_hold_anything(tmp_path: Path) -> None:
    text(tmp_path / "a b,c.jpg")
    assert read_pairs(text(tmp_path / "list.txt", "a b,c.jpg"), tmp_path) == [(tmp_path / "a b,c.jpg", None)]


@pytest.mark.parametrize("line", ["../a.jpg a.png", "a.jpg x/../../a.png", "/etc/passwd", "a.jpg a.png 3"])
def test_lines_that_leave_the_root_are_refused(tmp_path: Path, line: str) -> None:
    path = text(tmp_path / "list.txt", line)
    refused(lambda: read_pairs(path, tmp_path), path, f'got the line "{line}"', tmp_path)


# ---------------------------------------------------------------- all data sets


@pytest.mark.parametrize("cls", [PascalVOC, Cityscapes, CamVid])
def test_contract(cls: type[SegmentationDataset], tmp_path: Path) -> None:
    dataset = cls(str(tmp_path / "absent"))
    assert dataset.num_classes == len(dataset.class_names) == len(dataset.palette)
    assert len(set(dataset.class_names)) == len(set(dataset.palette)) == dataset.num_classes
    assert {dataset.train_split, dataset.val_split, dataset.test_split} <= dataset.official_sizes.keys()
    refused(lambda: dataset.samples(dataset.train_split), tmp_path / "absent", "got")


def test_colormap() -> None:
    colors = colormap(256)
    assert colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colors[15] == (192, 128, 128) and colors[20] == (0, 64, 128) and colors[255] == (224, 224, 192)
    assert len(set(colors)) == 256


# ---------------------------------------------------------------- PASCAL VOC


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """a, b, c in train, d, e in val, f in test; trainaug is a to c and g."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    for split, names in {"train": "abc", "val": "de", "test": "f", "trainaug": "abcg"}.items():
        text(lists / f"{split}.txt", *names)
    for name in "abcdefg":
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in "abcde":
        write_mask(root / "SegmentationClass" / f"{name}.png", GREY, colormap(21))
    for name in "abcg":
        write_mask(root / "SegmentationClassAug" / f"{name}.png", GREY % 2, colormap(21))
    return root


def test_voc(voc: Path) -> None:
    dataset = PascalVOC(str(voc))
    assert [sample.name for sample in dataset.samples("val")] == ["d", "e"]
    mask = dataset.samples("train")[0].mask()
    assert mask is not None and np.array_equal(mask, GREY)
    trainaug = dataset.samples("trainaug")
    assert [sample.name for sample in trainaug] == ["a", "b", "c", "g"]
    assert np.array_equal(trainaug[0].mask(), GREY % 2)
    assert trainaug[0].image().shape == (2, 3, 3)
    assert [sample.mask() for sample in dataset.samples("test")] == [None]
    assert dataset.class_names[0] == "background" and dataset.class_names[20] == "tvmonitor"


@pytest.mark.parametrize("name", ["2007.1", "my image", "a.b c.d", "b 1"])
@pytest.mark.parametrize("form", ["{}", "{}.jpg", "/JPEGImages/{}.jpg /SegmentationClass/{}.png", "JPEGImages\\{}.jpg"])
def test_voc_names_may_hold_dots_and_blanks(voc: Path, name: str, form: str) -> None:
    picture(voc / "JPEGImages" / f"{name}.jpg")
    write_mask(voc / "SegmentationClass" / f"{name}.png", GREY, colormap(21))
    text(voc / "ImageSets/Segmentation/val.txt", form.replace("{}", name), "d  1")
    assert [sample.name for sample in PascalVOC(str(voc)).samples("val")] == [name, "d"]


@pytest.mark.parametrize("up", [0, 1, 2])
def test_voc_root_may_be_a_parent(voc: Path, up: int) -> None:
    root = (voc, *voc.parents)[up]
    assert len(PascalVOC(str(root)).samples("train")) == 3


def test_voc_refuses_a_leak_of_val(voc: Path) -> None:
    path = text(voc / "ImageSets/Segmentation/trainaug.txt", *"aed")
    refused(lambda: PascalVOC(str(voc)).samples("trainaug"), path, "got 2 images", "(d, e)", "none")


def test_voc_without_trainaug_names_the_command(voc: Path) -> None:
    lists = voc / "ImageSets/Segmentation"
    (lists / "trainaug.txt").rename(lists / "train_aug.txt")
    assert len(PascalVOC(str(voc)).samples("trainaug")) == 4  # the name in other distributions
    (lists / "train_aug.txt").unlink()
    command = f"`crosscoop prepare-trainaug --root {voc}`"
    refused(lambda: PascalVOC(str(voc)).samples("trainaug"), lists, "trainaug.txt", command)


def test_voc_lists_of_deeplab(voc: Path) -> None:
    text(voc / "ImageSets/Segmentation/trainaug.txt", "/JPEGImages/a.jpg /SegmentationClassAug/a.png")
    assert [sample.name for sample in PascalVOC(str(voc)).samples("trainaug")] == ["a"]


def test_voc_lists_cannot_leave_the_root(voc: Path) -> None:
    picture(voc / "secret.jpg")
    text(voc / "ImageSets/Segmentation/val.txt", "../secret")
    refused(lambda: PascalVOC(str(voc)).samples("val"), voc / "JPEGImages" / "secret.jpg", "missing")


def test_voc_names_what_is_missing(voc: Path) -> None:
    dataset = PascalVOC(str(voc))
    refused(lambda: dataset.samples("tarin"), 'got the split "tarin"', "tarin.txt", "test, train, trainaug, val")
    (voc / "JPEGImages" / "a.jpg").unlink()
    source = voc / "ImageSets/Segmentation/train.txt"
    refused(lambda: dataset.samples("train"), source, "1 of its 6", voc / "JPEGImages" / "a.jpg", "Restore")
    text(source, *"bcb")
    refused(lambda: dataset.samples("train"), source, "got b more than once")
    refused(
        lambda: PascalVOC(str(voc / "JPEGImages")).samples("train"), voc / "JPEGImages", "got no PASCAL VOC 2012 data"
    )


@pytest.mark.parametrize("root", ["data/VOCdevkit/VOC2012", "data/VOCdevkit", "data"])
def test_voc_download_lands_where_it_is_looked_for(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    calls = []

    def download(folder: Path, year: str, image_set: str, download: bool) -> None:
        calls.append(folder)
        target = Path(folder) / "VOCdevkit" / "VOC2012"
        target.parent.mkdir()
        target.symlink_to(voc)

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", download)
    for _ in range(2):
        assert len(PascalVOC(str(tmp_path / root), download=True).samples("train")) == 3
    assert len(calls) == 1  # the second finds it
    assert (tmp_path / "data/VOCdevkit/VOC2012").exists()


def test_voc_download_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path, **_: object) -> None:
        text(Path(folder) / "half.tar", "...")
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets, "VOCSegmentation", download)
    target = tmp_path / "VOCdevkit" / "VOC2012"
    with pytest.raises(CrosscoopError, match=r"the download failed .File not found or corrupted"):
        PascalVOC(str(tmp_path), download=True).samples("train")
    assert not target.exists() and not list(target.parent.iterdir())


def test_download_survives_a_faster_process(tmp_path: Path) -> None:
    target = tmp_path / "VOC2012"

    def download(folder: Path) -> Path:
        text(target / "theirs")
        text(folder / "VOC2012" / "ours")
        return folder / "VOC2012"

    download_to(target, download)
    assert [path.name for path in target.iterdir()] == ["theirs"] and list(tmp_path.iterdir()) == [target]


def test_download_leaves_alone_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages").mkdir(parents=True)
    refused(lambda: PascalVOC(str(tmp_path), download=True).samples("val"), tmp_path, "remove what is there")


# ---------------------------------------------------------------- Cityscapes

PIXELS = {
    0: VOID,
    3: VOID,
    7: 0,
    8: 1,
    9: VOID,
    11: 2,
    12: 3,
    13: 4,
    14: VOID,
    17: 5,
    18: VOID,
    19: 6,
    20: 7,
} | {
    **{
        21: 8,
        22: 9,
        23: 10,
        24: 11,
        25: 12,
        26: 13,
        27: 14,
        28: 15,
        29: VOID,
        30: VOID,
        31: 16,
        32: 17,
        33: 18,
    },
    255: VOID,
}
"""labelId to trainId, copied by hand from cityscapesScripts' labels.py."""


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    labels = np.array([list(PIXELS)], np.uint8)
    for split, city in [("train", "ulm"), ("train", "aachen"), ("val", "bonn"), ("test", "berlin")]:
        name = f"{split}/{city}/{city}_000000_000019"
        save(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", np.zeros((*labels.shape, 3), np.uint8))
        save(tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png", labels)
    return tmp_path


def test_cityscapes(cityscapes: Path) -> None:
    dataset = Cityscapes(str(cityscapes))
    samples = dataset.samples("train")
    assert [sample.name for sample in samples] == ["aachen/aachen_000000_000019", "ulm/ulm_000000_000019"]
    assert values(samples[0]) == [list(PIXELS.values())]
    assert [sample.mask() for sample in dataset.samples("test")] == [None]
    assert dataset.class_names[0] == "road" and dataset.class_names[18] == "bicycle"
    assert dataset.palette[0] == (128, 64, 128) and dataset.palette[18] == (119, 11, 32)


def test_cityscapes_follows_links_and_leaves_hidden_folders_out(cityscapes: Path) -> None:
    train = cityscapes / "leftImg8bit/train"
    (train / "ulm").rename(cityscapes / "ulm")
    (train / "ulm").symlink_to(cityscapes / "ulm")
    picture(train / ".ipynb_checkpoints" / "x_leftImg8bit.png")
    samples = Cityscapes(str(cityscapes)).samples("train")
    assert [sample.name for sample in samples] == ["aachen/aachen_000000_000019", "ulm/ulm_000000_000019"]


def test_cityscapes_table_and_its_inverse() -> None:
    assert (LABEL_TO_TRAIN[TRAIN_TO_LABEL[:19]] == np.arange(19)).all()
    assert TRAIN_TO_LABEL[:3].tolist() == [7, 8, 11] and TRAIN_TO_LABEL[VOID] == 0
    assert TRAIN_TO_LABEL.shape == LABEL_TO_TRAIN.shape == (256,)
    official = [each for each in torchvision.datasets.Cityscapes.classes if each.id >= 0]
    assert LABEL_TO_TRAIN[: len(official)].tolist() == [each.train_id % 256 for each in official]
    evaluated = sorted((each for each in official if each.train_id < VOID), key=lambda each: each.train_id)
    assert [(each.name, each.id, each.color) for each in evaluated] == list(CLASSES)


def test_cityscapes_train_ids_serve_where_label_ids_are_absent(cityscapes: Path) -> None:
    labels = cityscapes / "gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png"
    train_ids = save(
        labels.with_name("bonn_000000_000019_gtFine_labelTrainIds.png"), np.array([[0, 18, 255]], np.uint8)
    )
    sample = Cityscapes(str(cityscapes)).samples("val")[0]
    assert sample.mask_path == labels
    labels.unlink()
    sample = Cityscapes(str(cityscapes)).samples("val")[0]
    assert sample.mask_path == train_ids and values(sample) == [[0, 18, 255]]
    save(train_ids, np.array([[33]], np.uint8))
    refused(sample.mask, train_ids, "got the mask values 33,", "19 classes")


def test_cityscapes_names_what_is_missing(cityscapes: Path) -> None:
    dataset = Cityscapes(str(cityscapes))
    refused(lambda: dataset.samples("trainn"), 'got the split "trainn"', "train, val, test")
    labels = cityscapes / "gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png"
    save(labels, np.array([[34]], np.uint8))
    refused(dataset.samples("val")[0].mask, labels, "got the mask values 34,")
    labels.unlink()
    refused(lambda: dataset.samples("val"), cityscapes / "leftImg8bit/val", labels, "1 of its 2")
    (cityscapes / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png").unlink()
    refused(lambda: dataset.samples("val"), cityscapes / "leftImg8bit/val", "no images", "CITY/*_leftImg8bit.png")


# ---------------------------------------------------------------- CamVid


@pytest.mark.parametrize(
    "form", ["train/x.png trainannot/x.png", "/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png"]
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_camvid_lists_of_both_forms(tmp_path: Path, form: str, suffix: str) -> None:
    text(tmp_path / "train.txt", form)
    picture(tmp_path / "train" / f"x.{suffix}")
    save(tmp_path / "trainannot" / "x.png", np.array([[0, 10, 11]], np.uint8))
    (sample,) = CamVid(str(tmp_path)).samples("train")
    assert sample.name == "x" and sample.image().shape == (2, 3, 3)
    assert values(sample) == [[0, 10, VOID]]


def test_camvid_names_what_is_wrong(tmp_path: Path) -> None:
    dataset = CamVid(str(tmp_path))
    refused(lambda: dataset.samples("train"), tmp_path / "train.txt", "unreadable list")
    text(tmp_path / "train.txt", "train/x.png trainannot/x.png")
    mask = save(tmp_path / "trainannot" / "x.png", np.array([[12]], np.uint8))
    refused(lambda: dataset.samples("train"), tmp_path / "train.txt", tmp_path / "train/x.png", "1 of its 2")
    picture(tmp_path / "train" / "x.png")
    refused(dataset.samples("train")[0].mask, mask, "got the mask values 12,", "11 classes")


# ---------------------------------------------------------------- your own folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "deep/b.1"):
        picture(tmp_path / "images" / f"{name}.jpg")
        save(tmp_path / "masks" / f"{name}.png", np.array([[0, 1, 9, 255]], np.uint8))
    (tmp_path / "images" / "._a.jpg").touch()  # what macOS leaves
    (tmp_path / "images" / "notes.md").touch()
    return tmp_path


def own(root: Path, split: Split, **options: object) -> Folder:
    return Folder(str(root), ["ground", "thing"], {"train": split}, void=[9], **options)


def test_folder_pairs_by_relative_stem(folder: Path) -> None:
    dataset = own(folder, Split("images", "masks"))
    samples = dataset.samples("train")
    assert [sample.name for sample in samples] == ["a", "deep/b.1"]
    assert [values(sample) for sample in samples] == [[[0, 1, VOID, VOID]]] * 2
    assert dataset.palette == colormap(2) and dataset.num_classes == 2
    assert [sample.mask() for sample in own(folder, Split("images")).samples("train")] == [None, None]


def test_folders_behind_links_are_followed_and_hidden_ones_left_out(folder: Path, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (folder / kind / "deep").rename(folder / f"elsewhere_{kind}")
        (folder / kind / "deep").symlink_to(folder / f"elsewhere_{kind}")
        (folder / kind / "deep/back").symlink_to(folder / kind)  # a loop
        (folder / kind / "gone").symlink_to(folder / "nowhere")
        picture(folder / kind / ".ipynb_checkpoints/a-checkpoint.png")
    samples = own(folder, Split("images", "masks")).samples("train")
    assert [sample.name for sample in samples] == ["a", "deep/b.1"]
    (folder / "images/broken.jpg").symlink_to(folder / "nowhere.jpg")
    refused(lambda: own(folder, Split("images")).samples("train"), folder / "images/broken.jpg", "missing")


def test_scan(tmp_path: Path) -> None:
    for name in ("r/a.png", "r/d/b.png", "r/d/e/c.txt", "r/.h/x.png", "r/d/.y.png", "o/z.png"):
        text(tmp_path / name)
    root = tmp_path / "r"
    for link, target in {"r/one": "o", "r/two": "o", "o/back": "r", "r/d/up": "r/d"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)

    def found(pattern: str, folder: Path = root) -> str:
        return " ".join(path.relative_to(folder).as_posix() for path in scan(folder, pattern))

    assert found("**/*") == "a.png d/b.png d/e/c.txt one/z.png two/z.png"
    assert found("**/*.png") == "a.png d/b.png one/z.png two/z.png"
    assert [found(pattern) for pattern in ("*", "*/*", "d/**", "**/e/*")] == [
        *("a.png", "d/b.png one/z.png two/z.png", "d/b.png d/e/c.txt", "d/e/c.txt"),
    ]
    assert found("*", root / ".h") == "x.png" and found("*", tmp_path / "absent") == ""


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "scandir", lambda folder: os.listdir("/no such folder"))  # noqa: PTH208 (root may list any)
    refused(lambda: scan(tmp_path), tmp_path, "cannot be listed (No such file or directory)")


def test_what_pil_reads_is_an_image_and_the_rest_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats = ".png .jpg .jpeg .jfif .jp2 .tga .bmp .gif .ppm .tif .webp"
    assert set(formats.split()) <= image_suffixes()
    assert not {".pdf", ".eps", ".mpg", ".h5", ".ico", ".txt", ""} & image_suffixes()
    Image.open(folder / "images/a.jpg").save(folder / "images/c.jfif", "JPEG")
    save(folder / "masks" / "c.tga", np.zeros((2, 3), np.uint8))
    for name in ("d.heic", "e.HEIC", "README"):
        text(folder / "images" / name)
    samples = own(folder, Split("images", "masks")).samples("train")
    assert [sample.name for sample in samples] == ["a", "c", "deep/b.1"]
    assert samples[1].image().shape == (2, 3, 3) and values(samples[1]) == [[0, 0, 0]] * 2
    left_out = f"Note: {folder / 'images'}: skipped 4 files (2 .heic, 1 without suffix, 1 .md), which"
    assert left_out in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "masks", "files", "suffixes"),
    [
        ("data", "data", ["a.jpg", "a.png", "s/b.1.JPG", "s/b.1.png"], {"image_suffix": ".jpg", "mask_suffix": ".png"}),
        ("data", "data", ["a.jpg", "a.png", "s/b.1.jpeg", "s/b.1.png"], {"mask_suffix": ".png"}),
        ("data", "data", ["a.png", "a_mask.png", "s/b.1.png", "s/b.1_mask.png"], {"mask_suffix": "_mask"}),
        (
            "data",
            "data",
            ["a/x.png", "a/y.png", "s/b.1/x.png", "s/b.1/y.png"],
            {"image_suffix": "/x", "mask_suffix": "/y"},
        ),
        ("data", "data/m", ["a.png", "m/a.png", "s/b.1.png", "m/s/b.1.png"], {}),
        ("data/i", "data", ["i/a.png", "a.png", "i/s/b.1.png", "s/b.1.png"], {}),
        (
            *("data", "data"),
            ["a_left.png", "a_ids.png", "a_color.png", "s/b.1_left.png", "s/b.1_ids.png"],
            {"image_suffix": "_left", "mask_suffix": "_ids.png"},
        ),
    ],
)
def test_images_and_masks_in_one_folder(
    tmp_path: Path, images: str, masks: str, files: list[str], suffixes: Any
) -> None:
    for name in files:
        picture(tmp_path / "data" / name)
    dataset = own(tmp_path, Split(images, masks, **suffixes))
    first, second = dataset.samples("train")
    assert (first.name, second.name) == ("a", "s/b.1")
    (tmp_path / "data" / files[1]).unlink()
    refused(
        lambda: dataset.samples("train"),
        tmp_path / "data" / files[1].rpartition("/")[0],
        "1 of 2 images",
        "mask_suffix",
    )


def test_images_beside_masks_are_not_to_be_removed(tmp_path: Path) -> None:
    dataset = own(tmp_path, Split("data", "data"))
    for name in ("a.png", "a_mask.png"):
        picture(tmp_path / "data" / name)
    refused(lambda: dataset.samples("train"), "got no images beside the masks", "mask_suffix")
    picture(tmp_path / "data/a.jpg")
    with pytest.raises(CrosscoopError, match=r"a.jpg and a.png for a, .* mask_suffix: .png, or list") as caught:
        dataset.samples("train")
    assert "remove" not in str(caught.value).lower()


def test_a_list_of_names_chooses_from_folders(folder: Path) -> None:
    text(folder / "train.txt", "deep/b.1", "a.jpg")
    samples = own(folder, Split("images", "masks", "train.txt")).samples("train")
    assert [sample.name for sample in samples] == ["deep/b.1", "a"] and samples[0].mask() is not None
    text(folder / "train.txt", "a", "x", "y.jpg")
    dataset = own(folder, Split("images", "masks", "train.txt"))
    refused(lambda: dataset.samples("train"), folder / "train.txt", "2 names without an image (x, y)", "such as a.")
    alone = own(folder, Split(list="train.txt"))
    refused(
        lambda: alone.samples("train"),
        folder / "train.txt",
        "got a, ",
        "images/a.jpg, masks/a.png: specify the folders",
        "{images: images, masks: masks, list: train.txt}",
    )
    text(folder / "train.txt", "a.jpg")  # with a suffix, the same
    refused(lambda: alone.samples("train"), "got a.jpg, ", "{images: images, masks: masks, list: train.txt}")


def test_folder_reads_lists(folder: Path) -> None:
    text(folder / "train.txt", "images/deep/b.1.jpg masks/a.png", "images/a.jpg")
    samples = own(folder, Split(list="train.txt")).samples("train")
    assert [sample.name for sample in samples] == ["images/deep/b.1", "images/a"]
    assert [sample.mask_path for sample in samples] == [folder / "masks/a.png", None]


def test_folder_maps_mask_values(folder: Path) -> None:
    path = save(folder / "masks" / "a.png", np.array([[0, 255, 9]], np.uint8))
    dataset = own(folder, Split("images", "masks"), mask_values=[0, 255])
    assert values(dataset.samples("train")[0]) == [[0, 1, VOID]]
    save(path, np.array([[0, 7]], np.uint8))
    refused(dataset.samples("train")[0].mask, path, "got the mask values 7,", "2 classes")


def test_ade20k_counts_from_1_and_has_150_classes(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        picture(tmp_path / "images" / split / "ADE_train_00000001.jpg")
        save(tmp_path / "annotations" / split / "ADE_train_00000001.png", np.array([[0, 1, 150, 255]], np.uint8))
    options = load_yaml(ROOT / "configs/ade20k/parts/data.yaml")
    options["dataset"]["init_args"]["root"] = str(tmp_path)
    dataset = open_data({"data": options}).dataset
    assert dataset.num_classes == 150 and (dataset.class_names[0], dataset.class_names[149]) == ("wall", "flag")
    for split in (dataset.train_split, dataset.val_split, dataset.test_split):
        assert values(dataset.samples(split)[0]) == [[VOID, 0, 149, VOID]]


def test_folder_names_what_is_missing_or_doubled(folder: Path) -> None:
    dataset = own(folder, Split("images", "masks"))
    refused(lambda: dataset.samples("val"), 'got "val"', "one of train")
    save(folder / "masks" / "a.bmp", GREY)
    refused(lambda: dataset.samples("train"), folder / "masks", "a.bmp and a.png", "one file")
    (folder / "masks" / "a.bmp").unlink()
    (folder / "masks" / "a.png").unlink()
    refused(lambda: dataset.samples("train"), folder / "masks", "1 of 2 images", folder / "images" / "a.jpg")
    absent = own(folder, Split("nowhere"))
    refused(lambda: absent.samples("train"), folder / "nowhere", "got no images", ".png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"palette": [(0, 0, 0)]}, "palette: got 1 colours"),
        ({"class_names": ["a", "a"]}, "class_names: got ['a', 'a']"),
        ({"class_names": []}, "class_names: got []"),
        ({"mask_values": [0]}, "mask_values: got [0]"),
        ({"mask_values": [0, 0]}, "mask_values: got [0, 0]"),
        ({"void": [1]}, "void [1]"),
        ({"reduce_zero_label": True, "mask_values": [1, 2]}, "reduce_zero_label: got true with mask_values"),
        ({"void": [256]}, "got 256"),
        ({"splits": {"train": Split()}}, 'splits: got "train"'),
        ({"splits": {"train": Split("images", mask_suffix="_mask")}}, 'splits: got "train"'),
        ({"splits": {"train": Split(list="train.txt", image_suffix=".jpg")}}, 'splits: got "train"'),
        ({"splits": {"train": Split(masks="masks", list="train.txt")}}, 'splits: got "train"'),
    ],
)
def test_folder_refuses_nonsense(arguments: dict[str, object], message: str) -> None:
    valid: dict[str, object] = {"class_names": ["a", "b"], "splits": {"train": Split("images")}}
    refused(lambda: Folder("root", **(valid | arguments)), message)


def test_folder_from_yaml(folder: Path) -> None:
    config = text(
        folder / "config.yaml",
        "dataset:",
        "  class_path: crosscoop.data.datasets.folder.Folder",
        "  init_args:",
        f"    root: {folder}",
        "    class_names: [ground, thing]",
        "    palette: [[0, 0, 0], [200, 10, 10]]",
        "    void: [9]",
        "    splits: {train: {images: images, masks: masks}, val: {list: val.txt}}",
    )

    def load(dataset: SegmentationDataset) -> SegmentationDataset:
        return dataset

    dataset = auto_cli(load, args=[f"--config={config}"], as_positional=False)
    assert isinstance(dataset, Folder) and dataset.palette[1] == (200, 10, 10)
    assert len(dataset.samples("train")) == 2 and dataset.splits["val"] == Split(list="val.txt")


# ---------------------------------------------------------------- real data


def test_real_camvid() -> None:
    dataset = CamVid(str(real("camvid")))
    for split, size in dataset.official_sizes.items():
        assert len(dataset.samples(split)) == size
    counts = sum(np.bincount(sample.mask().ravel(), minlength=256) for sample in dataset.samples("val"))
    assert np.flatnonzero(counts).tolist() == [*range(11), VOID]
    assert counts[:11].argmax() in map(dataset.class_names.index, ("Road", "Building"))
    sample = dataset.samples("test")[0]
    assert sample.image().shape == (360, 480, 3) and sample.mask().shape == (360, 480)


def test_real_voc() -> None:
    dataset = PascalVOC(str(real("voc")))
    assert [len(dataset.samples(split)) for split in ("train", "val")] == [120, 200]
    for sample in dataset.samples("val")[:20]:
        mask = sample.mask()
        assert mask is not None and mask.shape == sample.image().shape[:2]
    refused(lambda: dataset.samples("trainaug"), "crosscoop prepare-trainaug --root")


def test_real_cityscapes() -> None:
    dataset = Cityscapes(str(real("cityscapes")))
    assert [len(dataset.samples(split)) for split in ("train", "val")] == [4, 2]
    sample = dataset.samples("val")[0]
    mask = sample.mask()
    assert sample.name == "aachen/aachen_000004_000019" and mask is not None
    assert sample.image().shape == (1024, 2048, 3) and mask.shape == (1024, 2048)
    assert np.bincount(mask.ravel(), minlength=256)[:19].argmax() in (0, 2)  # road or building


def test_real_lists_of_voc() -> None:
    folder = real("voc/official_lists")
    names = {path.stem: read_list(path) for path in folder.glob("*.txt")}
    sizes = PascalVOC.official_sizes
    assert len(names["train_aug"]) == len(set(names["train_aug"])) == sizes["trainaug"]
    assert not set(names["train_aug"]) & set(names["val"])
    assert set(names["train"]) < set(names["train_aug"])
    assert [len(names[split]) for split in ("train", "val", "trainval")] == [1464, 1449, 2913]
    assert [sizes[split] for split in ("train", "val", "trainval")] == [1464, 1449, 2913]


SIZES = [(32, 64), (33, 65), (101, 57), (128, 256), (40, 300), (512, 1024)]


def scene(split="train", index=0, seed=0, height=64, width=128):
    return StreetScene(seed, split, index, height, width)


def fresh_image(sample):
    render.cache_clear()
    return sample.image()


@pytest.fixture(scope="module")
def masks():
    return np.stack([sample.mask() for sample in Streets(num_train=60).samples("train")])


def test_describes_its_classes():
    streets = Streets()
    assert streets.num_classes == len(set(streets.class_names)) == len(set(streets.palette))
    assert (streets.train_split, streets.val_split, streets.test_split) == SPLITS


def test_splits_have_the_sizes_asked_for_and_unique_names():
    streets = Streets(num_train=3, num_val=2, num_test=1)
    assert [len(streets.samples(split)) for split in SPLITS] == [3, 2, 1]
    assert [sample.name for sample in streets.samples("val")] == ["val/000000", "val/000001"]


def test_scenes_are_the_same_in_every_instance_and_order():
    first, second = Streets(height=64, width=128), Streets(height=64, width=128, num_train=6)
    forwards = [fresh_image(sample) for sample in first.samples("train")[:6]]
    backwards = [fresh_image(sample) for sample in reversed(second.samples("train"))]
    np.testing.assert_array_equal(forwards, backwards[::-1])


def test_more_scenes_leave_the_first_ones_as_they_are():
    assert Streets(num_train=5).samples("train") == Streets(num_train=9).samples("train")[:5]


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "val"}, {"split": "test"}, {"index": 1}])
def test_seed_split_and_index_each_make_another_scene(change):
    assert (scene().mask() != scene(**change).mask()).mean() > 0.1


def test_no_scene_comes_twice():
    samples = [scene(split, index, height=32, width=64) for split in SPLITS for index in range(20)]
    assert len({sample.image().tobytes() for sample in samples}) == len(samples)


def test_the_global_random_state_does_not_matter_and_is_left_alone():
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first = fresh_image(scene())
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(2)
    np.testing.assert_array_equal(fresh_image(scene()), first)


@pytest.mark.parametrize("mask_first", [False, True])
def test_image_and_mask_agree_in_either_order(mask_first):
    render.cache_clear()
    expected = render(scene())
    render.cache_clear()
    mask = scene().mask() if mask_first else None
    image = scene().image()
    for index in range(1, 9):  # more scenes than are remembered
        scene(index=index).image()
    mask = scene().mask() if mask is None else mask
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(mask, expected[1])


def test_the_edges_of_the_sky_are_edges_of_the_image():
    """The image belongs to the mask: above the roofs it is smooth, at the roofs it changes."""
    inside, across = [], []
    for sample in Streets().samples("train")[:20]:
        steps = np.abs(np.diff(sample.image().astype(float), axis=0)).sum(axis=-1)
        sky = sample.mask() == 0
        inside.append(steps[sky[:-1] & sky[1:]].mean())
        across.append(steps[sky[:-1] & ~sky[1:]].mean())
    assert np.mean(across) > 1.5 * np.mean(inside)


def test_what_a_caller_writes_into_an_array_stays_with_the_caller():
    sample = scene()
    sample.image()[:] = 0
    sample.mask()[:] = 0
    assert sample.image().any() and sample.mask().any()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size(height, width):
    streets = Streets(height=height, width=width)
    for sample in streets.samples("test")[:3]:
        image, mask = sample.image(), sample.mask()
        assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((height, width), np.uint8)
        assert image.flags.c_contiguous and mask.flags.c_contiguous
        assert set(np.unique(mask)) <= {*range(streets.num_classes), VOID}


def test_the_size_does_not_change_the_street():
    for index in range(5):
        small, large = scene(index=index).mask(), scene(index=index, height=256, width=512).mask()
        assert (small == large[2::4, 2::4]).mean() > 0.85


def test_every_class_appears_and_small_things_stay_rare(masks):
    streets = Streets()
    share = np.bincount(masks.ravel(), minlength=256)[: streets.num_classes] / masks.size
    frequency = dict(zip(streets.class_names, share, strict=True))
    assert min(share) > 0.003
    assert max(share) < 0.4
    assert max(frequency[name] for name in ("pole", "sign", "person")) < 0.03
    for index, name in enumerate(streets.class_names):
        assert (masks == index).any(axis=(1, 2)).mean() > 0.3, name


def test_the_scenes_are_the_same_on_every_machine(masks):
    """Another street here makes every figure on the data set incomparable with the earlier ones."""
    percent = [100 * (masks == label).mean() for label in (*range(12), VOID)]
    expected = [7.2, 27.6, 1.9, 6.5, 30.0, 2.2, 10.9, 0.9, 0.5, 1.7, 3.5, 2.0, 5.1]
    np.testing.assert_allclose(percent, expected, atol=0.1)


def test_void_is_present_but_little(masks):
    void = (masks == VOID).mean(axis=(1, 2))
    assert 0.02 < void.mean() < 0.15
    assert (void > 0).all()


def test_samples_survive_pickling():
    sample = Streets(seed=3).samples("val")[7]
    copy = pickle.loads(pickle.dumps(sample))
    assert copy == sample
    np.testing.assert_array_equal(fresh_image(copy), fresh_image(sample))


@pytest.mark.parametrize(
    ("option", "value", "minimum"),
    [
        ("num_train", 0, 1),
        ("num_val", -1, 1),
        ("num_test", 0, 1),
        ("height", 31, 32),
        ("width", 0, 32),
        ("seed", -1, 0),
    ],
)
def test_values_that_are_too_small_are_refused(option, value, minimum):
    with pytest.raises(CrosscoopError, match=rf"data\.dataset\.{option}: got {value}, expected at least {minimum}\."):
        Streets(**{option: value})


def test_an_unknown_split_is_refused():
    with pytest.raises(CrosscoopError, match="got 'trainaug', expected one of train, val, test"):
        Streets().samples("trainaug")

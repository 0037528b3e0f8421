"""What mask files may hold: every lossless form is read, and none of another meaning in silence."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import yaml
from faulty import fit_options, mask_of, refusal, write
from PIL import Image
from test_datasets import refused, save
from tiny import crosscoop

from crosscoop.data.check import LOOKS, check_classes, check_headers
from crosscoop.data.dataset import VOID, Array, Legend, colormap
from crosscoop.data.datasets.cityscapes import Cityscapes
from crosscoop.data.datasets.folder import Folder, Split
from crosscoop.data.datasets.voc import PascalVOC
from crosscoop.data.images import lookup_table, read_mask, write_mask
from crosscoop.data.peculiarities import of_image, of_sample, summed_up
from crosscoop.data.samples import FileSample
from crosscoop.prediction.pictures import save_confusion

MASK = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
COLORS = ((10, 10, 10), (220, 20, 60), (255, 140, 0))
LEGEND = Legend(["ground", "tree", "house"], COLORS)


def png(rows: list[bytes], width: int, depth: int) -> bytes:
    """A grey PNG of so many bits a pixel, packed by hand; PIL writes no such files."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def palette_png(path: Path, indices: Array, colors: list[tuple[int, int, int]], suffix: str = "PNG") -> Path:
    image = Image.fromarray(indices)
    image.putpalette([channel for color in colors for channel in color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, suffix)
    return path


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        png([bytes([0b00011000]), bytes([0b10010000])], 3, 2),
        png([bytes([0x01, 0x20]), bytes([0x21, 0x00])], 3, 4),
        b"P5 3 2 2 " + MASK.tobytes(),
        b"P2 3 2 300 0 1 2 2 1 0",
        encoded(Image.fromarray(MASK.astype(np.uint16))),
        encoded(Image.fromarray(MASK.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(MASK).convert("LA")),
        encoded(Image.fromarray(MASK).convert("RGB")),
        encoded(Image.fromarray(MASK).convert("RGBA")),
    ],
    ids=["2 bits", "4 bits", "maxval 2", "maxval 300", "16 bits", "32 bits", "LA", "RGB", "RGBA"],
)
def test_values_are_read_from_every_lossless_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mask").write_bytes(content)
    mask = read_mask(tmp_path / "mask", 3)
    assert mask.dtype == np.uint8 and mask.flags.writeable
    assert mask.tolist() == MASK.tolist()


def test_black_and_white_masks_of_one_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", MASK > 0)
    for lookup in (None, lookup_table({0: 0, 255: 1})):
        assert read_mask(path, 2, lookup).tolist() == (MASK > 0).astype(int).tolist()
    refused(lambda: read_mask(path, 2, lookup_table({0: 0, 5: 1})), path, "values 1,")  # never void


@pytest.mark.parametrize(
    ("pixels", "part"),
    [
        (np.full((2, 2), 256, np.uint16), "values 256"),
        (np.full((2, 2), -1, np.int32), "values -1"),
        (np.ones((2, 2), np.float32), "mode F"),
        (np.full((2, 2, 2), 1, np.uint8), "transparent"),
        (np.full((2, 2, 3), [1, 2, 3], np.uint8), "in colours"),
    ],
)
def test_what_has_no_class_is_refused(tmp_path: Path, pixels: Array, part: str) -> None:
    path = save(tmp_path / "mask.tif", pixels)
    refused(lambda: read_mask(path, 3), path, part)


def test_16_bits_a_channel_are_refused_as_colours(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"  # PIL would drop the low bytes, and all would be class 0
    path.write_bytes(png([bytes([0, 1, 0, 1, 0, 1])], 1, 16).replace(b"\x10\x00", b"\x10\x02", 1))
    content = bytearray(path.read_bytes())
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    refused(lambda: read_mask(path, 3), path, "16 bits per channel")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colours_are_read_by_the_legend(tmp_path: Path, mode: str) -> None:
    path, legend = tmp_path / "mask.png", Legend(LEGEND.class_names, COLORS, [(1, 2, 3)], only=mode == "P")
    for extra, last in (((224, 224, 192), VOID), ((2, 3, 4), None)):
        colors = [COLORS[2], COLORS[0], (1, 2, 3), extra]
        palette_png(path, np.array([[0, 1, 2, 3]], np.uint8), colors)
        if mode != "P":
            save(path, np.array(Image.open(path).convert(mode)))
        if last is None:
            refused(lambda: read_mask(path, 3, None, legend), path, "(2, 3, 4)", "colours of void")
        else:
            assert read_mask(path, 3, None, legend).tolist() == [[2, 0, VOID, last]]


VOC_COLORS = [*colormap(21), *[(0, 0, 0)] * 234, (224, 224, 192)]


@pytest.mark.parametrize(
    ("indices", "colors"),
    [
        ([0, 15, 255], VOC_COLORS),
        ([0, 15, 255], list(colormap(21))),  # 255 has no colour of its own
        ([0, 15, 255], [(0, 0, 0)] * 256),  # none has
        ([0, 15, 255], [(i, i, i) for i in range(256)]),
        ([0, 1, 2], [(0, 0, 0), (9, 9, 9), (8, 8, 8), colormap(21)[15]]),  # an unused one is no matter
    ],
)
def test_palettes_without_contradiction_are_no_matter(
    tmp_path: Path, indices: list[int], colors: list[tuple[int, int, int]]
) -> None:
    path = palette_png(tmp_path / "mask.png", np.array([indices], np.uint8), colors)
    assert read_mask(path, 21, None, PascalVOC.legend).tolist() == [indices]


def renumbered(path: Path) -> Path:
    """Background, person and void with indices in the order of their appearance, as image tools write them."""
    return palette_png(path, np.array([[0, 1, 2]], np.uint8), [(0, 0, 0), (192, 128, 128), (224, 224, 192)])


def test_renumbered_palettes_are_refused_before_training(tmp_path: Path) -> None:
    path = renumbered(tmp_path / "mask.png")
    refused(lambda: read_mask(path, 21, None, PascalVOC.legend), path, "aeroplane", "person", "mask_colors")
    image = save(tmp_path / "image.png", np.zeros((1, 3, 3), np.uint8))
    (fault,) = check_headers({"train": [FileSample("a", image, path, 21, None, PascalVOC.legend)]})
    assert "person" in fault.message and str(path) in fault.files
    assert read_mask(path, 21, None, Legend(PascalVOC.class_names, PascalVOC.palette, only=True)).tolist() == [
        [0, 15, VOID]
    ]


def test_grey_values_as_rgb_may_not_be_colours_of_another_class(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", np.zeros((2, 2, 3), np.uint8))
    legend = Legend(["sky", "night"], [(200, 0, 0), (0, 0, 0)])
    refused(lambda: read_mask(path, 2, None, legend), path, "stands for sky", "colour of night")


def configured(config: Path, **options: object) -> Path:
    """The file of `write`, with further options of the data set."""
    content = yaml.safe_load(config.read_text())
    content["dataset"]["init_args"] |= options
    config.write_text(yaml.safe_dump(content))
    return config


def test_predictions_of_another_palette_are_refused_by_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(write(tmp_path), palette=[list(color) for color in COLORS])
    labels = tmp_path / "labels"
    for index in range(2):
        write_mask(labels / f"val{index}.png", np.array(Image.open(mask_of(tmp_path, "val", index))), COLORS)
    crosscoop("score", "--config", config, "--predictions", labels)
    write_mask(labels / "val1.png", np.zeros((32, 48), np.uint8), COLORS[::-1])
    message = refusal(capsys, "score", "--config", config, "--predictions", labels)
    assert "stands for ground" in message and "colour of house" in message


def folder(root: Path, **options: object) -> Folder:
    splits = {"train": Split("images/train", "masks/train"), "val": Split("images/val", "masks/val")}
    return Folder(str(root), ["ground", "tree", "house"], splits, test_split="val", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"mask_colors": True}, "palette: got None"),
        ({"mask_colors": True, "palette": [COLORS[0]] * 3}, "different colour"),
        ({"mask_colors": True, "palette": COLORS, "mask_values": [0, 1, 2]}, "mask_colors: got mask_values"),
        ({"palette": COLORS, "void": [COLORS[1]]}, "none of them in void"),
        ({"void": [(0, 0, 0)]}, "palette: got None"),
    ],
)
def test_options_of_colours_that_contradict_each_other(tmp_path: Path, options: dict[str, object], part: str) -> None:
    refused(lambda: folder(tmp_path, **options), part)


def test_masks_in_colours_from_the_command_line(tmp_path: Path) -> None:
    config = write(tmp_path)
    colors = np.array([*COLORS, *[(0, 0, 0)] * 253], np.uint8)
    for path in tmp_path.glob("masks/*/*.png"):
        save(path, colors[np.array(Image.open(path))])
    options = {"palette": [list(color) for color in COLORS], "mask_colors": True, "void": [[0, 0, 0]]}
    crosscoop("check-data", "--config", configured(config, **options), "--workers 0")


# ---------------------------------------------------------------- classes


def constant(root: Path, values: list[int], split: str = "train") -> None:
    for path in sorted((root / "masks" / split).glob("*.png")):
        save(path, np.resize(np.array(values, np.uint8), (32, 48)))


@pytest.mark.parametrize(("values", "found"), [([0, 255], "ground and void"), ([255], "void"), ([1], "tree")])
def test_fit_refuses_to_train_on_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[int], found: str
) -> None:
    write(tmp_path)
    constant(tmp_path, values)
    samples = folder(tmp_path).samples("train")
    (fault,), warning = check_classes("train", samples, ["ground", "tree", "house"])
    assert f"only {found}, expected at least two" in fault.message and "[0, 255]" in fault.message
    assert warning == ""


def test_a_class_that_is_never_shown(tmp_path: Path) -> None:
    write(tmp_path, train=6)
    names = ["ground", "tree", "house"]
    samples = folder(tmp_path).samples("train")
    assert check_classes("train", samples, names) == ([], "")
    constant(tmp_path, [0, 1])
    faults, warning = check_classes("train", samples, names)
    assert faults == [] and "all 6 masks were checked and contain no pixels of house" in warning
    mask_of(tmp_path, "train", 0).write_bytes(b"")
    faults, warning = check_classes("train", samples, names)
    assert [fault.files for fault in faults] == [[str(path) for path in (samples[0].image_path, samples[0].mask_path)]]
    assert "5 of the 6 masks were checked and contain no pixels of house" in warning


def test_rare_classes_give_no_alarm_and_common_ones_end_the_look(tmp_path: Path) -> None:
    looked = []

    class Drawn:
        mask_path = image_path = Path("drawn")

        def __init__(self, name: str, values: list[int]) -> None:
            self.name, self.values = name, values

        def image(self) -> Array:
            raise AssertionError

        def mask(self) -> Array:
            looked.append(self.name)
            return np.array([self.values], np.uint8)

    common, rare = Drawn("common", [0, 1]), Drawn("rare", [2])
    assert check_classes("train", [common] * 500 + [rare], ["a", "b", "c"]) == ([], "")
    looked.clear()
    assert check_classes("train", [common] * 5000, ["a", "b"]) == ([], "")
    assert len(looked) < 50
    assert f"{LOOKS} of the 5000 masks" in check_classes("train", [common] * 5000, ["a", "b", "c"])[1]


def test_check_data_reports_classes_that_training_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    for values, part in (([0, 1], "train: got no pixels of house"), ([0, 255], "only ground and void")):
        constant(tmp_path, values)
        constant(tmp_path, [0, 1], "val")
        with pytest.raises(SystemExit) as ended:
            crosscoop("check-data", "--config", config, "--workers 0")
        printed = capsys.readouterr().out
        assert ended.value.code == 1 and "1 faults." in printed and part in printed
        assert "val has no pixels of house" in printed  # a note


def test_fit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path)
    constant(tmp_path, [0, 255])
    assert "mask_values of Folder" in refusal(capsys, "fit", fit_options(config), "--run", tmp_path / "run")
    constant(tmp_path, [0, 1])
    with pytest.warns(UserWarning, match="all 4 masks were checked and contain no pixels of house"):
        crosscoop("fit", fit_options(config), "--run", tmp_path / "run")


def test_train_ids_under_the_name_of_label_ids(tmp_path: Path) -> None:
    name = "val/bonn/bonn_000000_000019"
    save(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", np.zeros((1, 3, 3), np.uint8))
    path = tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png"
    for ids, expected in (([0, 18, 255], None), ([7, 21, 255], [0, 8, VOID]), ([7, 11, 3], [0, 2, VOID])):
        save(path, np.array([ids], np.uint8))
        (sample,) = Cityscapes(str(tmp_path)).samples("val")
        if expected is None:
            refused(sample.mask, path, "trainIds", "labelTrainIds")
            refused(lambda: sample.mask_rows()[0:1, 0:1], path, "trainIds", "labelTrainIds")  # noqa: B023
        else:
            assert np.array_equal(sample.mask(), [expected])
            assert np.array_equal(sample.mask_rows()[0:1, 0:3], [expected])


# ---------------------------------------------------------------- what is noted of files


def turned(path: Path, orientation: int, size: tuple[int, int] = (4, 6)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, np.zeros((*size, 3), np.uint8), exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "faults", "notes"), [(1, 0, 0), (2, 0, 1), (3, 0, 1), (6, 1, 0), (8, 1, 0)])
def test_masks_on_unturned_pixels(tmp_path: Path, suffix: str, orientation: int, faults: int, notes: int) -> None:
    image, mask = (
        turned(tmp_path / f"image.{suffix}", orientation),
        save(tmp_path / "mask.png", np.zeros((4, 6), np.uint8)),
    )
    sample = FileSample("a", image, mask, 2)
    found = check_headers({"train": [sample]})
    assert len(found) == faults and all("EXIF rotates" in fault.message for fault in found)
    if not faults:
        assert len([text for _, text in of_sample(sample) if f"EXIF (orientation {orientation})" in text]) == notes


def test_masks_on_turned_pixels_are_right(tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.png", np.zeros((6, 4), np.uint8))
    sample = FileSample("a", turned(tmp_path / "image.jpg", 6), mask, 2)
    assert check_headers({"train": [sample]}) == [] == of_sample(sample)


def test_peculiar_files_are_noted(tmp_path: Path) -> None:
    dark = save(tmp_path / "dark.png", np.full((2, 2), 4095, np.uint16))
    full = save(tmp_path / "full.png", np.full((2, 2), 65535, np.uint16))
    pages = save(
        tmp_path / "pages.tif", np.zeros((2, 2), np.uint8), save_all=True, append_images=[Image.new("L", (2, 2))]
    )
    absent = tmp_path / "absent.png"
    lines = summed_up(note for path in (dark, full, pages, absent) for note in of_image(path))
    assert len(lines) == 2
    assert "lower 12 of 16 bits" in lines[0] and str(dark) in lines[0]
    assert "several pages" in lines[1] and str(pages) in lines[1]


def test_confusion_of_many_classes_is_drawn_in_seconds(tmp_path: Path) -> None:
    counts = np.ones((254, 255), np.int64)  # a number in every cell took minutes
    started = time.monotonic()
    save_confusion(tmp_path / "a.png", counts * np.arange(1, 256), [f"class {i}" for i in range(254)], "title")
    assert time.monotonic() - started < 20
    with Image.open(tmp_path / "a.png") as picture:
        assert 1000 < picture.width < 4000

"""From samples to batches: augmentation, order, ranks and workers, and the errors on the way."""

import re
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import STREETS

from crosscoop.data import Folder, SegmentationData, SegmentationDataset
from crosscoop.data.augment import Augmentation, center_cropped, resized
from crosscoop.data.dataset import VOID
from crosscoop.data.images import png_rows, read_image
from crosscoop.data.loaders import open_data
from crosscoop.data.pipeline import EvaluationSet, TrainingSet
from crosscoop.data.samplers import EvaluationSampler, TrainingSampler
from crosscoop.data.samples import FileSample
from crosscoop.data.unlabelled import Unlabelled
from crosscoop.errors import CrosscoopError

COLORS = np.array([(250, 20, 30), (20, 240, 40), (60, 30, 230), (200, 210, 20), (30, 200, 210)], np.uint8)
"""A colour per class; none is near black, with which images are padded."""


@dataclass
class Scene:
    """A sample of arrays."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray | None

    def image(self):
        return self.pixels.copy()

    def mask(self):
        return None if self.labels is None else self.labels.copy()


class Scenes(SegmentationDataset):
    """A data set of given samples, the same in every split."""

    class_names, palette = ("a", "b", "c", "d", "e"), tuple(map(tuple, COLORS.tolist()))
    train_split, val_split, test_split = "train", "val", "test"

    def __init__(self, scenes):
        self.scenes = scenes

    def samples(self, split):
        return self.scenes


class Mismatched(Scenes):
    """Masks larger than their images; by class path, in `test_training`."""

    def __init__(self):
        super().__init__([Scene(f"scene {i}", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9), np.uint8)) for i in (0,)])


def painted(height=48, width=64, seed=0):
    """A sample whose colours tell its classes, in blocks of 8 pixels."""
    blocks = np.random.default_rng(seed).integers(0, 5, (height // 8 + 1, width // 8 + 1))
    labels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)
    return Scene("painted", COLORS[labels], labels)


def scenes(number):
    return [Scene(f"scene {i}", painted(seed=i).pixels, painted(seed=i).labels) for i in range(number)]


def module(dataset, **options):
    return SegmentationData(dataset, **{"batch_size": 2, "crop_size": 32, "num_workers": 0, **options})


def check_alignment(image, mask, margin=2):
    """Where a pixel's neighbourhood has one class, the image has that class's colour; returns the share of those."""
    size = 2 * margin + 1
    windows = np.lib.stride_tricks.sliding_window_view(mask, (size, size))
    inner = np.s_[margin : mask.shape[0] - margin, margin : mask.shape[1] - margin]
    uniform = windows.min((2, 3)) == windows.max((2, 3))
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(COLORS)] = COLORS
    np.testing.assert_array_equal(image[inner][uniform], colors[mask[inner][uniform]])
    return uniform.mean()


# -- one augmentation


@pytest.mark.parametrize("crop_size", [32, 80])
def test_image_and_mask_stay_together(crop_size):
    augmentation, sample = Augmentation(crop_size, (0.5, 2.0), True, False), painted()
    shares = []
    for seed in range(60):
        image, mask = augmentation(sample.image(), sample.mask(), (seed,))
        assert image.shape == (crop_size, crop_size, 3) and mask.shape == (crop_size, crop_size)
        shares.append(check_alignment(image, mask))
    assert np.mean(shares) > 0.2  # so much was really compared


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (30, 51), (24, 100)])
def test_resized_image_and_mask_stay_together(size):
    sample = painted()
    image, mask = resized(sample.image(), sample.mask(), size)
    assert image.shape == (*size, 3) and mask.shape == size and set(np.unique(mask)) <= set(range(5))
    assert check_alignment(image, mask) > 0.1
    assert resized(sample.image(), None, size)[1] is None
    labels = np.random.default_rng(0).choice([0, 4], (48, 64)).astype(np.uint8)  # any mixture would be 1, 2 or 3
    assert set(np.unique(resized(COLORS[labels], labels, size)[1])) == {0, 4}


def test_labels_are_never_mixed_and_padding_is_void():
    labels = np.random.default_rng(0).choice([0, 4], (48, 64)).astype(np.uint8)  # any mixture would be 1, 2 or 3
    augmentation, padded = Augmentation(80, (0.5, 2.0), True, True), 0
    for seed in range(60):
        image, mask = augmentation(COLORS[labels], labels, (seed,))
        assert mask.dtype == image.dtype == np.uint8 and set(np.unique(mask)) <= {0, 4, VOID}
        padded += VOID in mask
    assert padded > 20
    image, mask = Augmentation(80, (0.5, 0.5), False, False)(COLORS[labels], labels, (0,))
    assert (mask != VOID).sum() == 24 * 32 and (image[mask == VOID] == 0).all()


def extent(mask):
    """Height and width of what is not padding."""
    rows, columns = (mask != VOID).any(1).sum(), (mask != VOID).any(0).sum()
    return rows, columns


def test_scale_stays_in_its_range_and_uses_it():
    sample = painted(40, 40)
    augmentation = Augmentation(120, (0.5, 2.0), False, False)
    sizes = [extent(augmentation(sample.image(), sample.mask(), (seed,))[1]) for seed in range(100)]
    assert all(height == width for height, width in sizes)
    heights = [height for height, _ in sizes]
    assert 20 <= min(heights) < 24 and 76 < max(heights) <= 80
    assert extent(Augmentation(120, (1.5, 1.5), False, False)(sample.image(), sample.mask(), (0,))[1]) == (60, 60)


@pytest.mark.parametrize("flip", [True, False])
def test_half_of_the_images_are_mirrored_if_wanted(flip):
    sample, augmentation = painted(32, 32), Augmentation(32, (1, 1), flip, False)
    kinds = []
    for seed in range(100):
        image, mask = augmentation(sample.image(), sample.mask(), (seed,))
        mirrored = not np.array_equal(mask, sample.labels)
        expected = np.s_[:, ::-1] if mirrored else np.s_[:, :]
        np.testing.assert_array_equal(mask, sample.labels[expected])
        np.testing.assert_array_equal(image, sample.pixels[expected])
        kinds.append(mirrored)
    assert 30 < sum(kinds) < 70 if flip else not any(kinds)


def test_colours_change_only_if_wanted_and_never_in_masks():
    sample, plain, jittered = painted(), Augmentation(32, (1, 1), False, False), Augmentation(32, (1, 1), False, True)
    changed = 0
    for seed in range(20):
        image, mask = plain(sample.image(), sample.mask(), (seed,))
        other_image, other_mask = jittered(sample.image(), sample.mask(), (seed,))
        np.testing.assert_array_equal(mask, other_mask)
        assert check_alignment(image, mask, 0) == 1
        changed += not np.array_equal(image, other_image)
    assert changed > 10


def test_augmentation_depends_on_all_of_its_seed_and_on_nothing_else():
    sample, draws = painted(), {}
    for seed in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]:
        augmentation = Augmentation(32, (0.5, 2.0), True, True)
        np.random.seed(sum(seed)), torch.manual_seed(sum(seed))
        draws[seed] = augmentation(sample.image(), sample.mask(), seed)[0]
        augmentation(sample.image(), sample.mask(), (5, 5, 5))
        np.testing.assert_array_equal(augmentation(sample.image(), sample.mask(), seed)[0], draws[seed])
    assert len({draw.tobytes() for draw in draws.values()}) == 4


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shape", [(48, 64), (40, 200)])
def test_the_crop_is_cut_out_of_the_whole_scaled_sample(factor, shape):
    random, size = np.random.default_rng(0), 16
    pixels = random.integers(256, size=(*shape, 3), dtype=np.uint8)
    labels = random.integers(5, size=shape, dtype=np.uint8)
    whole, whole_mask = resized(pixels, labels, [round(side * factor) for side in shape])
    places = set()
    for seed in range(10):
        image, mask = Augmentation(size, (factor, factor), False, False)(pixels, labels, (seed,))
        windows = np.lib.stride_tricks.sliding_window_view(whole_mask, (size, size))
        ((top, left),) = np.argwhere((windows == mask).all((2, 3)))
        expected = whole[top : top + size, left : left + size]
        np.testing.assert_array_equal(image[2:-2, 2:-2], expected[2:-2, 2:-2])  # its rim has no neighbours
        places.add((top, left))
    assert len(places) > 5


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + crc32(kind + data).to_bytes(4, "big")


def interlace(path):
    """Rewrite an RGB or grey PNG as Adam7 does."""
    pixels, content = np.array(Image.open(path)), path.read_bytes()
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )
    parts = (b"IHDR", content[16:28] + b"\1"), (b"IDAT", compress(rows)), (b"IEND", b"")
    path.write_bytes(content[:8] + b"".join(chunk(*part) for part in parts))


def turn(path):
    """State a quarter turn after the pixels of a PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + content[-12:])


FORMS = {
    "plain": lambda path: None,
    "palette": lambda path: Image.open(path).convert("P").save(path),
    "interlaced": interlace,
    "turned": turn,
    "JPEG": lambda path: Image.open(path).save(path, "JPEG") if path.stem == "image" else None,
}


@pytest.mark.parametrize("form", FORMS)
def test_crops_of_files_are_those_of_whole_images(tmp_path, form):
    scene = painted()
    for name, pixels in (("image", scene.pixels), ("mask", scene.labels)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        FORMS[form](tmp_path / f"{name}.png")
    file = FileSample("x", tmp_path / "image.png", tmp_path / "mask.png", 5)
    whole = Scene("x", file.image(), file.mask())
    assert np.array_equal(whole.labels, np.rot90(scene.labels, -1) if form == "turned" else scene.labels)
    augmentation = Augmentation(32, (0.5, 2.0), True, False)
    for pair, focus in (((file, whole), None), ((file, whole), 3), ((Unlabelled(file), Unlabelled(whole)), None)):
        sets = [TrainingSet([each], augmentation, None, 0, labelled=isinstance(each, Unlabelled) ^ 1) for each in pair]
        for epoch in range(12):
            crop, expected = (each._draw(0, (0, epoch, 0), focus) for each in sets)
            assert crop["image"].equal(expected["image"]) and crop["mask"].equal(expected["mask"])


def test_rows_below_a_crop_are_not_decoded_but_damage_there_is_reported(tmp_path):
    path, decoded = tmp_path / "image.png", []
    Image.fromarray(np.random.default_rng(0).integers(256, size=(48, 64, 3), dtype=np.uint8)).save(path)
    whole, content = read_image(path), bytearray(path.read_bytes())

    def read(content):
        decoded.append(read_image(path, content))
        return decoded[-1]

    rows = png_rows(path, read, 3)
    assert rows.shape == (48, 64, 3) and not decoded
    assert np.array_equal(rows[3:20, 5:9], whole[3:20, 5:9]) and decoded[0].shape == (20, 64, 3)
    content[-100] ^= 1
    for damaged in (content, content[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(CrosscoopError, match=r"image\.png: got \d+ bytes that cannot be decoded"):
            png_rows(path, partial(read_image, path), 3)[3:20, 5:9]


def test_scales_are_drawn_from_all_of_their_range_and_places_from_all_of_the_sample():
    sides, corners = [], []
    rows, columns = np.mgrid[:200, :255].astype(np.uint8)
    image = np.stack([rows, columns, columns], -1)
    for seed in range(300):
        crop, _ = Augmentation(20, (0.5, 2.0), False, False)(image, rows, (seed,))
        top, left, bottom = (int(value) for value in (crop[0, 0, 0], crop[0, 0, 1], crop[-1, 0, 0]))
        sides.append(20 / (bottom - top + 1))
        corners.append((top / (200 - (bottom - top)), left / (255 - (bottom - top))))
    assert 0.45 < min(sides) < 0.6 and 1.8 < max(sides) < 2.3 and 1.1 < np.mean(sides) < 1.4
    for corner in zip(*corners, strict=True):
        assert min(corner) < 0.05 and max(corner) > 0.95 and 0.45 < np.mean(corner) < 0.55


# -- centre crops


@pytest.mark.parametrize(("height", "width"), [(48, 64), (49, 63), (20, 64), (48, 21), (10, 11), (32, 32)])
def test_centre_crop_is_the_centre_padded_with_void(height, width):
    sample = painted(height, width)
    image, mask = center_cropped(sample.image(), sample.mask(), 32)
    assert image.shape == (32, 32, 3) and mask.shape == (32, 32)
    assert extent(mask) == (min(height, 32), min(width, 32))
    rows, columns = np.nonzero(mask != VOID)
    top, left = max(height - 32, 0) // 2, max(width - 32, 0) // 2
    inner = sample.labels[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1], inner)
    assert abs(rows.min() - (31 - rows.max())) <= 1 and abs(columns.min() - (31 - columns.max())) <= 1
    assert check_alignment(image, mask, 0) == 1


# -- epochs, workers, seeds, ranks


def epoch_of(data, epoch):
    """An epoch's batches, as Lightning would draw them."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def by_name(batches):
    """An epoch's images and masks by name."""
    return {name: (image, mask) for batch in batches for name, image, mask in
            zip(batch["name"], batch["image"], batch["mask"], strict=True)}  # fmt: skip


def assert_same(batches, others):
    assert [batch.pop("name") for batch in batches] == [batch.pop("name") for batch in others]
    torch.testing.assert_close(batches, others, rtol=0, atol=0)


def test_workers_change_nothing():
    for workers in (1, 2):
        alone, other = (epoch_of(module(Scenes(scenes(6)), num_workers=number), 3) for number in (0, workers))
        assert len(alone) == 3
        assert_same(alone, other)


def test_epochs_differ_in_order_and_augmentation_and_seeds_make_them_again():
    data = module(Scenes(scenes(8)))
    epochs = [epoch_of(data, epoch) for epoch in range(3)]
    assert len({tuple(name for batch in epoch for name in batch["name"]) for epoch in epochs}) == 3
    first, second, _ = map(by_name, epochs)
    assert first.keys() == second.keys() and len(first) == 8
    assert not any(torch.equal(first[name][0], second[name][0]) for name in first)
    assert_same(epoch_of(module(Scenes(scenes(8))), 1), epochs[1])
    other = by_name(epoch_of(module(Scenes(scenes(8)), seed=1), 0))
    assert not any(torch.equal(first[name][0], other[name][0]) for name in first)


def test_equal_samples_are_augmented_differently():
    copies = [Scene(f"copy {i}", painted().pixels, painted().labels) for i in range(6)]
    images = by_name(epoch_of(module(Scenes(copies)), 0)).values()
    assert len({image.numpy().tobytes() for image, _ in images}) == 6


@pytest.mark.parametrize(("number", "world_size"), [(8, 2), (9, 3), (12, 4)])
def test_ranks_train_on_disjoint_samples(number, world_size):
    items = range(number)
    for epoch in (0, 1):
        samplers = [TrainingSampler(items, world_size, rank, seed=0) for rank in range(world_size)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        draws = [draw for sampler in samplers for draw in sampler]
        assert sorted(draws) == [(index, epoch) for index in items]


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_evaluate_each_sample_once(number, world_size):
    samplers = [EvaluationSampler(range(number), world_size, rank) for rank in range(world_size)]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(number))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


# -- batches


def test_training_drops_the_incomplete_batch_unless_there_is_no_other():
    assert [len(batch["name"]) for batch in module(Scenes(scenes(5))).train_dataloader()] == [2, 2]
    assert [len(batch["name"]) for batch in module(Scenes(scenes(1))).train_dataloader()] == [1]
    assert [len(batch["name"]) for batch in module(Scenes(scenes(3)), eval_batch_size=2).val_dataloader()] == [2, 1]


def test_batches_reach_the_network_as_it_wants_them():
    data = module(Scenes(scenes(2)))
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["image"].shape == (1, 3, 48, 64) and batch["mask"].shape == (1, 48, 64)
    assert batch["image"].dtype == torch.float32 and batch["mask"].dtype == torch.int64
    np.testing.assert_array_equal((batch["image"][0] * 255).round().permute(1, 2, 0), scenes(1)[0].pixels)
    np.testing.assert_array_equal(batch["mask"][0], scenes(1)[0].labels)


def test_evaluation_leaves_images_as_they_are_unless_told():
    sample = painted()
    whole, small, center = (EvaluationSet([sample], *options)[0]
                            for options in ((None, None), ((24, 40), None), (None, 16)))  # fmt: skip
    np.testing.assert_array_equal(whole["mask"], sample.labels)
    np.testing.assert_array_equal(whole["image"].permute(1, 2, 0), sample.pixels)
    assert small["image"].shape == (3, 24, 40) and np.array_equal(small["mask"], sample.labels)
    both = EvaluationSet([sample], (24, 40), None, resize_masks=True)[0]
    assert both["image"].equal(small["image"]) and both["mask"].shape == (24, 40)
    np.testing.assert_array_equal(center["mask"], sample.labels[16:32, 24:40])


def test_evaluation_of_an_unlabelled_sample_counts_nothing():
    assert (EvaluationSet([Scene("x", painted().pixels, None)], None, None)[0]["mask"] == VOID).all()


def test_training_resizes_first():
    item = TrainingSet([painted()], Augmentation(80, (1, 1), False, False), (24, 40), 0)[0, 0]
    assert extent(item["mask"].numpy()) == (24, 40)


# -- errors


def test_images_of_different_sizes_in_one_batch_are_refused_with_the_remedy():
    both = [painted(), painted(32, 32)]
    data = module(Scenes(both), eval_batch_size=2)
    with pytest.raises(CrosscoopError, match=r"\(32, 32\), \(48, 64\).*data.eval_batch_size to 1"):
        list(data.val_dataloader())
    assert len(list(module(Scenes(both), eval_batch_size=2, center_crop=16).val_dataloader())) == 1
    assert len(list(module(Scenes(both)).val_dataloader())) == 2


def test_mask_of_another_size_is_refused_by_name():
    sample = Scene("street 7", painted().pixels, painted(32, 64).labels)
    for items, index in (
        (EvaluationSet([sample], None, None), 0),
        (TrainingSet([sample], Augmentation(32, (1, 1), False, False), (32, 32), 0), (0, 0)),
    ):
        with pytest.raises(CrosscoopError, match="street 7: the mask has 32 x 64 pixels, the image 48 x 64"):
            items[index]


@pytest.mark.parametrize(("labels", "part"), [
    (np.full((48, 64), 5, np.uint8), "mask values 5, expected only indices of the 5 classes"),
    (np.full((48, 64), 256), "a mask of shape (48, 64) and type int64, expected (H, W) uint8"),
    (np.zeros((48, 64, 1), np.uint8), "a mask of shape (48, 64, 1)"),
])  # fmt: skip
def test_mask_of_an_own_data_set_is_held_to_the_contract(labels, part):
    data = module(Scenes([Scene("street 7", painted().pixels, labels)]))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(CrosscoopError, match=re.escape(part)):
            list(loader)


def test_unlabelled_sample_is_refused_in_training():
    data = module(Scenes([Scene("street 7", painted().pixels, None)]))
    with pytest.raises(CrosscoopError, match="street 7 is in the training split, but does not have a mask"):
        list(data.train_dataloader())


def test_empty_split_is_refused():
    with pytest.raises(CrosscoopError, match="split 'val' of Scenes is empty"):
        module(Scenes([])).val_dataloader()


@pytest.mark.parametrize("number", [2, 3])
def test_split_of_another_size_than_the_official_one_is_reported(number):
    class Official(Scenes):
        official_sizes = {"val": 3}  # noqa: RUF012

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module(Official(scenes(number))).val_dataloader()
        module(Official(scenes(number))).train_dataloader()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (number != 3)
    assert all("'val'" in message and "2 images" in message and "official one 3" in message for message in messages)


@pytest.mark.parametrize(("option", "value"), [
    ("batch_size", 0), ("eval_batch_size", 0), ("num_workers", -1), ("crop_size", 0), ("center_crop", 0),
    ("resize", (0, 5)), ("scale", (2.0, 1.0)), ("scale", (0.0, 1.0)),
])  # fmt: skip
def test_option_out_of_range_is_refused_by_name(option, value):
    with pytest.raises(CrosscoopError, match=f"data.{option}: got "):
        module(STREETS, **{option: value})


def test_more_ranks_than_images_are_refused():
    data = module(Scenes(scenes(1)))
    data.trainer = type("Trainer", (), {"world_size": 2, "global_rank": 1})()
    with pytest.raises(CrosscoopError, match=r"1 images for 2 processes.*trainer\.devices"):
        data.val_dataloader()


def test_opening_the_data_leaves_the_configuration_as_it_was(tmp_path):
    splits = {name: {"images": name, "masks": None, "list": None} for name in ("train", "val")}
    options = {"root": str(tmp_path), "class_names": ["a", "b"], "splits": splits}
    config = {"data": {"dataset": {"class_path": "crosscoop.data.Folder", "init_args": options}, "batch_size": 3}}
    before = deepcopy(config)
    data = open_data(config)
    assert isinstance(data.dataset, Folder) and data.batch_size == 3
    assert config == before


@pytest.mark.parametrize(
    ("names", "palette", "given"),
    [
        ((), (), "0 class_names and a palette of 0 colours"),
        (("a", "b"), None, "2 class_names and a palette of 0"),
        (("a", "b"), ((0, 0, 0),), "2 class_names and a palette of 1"),
    ],
)
def test_data_sets_without_a_name_and_a_colour_per_class_are_refused(names, palette, given):
    class Own(SegmentationDataset):
        def samples(self, split):
            return []

    Own.class_names = names
    if palette is not None:
        Own.palette = palette
    with pytest.raises(CrosscoopError, match=f"got {given}.* from Own, expected one name and one RGB colour"):
        SegmentationData(Own())

import pickle

import numpy as np
import pytest

from crosscoop.data.dataset import VOID
from crosscoop.data.datasets.streets import SPLITS, Streets, StreetScene, render
from crosscoop.errors import CrosscoopError

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

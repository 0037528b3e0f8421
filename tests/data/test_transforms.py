"""Transforms from a configuration, and class-balanced crops: what reaches the network, in every worker."""

import json

import numpy as np
import pytest
import torch
from test_pipeline import Scene, Scenes, module, painted, scenes
from tiny import DATA, crosscoop, fit

from crosscoop.commands import show_data
from crosscoop.data.dataset import VOID
from crosscoop.data.transforms import Transforms
from crosscoop.errors import CrosscoopError

ROTATE = {"class_path": "Rotate", "init_args": {"limit": 45, "p": 1.0}}
SEVERAL = [
    "HorizontalFlip",
    ROTATE,
    {"class_path": "OneOf", "init_args": {"transforms": [{"class_path": "albumentations.Affine"}, "GaussNoise"]}},
]


def batches(data, epoch=0, start=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    loader.skip = start
    return [(batch["image"], batch["mask"]) for batch in loader]


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(*pair) for pair in zip(sum(first, ()), sum(second, ()), strict=True)
    )


def test_filled_regions_are_void_and_labels_remain():
    image, mask = painted(32, 32).pixels, painted(32, 32).labels + 1
    turned, labels = Transforms([ROTATE], 32)(image, mask, (1,))
    assert VOID in labels and set(np.unique(labels)) <= {*range(1, 6), VOID}
    assert not np.array_equal(turned, image)


def test_results_depend_on_seed_epoch_and_index_alone():
    data, workers = (module(Scenes(scenes(6)), transforms=SEVERAL, num_workers=number) for number in (0, 2))
    assert equal(batches(data), batches(workers))
    assert equal(batches(data, start=2), batches(data)[2:])  # resumed within an epoch
    assert not equal(batches(data), batches(data, epoch=1))


def test_probabilities_and_order():
    never = {"class_path": "InvertImg", "init_args": {"p": 0.0}}
    first = {"class_path": "InvertImg", "init_args": {"p": 1.0}}
    then = {"class_path": "Solarize", "init_args": {"threshold_range": [0.5, 0.5], "p": 1.0}}
    image, mask = painted(32, 32).pixels, painted(32, 32).labels
    assert np.array_equal(Transforms([never], 32)(image, mask, (0,))[0], image)
    assert np.array_equal(Transforms([first], 32)(image, mask, (0,))[0], 255 - image)
    both = [Transforms(order, 32)(image, mask, (0,))[0] for order in ([first, then], [then, first])]
    assert not np.array_equal(*both)


def test_transforms_may_make_the_crops():
    crop = {"class_path": "RandomResizedCrop", "init_args": {"size": [32, 32]}}
    data = module(Scenes(scenes(4)), transforms=[crop], crop=False)
    assert batches(data)[0][0].shape == (2, 3, 32, 32)
    with pytest.raises(CrosscoopError, match=r"data\.crop: got false without"):
        module(Scenes(scenes(4)), crop=False)
    with pytest.raises(CrosscoopError, match=r"got crops of 64 x 96 pixels from HorizontalFlip, expected 32 x 32"):
        module(Scenes(scenes(4)), transforms=["HorizontalFlip"], crop=False).train_dataloader()


def restless(image, **_):
    return image + np.random.default_rng().integers(1, 255, dtype=np.uint8)


class Restless:
    """Makes a transform that draws from a generator of its own."""

    def __new__(cls):
        import albumentations

        return albumentations.Lambda(image=restless)


@pytest.mark.parametrize(("entry", "message"), [
    ({"class_path": "RandomCrop", "init_args": {"height": 16, "width": 16}}, "RandomCrop changes the size"),
    ({"class_path": "Normalize"}, "from Normalize, expected (H, W, 3) uint8"),
    ({"class_path": "ElasticTransform", "init_args": {"alpha": 40, "mask_interpolation": 1}}, "Elastic"),
    ({"class_path": "Mosaic"}, "Mosaic"),
    ("Clahe", "unlike CLAHE"),
    ({"class_path": "CLAHE", "init_args": {"limit": 4}}, "got limit for CLAHE, expected some of clip_limit"),
    ({"class_path": "CLAHE", "init_args": {"clip_limit": "much"}}, "CLAHE does not accept"),
    ({"name": "CLAHE"}, "expected class_path"),
    ("torch.nn.ReLU", "expected a subclass of BasicTransform"),
    (Restless(), "two results for one seed from Lambda"),
])  # fmt: skip
def test_unsuitable_transforms_are_refused_by_name(entry, message):
    with pytest.raises(CrosscoopError) as caught:
        module(Scenes(scenes(2)), transforms=[entry]).train_dataloader()
    assert message in str(caught.value)


def test_both_views_of_an_unlabelled_image_are_transformed_alike():
    data = module(Scenes(scenes(8)), transforms=[ROTATE], unlabelled=0.5, strong=True, cutmix=1.0)
    plain = module(Scenes(scenes(8)), unlabelled=0.5, strong=True, cutmix=1.0)
    batch, expected = next(iter(data.train_dataloader())), next(iter(plain.train_dataloader()))
    black = (batch["weak"] == 0).all(1)  # what the rotation has filled
    assert black.any() and not (expected["weak"] == 0).all(1).equal(black)
    assert (batch["image"][0] == batch["weak"][0]).all()  # labelled: the same view


def test_transforms_come_from_yaml(tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(json.dumps({"data": {"transforms": SEVERAL}}))
    fit(tmp_path / "run", "--config", tmp_path / "my.yaml", "--trainer.fast_dev_run true")
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", "--data.transforms=[Clahe]")
    assert "unlike CLAHE" in capsys.readouterr().err


# -- class-balanced crops


def rare(number=12):
    """Scenes of class 0, of which the first has 9 pixels of class 1."""
    made = [Scene(f"scene {i}", np.full((64, 64, 3), i, np.uint8), np.zeros((64, 64), np.uint8)) for i in range(number)]
    made[0].labels[50:53, 3:6] = 1
    return made


def test_rare_classes_are_drawn_as_often():
    data = module(Scenes(rare()), balance=True, scale=(1, 1), crop_size=16, num_workers=0)
    drawn = [mask for epoch in range(20) for _, masks in batches(data, epoch) for mask in masks]
    share = np.mean([bool((mask == 1).any()) for mask in drawn])
    assert 0.4 < share < 0.6
    plain = module(Scenes(rare()), scale=(1, 1), crop_size=16)
    assert (
        np.mean(
            [bool((mask == 1).any()) for epoch in range(20) for _, masks in batches(plain, epoch) for mask in masks]
        )
        < 0.1
    )


def test_balanced_draws_are_the_same_in_workers_and_resumed_runs():
    data, workers = (module(Scenes(scenes(6)), balance=True, num_workers=number) for number in (0, 2))
    assert equal(batches(data), batches(workers))
    assert equal(batches(data, start=1), batches(data)[1:])
    assert not equal(batches(data), batches(data, epoch=1))


def test_what_the_network_receives_is_drawn(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(show_data, "save_comparison", lambda path, rows, *_: drawn.update(rows=rows))
    monkeypatch.setattr(show_data, "save_balance", lambda path, counted, *_: drawn.update(counted=counted))
    data = module(Scenes(rare()), balance=True, scale=(1, 1), crop_size=16, cutmix=1.0)
    show_data.show_data(data, str(tmp_path), num_images=3, num_crops=40)
    assert [list(row) for row in drawn["rows"]] == [["image", "weak", "mask"]] * 3
    masks, crops = drawn["counted"].values()
    assert (masks > 0).mean(0).tolist() == [1, 1 / 12, 0, 0, 0] and (crops > 0).mean(0)[1] > 0.2


def test_pictures_of_the_data_are_written(tmp_path):
    crosscoop("show-data", *DATA, "--num-images 2 --num-crops 4 --output", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.png", "samples.png"]

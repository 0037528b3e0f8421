"""Unlabelled images: where they come from, how batches mix them, and their views."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from crosscoop.data import SegmentationData, Streets
from crosscoop.data.augment import Augmentation, cutmix
from crosscoop.data.samplers import MixedSampler
from crosscoop.data.unlabelled import divide
from crosscoop.errors import CrosscoopError

STREETS = Streets(num_train=16, height=32, width=64)
SAMPLES = STREETS.samples("train")


def names(samples):
    return [sample.name for sample in samples]


# -- where they come from


@pytest.mark.parametrize("share", [0.5, 0.875])
def test_a_share_of_the_split_loses_its_masks_by_seed(share):
    labelled, unlabelled = divide(SAMPLES, share, seed=1)
    assert len(unlabelled) == 16 * share and sorted(names([*labelled, *unlabelled])) == names(SAMPLES)
    assert names(divide(SAMPLES, share, seed=1)[1]) == names(unlabelled) != names(divide(SAMPLES, share, seed=2)[1])
    assert all(sample.mask() is None for sample in unlabelled) and labelled[0].mask() is not None
    assert np.array_equal(unlabelled[0].image(), next(s for s in SAMPLES if s.name == unlabelled[0].name).image())


def test_a_folder_or_a_list_of_images(tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for place in ("a.jpg", "deep/b.png"):
        Image.new("RGB", (5, 4)).save(tmp_path / "more" / place)
    labelled, unlabelled = divide(SAMPLES, str(tmp_path / "more"), seed=0)
    assert labelled == SAMPLES and names(unlabelled) == ["a", "deep/b"]
    assert unlabelled[0].image().shape == (4, 5, 3) and unlabelled[0].mask() is None
    (tmp_path / "list.txt").write_text("more/a.jpg\nmore/deep/b.png\n")
    assert names(divide(SAMPLES, str(tmp_path / "list.txt"), seed=0)[1]) == ["more/a", "more/deep/b"]


def test_unlabelled_images_are_checked_before_training(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="2"):
        tiny.fit(tmp_path / "run", "--data.unlabelled", tmp_path / "more")
    assert "broken.png" in capsys.readouterr().err and not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ("2007_000032", "2007_000032"),
        ("2007_000032", "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png"),
        ("aachen/aachen_000000_000019", "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png gtFine/x.png"),
    ],
)
def test_published_lists_name_samples_of_the_split(tmp_path, own, line):
    samples = [SimpleNamespace(name=own), SimpleNamespace(name="other")]
    (tmp_path / "unlabeled.txt").write_text(line + "\n")
    labelled, unlabelled = divide(samples, str(tmp_path / "unlabeled.txt"), seed=0)
    assert names(labelled) == ["other"] and names(unlabelled) == [own]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.01, "got 0.01, which is 0 of 16 training samples"),
        (1.0, "expected a share between 0 and 1"),
        ("nowhere", "got nowhere, which does not exist"),
        ("lost.txt", "names no/such.png, expected samples of the training split, or image files"),
        ("all.txt", "names all training samples"),
        ("empty", "does not name any image"),
    ],
)
def test_what_cannot_be_unlabelled_is_told(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("lost.txt").write_text("no/such.png\n")
    Path("all.txt").write_text("\n".join(names(SAMPLES)))
    with pytest.raises(CrosscoopError, match=f"data.unlabelled: .*{message}"):
        divide(SAMPLES, given, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled_ratio": -1.0}, "data.unlabelled_ratio: got -1.0, expected 0 or more"),
        ({"cutmix": 2.0}, "data.cutmix: got 2.0, expected a probability"),
        ({"unlabelled": 0.5, "batch_size": 1}, "data.batch_size: got 1, expected at least 2"),
        ({"strong": True}, "data.strong: got true without data.unlabelled"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(CrosscoopError, match=message):
        SegmentationData(STREETS, **options)


# -- batches


def draws(world_size, epochs, labelled=5, unlabelled=12, batch_size=4, share=2):
    """What the ranks draw in each epoch, by rank."""
    samplers = [
        MixedSampler(labelled, unlabelled, batch_size, share, world_size, rank, 0) for rank in range(world_size)
    ]
    found = []
    for epoch in range(epochs):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        found.append([list(sampler) for sampler in samplers])
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_mix_and_streams_pass_over_every_sample(world_size):
    epochs = draws(world_size, 6)
    steps = 12 // (2 * world_size)
    for epoch in epochs:
        for rank in epoch:
            assert len(rank) == 4 * steps
            for batch in np.array(rank).reshape(steps, 4, 2)[:, :, 0]:
                assert (batch[:2] < 5).all() and (batch[2:] >= 5).all()
    # the ranks take turns: by step and rank, each kind of sample is one stream of passes
    for kind, number in ((slice(0, 2), 5), (slice(2, 4), 12)):
        stream = [
            tuple(draw)
            for epoch in epochs
            for step in range(steps)
            for rank in epoch
            for draw in rank[4 * step : 4 * step + 4][kind]
        ]
        assert len(set(stream)) == len(stream), "a draw repeats: it would be augmented alike"
        for turn in range(len(stream) // number):
            part = stream[turn * number : (turn + 1) * number]
            assert {passed for _, passed in part} == {turn}
            assert len({index for index, _ in part}) == number


def test_the_epoch_is_a_pass_over_what_takes_longer_and_a_start_skips():
    assert len(MixedSampler(5, 12, 4, 2, 1, 0, 0)) == 6 * 4 and len(MixedSampler(50, 12, 4, 2, 1, 0, 0)) == 25 * 4
    sampler = MixedSampler(5, 12, 4, 2, 1, 0, 0)
    whole = list(sampler)
    sampler.start = 8
    assert list(sampler) == whole[8:]


def batches(num_workers=0, **options):
    data = SegmentationData(
        STREETS, 4, crop_size=24, num_workers=num_workers, **{"unlabelled": 0.75, "unlabelled_ratio": 3.0, **options}
    )
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


def test_unlabelled_crops_are_void_and_distorted_for_the_learner_alone():
    plain, strong = batches(), batches(strong=True)
    labelled = {sample.name for sample in divide(SAMPLES, 0.75, seed=0)[0]}
    for before, after in zip(plain, strong, strict=True):
        assert [name in labelled for name in after["name"]] == [True, False, False, False]
        assert (after["mask"][1:] == 255).all() and (after["mask"][0] < 255).any()
        assert torch.equal(after["weak"], before["image"]) and "weak" not in before
        assert torch.equal(after["image"][0], before["image"][0])
    assert any(not torch.equal(after["image"][1:], after["weak"][1:]) for after in strong)


def test_draws_do_not_depend_on_workers():
    for one, two in zip(batches(strong=True, cutmix=0.5), batches(2, strong=True, cutmix=0.5), strict=True):
        assert one["name"] == two["name"] and torch.equal(one["image"], two["image"])


def test_a_ratio_of_0_trains_on_the_labelled_images_alone():
    found = batches(unlabelled_ratio=0.0)
    assert len(found) == 1 and sorted(found[0]["name"]) == names(divide(SAMPLES, 0.75, seed=0)[0])


# -- CutMix


def test_boxes_have_the_share_and_frequency_that_is_said():
    augmentation = Augmentation(100, (1, 1), False, False, cutmix=0.5)
    boxes = np.array([augmentation.box((0, 0, index)) for index in range(2000)])
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 100**2
    assert abs((areas > 0).mean() - 0.5) < 0.05
    assert areas[areas > 0].min() < 0.05 and 0.3 < areas.max() <= 0.42
    assert boxes.min() >= 0 and boxes.max() <= 100


def test_cutmix_takes_the_box_of_the_sample_before():
    images, mask = torch.rand(3, 2, 5, 6), torch.randint(9, (3, 5, 6))
    box = torch.tensor([[1, 3, 0, 6], [0, 0, 0, 0], [4, 5, 2, 3]])
    for batch in (images, mask):
        expected = batch.clone()
        expected[0, ..., 1:3, :] = batch[2, ..., 1:3, :]
        expected[2, ..., 4:5, 2:3] = batch[1, ..., 4:5, 2:3]
        assert torch.equal(cutmix(batch, box), expected)


def test_images_and_masks_are_mixed_alike_and_the_weak_view_is_not():
    for plain, mixed in zip(batches(), batches(cutmix=1.0), strict=True):
        assert torch.equal(mixed["weak"], plain["image"])
        assert torch.equal(mixed["image"], cutmix(plain["image"], mixed["box"]))
        assert torch.equal(mixed["mask"], cutmix(plain["mask"], mixed["box"]))
        assert not mixed["box"][0].any() and mixed["box"][1:].any()
    for batch in batches(cutmix=1.0, unlabelled=None):
        assert batch["box"].any(1).all()

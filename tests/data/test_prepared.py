"""Decoded data sets: the same pixels, and never stale ones."""

import json
import os

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import NETWORK, QUIET, crosscoop

from crosscoop.commands.prepare_data import prepare_data
from crosscoop.data import Folder, SegmentationData, Streets
from crosscoop.data.prepared import PreparedSample

CLASSES = ["a", "b", "c"]


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(4):
            for kind, suffix, shape in (("images", "jpg", (40, 56, 3)), ("masks", "png", (40, 56))):
                path = tmp_path / "data" / kind / split / "sub" / f"{i}.x.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 3, shape, dtype=np.uint8)).save(path)
    return tmp_path


def module(root, **options):
    splits = {name: {"images": f"images/{name}", "masks": f"masks/{name}"} for name in ("train", "val")}
    config = {"root": str(root / "data"), "class_names": CLASSES, "splits": splits, "test_split": "val"}
    (root / "data.yaml").write_text(yaml.safe_dump({"dataset": {"class_path": "Folder", "init_args": config}}))
    from crosscoop.data.datasets.folder import Split

    dataset = Folder(**{**config, "splits": {name: Split(**split) for name, split in splits.items()}})
    return SegmentationData(dataset, batch_size=2, crop_size=32, num_workers=0, **options)


def refusal(capsys, *command):
    with pytest.raises(SystemExit) as caught:
        crosscoop(*command)
    assert caught.value.code == 2
    return capsys.readouterr().err


def prepare(root, *options):
    module(root)
    crosscoop("prepare-data", "--config", root / "data.yaml", "--output", root / "prepared", *options)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same(root, workers):
    prepare(root, "--splits train,val")
    plain, prepared = module(root), module(root, prepared=str(root / "prepared"))
    prepared.num_workers = workers
    assert all(isinstance(sample, PreparedSample) for sample in prepared._samples("train"))
    for loader in ("train_dataloader", "val_dataloader"):
        for batch, other in zip(getattr(plain, loader)(), getattr(prepared, loader)(), strict=True):
            assert batch["name"] == other["name"]
            assert torch.equal(batch["image"], other["image"]) and torch.equal(batch["mask"], other["mask"])


def test_splits_that_are_not_prepared_are_read_as_ever(root, capsys):
    prepare(root)
    assert "4 samples, 4 of them new" in capsys.readouterr().out
    data = module(root, prepared=str(root / "prepared"))
    assert [type(data._samples(split)[0]).__name__ for split in ("train", "val")] == ["PreparedSample", "FileSample"]


def test_it_goes_on_where_it_was_stopped_and_renews_what_changed(root, capsys):
    prepare(root)
    index = root / "prepared" / "train" / "index.json"
    known = json.loads(index.read_text())
    del known["sub/1.x"]
    index.write_text(json.dumps(known))
    changed = root / "data" / "images" / "train" / "sub" / "2.x.jpg"
    Image.fromarray(np.full((40, 56, 3), 9, np.uint8)).save(changed)
    capsys.readouterr()
    prepare(root)
    assert "4 samples, 2 of them new" in capsys.readouterr().out
    data = module(root, prepared=str(root / "prepared"))
    assert (data._samples("train")[2].image() == 9).all()
    assert not list((root / "prepared").rglob(".*"))


def test_what_changed_since_is_refused(root, capsys):
    prepare(root)
    mask = root / "data" / "masks" / "train" / "sub" / "3.x.png"
    os.utime(mask, ns=(0, 0))
    options = [*NETWORK, *QUIET, "--data", str(root / "data.yaml"), "--data.prepared", str(root / "prepared")]
    error = refusal(capsys, "fit", *options, "--run", root / "run", "--trainer.max_epochs 1")
    assert "1 of the 4 samples" in error and "sub/3.x" in error and "prepare-data" in error


def test_a_folder_that_is_not_there_is_refused(root):
    with pytest.raises(Exception, match=r"expected a folder\. Create it with `crosscoop prepare-data"):
        module(root, prepared=str(root / "nowhere"))._samples("train")


def test_an_array_that_was_lost_is_named(root):
    prepare(root)
    (root / "prepared" / "train" / "sub" / "0.x.image.npy").write_bytes(b"")
    data = module(root, prepared=str(root / "prepared"))
    with pytest.raises(Exception, match=r"0\.x\.image\.npy: got .*prepare-data"):
        data._samples("train")[0].image()


def test_generated_samples_are_refused(tmp_path):
    with pytest.raises(Exception, match="expected files"):
        prepare_data(SegmentationData(Streets(num_train=1)), str(tmp_path))


def test_a_folder_that_cannot_be_written_is_named(root, capsys):
    (root / "file").write_text("")
    module(root)
    error = refusal(capsys, "prepare-data", "--config", root / "data.yaml", "--output", root / "file" / "below")
    assert "cannot be written" in error and "Give another --output" in error

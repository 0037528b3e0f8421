"""Training from Python, without the command line: with `SegmentationData`, or with a loader of plain pairs."""

import csv
import re
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from tiny import ROOT, STREETS
from torch.nn import functional
from torch.utils.data import DataLoader

import crosscoop
from crosscoop.errors import CrosscoopError
from crosscoop.network import Strategy, create_network
from crosscoop.training.batches import to_batch

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}


def task(**options):
    names = ["test_resnet", "test_byobnet"]
    network = create_network(names, num_classes=3, **{"strategy": Strategy(["aspp"]), "channels": 16, **options})
    return crosscoop.CooperativeSegmentation(network, ["a", "b", "c"])


def pairs(number=4, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    masks = torch.randint(3, (number, 32, 32), generator=generator).to(dtype)
    masks[:, :4] = 255
    return list(zip(images, masks, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_loader_of_pairs_trains_and_its_checkpoint_is_whole(tmp_path):
    loader, own = DataLoader(pairs(), batch_size=2), task(freeze=["exchanges"])
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, logger=CSVLogger(tmp_path, "", ""))
    trainer.fit(own, loader, loader)
    path = trainer.checkpoint_callback.best_model_path
    predictor = crosscoop.load(path)
    image = pairs()[0][0]
    own.eval()
    with torch.no_grad():
        expected = own.labels(image[None].float() / 255)["ensemble"][0]
    assert np.array_equal(predictor(image).labels, expected) and predictor.class_names == ["a", "b", "c"]
    with (tmp_path / "metrics.csv").open() as file:  # an epoch of 2 steps, fewer than log_every_n_steps
        logged = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    names = {"val/loss", "val/loss/top", "val/loss/bottom", "val/miou", "val/miou/top", "val/miou/ensemble"}
    assert names | {"train/loss", "train/loss/top", "train/loss/bottom", "val/iou/a"} <= set(logged)
    assert logged["val/loss"] == pytest.approx(logged["val/loss/top"] + logged["val/loss/bottom"], rel=1e-5)
    with torch.no_grad():
        losses = [
            functional.cross_entropy(
                own.network(image.float() / 255)[0][..., 2::4, 2::4], mask[:, 2::4, 2::4].long(), ignore_index=255
            )
            for image, mask in loader
        ]
    assert logged["val/loss/top"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_documented_lines_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    for given, small in (
        ('["resnet18", "mobilenetv2_100"]', '["test_resnet", "test_byobnet"], channels=16'),
        ("Streets(num_train=8)", "Streets(num_train=4, num_val=2, height=32, width=64)"),
        ("batch_size=4, crop_size=128", "batch_size=2, crop_size=32, num_workers=0, resize=(16, 32)"),
        ("pl.Trainer(", "pl.Trainer(accelerator='cpu', logger=False, enable_progress_bar=False, "),
    ):
        assert given in code
        code = code.replace(given, small)
    names: dict[str, Any] = {}
    exec(code, names)
    predictor = names["predictor"]
    assert list(map(tuple, predictor.palette)) == list(STREETS.palette) and predictor.resize == [16, 32]


def test_a_network_made_by_hand_is_refused_when_it_is_read(tmp_path):
    own = task()
    own.network.options = None
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path, logger=False, fast_dev_run=True)
    trainer.fit(own, DataLoader(pairs(), batch_size=2))
    trainer.save_checkpoint(tmp_path / "my.ckpt")
    with pytest.raises(CrosscoopError, match=r"my\.ckpt: got a network that was not made by create_network"):
        crosscoop.load(tmp_path / "my.ckpt")


IMAGE, MASK = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize("given", [(IMAGE, MASK), [IMAGE.byte(), MASK.bool()], {"image": IMAGE, "mask": MASK[:, None]}])
def test_pairs_of_usual_kinds_are_taken(given):
    batch = to_batch(given, 2)
    assert batch["image"].dtype == torch.float32 and batch["mask"].dtype == torch.int64
    assert batch["mask"].shape == (2, 8, 8)


@pytest.mark.parametrize(("given", "message"), [
    ((IMAGE,), "got a batch of 1 entries"),
    (IMAGE, "got a batch of Tensor"),
    ({"image": IMAGE, "masks": MASK}, "got a batch of dict"),
    ((IMAGE[:, :1], MASK), r"got images of shape \(2, 1, 8, 8\)"),
    ((IMAGE, MASK[:, :4]), r"masks of shape \(2, 4, 8\)"),
    ((IMAGE, MASK.float()), "got masks of type torch.float32"),
    ((IMAGE, MASK + 2), "got the mask values 2, expected indices of the 2 classes"),
    ((IMAGE, MASK.long() - 1), "got the mask values -1"),
    ((IMAGE - 2, MASK), "from -2 to -2, expected uint8, or floats in"),
])  # fmt: skip
def test_other_batches_are_refused(given, message):
    with pytest.raises(CrosscoopError, match=message):
        to_batch(given, 2)


def test_classes_and_channels_must_agree():
    own = task()
    own.class_names.append("d")
    with pytest.raises(CrosscoopError, match=r"class_names: got 4 names, but 3 channels of logits from top"):
        own.validation_step((IMAGE, MASK), 0)


# -- parts that do not train


def changed(own, before):
    """The top-level parts of the branches whose weights or statistics differ from before."""
    state = own.state_dict()
    return {".".join(key.split(".")[1:4]) for key in state if not torch.equal(state[key], before[key])}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("epochs", "after"), [(None, False), (2, False), (1, True)])
def test_frozen_parts_keep_weights_and_statistics(tmp_path, epochs, after):
    own = task(freeze=["backbones", "top.aspp"], freeze_epochs=epochs)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2}, logger=False, enable_checkpointing=False)
    loader = DataLoader(pairs(), batch_size=2)
    trainer.fit(own, loader, loader)
    parts = changed(own, before)
    assert {"branches.0.decoder", "branches.1.decoder", "branches.1.aspp"} <= parts
    frozen = {"branches.0.backbone", "branches.1.backbone", "branches.0.aspp"}
    assert frozen <= parts if after else not frozen & parts


@pytest.mark.parametrize(("options", "message"), [
    ({"freeze": ["backbone"]}, "got 'backbone', which the network does not have; expected backbones"),
    ({"freeze": "backbones"}, "expected a list of parts"),
    ({"freeze_epochs": 2}, "network.freeze_epochs: got 2 for"),
])  # fmt: skip
def test_unknown_parts_are_refused(options, message):
    with pytest.raises(CrosscoopError, match=message):
        task(**options)

"""What `fit` prints before it trains: the network's costs, and nothing that nobody can use."""

import logging

import pytest
import tiny
import torch
from torch import nn

from crosscoop.network import create_network
from crosscoop.network.cost import cost_by_part, count_macs
from crosscoop.network.fusion import Add


class Peeking(Add):
    """An operator that looks at the values of a map, which the device `meta` does not have."""

    def forward(self, own, received):
        return own if bool((received > 1e9).all()) else super().forward(own, received)


def macs_by_hand(module, image):
    """Multiply-adds of the convolutions, by the sizes of their outputs."""
    found = []

    def hook(layer, inputs, output):
        found.append(layer.weight[0].numel() * output.numel())

    handles = [each.register_forward_hook(hook) for each in module.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        module(image)
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize(("strategy", "fusion"), [("none", "add"), ("cross_c1_c2", "concat")])
def test_costs_of_the_parts_are_those_of_the_convolutions(make_pair, strategy, fusion):
    pair, image = make_pair(strategy, fusion), torch.rand(1, 3, 33, 49)
    before = {key: value.clone() for key, value in pair.train().state_dict().items()}
    costs = cost_by_part(pair, 33, 49)
    assert list(costs) == ["top: backbone", "top: head", "bottom: backbone", "bottom: head", "exchange", "total"]
    tiny.assert_equal(pair.state_dict(), before)
    assert pair.training and all(parameter.device.type == "cpu" for parameter in pair.parameters())
    pair.eval()
    for name, branch in zip(("top", "bottom"), pair.branches, strict=True):
        backbone, head = costs[f"{name}: backbone"], costs[f"{name}: head"]
        assert backbone.macs == macs_by_hand(branch.backbone, image) > 0
        assert backbone.macs + head.macs == macs_by_hand(branch, image) == count_macs(branch, image)
        assert backbone.parameters == sum(p.numel() for p in branch.backbone.parameters())
    assert costs["total"].macs == macs_by_hand(pair, image)
    *parts, total = costs.values()
    assert total.parameters == sum(part.parameters for part in parts) == sum(p.numel() for p in pair.parameters())
    assert total.macs == sum(part.macs for part in parts)
    assert (costs["exchange"].macs > 0) == (strategy != "none")


def test_a_network_that_looks_at_values_has_its_parameters_counted():
    costs = cost_by_part(create_network(["test_resnet", "test_byobnet"], 3, fusion=Peeking, channels=16), 32, 32)
    assert {cost.macs for cost in costs.values()} == {None} and costs["total"].parameters > 0


def test_fit_prints_the_costs_and_no_advertisement(tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)  # to caplog
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        tiny.fit(tmp_path / "single", "--network.branches=[test_resnet] --network.strategy none",
                 "--trainer.enable_model_summary true")  # fmt: skip
    said = "".join(capfd.readouterr()) + caplog.text
    assert "multiply-adds at 32 x 32" in said and "network: backbone" in said and "exchange" not in said
    assert [word for word in ("Tip", "litlogger", "FLOPs", "TPU", "GPU available: False") if word in said] == []
    assert "max_epochs=1" in said
    tiny.fit(tmp_path / "quiet")
    assert "multiply-adds" not in "".join(capfd.readouterr())
    config = (tmp_path / "single/config.yaml").read_text()
    assert "enable_model_summary: true" in config


def test_fit_trains_what_it_cannot_count(tmp_path, capfd):
    tiny.fit(tmp_path, "--network.fusion test_summary.Peeking --trainer.enable_model_summary true")
    said = capfd.readouterr().out
    assert "not counted" in said and "multiply-adds at" not in said and (tmp_path / "best.ckpt").is_file()

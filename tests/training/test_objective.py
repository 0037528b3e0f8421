"""Objectives: the default, auxiliary heads, and a user's own loss and objective used from YAML."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import PowerCut, Recorder, assert_equal, crosscoop, fit, load
from torch import nn

import crosscoop as package
from crosscoop.errors import CrosscoopError
from crosscoop.network import create_network
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.objective import Supervised
from crosscoop.training.objective.contract import sum_losses
from crosscoop.training.task import CooperativeSegmentation

RECORD = "--trainer.callbacks+=tiny.Recorder"
AUXILIARY = "--model.objective Supervised --model.objective.auxiliary=[connection1,aspp2] "
AUXILIARY += "--model.objective.auxiliary_channels 8"

MY_LOSS, DOCUMENTED_OBJECTIVE = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(), re.DOTALL
)
MY_OBJECTIVE = """
import torch
from torch import nn
from torch.nn import functional

from crosscoop.training.objective import Objective


class Mutual(Objective):
    points = ("connection2",)

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def build(self, network, num_classes):
        self.weight = nn.Parameter(torch.zeros(num_classes))

    def forward(self, logits, mask, maps):
        assert maps["connection2"]["top"].shape[1] == 16
        losses = {name: self.loss(each, mask) for name, each in logits.items()}
        logs = {name: (each / self.temperature + self.weight[:, None, None]).log_softmax(1)
                for name, each in logits.items()}
        for name, own in logs.items():
            others = [other.detach() for key, other in logs.items() if key != name]
            losses[f"{name}_mutual"] = sum(
                functional.kl_div(own, other, log_target=True, reduction="batchmean") for other in others
            )
        return losses
"""


def train(folder, *options):
    """Train two epochs in one go, and again with a power cut in the second; return the checkpoints of both."""
    fit(folder / "whole", "--trainer.max_epochs 2", RECORD, *options)
    stop = "--trainer.callbacks+=tiny.Stopper --trainer.callbacks.epoch 1"
    with pytest.raises(PowerCut):
        fit(folder / "parts", "--trainer.max_epochs 2", stop, *options)
    crosscoop("fit", "--run", folder / "parts", "--resume --trainer.callbacks null")
    return load(folder / "whole" / "last.ckpt"), load(folder / "parts" / "last.ckpt")


def logged():
    """Names of the losses that the last training of this process logged."""
    metrics = Recorder.latest.module.trainer.callback_metrics
    return {key.removeprefix("train/loss_") for key in metrics if key.startswith("train/loss_")}


# -- a user's own, in a file and a line of YAML


@pytest.mark.parametrize(("name", "code", "yaml", "names", "keys"), [
    ("my_loss", MY_LOSS, "model: {loss: my_loss.Margin}", {"top", "bottom"}, set()),
    ("my_objective", MY_OBJECTIVE, "model: {objective: my_objective.Mutual}",
     {"top", "bottom", "top_mutual", "bottom_mutual"}, {"objective.weight"}),
])  # fmt: skip
def test_users_own_trains_resumes_and_is_tested(tmp_path, monkeypatch, name, code, yaml, names, keys):
    (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(tmp_path)
    whole, parts = train(tmp_path, "--config", tmp_path / "mine.yaml")
    assert logged() >= names
    assert_equal(whole["state_dict"], parts["state_dict"])
    assert {key for key in whole["state_dict"] if not key.startswith("network.")} == keys
    assert all(whole["state_dict"][key].any() for key in keys), "the objective's own parameters were not trained"
    crosscoop("test", "--run", tmp_path / "whole", "--pictures.num_images 0")
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["stage"] == "test"


def test_documented_objective_adds_a_loss_to_the_branches():
    namespace: dict[str, Any] = {}
    exec(DOCUMENTED_OBJECTIVE, namespace)
    objective = namespace["Agreement"](weight=0.5)
    objective.loss = CrossEntropy()
    top, bottom = torch.randn(2, 2, 3, 8, 8)
    losses = objective({"top": top, "bottom": bottom}, torch.randint(3, (2, 8, 8)))
    assert list(losses) == ["top", "bottom", "agreement"]
    torch.testing.assert_close(losses["agreement"], 0.5 * (top.softmax(1) - bottom.softmax(1)).square().mean())


# -- auxiliary heads


def test_auxiliary_heads_are_trained_and_left_out_of_what_is_used(tmp_path, capsys):
    whole, parts = train(tmp_path, AUXILIARY)
    assert_equal(whole["state_dict"], parts["state_dict"])
    heads = [f"{branch}_{point}" for branch in ("top", "bottom") for point in ("connection1", "aspp2")]
    assert logged() >= {"top", "bottom", *heads}
    trained, first = whole["state_dict"], Recorder.latest.first
    changed = {key for key, value in trained.items() if not torch.equal(value, first[key])}
    assert changed >= {key for key in trained if key.startswith("objective.") and key.endswith("weight")}
    assert sum(key.startswith("objective.") for key in trained) > 4

    figures = []
    for other in ("", "--model.objective.auxiliary=[decoder1] --model.objective.auxiliary_channels 4"):
        crosscoop("test", "--run", tmp_path / "whole", "--pictures.num_images 0", other)
        figures.append(json.loads((tmp_path / "whole" / "confusion.json").read_text()))
    assert figures[0] == figures[1]
    names = package.load(tmp_path / "whole" / "last.ckpt").network.state_dict()
    assert not [key for key in names if "objective" in key]

    with pytest.raises(SystemExit):
        crosscoop("fit", "--run", tmp_path / "whole", "--resume --trainer.max_epochs 3",
                  "--model.objective.auxiliary=[decoder1]")  # fmt: skip
    message = capsys.readouterr().err
    assert "objective.heads.top.decoder1" in message and "--model.objective" in message and "connection1" in message


@pytest.fixture
def task():
    network = create_network(["test_resnet", "test_byobnet"], 3, channels=16, separable=True)
    return CooperativeSegmentation(network, ["a", "b", "c"], objective=Supervised(["connection1"], 0.5, 8))


def test_auxiliary_loss_is_that_of_the_heads_logits_at_the_masks_size(task):
    image, mask = torch.rand(2, 3, 32, 48), torch.randint(3, (2, 32, 48))
    logits, maps = task.eval().network.forward_maps(image, ["connection1"])
    names = ("top", "bottom")
    own = {name: maps["connection1"][i] for i, name in enumerate(names)}
    losses = task.objective(dict(zip(names, logits, strict=True)), mask, maps={"connection1": own})
    assert list(losses) == ["top", "bottom", "top_connection1", "bottom_connection1"]
    for name, each in zip(names, logits, strict=True):
        torch.testing.assert_close(losses[name], CrossEntropy()(each, mask))
        small = task.objective.heads[name]["connection1"](own[name])
        large = nn.functional.interpolate(small, (32, 48), mode="bilinear")
        torch.testing.assert_close(losses[f"{name}_connection1"], 0.5 * CrossEntropy()(large, mask))


def test_each_branch_has_heads_at_the_points_that_it_has():
    plain = {"backbone": "test_byobnet", "class_path": "test_walk.Plain"}
    network = create_network(["test_resnet", plain], 3, "none", channels=16)
    task = CooperativeSegmentation(network, ["a", "b", "c"], objective=Supervised(["connection1", "narrow"]))
    names: list[str] = []
    task.log = lambda name, value, **options: names.append(name)
    task.optimizers = lambda: SimpleNamespace(param_groups=[])
    task.training_step({"image": torch.rand(2, 3, 32, 48), "mask": torch.randint(3, (2, 32, 48)), "name": []}, 0)
    losses = ["top", "bottom", "top_connection1", "bottom_connection1", "bottom_narrow"]
    assert sorted(names) == sorted(["train/loss", *(f"train/loss_{name}" for name in losses)])


def test_tasks_do_not_share_an_objective(task):
    network = create_network(["test_resnet"], 3, "none", channels=16)
    first, second = (CooperativeSegmentation(network, ["a", "b", "c"]).objective for _ in range(2))
    assert first is not second and list(first.heads) == ["network"]


def test_auxiliary_heads_are_optimised_with_the_heads_and_clipped_with_their_branch(task):
    groups = task.optimizer([{"params": list(task.parameters())}])
    task.clip_gradients = lambda optimizer, value, _: nn.utils.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"]], value
    )
    for parameter in task.parameters():
        parameter.grad = torch.ones_like(parameter)
    task.configure_gradient_clipping(groups, 1.0, "norm")
    for name, branch in zip(("top", "bottom"), task.network.branches, strict=True):
        part = [*branch.parameters(), *task.objective.heads[name].parameters()]
        assert float(torch.stack([p.grad.square().sum() for p in part]).sum()) == pytest.approx(1, rel=1e-4)
    task._trainer = SimpleNamespace(estimated_stepping_batches=2, callbacks=[], world_size=1)
    heads = {id(p) for p in task.configure_optimizers()["optimizer"].param_groups[1]["params"]}
    assert heads >= {id(p) for p in task.objective.parameters()}


# -- refusals


class Incomplete(Supervised):
    def __init__(self):
        pass


def test_refuses_a_constructor_that_leaves_out_the_contracts(task):
    with pytest.raises(CrosscoopError, match=r"model\.objective: .*Incomplete does not call super\(\)\.__init__\(\)"):
        CooperativeSegmentation(task.network, ["a", "b", "c"], objective=Incomplete())


@pytest.mark.parametrize(("losses", "parts"), [
    ({}, ["no losses", "dict"]),
    (torch.tensor(1.0), ["a Tensor", "dict"]),
    (None, ["a NoneType", "dict"]),
    ({"top": torch.ones(2, 3)}, ["shape (2, 3)", "'top'", "scalar"]),
    ({"top": 1.0}, ["a float", "'top'", "scalar"]),
    ({0: torch.tensor(1.0, requires_grad=True)}, ["0", "named"]),
    ({"top": torch.tensor(1.0)}, ["without gradients", "top"]),
])  # fmt: skip
def test_refuses_what_is_no_dict_of_named_scalars(losses, parts):
    with pytest.raises(CrosscoopError) as caught:
        sum_losses(Supervised(), losses)
    assert [part for part in ["model.objective", "Supervised", *parts] if part not in str(caught.value)] == []


def test_refusal_names_the_loss():
    objective = Supervised()
    objective.loss = CrossEntropy()
    with pytest.raises(CrosscoopError, match="from Supervised with the loss CrossEntropy, expected a scalar"):
        sum_losses(objective, {"top": torch.ones(2, 3)})


@pytest.mark.parametrize(("options", "parts"), [
    ("--model.objective.auxiliary=[conection1]", ["'conection1'", "Supervised", "connection1, aspp1"]),
    ("--model.objective.auxiliary_weight=0", ["auxiliary_weight", "0"]),
    ("--model.objective.auxiliary_channels=0", ["auxiliary_channels", "0"]),
    ("--model.objective=my.Nonsense", ["model.objective", "my.Nonsense"]),
    ("--model.loss=WeightedSum", ["model.loss", "losses"]),
])  # fmt: skip
def test_options_are_refused_with_one_message(capsys, tmp_path, options, parts):
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", options)
    message = capsys.readouterr().err
    assert "Traceback" not in message and len(message.splitlines()) < 20
    assert [part for part in parts if part not in message] == []

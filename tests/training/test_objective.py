"""Losses of one branch, against independent computations, and objectives of all branches."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import in_ranks
from tiny import PowerCut, Recorder, assert_equal, crosscoop, fit, load
from torch import Tensor, nn
from torch.nn import functional

import crosscoop as package
from crosscoop.errors import CrosscoopError
from crosscoop.network import create_network
from crosscoop.training.loss import CrossEntropy, Dice, Focal, Loss, Lovasz, WeightedSum, mean_over_ranks
from crosscoop.training.objective import Supervised
from crosscoop.training.objective.contract import sum_losses
from crosscoop.training.task import CooperativeSegmentation

# -- losses of one branch

VOID = 255
LOSSES: dict[str, Loss] = {
    "cross entropy": CrossEntropy(),
    "cross entropy, weighted": CrossEntropy([1, 2, 0.5, 0, 3], label_smoothing=0.1),
    "cross entropy, hardest": CrossEntropy([1, 2, 0.5, 1, 3], hardest=0.3),
    "focal": Focal(class_weights=[1, 2, 0.5, 0, 3]),
    "dice": Dice(),
    "lovasz": Lovasz(),
    "sum": WeightedSum([CrossEntropy(), Dice()], [1, 0.5]),
}
each_loss = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items()])


def draw(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of five classes, and masks with void in which one class does not occur and one image has no label."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, 9, generator=generator, dtype=dtype, requires_grad=True)
    mask = torch.randint(4, (4, 7, 9), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.3] = VOID
    mask[1] = VOID
    return logits, mask


def labelled_pixels() -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and true classes of the labelled pixels, one a row."""
    logits, mask = draw()
    rows = logits.detach().double().permute(0, 2, 3, 1).numpy()[mask.numpy() != VOID]
    return rows - np.log(np.exp(rows).sum(1, keepdims=True)), mask.numpy()[mask.numpy() != VOID]


# -- what every loss has to fulfil


@each_loss
def test_void_has_no_influence(loss):
    logits, mask = draw()
    other = torch.where(mask[:, None] == VOID, torch.randn_like(logits) * 10, logits.detach()).requires_grad_()
    values = [loss(each, mask) for each in (logits, other)]
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(value, each)[0] for value, each in zip(values, (logits, other), strict=True)]
    assert torch.equal(*gradients)
    assert not gradients[0].mul(mask[:, None] == VOID).any() and gradients[0].any()


@each_loss
def test_all_void_batch_has_loss_zero_and_gradients_zero(loss):
    logits, mask = draw()
    value = loss(logits, torch.full_like(mask, VOID))
    value.backward()
    assert value == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@each_loss
def test_half_precision_logits_are_computed_in_single(loss):
    logits, mask = draw()
    half = logits.detach().bfloat16()
    expected = loss(half.float(), mask)
    assert loss(half, mask).dtype == torch.float32
    torch.testing.assert_close(loss(half, mask), expected, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(half, mask), expected, rtol=1e-6, atol=0)


@each_loss
def test_gradients_are_those_of_finite_differences(loss):
    logits, mask = draw(torch.float64)
    assert torch.autograd.gradcheck(lambda each: loss(each, mask[:, :3, :4]), logits[:, :, :3, :4])


@each_loss
def test_certain_predictions_leave_it_finite(loss):
    _, mask = draw()
    right = functional.one_hot(mask.where(mask != VOID, 0), 5).movedim(-1, 1) * 1000.0
    for certain in (right, right.roll(1, 1)):
        certain.requires_grad_()
        value = loss(certain, mask)
        value.backward()
        assert value.isfinite() and certain.grad.isfinite().all()
        assert value.item() == pytest.approx(0, abs=1e-6) or certain is not right or loss is LOSSES[
            "cross entropy, weighted"]  # fmt: skip


def leave_gradients(rank, folder):
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    logits, mask = draw(torch.float64)
    mine = logits.detach()[2 * rank : 2 * rank + 2].requires_grad_()
    with torch.no_grad():
        alone = mean_over_ranks(torch.tensor(float(rank)))
    gradients = {
        name: torch.autograd.grad(loss(mine, mask[2 * rank : 2 * rank + 2]), mine)[0] for name, loss in LOSSES.items()
    }
    torch.save({"gradients": gradients, "alone": alone}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_learn_what_one_process_learns_from_the_joined_batch(tmp_path):
    assert in_ranks(tmp_path, 2, leave_gradients, tmp_path) == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [part["alone"] for part in parts] == [0, 1], "a validation would wait for the other rank"
    logits, mask = draw(torch.float64)
    for name, loss in LOSSES.items():
        expected = torch.autograd.grad(loss(logits, mask), logits)[0]
        given = torch.cat([part["gradients"][name] for part in parts]) / 2  # DDP's mean over the ranks
        torch.testing.assert_close(
            given, expected, rtol=1e-6, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


# -- each against an independent computation


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0, 3.0], [1, 2, 1, 0, 3]])
def test_cross_entropy_is_torchs_mean_where_there_are_labels(weights, smoothing):
    logits, mask = draw()
    expected = functional.cross_entropy(
        logits,
        mask,
        None if weights is None else torch.tensor(weights).float(),
        ignore_index=VOID,
        label_smoothing=smoothing,
    )
    actual = CrossEntropy(weights, smoothing)(logits, mask)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (actual, expected)))


def test_cross_entropy_is_a_mean_over_pixels_not_over_images():
    rows, truth = labelled_pixels()
    expected = -rows[np.arange(len(truth)), truth].mean()
    assert float(CrossEntropy()(*draw())) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.999])
def test_hardest_pixels_are_those_of_the_largest_loss_in_each_image(share):
    logits, mask = draw()
    pixels, chosen = functional.cross_entropy(logits, mask, ignore_index=VOID, reduction="none").detach(), []
    for image, truth in zip(pixels, mask, strict=True):
        losses = sorted(image[truth != VOID].tolist(), reverse=True)
        chosen += losses[: math.ceil(share * len(losses))]
    assert float(CrossEntropy(hardest=share)(logits, mask)) == pytest.approx(sum(chosen) / len(chosen), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 0.0, 3.0]])
def test_focal_weights_pixels_by_what_they_miss(gamma, weights):
    rows, truth = labelled_pixels()
    log = rows[np.arange(len(truth)), truth]
    own = np.array(weights or [1.0] * 5)[truth]
    expected = (own * -((1 - np.exp(log)) ** gamma) * log).sum() / own.sum()
    assert float(Focal(gamma, weights)(*draw())) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(Focal(0, weights)(*draw()), CrossEntropy(weights)(*draw()))


def test_dice_is_that_of_the_classes_in_the_masks():
    rows, truth = labelled_pixels()
    probabilities, true = np.exp(rows), np.eye(5)[truth]
    coefficients = 2 * (probabilities * true).sum(0) / (probabilities.sum(0) + true.sum(0))
    assert set(truth) == {0, 1, 2, 3}
    assert float(Dice()(*draw())) == pytest.approx(1 - coefficients[:4].mean(), rel=1e-6)


def test_dice_and_lovasz_are_those_of_segmentation_models():
    losses = pytest.importorskip("segmentation_models_pytorch").losses
    logits, mask = draw()
    theirs = losses.DiceLoss("multiclass", ignore_index=VOID)(logits, mask)
    torch.testing.assert_close(Dice()(logits, mask), theirs * 5 / 4)  # it counts the absent class as right
    expected = losses.LovaszLoss("multiclass", per_image=True, ignore_index=VOID)
    kept = [0, 2, 3]  # an image without labels has no loss there
    value, reference = Lovasz()(logits, mask), expected(logits[kept], mask[kept])
    torch.testing.assert_close(value, reference)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (value, reference)))


def test_lovasz_of_labels_is_one_minus_their_mean_iou():
    mask = torch.tensor([[[0, 0, 0, 1, 1, VOID]]])
    labels = torch.tensor([[[0, 0, 1, 1, 0, 1]]])
    logits = functional.one_hot(labels, 3).movedim(-1, 1) * 1000.0
    assert float(Lovasz()(logits, mask)) == pytest.approx(1 - (2 / 4 + 1 / 3) / 2)


def test_sum_is_weighted():
    first, second = CrossEntropy()(*draw()), Dice()(*draw())
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()], [2, 0.5])(*draw()), 2 * first + 0.5 * second)
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()])(*draw()), first + second)


# -- refusals


@pytest.mark.parametrize(("make", "parts"), [
    (lambda: CrossEntropy([-1, 2]), ["class_weights", "-1"]),
    (lambda: CrossEntropy([1, 2])(*draw()), ["class_weights", "2 weights", "5 classes"]),
    (lambda: CrossEntropy(label_smoothing=2), ["label_smoothing", "2"]),
    (lambda: CrossEntropy(hardest=0), ["hardest", "0"]),
    (lambda: Focal(-1), ["gamma", "-1"]),
    (lambda: Focal(class_weights=[1, 2])(*draw()), ["class_weights", "2 weights"]),
    (lambda: WeightedSum([]), ["losses"]),
    (lambda: WeightedSum([Dice()], [1, 2]), ["weights", "[1, 2]", "1 losses"]),
    (lambda: WeightedSum([Dice()], [math.nan]), ["weights", "nan"]),
])  # fmt: skip
def test_refuses_in_its_own_words(make, parts):
    with pytest.raises(CrosscoopError) as caught:
        make()
    assert [part for part in parts if part not in str(caught.value)] == []


# -- objectives

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
    return {key.removeprefix("train/loss/") for key in metrics if key.startswith("train/loss/")}


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
    crosscoop("test", "--run", tmp_path / "whole")
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
        crosscoop("test", "--run", tmp_path / "whole", other)
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
    plain = {"backbone": "test_byobnet", "class_path": "test_exchange.Plain"}
    network = create_network(["test_resnet", plain], 3, "none", channels=16)
    task = CooperativeSegmentation(network, ["a", "b", "c"], objective=Supervised(["connection1", "narrow"]))
    names: list[str] = []
    task.log = lambda name, value, **options: names.append(name)
    task.optimizers = lambda: SimpleNamespace(param_groups=[])
    task.training_step({"image": torch.rand(2, 3, 32, 48), "mask": torch.randint(3, (2, 32, 48)), "name": []}, 0)
    losses = ["top", "bottom", "top_connection1", "bottom_connection1", "bottom_narrow"]
    assert sorted(names) == sorted(["train/loss", *(f"train/loss/{name}" for name in losses)])


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
    task._trainer = SimpleNamespace(precision_plugin=None)
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

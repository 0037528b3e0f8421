"""Objectives by which branches teach each other, with labels and without."""

import json

import numpy as np
import pytest
import torch
from tiny import PowerCut, Recorder, assert_equal, crosscoop, fit, load

from crosscoop.errors import CrosscoopError
from crosscoop.network import create_network
from crosscoop.training.loss import CrossEntropy
from crosscoop.training.objective import CrossPseudoSupervision, MutualLearning, SelfTraining
from crosscoop.training.task import CooperativeSegmentation

VOID = torch.full((2, 6, 5), 255)


def draw(*names):
    return {name: torch.randn(2, 3, 6, 5, requires_grad=True) for name in names}


def learn(objective, logits, mask=VOID, **given):
    objective.loss = CrossEntropy()
    return objective(logits, mask, **given)


def probabilities(logits, temperature=1.0):
    exponential = np.exp(logits.detach().double().numpy() / temperature)
    return exponential / exponential.sum(1, keepdims=True)


def test_mutual_learning_is_the_divergence_from_every_other_branch():
    logits = draw("top", "middle", "bottom")
    losses = learn(MutualLearning(weight=0.5, temperature=2.0), logits)
    shares = {name: probabilities(each, 2.0) for name, each in logits.items()}
    for name, own in shares.items():
        others = [other for key, other in shares.items() if key != name]
        divergences = [(other * np.log(other / own)).sum(1).mean() for other in others]
        assert float(losses[f"{name}_mutual"].detach()) == pytest.approx(0.5 * 4 * np.mean(divergences), rel=1e-5)
    assert [float(losses[name]) for name in logits] == [0, 0, 0]  # no labels


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_cross_pseudo_supervision_is_the_cross_entropy_with_the_others_classes(confidence):
    logits = draw("top", "bottom")
    losses = learn(CrossPseudoSupervision(weight=1.5, confidence=confidence), logits)
    for name, other in (("top", "bottom"), ("bottom", "top")):
        own, taught = probabilities(logits[name]), probabilities(logits[other])
        labels, sure = taught.argmax(1), taught.max(1) >= confidence
        assert confidence == 0 or 0 < sure.mean() < 1
        picked = np.take_along_axis(own, labels[:, None], 1)[:, 0]
        expected = 1.5 * (-np.log(picked) * sure).mean()
        assert float(losses[f"{name}_pseudo"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_ensemble_teaches_its_own_branches():
    logits = draw("top", "bottom")
    mean = {"top": sum(logits.values()).detach() / 2}
    learnt, expected = (
        learn(MutualLearning(teacher=teacher), given)["bottom_mutual"]
        for teacher, given in (("ensemble", logits), ("others", {**mean, "bottom": logits["bottom"]}))
    )
    torch.testing.assert_close(learnt, expected)
    pseudo = learn(CrossPseudoSupervision(teacher="ensemble"), logits)["top_pseudo"]
    picked = np.take_along_axis(probabilities(logits["top"]), mean["top"].numpy().argmax(1)[:, None], 1)
    assert float(pseudo.detach()) == pytest.approx(-1.5 * np.log(picked).mean(), rel=1e-5)


def test_self_training_learns_from_the_branch_itself():
    logits = draw("network")
    loss = learn(SelfTraining(weight=1.0), logits)["network_pseudo"]
    expected = -np.log(probabilities(logits["network"]).max(1)).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", [MutualLearning(), CrossPseudoSupervision(), CrossPseudoSupervision(1, 0.4)])
def test_teachers_get_no_gradient_from_what_they_teach(objective):
    logits = draw("top", "bottom")
    losses = learn(objective, logits)
    (lesson,) = (loss for name, loss in losses.items() if name.startswith("top_"))
    lesson.backward()
    assert logits["top"].grad.any() and logits["bottom"].grad is None


def test_teachers_may_see_another_view():
    logits, teachers = draw("top", "bottom"), draw("top", "bottom")
    taught = learn(CrossPseudoSupervision(), logits, teachers=teachers)["top_pseudo"]
    same = learn(CrossPseudoSupervision(), {**logits, "bottom": teachers["bottom"]})["top_pseudo"]
    assert torch.equal(taught, same)


def test_lessons_warm_up():
    logits, objective = draw("top", "bottom"), MutualLearning(warmup_steps=4)
    whole = float(learn(MutualLearning(), logits)["top_mutual"].detach())
    factors = [float(learn(objective, logits)["top_mutual"].detach()) / whole for _ in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1]) and "step" in objective.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MutualLearning(teacher="all"), "objective.teacher: got 'all', expected one of others, ensemble"),
        (lambda: MutualLearning(weight=-1), "objective.weight: got -1, expected 0 or more"),
        (lambda: MutualLearning(temperature=0), "objective.temperature: got 0, expected a number above 0"),
        (lambda: CrossPseudoSupervision(confidence=2), "objective.confidence: got 2, expected a probability"),
        (lambda: learn(MutualLearning(), draw("network")), "got one branch, expected two or more"),
    ],
)
def test_what_cannot_teach_is_told(make, message):
    with pytest.raises(CrosscoopError, match=message):
        make()


def test_the_step_teaches_from_weak_views_with_the_boxes_moved_alike():
    network = create_network(["test_resnet", "test_byobnet"], 3, "none", channels=16)
    task = CooperativeSegmentation(network, ["a", "b", "c"], objective=CrossPseudoSupervision()).eval()
    weak, box = torch.rand(2, 3, 32, 32), torch.tensor([[0, 16, 8, 32], [0, 0, 0, 0]])
    teachers = task._teach({"weak": weak, "box": box})
    alone = dict(zip(("top", "bottom"), network(weak), strict=True))
    for name, each in teachers.items():
        expected = alone[name].clone()
        expected[0, :, :16, 8:] = alone[name][1, :, :16, 8:]
        assert torch.equal(each, expected) and not each.requires_grad
    assert task._teach({"image": weak}) == {}


UNLABELLED = "--data.dataset.num_train 12 --data.unlabelled 0.75 --data.batch_size 4 --data.strong true"


@pytest.mark.parametrize(
    "objective", ["MutualLearning --model.objective.warmup_steps 6", "CrossPseudoSupervision --data.cutmix 0.5"]
)
def test_training_with_unlabelled_images_resumes_bit_for_bit(tmp_path, objective):
    options = (UNLABELLED, "--model.objective", objective, "--trainer.max_epochs 2")
    fit(tmp_path / "whole", *options, "--trainer.callbacks+=tiny.Recorder")
    names = {key for key in Recorder.latest.module.trainer.callback_metrics if key.startswith("train/loss/")}
    assert len(names) == 4
    stop = "--trainer.callbacks+=tiny.Stopper --trainer.callbacks.epoch 1"
    with pytest.raises(PowerCut):
        fit(tmp_path / "parts", *options, stop)
    crosscoop("fit", "--run", tmp_path / "parts", "--resume --trainer.callbacks null")
    whole, parts = (load(tmp_path / run / "last.ckpt") for run in ("whole", "parts"))
    assert whole["global_step"] == 8  # 9 unlabelled images, 2 of them in a batch: 4 steps an epoch
    assert_equal(whole["state_dict"], parts["state_dict"])
    crosscoop("test", "--run", tmp_path / "whole", "--pictures.num_images 0 --model.alone true")
    outputs = json.loads((tmp_path / "whole" / "metrics.json").read_text())["outputs"]
    assert list(outputs) == ["top", "bottom", "ensemble", "top_alone", "bottom_alone"]

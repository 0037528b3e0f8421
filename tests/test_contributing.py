"""CONTRIBUTING's recipes: each file is written beside the work and used from YAML, as a contributor would."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from PIL import Image

import crosscoop as package

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SECTIONS = re.split(r"^### ", TEXT.partition("## Recipes")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
RECIPES = {section.partition("\n")[0]: section for section in SECTIONS}


def blocks(recipe: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", RECIPES[recipe], re.DOTALL)


def use(recipe: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, object]:
    """Write a recipe's files, train and test with them; the configuration that the run has kept."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    for code in blocks(recipe, "python"):
        Path(re.match(r"# (\w+\.py)", code)[1]).write_text(code)
    (given,) = blocks(recipe, "yaml")
    Path("my.yaml").write_text(given)
    tiny.fit(Path("run"), "--config my.yaml")
    tiny.crosscoop("test", "--run run --trainer.accelerator cpu --trainer.enable_progress_bar false")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    for group, options in yaml.safe_load(given).items():
        for option, value in options.items():
            named = value.get("class_path", "") if isinstance(value, dict) else ""
            assert named in json.dumps(config[group][option]), "the run has not used it"
    return config


def test_every_kind_of_part_has_a_recipe_of_at_most_30_lines():
    assert list(RECIPES) == [
        "A fusion operator",
        "A head",
        "A third branch",
        "A loss of one branch",
        "An objective of all branches",
        "A metric",
        "A data set",
    ]
    for recipe in RECIPES:
        assert sum(code.count("\n") for code in blocks(recipe, "python") + blocks(recipe, "yaml")) <= 30, recipe


def test_fusion_operator(tmp_path, monkeypatch):
    use("A fusion operator", tmp_path, monkeypatch)
    network = package.load("run/best.ckpt").network
    operators = [module for module in network.modules() if type(module).__name__ == "Maximum"]
    assert len(operators) == 20 and all(operator.scale.grad is None for operator in operators)


def test_head(tmp_path, monkeypatch):
    use("A head", tmp_path, monkeypatch)
    network = package.load("run/best.ckpt").network
    assert [type(branch).__name__ for branch in network.branches] == ["DeepLabV3Plus", "FCN"]
    assert list(network.exchanges) == ["connection1"]


def test_third_branch(tmp_path, monkeypatch):
    use("A third branch", tmp_path, monkeypatch)
    outputs = json.loads(Path("run/metrics.json").read_text())["outputs"]
    assert list(outputs) == ["branch0", "branch1", "branch2", "ensemble"]
    assert len(package.load("run/best.ckpt").network.exchanges) == 10


def test_loss(tmp_path, monkeypatch):
    use("A loss of one branch", tmp_path, monkeypatch)


def test_objective(tmp_path, monkeypatch):
    use("An objective of all branches", tmp_path, monkeypatch)


def test_metric(tmp_path, monkeypatch, capsys):
    use("A metric", tmp_path, monkeypatch)
    record = json.loads(Path("run/metrics.json").read_text())
    shares = record["outputs"]["ensemble"]["coverage_per_class"].values()
    assert sum(shares) == pytest.approx(1)


def test_data_set(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = tmp_path / "cracks" / split
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.jpg")
            Image.fromarray(random.integers(0, 2, (40, 48), np.uint8)).save(folder / f"{i}.png")
    use("A data set", tmp_path, monkeypatch)
    record = json.loads(Path("run/metrics.json").read_text())
    assert record["protocol"]["dataset"] == "Cracks" and list(record["iou_per_class"]) == ["background", "crack"]

"""Every shipped configuration: it parses, says what its name says, and trains."""

import shlex
from contextlib import redirect_stdout
from functools import cache
from io import StringIO

import pytest
import yaml
from test_training import refusal
from tiny import DATA, QUIET, ROOT, crosscoop

from crosscoop.ablation.grid import read_ablation
from crosscoop.commands.show_configs import with_parts
from crosscoop.files import include_yaml, load_yaml

CONFIGS = ROOT / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("parts", "ablation"))

shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONFIGS).with_suffix("")))


@cache
def resolved(path):
    """The configuration with all defaults."""
    output = StringIO()
    with pytest.raises(SystemExit) as caught, redirect_stdout(output):
        crosscoop("fit", "--config", path, "--print_config")
    assert not caught.value.code
    return yaml.safe_load(output.getvalue())


def test_there_are_configurations_for_every_row_of_the_paper():
    for folder in ("voc", "cityscapes"):
        names = {path.stem for path in SHIPPED if path.parent.name == folder}
        assert names >= {
            "single_resnet101",
            "single_xception65",
            "ensemble",
            "one_way",
            "cross",
            "cross_c1",
            "cross_c1_c2",
        }


@shipped
def test_says_what_its_name_says(path):
    config, name = resolved(path), path.stem
    branches, strategy = config["network"]["branches"], config["network"]["strategy"]
    if name.startswith("single_"):
        backbone = name.removeprefix("single_")
        assert strategy == "none" and len(branches) == 1 and backbone in branches[0].replace("_100", "")
    else:
        assert len(branches) == 2 and branches[0] != branches[1]
        unconnected = dict.fromkeys(("ensemble", "few_labels", "mutual_learning"), "none")
        assert strategy == {**unconnected, "demo": "cross_c1_c2"}.get(name, name)
    text = path.read_text()
    assert text.startswith("# ") and str(path.relative_to(CONFIGS.parent)) in text.splitlines()[1]  # its own command


@pytest.mark.parametrize(("folder", "rate", "crop", "split"), [
    ("voc", 0.007, 513, "trainaug"), ("cityscapes", 0.035, 768, "train"),
])  # fmt: skip
def test_keeps_to_the_paper(folder, rate, crop, split):
    for path in (path for path in SHIPPED if path.parent.name == folder):
        config = resolved(path)
        network, model, data = config["network"], config["model"], config["data"]
        sgd = {"lr": rate, "momentum": 0.9, "weight_decay": 1e-4}
        assert model["optimizer"]["class_path"] == "torch.optim.SGD"
        assert model["optimizer"]["init_args"] | sgd == model["optimizer"]["init_args"]
        assert model["scheduler"] is None and model["poly_power"] == 0.9
        assert (data["crop_size"], data["batch_size"], data["scale"], data["flip"]) == (crop, 6, [0.5, 2.0], True)
        assert data["resize"] is None and data["center_crop"] is None  # whole images are evaluated
        assert data["dataset"]["init_args"]["train_split"] == split
        assert data["dataset"]["init_args"]["val_split"] == "val"
        assert set(network["branches"]) <= {"xception65.tf_in1k", "resnet101.tv_in1k"} and network["pretrained"] is True
        assert (network["output_stride"], network["channels"], network["separable"]) == (16, 256, False)
        assert network["fusion"] == "add"


@pytest.mark.parametrize("folder", sorted({path.parent for path in SHIPPED}), ids=lambda path: path.name)
def test_configurations_of_one_data_set_differ_in_the_network_and_the_teaching_only(folder):
    teaching = {"model": ("objective",), "data": ("unlabelled", "strong", "cutmix")}
    configs = [
        config | {group: config[group] | dict.fromkeys(options) for group, options in teaching.items()}
        for config in map(resolved, (path for path in SHIPPED if path.parent == folder))
    ]
    for config in configs:
        assert config | {"network": None} == configs[0] | {"network": None}
        assert config["network"] | {"branches": None, "strategy": None} == configs[0]["network"] | {
            "branches": None,
            "strategy": None,
        }


@shipped
def test_takes_a_step(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    number = len(yaml.safe_load(path.read_text())["network"]["branches"])
    backbones = ",".join(["test_resnet", "test_byobnet"][:number])
    tiny = f"--network.branches=[{backbones}] --network.pretrained false --network.channels 16 --data.resize null"
    enough = "--data.dataset.num_train 16"  # for a share of unlabelled images
    crosscoop("fit", "--config", path, shlex.join([*DATA, *QUIET]), tiny, enough, "--trainer.fast_dev_run true")


# -- by name, wherever the package is installed


def test_name_stands_for_the_file_on_the_command_line_and_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved("crosscoop:camvid/cross_c1_c2") == resolved(CONFIGS / "camvid/cross_c1_c2.yaml")
    (tmp_path / "grid.yaml").write_text("base: crosscoop:voc/cross_c1_c2\ncells: {a: {}}\n")
    base = include_yaml(load_yaml(CONFIGS / "voc/cross_c1_c2.yaml"), CONFIGS / "voc")
    assert read_ablation(tmp_path / "grid.yaml").base == base


def test_every_copy_holds_what_the_original_includes():
    for path in CONFIGS.rglob("*.yaml"):
        original = load_yaml(path)
        if isinstance(base := original.get("base"), str):  # an ablation's
            original["base"] = include_yaml(load_yaml(path.parent / base), (path.parent / base).parent)
        assert yaml.safe_load(with_parts(path)) == include_yaml(original, path.parent), path


def test_configurations_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    crosscoop("show-configs")
    listed = {line.split()[0].removeprefix("crosscoop:") for line in capsys.readouterr().out.splitlines()}
    assert listed >= {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in SHIPPED}
    crosscoop("show-configs", "--copy crosscoop:voc/cross --output mine.yaml")
    assert "crosscoop fit --config mine.yaml" in (tmp_path / "mine.yaml").read_text()
    assert resolved("mine.yaml") == resolved("crosscoop:voc/cross")
    assert "mine.yaml exists" in refusal(capsys, "show-configs", "--copy voc/cross --output mine.yaml")
    assert "Did you mean crosscoop:voc/cross_c1?" in refusal(capsys, "fit", "--config crosscoop:voc/crossc1")

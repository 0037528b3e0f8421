"""Ablations: the grid and the tables."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from grids import BASE, GRID
from scipy import stats
from tiny import ROOT, crosscoop

from crosscoop.ablation.cost import measure, planned_steps
from crosscoop.ablation.grid import Ablation, Cell, read_ablation
from crosscoop.ablation.summary import Figures, summarise
from crosscoop.ablation.tables import latex, write_tables
from crosscoop.data import Streets
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.records import branch_shares
from crosscoop.files import duration
from crosscoop.network import Fusion, create_network
from crosscoop.network.outputs import branch_names

pytestmark = pytest.mark.command

BRANCHES = {
    "only_top": 0.03, "only_bottom": 0.04, "neither": 0.2, "saved": 0.05, "lost": 0.02, "disagree": 0.1,
}  # fmt: skip


def searched(option, values, trials=1):
    """A search over one option."""
    return {"search": {"trials": trials, "space": {option: values}}}


def record(folder: Path, outputs: dict[str, float], protocol: str = "whole images") -> None:
    """The figures of a test, as `crosscoop test` leaves them."""
    folder.mkdir(parents=True)
    how = {"dataset": "Streets", "split": "test", "num_images": 3, "official_num_images": None}
    content = {
        "stage": "test",
        "miou": list(outputs.values())[-1],
        "iou_per_class": {"Road": list(outputs.values())[-1] + 0.1, "Sky": None},  # no pixel of sky in this test
        "protocol": {**how, "evaluation": protocol, "inference": "single scale"},
        "outputs": {name: {"miou": miou} for name, miou in outputs.items()},
    }
    (folder / "metrics.json").write_text(json.dumps(content))


# -- the grid


def test_rows_are_cells_and_combinations(grid):
    ablation = read_ablation(grid())
    assert list(ablation.rows) == ["ResNet", "Ensemble", "cross, add", "cross_c1_c2, add"]
    cells = ablation.all_cells(Path("runs"))
    assert [cell.label for cell in cells[:5]] == [
        "resnet/seed0",
        "ensemble/seed0",
        "cross_add/seed0",
        "cross_c1_c2_add/seed0",
        "resnet/seed1",
    ]
    config = cells[3].config
    assert config["network"] == {**BASE["network"], "strategy": "cross_c1_c2", "fusion": "add"}
    assert config["seed_everything"] == 0 and config["data"] == BASE["data"]
    assert ablation.base == BASE  # the rows left it as it is


def test_options_reach_into_groups_that_the_base_has_not(grid):
    ablation = read_ablation(grid(cells={"fast": {"model.optimizer.init_args.lr": 0.1}}, grid={}, baseline=None))
    assert ablation.config("fast", 3)["model"] == {"optimizer": {"init_args": {"lr": 0.1}}}


def test_resources_are_no_options_of_fit(grid):
    ablation = read_ablation(grid(resources={"cpus": 2}, cells={"Ensemble": {"resources.gpus": 0.5}}, grid={}))
    (cell,) = ablation.all_cells(Path("runs"))[:1]
    assert cell.resources == {"cpus": 2, "gpus": 0.5} and "resources" not in cell.config
    assert ablation.digest == read_ablation(grid(cells={"Ensemble": {}}, grid={})).digest


def test_ablation_keeps_its_base_when_the_file_goes(grid, tmp_path):
    ablation = read_ablation(grid())
    ablation.save(tmp_path / "kept.yaml")
    (tmp_path / "base.yaml").unlink()
    assert read_ablation(tmp_path / "kept.yaml") == ablation


def test_base_brings_its_parts(grid, tmp_path):
    path = grid()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/data.yaml").write_text(yaml.safe_dump(BASE["data"]))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "data": "parts/data.yaml"}))
    assert read_ablation(path).base == BASE


def test_digest_stands_for_the_configurations(grid):
    digests = [
        read_ablation(grid(**changes)).digest
        for changes in ({}, {"title": "Other"}, {"tests": {"own size": {}}}, {"checkpoint": "last.ckpt"})
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "got no base"),
        ({"base": "nowhere.yaml"}, r"nowhere.yaml: cannot be read"),
        ({"cell": {}}, "got cell, expected base, title"),
        ({"cells": {}, "grid": {}}, "got no cell"),
        ({"tests": {}}, "got no cells, expected cells, a grid or a search, seeds and tests"),
        ({"resources": {"gpu": 1}}, "got resources.gpu: 1.0 in row 'ResNet', expected cpus or gpus"),
        ({"cells": {"Ensemble": {"resources.gpus": 1.5}}}, "got resources.gpus: 1.5 in row 'Ensemble'"),
        ({"search": {"trials": 0, "space": {"a": [1]}}}, "search.trials: got 0, expected greater than 0"),
        (
            {"search": {"trials": 1, "space": {"a": {"low": 2, "high": 1}}}},
            "search.space.a: got .*, expected low < high",
        ),
        (
            {"search": {"trials": 1, "space": {"a": {"low": 0, "high": 1, "log": True}}}},
            "low > 0 on a logarithmic scale",
        ),
        ({"search": {"trials": 1, "space": {"trainer.max_epochs.x": [1]}}}, "but max_epochs is 2 in the base"),
        ({"cells": ["cross"]}, r"cells: got \['cross'\], expected a valid dictionary"),
        ({"cells": {"cross": "cross"}}, "cells.cross: got 'cross', expected a valid dictionary"),
        ({"grid": {"network.strategy": "cross"}}, "grid.network.strategy: got 'cross', expected a valid list"),
        ({"seeds": 3}, "seeds: got 3, expected a valid list"),
        ({"seeds": ["a"]}, "seeds.0: got 'a', expected a valid integer"),
        ({"seeds": [1, 1]}, "expected each once"),
        ({"seeds": []}, "got no cell"),
        (
            {"cells": {"cross": {}}, "grid": {"network.strategy": ["cross"]}},
            "'cross' and 'cross' would share one folder",
        ),
        ({"cells": {1: {}}}, r"cells.1.\[key\]: got 1, expected a valid string"),
        ({"cells": {"cross": {3: 1}}}, r"cells.cross.3.\[key\]: got 3, expected a valid string"),
        (
            {"cells": {"Ensemble": {"trainer.max_epochs.x": 1}}},
            "'Ensemble': got trainer.max_epochs.x, but max_epochs is 2",
        ),
        ({"tests": {"a b": {}, "a-b": {}}}, "'a b' and 'a-b' would share one folder; give them other names in tests"),
        ({"checkpoint": "lst.ckpt"}, "checkpoint: got 'lst.ckpt', expected 'best.ckpt' or 'last.ckpt'"),
        ({"base": "grid.yaml"}, "grid.yaml: got a file that includes itself"),
        ({"baseline": ["Ensemble", "Ensemble"]}, "got baseline 'Ensemble', expected one of .*, each once"),
        ({"baseline": "none"}, "got baseline 'none', expected one of ResNet, Ensemble"),
        (
            {"cells": {"a": {"seed_everything": 5}}, "baseline": None},
            "got seed_everything in row 'a', expected the seeds in seeds",
        ),
        ({"grid": {"seed_everything": [1, 2]}, "baseline": None}, "got seed_everything in row '1'"),
        ({"layout": "wide"}, "layout: got 'wide', expected 'summary', 'outputs' or"),
        ({"cells": {"a b": {}, "a-b": {}}, "baseline": None}, "'a b' and 'a-b' would share one folder"),
    ],
)
def test_wrong_grid_is_told(grid, changes, message):
    path = grid(**changes)
    with pytest.raises(CrosscoopError, match=message):
        read_ablation(path)


@pytest.mark.parametrize("name", ["table1", "table3", "table5", "camvid"])
def test_shipped_grids_build_every_network(name):
    ablation = read_ablation(ROOT / f"configs/ablation/{name}.yaml")
    for cell in {cell.name: cell for cell in ablation.all_cells(Path("runs"))}.values():
        network = {**cell.config["network"], "pretrained": False, "num_classes": 3}
        if "timm_resnet50v2_gluon" in str(network["branches"]):  # the user's own module is not here
            network = json.loads(
                json.dumps(network).replace("timm_resnet50v2_gluon:resnet50v2_gluon_c4", "test_resnet")
            )
        with torch.device("meta"):
            create_network(**network)


def test_cost_is_the_networks(grid, tmp_path):
    cell = read_ablation(grid()).all_cells(tmp_path)[1]
    network = create_network(**{**cell.config["network"], "num_classes": 5})
    cost = measure(cell)
    assert cost.crop_size == 32 and cost.macs > 1e6
    network = create_network(**{**cell.config["network"], "num_classes": Streets().num_classes})
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "max_steps": -1}, 30),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 70}, 70),
        ({"max_epochs": 3, "max_steps": 70}, 30),
        ({"max_epochs": -1}, None),
        ({}, None),
    ],
)
def test_training_ends_at_its_first_limit(trainer, steps):
    assert planned_steps(trainer, steps_per_epoch=10) == steps


class Peeking(Fusion):
    """Looks at a value, which a map without memory has not."""

    def forward(self, own, received):
        return own if own.mean().item() > 1e9 else own + received


def test_operator_that_looks_at_values_is_counted(grid, tmp_path):
    options = {"network.fusion": "test_ablation.Peeking"}
    peeking, add = read_ablation(grid(cells={"a": options, "Ensemble": {}}, grid={})).all_cells(tmp_path)[:2]
    assert measure(peeking) == measure(add)


def test_dry_run_without_the_data_counts_the_networks(grid, tmp_path, capsys):
    nowhere = {"data.dataset": {"class_path": "CamVid", "init_args": {"root": str(tmp_path / "nowhere")}}}
    path = grid(cells={"CamVid": nowhere, "Broken": {"network.strategy": "nine"}}, grid={}, baseline=None)
    with pytest.raises(SystemExit):
        crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", path, "--dry-run")
    printed = capsys.readouterr()
    (line,) = [line for line in printed.out.splitlines() if "camvid/seed0" in line]
    assert " M " in line and " G " in line and "Row 'Broken' cannot run" in printed.err


def test_dry_run_lists_and_writes_nothing(grid, tmp_path, capsys):
    crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", grid(), "--dry-run")
    printed = capsys.readouterr().out
    assert all(label in printed for label in ("resnet/seed0", "cross_c1_c2_add/seed1", "waiting", "32 x 32 crop"))
    assert not (tmp_path / "runs").exists()


def test_sweep_hands_out_the_cells(grid, tmp_path):
    crosscoop("ablate", "--runs", tmp_path / "runs", "--grid", grid(), "--sweep", tmp_path / "sweep.yaml")
    sweep = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    assert sweep["method"] == "grid" and len(sweep["parameters"]["cell"]["values"]) == 8
    command = [word for word in sweep["command"] if not word.startswith("${")]
    assert command == ["ablate", "--runs", str(tmp_path / "runs")] and sweep["program"] == "crosscoop"
    assert (tmp_path / "runs/ablation.yaml").is_file()


@pytest.mark.parametrize(
    "options",
    [
        "--cell nowhere/seed0",
        "--cell 99",
        "--workers 0",
        "--grid nowhere.yaml",
        "",
        "--runs /dev/null/runs --workers 1",
    ],
)
def test_wrong_option_ends_with_a_message(grid, tmp_path, options, capsys):
    given = [] if "--grid" in options or not options else ["--grid", grid()]
    with pytest.raises(SystemExit) as caught:
        crosscoop("ablate", "--runs", tmp_path / "runs", *given, options)
    assert caught.value.code == 2 and "expected" in capsys.readouterr().err


def test_durations_read_well():
    assert [duration(seconds) for seconds in (0.123, 40, 720, 11100)] == ["0.12 s", "40 s", "12 min", "3 h 05 min"]


# -- the tables


def finished(tmp_path: Path, **changes) -> tuple[Ablation, Path]:
    """An ablation with figures of three seeds, one of them missing."""
    cells = {"A": {"network.strategy": "none"}, "B & co": {"network.strategy": "cross_c1"}, "C": {}}
    ablation = Ablation(
        **{**GRID, "base": BASE, "seeds": [0, 1, 2], "cells": cells, "grid": {}, "baseline": ["A"], **changes}
    )
    for seed, (a, b) in enumerate(((0.50, 0.53), (0.51, 0.55), (0.52, 0.54))):
        record(tmp_path / f"a/seed{seed}/own_size", {"top": a - 0.02, "bottom": a - 0.01, "ensemble": a})
        record(tmp_path / f"b_co/seed{seed}/own_size", {"top": b, "bottom": b - 0.01, "ensemble": b})
    record(tmp_path / "c/seed0/own_size", {"network": 0.4})
    (tmp_path / "a/seed0/own_size/branches.json").write_text(json.dumps({"all": BRANCHES, "Road": {}}))
    (tmp_path / "a/seed0/cost.json").write_text('{"parameters": 1500000, "macs": 2000000000, "seconds": 90}')
    return ablation, tmp_path


def test_summary_is_the_statistics_of_the_runs(tmp_path):
    summary = summarise(*finished(tmp_path))
    a, b, c = summary.rows
    assert a.own.mean == pytest.approx(0.51) and a.own.deviation == pytest.approx(0.01)
    assert b.own.minus(a.own).mean == pytest.approx(0.03)
    paired = stats.ttest_rel([0.53, 0.55, 0.54], [0.50, 0.51, 0.52])
    assert b.own.minus(a.own).p_value == pytest.approx(paired.pvalue)
    assert a.gain.mean == pytest.approx(0.01) and b.gain.mean == pytest.approx(0)
    assert a.branches["disagree"].values == {0: 0.1} and (a.parameters, a.macs) == (1_500_000, 2_000_000_000)
    assert c.own.values == {0: 0.4} and c.own.deviation is None and c.own.minus(a.own).p_value is None
    assert "missing: 2 of 'C'" in summary.caption() and summary.ablation.digest in summary.caption()


def test_spread_needs_two_seeds():
    assert Figures({0: 0.5}).deviation is None and Figures().mean is None
    assert Figures({0: 0.5, 1: 0.6}).minus(Figures({0: 0.4, 1: 0.5})).p_value is None  # no spread of the difference


def test_differing_protocols_are_cried_out(tmp_path):
    ablation, runs = finished(tmp_path)
    record(runs / "c/seed1/own_size", {"network": 0.4}, "centre crop 513")
    assert "THE PROTOCOLS DIFFER" in summarise(ablation, runs).caption()


@pytest.mark.parametrize("name", ["own_size/metrics.json", "own_size/branches.json", "cost.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"outputs": 3', "null"])
def test_damaged_records_are_named(name, content, tmp_path):
    ablation, runs = finished(tmp_path)
    path = runs / "a/seed0" / name
    path.write_text(content)
    remedy = "Remove that file" if name == "cost.json" else rf"Remove {path.parent}; `crosscoop ablate` then repeats"
    with pytest.raises(CrosscoopError, match=rf"(?s){path}: cannot be read .*, expected .*{remedy}"):
        summarise(ablation, runs)


def test_markdown_and_latex(tmp_path):
    files = write_tables(summarise(*finished(tmp_path)), tmp_path)
    kinds = ["md", "tex", "csv", "png"]
    assert [file.name for file in files] == [
        f"{stem}.{kind}" for stem in ("table", "classes", "branches") for kind in kinds
    ]
    further = write_tables(summarise(*finished(tmp_path / "again"), "half size"), tmp_path)
    assert further[0].name == "table_half_size.md" and "no run has been tested yet" in further[0].read_text()
    markdown, latex = files[0].read_text(), files[1].read_text()
    assert "| B & co | 54.00 ± 1.00 | 53.00 ± 1.00 | 54.00 ± 1.00 | +3.00 ± 1.00 | 0.035 |" in markdown
    assert "1.50 M | 2.00 G | 1.5 min |" in markdown
    assert r"B \& co & 54.00 $\pm$ 1.00" in latex and r"\toprule" in latex and r"\caption{Tiny." in latex
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.replace(r"\&", "").count("&") for line in lines}) == 1  # a tabular of one width


def test_latex_prints_what_the_cells_say():
    text = latex([["", "p"], [r"a_b\c {~^}", "<0.001"], ["ResNet-50", "-0.41 ± 1.12"]], "50 %", "x > y")
    assert r"a\_b\textbackslash{}c \{\textasciitilde{}\textasciicircum{}\} & $<$0.001 \\" in text
    assert r"ResNet-50 & $-$0.41 $\pm$ 1.12 \\" in text and r"\caption{50 \%. x $>$ y}" in text


def test_every_baseline_has_its_columns(tmp_path):
    ablation, runs = finished(tmp_path, baseline=["A", "C"])
    heading, _, a, b, c = write_tables(summarise(ablation, runs), runs)[0].read_text().splitlines()[2:7]
    assert "| difference from A | p | difference from C | p |" in heading
    assert "| 51.00 ± 1.00 | - | - | +10.00 (1 of 3) | - |" in a  # one seed in common with C
    assert "| 54.00 ± 1.00 | +3.00 ± 1.00 | 0.035 | +13.00 (1 of 3) | - |" in b
    assert "| 40.00 (1 of 3) | -10.00 (1 of 3) | - | - | - |" in c


def test_classes_of_every_row(tmp_path):
    markdown, _, values, picture = write_tables(summarise(*finished(tmp_path)), tmp_path)[4:8]
    assert "| A | 61.00 ± 1.00 |" in markdown.read_text() and "Sky" not in markdown.read_text()
    rows = list(csv.DictReader(values.open()))
    assert [row["iou"] for row in rows if row["row"] == "B & co"] == ["0.63", "0.65", "0.64"]
    assert picture.stat().st_size > 5000


def test_branches_of_every_pair(tmp_path):
    markdown, _, values, picture = write_tables(summarise(*finished(tmp_path)), tmp_path)[8:]
    shares = ("3.00", "4.00", "20.00", "5.00", "2.00", "10.00")
    assert f"| A | {' | '.join(f'{share} (1 of 3)' for share in shares)} |" in markdown.read_text()
    assert "\n\n% of the labelled pixels (saves: the ensemble" in markdown.read_text()
    assert "| B & co" not in markdown.read_text()  # nobody has written how its branches differ
    assert values.read_text().splitlines()[1] == "A,0,0.03,0.04,0.2,0.05,0.02,0.1"
    assert picture.stat().st_size > 5000


def test_cost_at_inference_stands_beside_every_output(tmp_path):
    ablation, runs = finished(tmp_path)
    outputs = {"top": 5e8, "bottom": 1.5e9, "ensemble": 2e9}
    (runs / "a/seed0/cost.json").write_text(json.dumps({"parameters": 1, "macs": 2e9, "outputs": outputs}))
    tested = runs / "a/seed0/own_size/metrics.json"
    content = json.loads(tested.read_text())
    content["outputs"]["cascade"], content["cascade"] = content["outputs"]["ensemble"], {"cost": 0.4}
    tested.write_text(json.dumps(content))
    files = {file.name: file for file in write_tables(summarise(ablation, runs), runs)}
    lines = [line.split(" | ")[1:3] for line in files["costs.md"].read_text().splitlines()[4:8]]
    assert lines == [["top", "0.50 G"], ["cascade", "0.80 G"], ["bottom", "1.50 G"], ["ensemble", "2.00 G"]]
    assert files["costs.png"].stat().st_size > 5000


@pytest.mark.parametrize(
    ("strategy", "outputs"),
    [("none", ["top", "bottom", "ensemble"]), ("cross", ["top", "bottom", "ensemble", "top_alone", "bottom_alone"])],
)
def test_a_connected_branch_costs_the_network_and_one_alone_itself(tmp_path, strategy, outputs):
    network = {"branches": ["test_resnet", "test_byobnet"], "channels": 8, "strategy": strategy}
    cost = measure(
        Cell("a", 0, {"network": network, "data": {"dataset": {"class_path": "Streets"}, "crop_size": 32}}, tmp_path)
    )
    assert set(cost.outputs) == set(outputs)
    alone = [cost.outputs[name] for name in cost.outputs if cost.outputs[name] < cost.macs]
    assert len(alone) == 2 and cost.outputs["ensemble"] == cost.macs
    assert (cost.outputs["top"] < cost.macs) == (strategy == "none") and sum(alone) <= cost.macs


def test_further_metrics_and_a_third_branch_have_their_columns(tmp_path):
    ablation, runs = finished(tmp_path)
    tested = runs / "b_co/seed0/own_size"
    content = json.loads((tested / "metrics.json").read_text())
    outputs = {name: {"miou": 0.5, "dice": 0.6, "pixel_accuracy": 0.9} for name in ("ensemble", *branch_names(3))}
    outputs["branch1"]["miou"], outputs["branch2"]["dice"] = 0.45, 0.1
    content |= {"outputs": outputs, "dice": 0.6, "dice_of_class_per_class": {"Road": 0.8, "Sky": None}}
    (tested / "metrics.json").write_text(json.dumps(content))
    shares = {key: (i + 1) / 100 for i, key in enumerate(branch_shares(branch_names(3)))}
    (tested / "branches.json").write_text(json.dumps({"all": {"pixels": 9, **shares}}))
    summary = summarise(ablation, runs)
    row = summary.rows[1]
    assert row.main == "ensemble" and row.own.values[0] == 0.5 and row.gain.values[0] == 0
    assert summary.further == ["dice"] and summary.class_figures == ["iou", "dice_of_class"]
    files = {file.name: file for file in write_tables(summary, tmp_path)}
    heading = files["table.md"].read_text().splitlines()[2]
    assert "| gain of the ensemble | dice | branches disagree |" in heading
    assert "| top | bottom | branch0 | branch1 | branch2 | ensemble or single network |" in heading
    values = list(csv.DictReader(files["table.csv"].open()))
    assert [row["dice"] for row in values if row["output"] == "branch2"] == ["0.1"]
    assert "| B & co | 80.00 (1 of 3) |" in files["classes_dice_of_class.md"].read_text()
    assert files["classes_dice_of_class.png"].stat().st_size > 5000
    lines = files["branches.md"].read_text().splitlines()
    assert "only top right | only bottom right | only branch0 right | only branch1 right |" in lines[2]
    assert lines[4].startswith("| A | 3.00 (1 of 3) | 4.00 (1 of 3) | - | - | - | 20.00")
    assert lines[5].startswith("| B & co | - | - | 1.00 (1 of 3) | 2.00 (1 of 3) | 3.00 (1 of 3) | 4.00")
    assert files["branches.csv"].read_text().splitlines()[2] == "B & co,0,,,0.01,0.02,0.03,0.04,0.05,0.06,0.07"


@pytest.mark.parametrize(
    ("given", "kept"), [("Ensemble", ["Ensemble"]), (["ResNet", "Ensemble"], ["ResNet", "Ensemble"]), (None, [])]
)
def test_baseline_is_a_name_or_several(grid, tmp_path, given, kept):
    ablation = read_ablation(grid(baseline=given))
    assert ablation.baseline == kept
    ablation.save(tmp_path / "kept.yaml")
    assert read_ablation(tmp_path / "kept.yaml") == ablation


def test_layouts_of_the_paper(tmp_path):
    ablation, runs = finished(tmp_path, layout="outputs")
    files = write_tables(summarise(ablation, runs), runs)
    assert [file.name for file in files[:4]] == ["paper.md", "paper.tex", "table.md", "table.tex"]
    text = files[0].read_text()
    assert "| A | top | 49.00 ± 1.00 |" in text and "|  | ensemble | 51.00 ± 1.00 |" in text
    ablation, runs = finished(tmp_path / "again", layout="connections")
    text = write_tables(summarise(ablation, runs), runs)[0].read_text()
    assert "| B & co | x |  | 54.00 ± 1.00 | +3.00 ± 1.00 |" in text  # cross_c1
    assert "| C | x | x | 40.00 (1 of 3) |" in text  # cross_c1_c2, the default


def test_tables_of_nothing_say_so(tmp_path):
    ablation = Ablation(**{**GRID, "base": BASE, "seeds": [0], "baseline": ["Ensemble"]})
    text = write_tables(summarise(ablation, tmp_path), tmp_path)[0].read_text()
    assert "no run has been tested yet" in text and "1 of 'ResNet'" in text

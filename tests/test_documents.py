"""Documents: they show what was measured, and what they tell a contributor to write works."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from PIL import Image
from processes import FOLDERS
from tiny import ROOT

import crosscoop as package
from benchmarks import document
from benchmarks.gpu import study
from benchmarks.gpu.fast import ENTRIES, goals, measure, table
from benchmarks.gpu.pack import missing
from benchmarks.gpu.record import Clock, Record
from benchmarks.gpu.right import outcomes
from benchmarks.measure import Setting, peak_memory, row

# -- the CamVid study: docs/camvid-study/results.csv

STUDY = runpy.run_path(str(ROOT / "docs/camvid-study/rebuild.py"))
PAGES = [page.read_text("utf-8") for page in STUDY["PAGES"]]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in STUDY["PAGES"]])
def test_tables_are_those_of_the_results(page):
    assert STUDY["rebuild"](page) == page


def test_every_table_is_shown():
    assert sorted(re.findall(r"<!-- table: (.+?) -->", "".join(PAGES))) == sorted(STUDY["TABLES"])


@pytest.mark.parametrize("page", [*STUDY["PAGES"], ROOT / "docs/choose.md"], ids=lambda page: page.name)
def test_differences_in_the_text_are_those_of_the_tables(page):
    rows = [row for test in (STUDY["FULL"], STUDY["HALF"]) for row in STUDY["claims"](test)[1:]]
    measured = {f"{row[2].split(' ')[0]} ({row[3]})" for row in rows}
    text = " ".join(page.read_text("utf-8").split())
    told = set(re.findall(r"[+-]\d+\.\d+ \([+-]\d+\.\d+ to [+-]\d+\.\d+\)", text))
    assert told and told <= measured, told - measured


# -- the benchmarks, at sizes so small that their figures say nothing

SLOW = ("start", "processes")  # processes of their own, each of which imports everything


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in document.SECTIONS]
)
def test_comparison_runs_and_is_written(name, tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    rows = importlib.import_module(f"benchmarks.{name}").run(Setting(quick=True))
    assert rows and all(min(entry["ours"]) > 0 and min(entry["theirs"]) > 0 for entry in rows)
    result = {"date": "today", "command": f"python -m benchmarks {name}", "machine": {"cpu": "some"}, "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps({name: result}))
    document.write(tmp_path / "results.json", tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert document.SECTIONS[name][0] in text and all(entry["what"].split(" ")[-1] in text for entry in rows)
    assert (tmp_path / "benchmarks.svg").exists() == (name == "growth")


def test_ratios_are_of_pairs_and_targets_have_a_direction():
    slower = row("a", [2.0, 4.0, 9.0], "b", [1.0, 4.0, 3.0], at_most=1.5)
    assert (slower["ratio"], slower["reached"]) == (2.0, False)
    faster = row("a", [1.0, 1.0, 2.0], "b", [3.0, 2.0, 8.0], times=2)
    assert (faster["ratio"], faster["reached"], faster["ours"][1]) == (3.0, True, 1.0)
    assert "at least 2: yes" in document.line(faster) and "at most 1.5: **no**" in document.line(slower)


def allocate(mebibytes):
    def work():
        return bytearray(mebibytes * 2**20).count(1)

    return work


@pytest.mark.slow
def test_peak_memory_is_of_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")]))
    small, large = (peak_memory("tests.test_documents:allocate", size) for size in (10, 300))
    assert 250 < large["added"] - small["added"] < 350


# -- benchmarks.gpu, which docs/gpu.md describes


def test_page_has_the_goals_and_every_entry(tmp_path):
    page = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    assert "\n".join(goals(Record(tmp_path / "none.json", True))) in page
    for name in ENTRIES:
        assert all(word in page for word in name.split(", ")[0].split()), name


def test_results_are_kept_and_never_mixed(tmp_path):
    record = Record(tmp_path / "fast.json", True)
    record.add("one", {"arm": {"seconds": [1.0]}})
    record.add("two", {"failed": "out of memory"})
    again = Record(tmp_path / "fast.json", True)
    assert again.has("one") and not again.has("two") and not again.has("three")
    with pytest.raises(SystemExit, match=r"'rehearsal': True.*Give another --output"):
        Record(tmp_path / "fast.json", False)


@pytest.mark.slow
def test_study_is_rehearsed_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for minutes in (0.2, 5):  # the first call ends before the last cell
        study.run(study.GRID, Path("pack"), tmp_path / "runs", tmp_path / "results", Clock(minutes), quick=True)
    cells = json.loads((tmp_path / "results/study.json").read_text())
    assert list(cells) == ["none/seed0", "cross_c1_c2/seed0", "mutuallearning/seed0"]
    assert all(figures["outputs"]["ensemble"]["miou"] >= 0 for tests in cells.values() for figures in tests.values())


@pytest.mark.parametrize("output", [
    "tests/test_gpu.py::test_a[--x true --y] PASSED  [  8%]\ntests/test_gpu.py::test_b SKIPPED (no GPU) [ 9%]",
    "tests/test_gpu.py::test_a[--x true --y] PASSED\ntests/test_gpu.py::test_b SKIPPED\nFAILED tests/test_gpu.py::c",
    "[gw1] [  8%] PASSED tests/test_gpu.py::test_a[--x true --y] \n[gw0] [  9%] SKIPPED tests/test_gpu.py::test_b ",
])  # fmt: skip
def test_outcomes_are_read_from_pytests_output(output):
    assert outcomes(output) == {
        "tests/test_gpu.py::test_a[--x true --y]": "passed",
        "tests/test_gpu.py::test_b": "skipped",
    }


@pytest.mark.parametrize(("rehearsal", "mark"), [(False, ""), (True, " (rehearsal)")])
def test_ratio_of_two_arms_is_found_and_a_rehearsals_is_marked(tmp_path, rehearsal, mark):
    record = Record(tmp_path / "fast.json", rehearsal)
    arms = {"cross_c1_c2": {"median": 1.02, "MiB": 10.0}, "none": {"median": 1.0, "MiB": 10.0}}
    record.add("training, batch 16", arms)
    lines = goals(record)
    assert lines[2].endswith(f"| at most 1.03 | 1.02{mark} |") and lines[3].endswith(f"| 1.00{mark} |")
    assert lines[4].endswith("not yet run |")


def test_only_what_the_other_machine_lacks_is_packed():
    needed = missing(["jsonargparse[signatures]>=4", "torch>=2"], {"torch", "pyyaml", "typing-extensions"})
    assert {each.split("==")[0] for each in needed} >= {"jsonargparse", "docstring-parser", "typeshed-client"}
    assert not [each for each in needed if each.startswith(("torch", "pyyaml", "nvidia"))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENTRIES)
def test_entry_runs_at_a_tiny_size(tmp_path, name):
    pytest.importorskip("segmentation_models_pytorch")
    record = Record(tmp_path / "fast.json", True)
    measure(record, Setting(quick=True), name)
    assert record.has(name), record.entries[name]
    assert len(table(record)) > 2


# -- CONTRIBUTING's recipes: each file is written beside the work and used from YAML, as a contributor would

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


# -- the site, as `make docs` builds it, in a real browser


@pytest.fixture(scope="module")
def built():
    """The folder of the site, in which pages that have changed are rebuilt."""
    pytest.importorskip("furo", reason="the extra docs is not installed")
    command = ["-m", "sphinx", "--fail-on-warning", "--quiet", "-c", "docs", "-d", "build/doctrees", ".", "build/docs"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return ROOT / "build" / "docs"


@pytest.fixture
def site(built, browser):
    """The same, for a test that leaves nothing on the browser's console."""
    yield built
    assert browser.get_log("browser") == []


def show(browser, page, width=1280, scheme="light"):
    """Open a page from its file; the browser has no network."""
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wish = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wish})
    browser.get(page.as_uri())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_of_the_site_is_shown(browser, site, width, scheme):
    script = """
        const [body] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
        const files = performance.getEntriesByType("resource").map((entry) => entry.name);
        const wide = (each) => each.scrollWidth > each.clientWidth;
        return {
            scheme: body > 127 ? "light" : "dark",
            sideways: [document.documentElement, document.querySelector(".content")].some(wide),
            missing: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
            remote: files.filter((name) => !/^(file|data):/.test(name)),
        };
    """
    pages = sorted({*site.rglob("*.html")} - {site / "index.html"})  # which leads to the first page
    assert len(pages) > 20
    for page in pages:
        show(browser, page, width, scheme)
        shown = browser.execute_script(script)
        assert shown == {"scheme": scheme, "sideways": False, "missing": [], "remote": []}, page
        assert "site-packages" not in page.read_text("utf-8"), page  # a warning, with a path of this machine


@pytest.mark.slow
@pytest.mark.parametrize(("query", "page"), [
    ("CrossStitch", "docs/reference.html"),
    ("crop_size", "docs/configuration.html"),
    ("rectify", "docs/catalogue.html"),
    ("SLURM", "docs/ablations.html"),
])  # fmt: skip
def test_search_works_without_a_server(browser, site, query, page):
    show(browser, site / "search.html")
    browser.get(f"{(site / 'search.html').as_uri()}?q={query}")
    deadline = time.monotonic() + 30
    found = []
    while not any(page in link for link in found) and time.monotonic() < deadline:
        found = [link.get_attribute("href") for link in browser.find_elements("css selector", "ul.search li a")]
    assert any(page in link for link in found), found


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kinds"), [
    ("none", ["is-top", "is-bottom"]), ("one_way", ["is-top", "is-mixed"]), ("cross", ["is-mixed", "is-mixed"])
])  # fmt: skip
def test_figure_steps_through_a_forward_pass(browser, site, strategy, kinds):
    show(browser, site / "docs" / "idea.html")
    browser.find_element("css selector", f".forward-controls option[value={strategy}]").click()
    back, forward, _ = browser.find_elements("css selector", ".forward-controls button")
    captions = []
    while forward.is_enabled():
        captions.append(browser.find_element("css selector", ".forward-caption").text)
        forward.click()
    assert len(set(captions)) == 10 and back.is_enabled()
    classifiers = browser.find_elements("css selector", "[data-part=classifier]")
    painted = [set(each.get_attribute("class").split()) - {"done", "active"} for each in classifiers]
    assert painted == [{kind} for kind in kinds]

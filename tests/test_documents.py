"""Pages of measurements: they show what was measured, and every comparison of the benchmarks runs."""

import importlib
import json
import re
import runpy

import pytest
from tiny import ROOT

from benchmarks import document
from benchmarks.measure import Setting, peak_memory, row

# -- the CamVid study: docs/camvid-study/results.csv

STUDY = runpy.run_path(str(ROOT / "docs/camvid-study/rebuild.py"))
PAGES = [page.read_text("utf-8") for page in STUDY["PAGES"]]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in STUDY["PAGES"]])
def test_tables_are_those_of_the_results(page):
    assert STUDY["rebuild"](page) == page


def test_every_table_is_shown():
    assert sorted(re.findall(r"<!-- table: (.+?) -->", "".join(PAGES))) == sorted(STUDY["TABLES"])


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in STUDY["PAGES"]])
def test_differences_in_the_text_are_those_of_the_tables(page):
    rows = [row for test in (STUDY["FULL"], STUDY["HALF"]) for row in STUDY["claims"](test)[1:]]
    measured = {f"{row[2].split(' ')[0]} ({row[3]})" for row in rows}
    told = set(re.findall(r"[+-]\d+\.\d+ \([+-]\d+\.\d+ to [+-]\d+\.\d+\)", " ".join(page.split())))
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
def test_peak_memory_is_of_a_process_of_its_own():
    small, large = (peak_memory("tests.test_documents:allocate", size) for size in (10, 300))
    assert 250 < large["added"] - small["added"] < 350

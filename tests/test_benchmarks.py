"""Every comparison runs, at sizes so small that its figures say nothing, and its rows become a document."""

import importlib
import json

import pytest

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("albumentations")

from benchmarks import document
from benchmarks.measure import Setting, peak_memory, row

SLOW = ("start", "processes")  # processes of their own, each of which imports everything


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in document.SECTIONS]
)
def test_comparison_runs_and_is_written(name, tmp_path):
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
    small, large = (peak_memory("tests.test_benchmarks:allocate", size) for size in (10, 300))
    assert 250 < large["added"] - small["added"] < 350

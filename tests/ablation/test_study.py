"""The CamVid study: its pages show what docs/camvid-study/results.csv holds."""

import re
import runpy
from pathlib import Path

import pytest

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "docs/camvid-study/rebuild.py"))
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

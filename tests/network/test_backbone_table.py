"""The table of backbones in the documentation is that of the file, and the file is what the script finds."""

import pytest

from benchmarks import backbones


def test_page_shows_the_file():
    page = backbones.PAGE.read_text("utf-8")
    assert backbones.rebuilt(page, backbones.read()) == page


def test_at_least_150_networks_of_all_outcomes():
    rows = {row["backbone"]: row for row in backbones.read()}
    assert list(rows) == backbones.NAMES and len(rows) >= 150
    assert {row["works"] for row in rows.values()} == {"as it is", "depth: 4", "no"}
    assert all((row["works"] == "no") == bool(row["reason"]) for row in rows.values())


@pytest.mark.parametrize("name", ["resnet18", "legacy_xception", "vit_tiny_patch16_224", "levit_256"])
def test_row_is_found_again(name):
    (row,) = [row for row in backbones.read() if row["backbone"] == name]
    assert backbones.row(name) == row

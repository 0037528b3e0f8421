"""What the tests of ablations share."""

import subprocess

import pytest
import yaml
from grids import BASE, GRID
from processes import Python


@pytest.fixture
def grid(tmp_path):
    """Writes a grid beside its base."""

    def write(**changes):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture
def forked(monkeypatch):
    """Makes the processes of cells forks, which have nothing to import."""
    monkeypatch.setattr(subprocess, "Popen", Python)

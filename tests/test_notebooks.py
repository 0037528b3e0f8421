"""The notebooks run from the first cell to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Python
from tiny import ROOT

RUN = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

sys.path.insert(0, "")
shell = InteractiveShell.instance()
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
"""
"""What a kernel of Jupyter does with a notebook, without the start of one."""


@pytest.mark.parametrize("path", (ROOT / "notebooks").glob("*.ipynb"), ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = Python([sys.executable, "-c", RUN, path], env=environment, **pipes)
    output = process.read()
    assert process.returncode == 0, output
    assert not any(cell.get("outputs") for cell in json.loads(path.read_text("utf-8"))["cells"])

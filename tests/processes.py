"""Python processes that find the modules of the tests."""

import os
import subprocess
from pathlib import Path

FOLDERS = [str(path) for path in (Path(__file__).parent, *sorted(Path(__file__).parent.glob("*/")))]


class Python(subprocess.Popen):
    """A process as `subprocess.Popen` starts it, with the folders of the tests on `PYTHONPATH`."""

    def __init__(self, args, *, env=None, **options):
        env = {**os.environ} if env is None else env
        path = os.pathsep.join(filter(None, [*FOLDERS, env.get("PYTHONPATH")]))
        super().__init__(args, env={**env, "PYTHONPATH": path}, **options)

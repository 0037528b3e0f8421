"""Results that outlast an interruption, and the time that is left."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from crosscoop.files import write_json

Entry = dict[str, Any]


class Record:
    """Entries in a JSON file, written one by one; what succeeded is not measured again.

    Args:
        path: The file.
        quick: Whether the entries come from a rehearsal, whose figures mean nothing.

    Raises:
        SystemExit: The file has entries of another device, of another torch, or of a rehearsal.
    """

    def __init__(self, path: Path, quick: bool) -> None:
        device = torch.cuda.get_device_name() if torch.cuda.is_available() and not quick else "cpu"
        conditions = {"device": device, "torch": torch.__version__, "rehearsal": quick}
        self.path = path
        self.content: dict[str, Any] = {**conditions, "entries": {}}
        if path.exists():
            self.content = json.loads(path.read_text())
            found = {key: self.content.get(key) for key in conditions}
            if found != conditions:
                raise SystemExit(f"{path}: got results of {found}, expected {conditions}. Give another --output.")

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries by name."""
        entries: dict[str, Entry] = self.content["entries"]
        return entries

    def has(self, name: str) -> bool:
        """Return whether an entry exists and succeeded."""
        return name in self.entries and "failed" not in self.entries[name]

    def add(self, name: str, entry: Entry) -> None:
        """Write an entry."""
        self.entries[name] = entry
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)

    def reread(self) -> None:
        """Read entries that another process has added."""
        if self.path.exists():
            self.content = json.loads(self.path.read_text())


class Clock:
    """The time that is left.

    Args:
        minutes: How long from now.
    """

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """The seconds that are left, at least 0."""
        return max(self.end - time.monotonic(), 0.0)

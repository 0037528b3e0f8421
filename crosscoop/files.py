"""Files found and written completely or not at all, and values read from or shown to users: the ground floor."""

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from crosscoop.errors import CrosscoopError

VARIABLE = re.compile(r"\$(?:{(\w+)}|([A-Za-z_]\w*))")
HOME = re.compile(r"~[\w.-]*(?=/|$)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that replaces it when the block succeeds, and is removed otherwise.

    Args:
        path: The file that appears completely or not at all; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{token_hex(4)}{path.suffix}")  # machines that share a folder share pids
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno:  # PIL's own have none
            error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write YAML atomically: other workers may be reading it."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file contains.

    Raises:
        CrosscoopError: The file cannot be read, or contains something else.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CrosscoopError(f"{path}: cannot be read ({error}); expected a YAML file.") from error
    if not isinstance(content, Mapping):
        raise CrosscoopError(f"{path}: got {type(content).__name__}, expected a mapping of options.")
    options: dict[str, Any] = expanded(dict(content))
    return options


def expanded(value: Any) -> Any:
    """Resolve `~` and environment variables in every string of a configuration, as a shell does in its words.

    Args:
        value: A string, or lists, mappings and namespaces of such; namespaces are changed in place.

    Raises:
        CrosscoopError: A path names a variable that is not set, or a user without a home folder.
    """
    if isinstance(value, Namespace):
        vars(value).update({key: expanded(entry) for key, entry in vars(value).items()})
    if isinstance(value, dict):
        return {key: expanded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ and (value.startswith("$") or "/" in value):
            raise CrosscoopError(f"got {value}, but the environment variable {name} is not set. Set it, or correct it.")
        return os.environ.get(name, found[0])

    try:
        text = HOME.sub(lambda found: str(Path(found[0]).expanduser()), value, count=1) if value[:1] == "~" else value
    except RuntimeError as error:
        raise CrosscoopError(f"got {value}: {error}. Give the path of the home folder itself.") from error
    return VARIABLE.sub(variable, text)


def include_yaml(value: Any, folder: Path, above: tuple[Path, ...] = ()) -> Any:
    """Replace the name of every YAML file in a configuration by what that file contains.

    Args:
        value: The configuration, or a part of it.
        folder: What the names are relative to.
        above: The files that the value lies in.

    Raises:
        CrosscoopError: A file cannot be read, holds something other than a mapping, or includes itself.
    """
    if isinstance(value, dict):
        return {key: include_yaml(entry, folder, above) for key, entry in value.items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path := (folder / value).resolve()).is_file():
        if path in above:
            raise CrosscoopError(f"{path}: got a file that includes itself, expected a chain of files that ends.")
        return include_yaml(load_yaml(path), path.parent, (*above, path))
    return value


def duration(seconds: float) -> str:
    """Return a time in words: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def scan(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Find the files below a folder, sorted.

    Links to folders are followed, but never back into a folder that they lie in. Hidden files and folders, which
    Jupyter, macOS and file managers leave behind, are left out; broken links are not, so that they are missed.

    Args:
        folder: The folder; a hidden one, too. Nothing is found if it does not exist.
        pattern: A glob relative to it, in which `**` stands for any number of folders.

    Raises:
        CrosscoopError: A folder cannot be listed.
    """
    return sorted(set(_scan(folder, Path(pattern).parts, frozenset()))) if folder.is_dir() else []


def _scan(folder: Path, pattern: Sequence[str], above: frozenset[str]) -> Iterator[Path]:
    """Find what fits the pattern's parts below a folder, which is reached from the real folders `above` it."""
    first, *rest = pattern
    if first == "**":
        yield from _scan(folder, rest or ["*"], above)
    above |= {os.path.realpath(folder)}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise CrosscoopError(f"{folder}: cannot be listed ({error.strerror}); expected a readable folder.") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or not (first == "**" or fnmatchcase(entry.name, first)):
            continue
        if not entry.is_dir():
            if not rest and first != "**":
                yield path
        elif (rest or first == "**") and os.path.realpath(path) not in above:
            yield from _scan(path, pattern if first == "**" else rest, above)


@cache
def note(message: str) -> None:
    """Print a note to standard error, once, and in the first of several processes only.

    Args:
        message: What is worth knowing, although the work goes on.
    """
    if not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        print(f"Note: {message}", file=sys.stderr)


def shorten(items: Iterable[object], count: int = 3) -> str:
    """Return the first items as text, and how many more there are.

    Args:
        items: What to name, in order.
        count: How many to name.
    """
    texts = [str(item) for item in items]
    more = len(texts) - count
    return ", ".join(texts[:count]) + (f" and {more} more" if more > 0 else "")

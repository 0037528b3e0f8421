"""Helpers for every other module: find, read and write files, and format values for users."""

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from crosscoop.errors import CrosscoopError

VARIABLE = re.compile(r"\$(?:{(\w+)}|([A-Za-z_]\w*))")
HOME = re.compile(r"~[\w.-]*(?=/|$)")

CONFIGS = Path(__file__).parent / "configs"
"""The configurations that come with the package: in a checkout, a link to `configs`."""

SHIPPED = "crosscoop:"
"""What the name of one of them begins with wherever a file's path may stand: `crosscoop:voc/cross_c1_c2`."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that replaces it when the block succeeds, and is removed otherwise.

    Args:
        path: The file to write, completely or not at all; its folder is created if necessary.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{token_hex(4)}{path.suffix}")  # process ids repeat across machines
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno:  # PIL raises some without one
            error.filename = error.filename or str(path)  # a full disk leaves it unset
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    """Write YAML atomically, because other workers may be reading it."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file contains.

    Raises:
        CrosscoopError: The file cannot be read, or does not contain a mapping.
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
    """Resolve `~`, environment variables and `crosscoop:NAME` in every string of a configuration.

    Args:
        value: A string, or lists, mappings and namespaces of strings; namespaces are changed in place.

    Raises:
        CrosscoopError: A path contains a variable that is not set, or refers to a user without a home folder, or there
            is no such configuration.
    """
    if isinstance(value, Namespace):
        vars(value).update({key: expanded(entry) for key, entry in vars(value).items()})
    if isinstance(value, dict):
        return {key: expanded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [expanded(entry) for entry in value]
    if not isinstance(value, str):
        return value
    if value.startswith(SHIPPED):
        return str(shipped(value.removeprefix(SHIPPED)))

    def variable(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ and (value.startswith("$") or "/" in value):
            raise CrosscoopError(
                f"got {value}, but the environment variable {name} is not set. Set it, or correct the path."
            )
        return os.environ.get(name, found[0])

    try:
        text = HOME.sub(lambda found: str(Path(found[0]).expanduser()), value, count=1) if value[:1] == "~" else value
    except RuntimeError as error:
        raise CrosscoopError(f"got {value}: {error}. Write the path of the home folder in full.") from error
    return VARIABLE.sub(variable, text)


def shipped(name: str) -> Path:
    """Return the file of a configuration that comes with the package.

    Args:
        name: Its path without suffix, such as voc/cross_c1_c2.

    Raises:
        CrosscoopError: It does not exist.
    """
    name = name.removesuffix(".yaml")
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in CONFIGS.rglob("*.yaml")}
    if name not in files:
        similar = get_close_matches(name, files, n=1)
        hint = f" Did you mean {SHIPPED}{similar[0]}?" if similar else ""
        raise CrosscoopError(f"got {SHIPPED}{name}, expected a configuration that crosscoop show-configs lists.{hint}")
    return files[name]


def include_yaml(value: Any, folder: Path, above: tuple[Path, ...] = ()) -> Any:
    """Replace each name of a YAML file in a configuration with the contents of that file.

    Args:
        value: The configuration, or a part of it.
        folder: The folder that the names are relative to.
        above: The files that include this value.

    Raises:
        CrosscoopError: A file cannot be read, does not contain a mapping, or includes itself.
    """
    if isinstance(value, dict):
        return {key: include_yaml(entry, folder, above) for key, entry in value.items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (path := (folder / value).resolve()).is_file():
        if path in above:
            raise CrosscoopError(f"{path}: got a file that includes itself, expected no cycle. Remove the include.")
        return include_yaml(load_yaml(path), path.parent, (*above, path))
    return value


def duration(seconds: float) -> str:
    """Return a duration as text: 40 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def scan(folder: Path, pattern: str = "**/*") -> list[Path]:
    """Return the files below a folder, sorted.

    Links to folders are followed, except into a folder that contains them. Hidden files and folders, such as those
    that Jupyter, macOS and file managers create, are skipped. Broken links are included, so that they are reported.

    Args:
        folder: The folder, which may itself be hidden. If it does not exist, the list is empty.
        pattern: A glob pattern relative to it; `**` matches any number of folders.

    Raises:
        CrosscoopError: A folder cannot be listed.
    """
    return sorted(set(_scan(folder, Path(pattern).parts, frozenset()))) if folder.is_dir() else []


def _scan(folder: Path, pattern: Sequence[str], above: frozenset[str]) -> Iterator[Path]:
    """Yield the files below a folder that match the parts of a pattern; `above` are the resolved folders above it."""
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
    """Print a note to standard error: once, and only in the first of several processes.

    Args:
        message: What the user should know, although it is not an error.
    """
    if not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        print(f"Note: {message}", file=sys.stderr)


def shorten(items: Iterable[object], count: int = 3) -> str:
    """Return the first items as text, followed by the number of the others.

    Args:
        items: The items, in order.
        count: How many items to include.
    """
    texts = [str(item) for item in items]
    more = len(texts) - count
    return ", ".join(texts[:count]) + (f" and {more} more" if more > 0 else "")

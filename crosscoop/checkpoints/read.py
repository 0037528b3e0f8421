"""A trained network from a checkpoint of `crosscoop fit`."""

import sys
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from crosscoop.checkpoints.about import About, about_checkpoint, without_start
from crosscoop.errors import CrosscoopError
from crosscoop.network.cooperative import CooperativeNetwork


def read_checkpoint_network(path: str | Path) -> tuple[CooperativeNetwork, About]:
    """Return the network in a checkpoint, and its description.

    Raises:
        CrosscoopError: The file does not exist, `crosscoop fit` did not write it, or its weights do not fit.
    """
    from crosscoop.network.create import create_network  # slow to import

    content = read_checkpoint(path)
    own = content["crosscoop"]
    if own["config"]["network"] is None:
        raise CrosscoopError(
            f"{path}: got a network that was not made by create_network from names, expected one that can be made "
            "again. Create it with crosscoop.create_network before training, or load the weights into your own network."
        )
    network = create_network(**without_start(own["config"]["network"]), num_classes=len(own["class_names"]))
    weights = [(key, value) for key, value in content["state_dict"].items() if key.startswith("network.")]
    try:
        network.load_state_dict({key.removeprefix("network."): value for key, value in weights})
    except RuntimeError as error:
        mismatch = shorten(str(error).partition("\n")[2], 300)
        raise CrosscoopError(
            f"{path}{written_by(own)}: its weights do not fit the network that its configuration describes "
            f"({mismatch}). Restore the code of its backbones and fusion operator as it was in training."
        ) from error
    return network, about_checkpoint(path, content, network)


def find_checkpoint(ckpt_path: str | None, run: str | None) -> Path:
    """Return the checkpoint that an option names.

    A run without `best.ckpt`, in which nothing was validated, falls back to `last.ckpt`, with a note on stderr.

    Args:
        ckpt_path: A checkpoint.
        run: A run's folder.

    Raises:
        CrosscoopError: Neither is given, or both.
    """
    if bool(ckpt_path) == bool(run):
        raise CrosscoopError(
            f"got {'both' if run else 'neither'}, expected either a checkpoint or --run FOLDER (uses its best.ckpt)."
        )
    best, last = Path(ckpt_path or f"{run}/best.ckpt"), Path(f"{run}/last.ckpt")
    if ckpt_path or best.exists() or not last.exists():
        return best
    print(f"{run} has no best.ckpt: using {last}, the weights of the last step.", file=sys.stderr)
    return last


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the contents of a checkpoint that `crosscoop fit` wrote.

    In addition to Lightning's entries, it has an entry `crosscoop` with `config`, `class_names` and `palette`.

    Raises:
        CrosscoopError: The file does not exist, or `crosscoop fit` did not write it.
    """
    if not Path(path).is_file():
        raise CrosscoopError(f"no checkpoint {path}. Give a file that `crosscoop fit` wrote, such as best.ckpt.")
    try:
        content = _load(Path(path), Path(path).stat().st_mtime_ns)
        content["state_dict"].keys(), content["crosscoop"]["config"]["network"], content["crosscoop"]["class_names"]
    except Exception as error:  # untrusted input: torch and pickle may raise almost anything
        raise CrosscoopError(
            f"{path} is not a checkpoint that `crosscoop fit` wrote ({type(error).__name__}); expected its best.ckpt "
            "or last.ckpt. Use files that crosscoop export wrote with crosscoop predict."
        ) from error
    return {**content, "crosscoop": deepcopy(content["crosscoop"])}


@lru_cache(maxsize=1)  # a command reads its checkpoint several times: options, description, fit, weights
def _load(path: Path, changed: int) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content


def written_by(about: Mapping[str, Any]) -> str:
    """Return which version wrote a checkpoint, in parentheses; empty if it is this version.

    Args:
        about: The checkpoint's entry `crosscoop`.
    """
    from crosscoop.version import __version__

    written = about.get("version", "0.1.0")
    return "" if written == __version__ else f" (by crosscoop {written}; this is {__version__})"

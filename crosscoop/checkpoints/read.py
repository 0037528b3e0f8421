"""A trained network from a checkpoint of `crosscoop fit`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from crosscoop.checkpoints.about import About, about_checkpoint
from crosscoop.errors import CrosscoopError
from crosscoop.network.create import create_network


def read_checkpoint_network(path: str | Path) -> tuple[nn.Module, About]:
    """The network that a checkpoint holds, and what the file says about it.

    Raises:
        CrosscoopError: There is no such file, it is none of ours, or its weights do not fit its network.
    """
    content = read_checkpoint(path)
    own = content["crosscoop"]
    options = {**own["config"]["network"], "pretrained": False}  # the checkpoint brings all weights
    network = create_network(**options, num_classes=len(own["class_names"]))
    weights = [(key, value) for key, value in content["state_dict"].items() if key.startswith("network.")]
    try:
        network.load_state_dict({key.removeprefix("network."): value for key, value in weights})
    except RuntimeError as error:
        mismatch = shorten(str(error).partition("\n")[2], 300)
        raise CrosscoopError(
            f"{path}{written_by(own)}: its weights do not fit the network that its configuration gives "
            f"({mismatch}). Keep the code of its backbones and its fusion as it was in training."
        ) from error
    return network, about_checkpoint(path, content, network)


def find_checkpoint(ckpt_path: str | None, run: str | None) -> Path:
    """Return the checkpoint that an option names.

    A run without `best.ckpt`, in which nothing was validated, has its `last.ckpt` instead; a line on stderr says so.

    Args:
        ckpt_path: A checkpoint.
        run: A run's folder.

    Raises:
        CrosscoopError: None is named, or both.
    """
    if bool(ckpt_path) == bool(run):
        raise CrosscoopError(
            f"got {'both' if run else 'neither'}, expected either a checkpoint or --run FOLDER, to take its best.ckpt."
        )
    best, last = Path(ckpt_path or f"{run}/best.ckpt"), Path(f"{run}/last.ckpt")
    if ckpt_path or best.exists() or not last.exists():
        return best
    print(f"{run} has no best.ckpt: taking {last}, the weights of the last step.", file=sys.stderr)
    return last


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of ours; beside Lightning's, `crosscoop` with `config`, `class_names`, `palette`.

    Raises:
        CrosscoopError: There is no such file, or it is no checkpoint of ours.
    """
    if not Path(path).is_file():
        raise CrosscoopError(f"no checkpoint {path}. Give the file that `crosscoop fit` wrote, such as best.ckpt.")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        content["state_dict"].keys(), content["crosscoop"]["config"]["network"], content["crosscoop"]["class_names"]
    except Exception as error:  # a file from anywhere: torch and pickle raise nearly all there is
        raise CrosscoopError(
            f"{path} is not a checkpoint that `crosscoop fit` wrote ({type(error).__name__}); expected its best.ckpt "
            "or last.ckpt. What crosscoop export wrote goes with crosscoop predict."
        ) from error
    return content


def written_by(about: Mapping[str, Any]) -> str:
    """Which version wrote a checkpoint, in brackets, if it was another one.

    Args:
        about: What the checkpoint holds under `crosscoop`.
    """
    from crosscoop.version import __version__

    written = about.get("version", "0.1.0")
    return "" if written == __version__ else f" (by crosscoop {written}; this is {__version__})"

"""Whether a checkpoint fits its use; if not, what differs and which option resolves it."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crosscoop.checkpoints.about import without_start
from crosscoop.checkpoints.read import read_checkpoint, written_by
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

RESTORED = ("optimizer", "scheduler", "heads_lr_multiplier")
"""Options of `model` that a resumed training restores from its checkpoint, so that other values have no effect."""


def check_fits(
    path: str | Path,
    config: Mapping[str, Any],
    class_names: Sequence[str],
    weights: Mapping[str, Tensor],
    training: bool,
) -> None:
    """Reject a checkpoint with other classes or weights and, to resume training, one with other network options.

    An evaluation with other network options prints a note if the weights fit, because it was requested explicitly.

    Args:
        path: The checkpoint.
        config: The command's configuration.
        class_names: The class names of the data set.
        weights: The weights that the checkpoint's are to replace, by name. An evaluation replaces only those of the
            network.
        training: Whether training resumes from it.

    Raises:
        CrosscoopError: The checkpoint does not fit, or `crosscoop fit` did not write it.
    """
    content = read_checkpoint(path)
    about = content["crosscoop"]
    before = about["config"]
    found = differences(before["network"], config["network"], "network", without_start(before["network"]))
    if training:
        found += differences(before.get("model") or {}, config["model"], "model", RESTORED)
    if list(about["class_names"]) != list(class_names):
        was, now = about["class_names"], class_names
        raise CrosscoopError(
            f"{path}: got a checkpoint of {len(was)} classes ({shorten(was)}), expected the {len(now)} classes of "
            f"data.dataset ({shorten(now)}), in this order. Use the data set it was trained on: {_data(before)}."
        )
    parts = ("network.", "objective.") if training else ("network.",)
    stored, wanted = (
        {key: tuple(value.shape) for key, value in state.items() if key.startswith(parts)}
        for state in (content["state_dict"], weights)
    )
    if wrong := [key for key in {**wanted, **stored} if stored.get(key) != wanted.get(key)]:
        key = wrong[0]
        if key.startswith("objective."):
            found += differences(before.get("model") or {}, config["model"], "model", ["objective"])
        found = found or ["- none of the options: the code of a backbone or fusion operator may have changed"]
        lines = [
            f"{path}: {len(wrong)} of {len(wanted)} weights do not fit the network: got {key} "
            f"{stored.get(key, '(missing)')}, expected {wanted.get(key, 'none')}. Differences from its training"
            f"{written_by(about)}:",
            *found,
        ]
        raise CrosscoopError("\n".join(lines))
    if found and training:
        raise CrosscoopError(
            f"{path}: got options that differ from those of its training, expected the same to resume it. To change "
            "them, train again with another --run.\n" + "\n".join(found)
        )
    if found:
        print(
            "\n".join([f"{path} was trained with other options; evaluating with the current ones:", *found]),
            file=sys.stderr,
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], group: str, keys: Any) -> list[str]:
    """Return a line for each option that differs, with the argument that restores its old value.

    Args:
        before: A group's options in training.
        now: Its current options.
        group: The group's name.
        keys: The options to compare; those missing on one side, as in another version of crosscoop, are left out.
    """
    lines = []
    for key in now:
        if key in keys and key in before and before[key] != now[key]:
            old = before[key] if isinstance(before[key], str) else json.dumps(before[key])
            lines.append(f"- {group}.{key}: got {now[key]}, trained with {old}: --{group}.{key} {shlex.quote(old)}")
    return lines


def _data(config: Mapping[str, Any]) -> str:
    dataset = (config.get("data") or {}).get("dataset") or {}
    return f"--data.dataset {dataset.get('class_path', '...')}, with its options as in the checkpoint's config.yaml"

"""Whether a checkpoint fits where it is to go; if not, what differs and which option helps."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crosscoop.checkpoints.read import read_checkpoint, written_by
from crosscoop.errors import CrosscoopError
from crosscoop.files import shorten

RESTORED = ("optimizer", "scheduler", "heads_lr_multiplier")
"""Options of `model` that a checkpoint brings back when training goes on: other values would have no effect."""


def check_fits(
    path: str | Path,
    config: Mapping[str, Any],
    class_names: Sequence[str],
    weights: Mapping[str, Tensor],
    training: bool,
) -> None:
    """Refuses a checkpoint of other classes or weights, and to go on training under other options of the network.

    An evaluation under other options of the network, where the weights fit, is only pointed out: it was asked for.

    Args:
        path: The checkpoint.
        config: The command's configuration.
        class_names: The names of the data's classes.
        weights: What the checkpoint's weights are to replace, by name. An evaluation replaces those of the network
            alone.
        training: Whether training goes on from it.

    Raises:
        CrosscoopError: It does not fit, or is no checkpoint of ours.
    """
    content = read_checkpoint(path)
    about = content["crosscoop"]
    before = about["config"]
    found = differences(before["network"], config["network"], "network", set(before["network"]) - {"pretrained"})
    if training:
        found += differences(before.get("model") or {}, config["model"], "model", RESTORED)
    if list(about["class_names"]) != list(class_names):
        was, now = about["class_names"], class_names
        raise CrosscoopError(
            f"{path}: got a checkpoint of {len(was)} classes ({shorten(was)}), expected the {len(now)} classes of "
            f"data.dataset ({shorten(now)}), in this order. Give the data of its training: {_data(before)}."
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
        found = found or ["- none of its options: was the code of a backbone or fusion operator changed?"]
        lines = [
            f"{path}: got weights that do not fit the network, {len(wrong)} of {len(wanted)}, such as {key} "
            f"{stored.get(key, '(missing)')}, expected {wanted.get(key, 'none')}. What differs from its training"
            f"{written_by(about)}:",
            *found,
        ]
        raise CrosscoopError("\n".join(lines))
    if found and training:
        raise CrosscoopError(
            f"{path}: got options that differ from those of its training, expected the same to go on with; for others "
            "train anew, into another --run.\n" + "\n".join(found)
        )
    if found:
        print(
            "\n".join([f"{path} was trained with other options; evaluating with those given:", *found]), file=sys.stderr
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], group: str, keys: Any) -> list[str]:
    """A line for each option that differs, with the words that give it its old value.

    Args:
        before: The options of a group in training.
        now: The present ones.
        group: The group's name.
        keys: Which to compare; one that either side lacks, as another version may, is left out.
    """
    lines = []
    for key in now:
        if key in keys and key in before and before[key] != now[key]:
            old = before[key] if isinstance(before[key], str) else json.dumps(before[key])
            lines.append(f"- {group}.{key}: got {now[key]}, trained with {old}: --{group}.{key} {shlex.quote(old)}")
    return lines


def _data(config: Mapping[str, Any]) -> str:
    dataset = (config.get("data") or {}).get("dataset") or {}
    return f"--data.dataset {dataset.get('class_path', '...')}, and its options as in the checkpoint's config.yaml"

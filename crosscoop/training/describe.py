"""The configuration stored in a checkpoint of a training that the command line has not configured."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from crosscoop.network import CooperativeNetwork


def describe(network: CooperativeNetwork, data: Any) -> dict[str, Any]:
    """Return what reads the checkpoint again: the network's options as plain values, and how images were resized.

    Args:
        network: The network. If it was not created by `create_network`, or from objects that have no plain form, its
            options are None, and the checkpoint cannot be read without the code that made it.
        data: The data module; None for loaders.
    """
    options: Any = None
    if network.options is not None:
        try:
            options = json.loads(json.dumps(network.options, default=_plain))
            options |= {"pretrained": False}
            del options["num_classes"]
        except TypeError:
            options = None
    dataset = type(getattr(data, "dataset", data)).__name__ if data is not None else "DataLoader"
    resize = getattr(data, "resize", None)
    return {
        "network": options,
        "model": {},
        "data": {"resize": resize and list(resize), "dataset": {"class_path": dataset}},
    }


def _plain(value: Any) -> Any:
    """Return the plain form of an object that `create_network` accepts."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError

"""Lookup of objects that a configuration names, in the package's catalogue or by import path."""

import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from crosscoop.errors import CrosscoopError

T = TypeVar("T")


def find(name: str, known: Mapping[str, T], option: str) -> T:
    """Return the object with a name.

    Args:
        name: A key of `known`, or an import path (`my_strategies.aspp_only`).
        known: The objects that the package provides, by name.
        option: The option that contains the name, for the message.

    Raises:
        CrosscoopError: The name is not in `known` and cannot be imported.
    """
    if name in known:
        return known[name]
    if "." not in name:
        raise CrosscoopError(
            f"{option}: got {name!r}, expected one of {', '.join(known)}, or the import path of your own "
            "(my_file.my_object)."
        )
    try:
        found: T = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CrosscoopError(
            f"{option}: {name!r} cannot be imported ({error}). Expected one of {', '.join(known)}, or an import path "
            "to a file in the working directory or on PYTHONPATH."
        ) from error
    return found

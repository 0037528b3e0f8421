"""Finds what a configuration names: in the package's catalogue, or by import path in the user's own file."""

import pkgutil
from collections.abc import Mapping
from typing import TypeVar

from crosscoop.errors import CrosscoopError

T = TypeVar("T")


def find(name: str, known: Mapping[str, T], option: str) -> T:
    """The object of a name.

    Args:
        name: A key of `known`, or an import path (`my_strategies.aspp_only`).
        known: What the package brings.
        option: The option that the name was given to, for the message.

    Raises:
        CrosscoopError: The name is neither.
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
            "whose file lies in the working directory or on PYTHONPATH."
        ) from error
    return found

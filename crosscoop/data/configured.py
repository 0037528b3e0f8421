"""The data that a configuration names."""

from copy import deepcopy
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from crosscoop.data.datamodule import SegmentationData
from crosscoop.errors import CrosscoopError


def open_data(config: dict[str, Any]) -> SegmentationData:
    """The data that a configuration names.

    Raises:
        CrosscoopError: The configuration names none, or they cannot be opened.
    """
    parser = ArgumentParser(exit_on_error=False)  # which writes into what it parses
    parser.add_class_arguments(SegmentationData, "data")
    try:
        data: SegmentationData = parser.instantiate(parser.parse_object({"data": deepcopy(config["data"])})).data
    except (ArgumentError, KeyError, TypeError) as error:
        raise CrosscoopError(f"The configuration names no data that can be opened ({error}).") from error
    return data

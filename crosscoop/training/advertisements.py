"""Lightning's console messages that are of no use here."""

import logging

USELESS = (
    "Tip: ",  # advertises litlogger and litmodels
    "TPU available: False",
    "GPU available: False",
    "Loading `train_dataloader` to estimate",
)
"""Fragments of these messages."""


def silence_advertisements() -> None:
    """Drop Lightning's advertisements and lines about absent devices, and keep all other messages."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_useful)


def _is_useful(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in USELESS)

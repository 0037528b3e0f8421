"""Colours for data sets that bring none."""

from crosscoop.data.dataset import Color


def colormap(count: int) -> tuple[Color, ...]:
    """The first `count` colours of PASCAL VOC's colour map; index 0 is black.

    The bits of an index, three at a time from the lowest, are the bits of red, green and blue from the
    highest, so that neighbours differ strongly (`VOClabelcolormap.m` of the VOC development kit).

    Args:
        count: Number of colours, at most 256.
    """

    def channel(index: int, shift: int) -> int:
        return sum((index >> (3 * bit + shift) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))

"""Connection strategies: which exchange points are connected, and in which direction (the paper's section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosscoop.errors import CrosscoopError
from crosscoop.network.lookup import find

POINTS = ("connection1", "aspp", "connection2", "decoder")
"""The exchange points, in the order in which data passes them."""

DIRECTIONS = ("both", "top_to_bottom", "bottom_to_top")


@dataclass(frozen=True)
class Strategy:
    """A connection strategy, declared. Your own is one such line in a file of yours.

    Args:
        points: The connected exchange points, of `connection1`, `aspp`, `connection2`, `decoder`.
        direction: `both`, `top_to_bottom` or `bottom_to_top`.
        detach: Whether gradients stop at the connections.

    Raises:
        CrosscoopError: A point or the direction is unknown.
    """

    points: Sequence[str] = ()
    direction: str = "both"
    detach: bool = False

    def __post_init__(self) -> None:
        unknown = [point for point in self.points if point not in POINTS]
        if unknown or isinstance(self.points, str):
            raise CrosscoopError(f"Strategy: got points {self.points!r}, expected a list out of {', '.join(POINTS)}.")
        if self.direction not in DIRECTIONS:
            raise CrosscoopError(
                f"Strategy: got direction {self.direction!r}, expected one of {', '.join(DIRECTIONS)}."
            )


STRATEGIES = {
    "none": Strategy(),
    "one_way": Strategy(["aspp", "decoder"], direction="top_to_bottom"),
    "cross": Strategy(["aspp", "decoder"]),
    "cross_c1": Strategy(["connection1", "aspp", "decoder"]),
    "cross_c2": Strategy(["aspp", "connection2", "decoder"]),
    "cross_c1_c2": Strategy(["connection1", "aspp", "connection2", "decoder"]),
}


def list_strategies() -> list[str]:
    """The names of the connection strategies that come with the package."""
    return list(STRATEGIES)


def get_strategy(strategy: str | dict[str, Any] | Strategy) -> Strategy:
    """The strategy that a configuration names.

    Args:
        strategy: A name (`cross`), the import path of a `Strategy` (`my_strategies.aspp_only`), its fields
            (`{points: [aspp], direction: both}`), or a `Strategy`.

    Raises:
        CrosscoopError: There is no such strategy.
    """
    if isinstance(strategy, dict):
        if unknown := set(strategy) - {"points", "direction", "detach"}:
            raise CrosscoopError(f"network.strategy: got fields {sorted(unknown)}, expected points, direction, detach.")
        return Strategy(**strategy)
    found = find(strategy, STRATEGIES, "network.strategy") if isinstance(strategy, str) else strategy
    if not isinstance(found, Strategy):
        raise CrosscoopError(
            f"network.strategy: {strategy!r} is a {type(found).__name__}, expected a crosscoop.Strategy."
        )
    return found

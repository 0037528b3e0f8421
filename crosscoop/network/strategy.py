"""Connection strategies: which exchange points are connected, and in which direction (the paper's section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crosscoop.errors import CrosscoopError
from crosscoop.network.lookup import find

POINTS = ("connection1", "aspp", "connection2", "decoder")
"""The exchange points of DeepLabV3+, in the order in which data passes them."""

DIRECTIONS = ("both", "top_to_bottom", "bottom_to_top")


@dataclass(frozen=True)
class Strategy:
    """A connection strategy, declared. Your own is one such line in a file of yours.

    Args:
        points: The connected exchange points, of `connection1`, `aspp`, `connection2`, `decoder`; `aspp1` to `aspp5`
            and `decoder1` to `decoder3` are the single layers of ASPP and decoder.
        direction: `both` connects every pair of branches, `top_to_bottom` every earlier branch to every later one,
            `bottom_to_top` the reverse.
        detach: Whether gradients stop at the connections.

    Raises:
        CrosscoopError: The points are not a list, or the direction is unknown.
    """

    points: Sequence[str] = ()
    direction: str = "both"
    detach: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.points, str):
            raise CrosscoopError(f"Strategy: got points {self.points!r}, expected a list out of {', '.join(POINTS)}.")
        if self.direction not in DIRECTIONS:
            raise CrosscoopError(
                f"Strategy: got direction {self.direction!r}, expected one of {', '.join(DIRECTIONS)}."
            )

    def connects(self, sender: int, receiver: int) -> bool:
        """Whether a branch receives the maps of another one at the connected points."""
        return sender != receiver and (
            self.direction == "both" or (sender < receiver) == (self.direction == "top_to_bottom")
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

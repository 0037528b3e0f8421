"""Connection strategies: which exchange points are connected, and in which direction (the paper's section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from crosscoop.errors import CrosscoopError
from crosscoop.network.lookup import find

POINTS = ("connection1", "aspp", "connection2", "decoder")
"""The exchange points of DeepLabV3+, in the order of the data flow."""

DIRECTIONS = ("both", "top_to_bottom", "bottom_to_top")
"""The directions of a strategy's connections."""


@dataclass(frozen=True)
class Strategy:
    """A connection strategy. To define your own, create an instance in a local file.

    Args:
        points: The connected exchange points: `connection1`, `aspp`, `connection2`, `decoder`, or single layers of
            ASPP (`aspp1` to `aspp5`) and decoder (`decoder1` to `decoder3`).
        direction: `both` connects every pair of branches, `top_to_bottom` every earlier branch to every later one,
            `bottom_to_top` the reverse.
        detach: Stop gradients at the connections.
        dropout: Probability with which each connection is silent in training, drawn per image: the receiver keeps its
            own map. The branches then also learn to stand alone.

    Raises:
        CrosscoopError: The points are not a list, the direction is unknown, or the dropout is not a probability.
    """

    points: Sequence[str] = ()
    direction: str = "both"
    detach: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.points, str):
            raise CrosscoopError(f"Strategy: got points {self.points!r}, expected a list of {', '.join(POINTS)}.")
        if self.direction not in DIRECTIONS:
            raise CrosscoopError(
                f"Strategy: got direction {self.direction!r}, expected one of {', '.join(DIRECTIONS)}."
            )
        if not 0 <= self.dropout <= 1:
            raise CrosscoopError(f"Strategy: got dropout {self.dropout}, expected a probability from 0 to 1.")

    def connects(self, sender: int, receiver: int) -> bool:
        """Return whether a branch receives the maps of another one at the connected points."""
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
"""The connection strategies that the package provides, by name."""


def list_strategies() -> list[str]:
    """Return the names of the connection strategies that the package provides."""
    return list(STRATEGIES)


def get_strategy(strategy: str | dict[str, Any] | Strategy) -> Strategy:
    """Return the strategy that a configuration names.

    Args:
        strategy: A name (`cross`), the import path of a `Strategy` (`my_strategies.aspp_only`), its fields
            (`{points: [aspp], direction: both}`), or a `Strategy`.

    Raises:
        CrosscoopError: The strategy does not exist.
    """
    if isinstance(strategy, dict):
        known = [field.name for field in fields(Strategy)]
        if unknown := set(strategy) - set(known):
            raise CrosscoopError(f"network.strategy: got fields {sorted(unknown)}, expected only {', '.join(known)}.")
        return Strategy(**strategy)
    found = find(strategy, STRATEGIES, "network.strategy") if isinstance(strategy, str) else strategy
    if not isinstance(found, Strategy):
        raise CrosscoopError(
            f"network.strategy: {strategy!r} is a {type(found).__name__}, expected a crosscoop.Strategy."
        )
    return found

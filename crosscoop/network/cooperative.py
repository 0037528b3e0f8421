"""The cooperative network: branches that advance in lockstep, with exchanges between the steps (figure 4)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from crosscoop.errors import CrosscoopError
from crosscoop.network.branch import Branch
from crosscoop.network.ensemble import Ensemble
from crosscoop.network.exchange import Exchange
from crosscoop.network.freeze import Freeze
from crosscoop.network.fusion import Add, FusionFactory
from crosscoop.network.layers import resize
from crosscoop.network.outputs import ENSEMBLE, outputs_of
from crosscoop.network.strategy import Strategy


@dataclass(frozen=True)
class Cascade:
    """When one branch answers for the whole network.

    Attributes:
        branch: The index of the branch that answers first, alone; the cheapest one.
        confidence: Mean over an image's pixels of the branch's highest probability from which its answer counts; the
            other branches run for the remaining images only.
    """

    branch: int
    confidence: float


class CooperativeNetwork(nn.Module):
    """Branches that exchange feature maps (Ikedo and Hotta, VISAPP 2022).

    Args:
        branches: Any number of branches, top first. A single one is the single-network baseline.
        strategy: Which exchange points are connected, and in which direction.
        fusion: Creates a fusion operator for a number of channels.
        ensemble: How the branches' logits become one prediction; by default their sum.
        cascade: When a branch's answer suffices, see `cascaded`.

    Attributes:
        exchanges: The exchange at each connected point, by the point's name.
        freeze: The parts that do not train.
        options: The arguments of `create_network` if that created the network, with which a checkpoint is read; else
            None.

    Raises:
        CrosscoopError: The strategy connects a single branch, or points that some branch lacks.
    """

    branches: Sequence[Branch]
    exchanges: Mapping[str, Exchange]
    freeze = Freeze()
    options: dict[str, Any] | None = None

    def __init__(
        self,
        branches: Sequence[Branch],
        strategy: Strategy,
        fusion: FusionFactory = Add,
        ensemble: Ensemble | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)  # type: ignore[assignment]
        self.ensemble, self.cascade = ensemble or Ensemble(len(branches), 0), cascade
        points = connected(branches, strategy)
        channels = [{point.name: point.channels for point in branch.points} for branch in branches]
        self.exchanges = nn.ModuleDict(  # type: ignore[assignment]
            {name: Exchange([own[name] for own in channels], strategy, fusion) for name in points}
        )
        self.schedule = list(schedule(branches, points))
        self.strategy = strategy

    def forward(self, image: Tensor, upsample: bool = True) -> list[Tensor]:
        """Segment with every branch.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: False keeps the logits at the resolution at which they are computed (`H/4, W/4`), which is
                enough for `upsampled_labels`.

        Returns:
            The logits of each branch, `(N, num_classes, H, W)`.
        """
        return self.forward_maps(image, upsample=upsample)[0]

    def forward_maps(
        self, image: Tensor, names: Sequence[str] = (), upsample: bool = True
    ) -> tuple[list[Tensor], dict[str, dict[int, Tensor]]]:
        """Segment with every branch, and keep the maps at some exchange points.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            names: Names of the points whose maps are kept.
            upsample: See `forward`.

        Returns:
            The logits of each branch; and the maps after the exchange, by the point's name and then by the index of
            each branch that has the point.
        """
        walks = [branch.walk(image, upsample) for branch in self.branches]
        features = [next(walk) for walk in walks]
        kept: dict[str, dict[int, Tensor]] = {}
        for point, walkers in self.schedule:
            if point in self.exchanges:
                features = self.exchanges[point](features)
            if point in names:
                kept.setdefault(point, {}).update({i: features[i] for i in walkers})
            features = [walks[i].send(own) if i in walkers else own for i, own in enumerate(features)]
        return features, kept

    def outputs(self, image: Tensor, upsample: bool = True) -> dict[str, Tensor]:
        """Segment with every branch and, if there are several, with their ensemble.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: See `forward`.

        Returns:
            Logits `(N, num_classes, H, W)` by output name. If they are not upsampled and the branches' resolutions
            differ, the ensemble has the highest.
        """
        return outputs_of(self(image, upsample), self.ensemble)

    def cascaded(self, image: Tensor, upsample: bool = True) -> tuple[Tensor, Tensor]:
        """Segment with the cascade's branch, and with the ensemble where that branch is not confident enough.

        Args:
            image: `(N, 3, H, W)` RGB in [0, 1], any size.
            upsample: See `outputs`.

        Returns:
            Logits `(N, num_classes, H, W)`, and whether each image was sent on to the ensemble, `(N,)`.
        """
        assert self.cascade
        first = self.branches[self.cascade.branch](image, upsample)
        sent = confidence(first) < self.cascade.confidence
        if not sent.any():
            return first, sent
        rest = image[sent]
        if self.exchanges:
            logits = self(rest, upsample)
        else:
            logits = [
                first[sent] if i == self.cascade.branch else branch(rest, upsample)
                for i, branch in enumerate(self.branches)
            ]
        combined = outputs_of(logits, self.ensemble)[ENSEMBLE]
        answer = resize(first, combined.shape[-2:]).clone()
        answer[sent] = combined
        return answer, sent

    def alone(self, branch: int) -> "CooperativeNetwork":
        """Return a network of one branch, which shares this one's weights and lacks its connections.

        Args:
            branch: The branch's index.
        """
        return CooperativeNetwork([self.branches[branch]], Strategy()).train(self.training)

    def connected_at(self, points: Collection[str]) -> "CooperativeNetwork":
        """Return a network that shares this one's weights, and is connected at some of its points only.

        Args:
            points: Names of the points that remain connected.
        """
        network = CooperativeNetwork(list(self.branches), Strategy(), ensemble=self.ensemble, cascade=self.cascade)
        kept = {name: exchange for name, exchange in self.exchanges.items() if name in points}
        network.exchanges, network.schedule = nn.ModuleDict(kept), self.schedule  # type: ignore[assignment]
        return network.train(self.training)

    def learns_alone(self, branch: int) -> bool:
        """Return whether a branch is trained to do without connections, at least in some of the steps.

        Args:
            branch: The branch's index.
        """
        receives = any(exchange.receivers[branch].connections for exchange in self.exchanges.values())
        return not receives or self.strategy.dropout > 0


def confidence(logits: Tensor) -> Tensor:
    """Return the mean over the pixels of the highest probability, `(N,)`.

    Args:
        logits: `(N, num_classes, H, W)`.
    """
    return logits.float().softmax(1).amax(1).mean((1, 2))


def by_name(network: nn.Module, upsample: bool = True) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what computes logits by output name: a cooperative network's `outputs`, or a wrapper of another network.

    Args:
        network: The network; any other than a `CooperativeNetwork` gives logits by output name, as exported networks
            do, or a list with those of each branch, whose sum is the ensemble.
        upsample: See `CooperativeNetwork.forward`; other networks are taken as they are.
    """
    if isinstance(network, CooperativeNetwork):
        return partial(network.outputs, upsample=upsample)

    def outputs(image: Tensor) -> dict[str, Tensor]:
        logits = network(image)
        return dict(logits) if isinstance(logits, Mapping) else outputs_of(logits, Ensemble(len(logits), 0))

    return outputs


def connected(branches: Sequence[Branch], strategy: Strategy) -> list[str]:
    """Return the names of the points that a strategy connects, in the order of the walks.

    Raises:
        CrosscoopError: There is one branch only, or a point is missing from some branch.
    """
    if not strategy.points:
        return []
    if len(branches) < 2:
        raise CrosscoopError(
            f"network.strategy connects branches at {', '.join(strategy.points)}, but there is only one branch. List "
            "two or more in network.branches, or set network.strategy to none."
        )
    first, *others = [[(point.name, point.group) for point in branch.points] for branch in branches]
    shared = [both for both in first if all(both in other for other in others)]
    known = list(dict.fromkeys(group for _, group in shared)) + [name for name, group in shared if name != group]
    if unknown := [point for point in strategy.points if point not in known]:
        raise CrosscoopError(
            f"network.strategy: got the points {', '.join(unknown)}, expected only points that all branches "
            f"have: {', '.join(known)}."
        )
    names = [name for name, group in shared if {name, group} & set(strategy.points)]
    for other in others:
        if names != [name for name, _ in other if name in names]:
            raise CrosscoopError(
                f"network.branches pass {', '.join(names)} in different orders; expected the same order in each."
            )
    return names


def schedule(branches: Sequence[Branch], connected: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """Yield which branches advance in each step: together at shared points, otherwise each by itself.

    Args:
        branches: The branches.
        connected: Names of the connected points, which all branches pass in this order.

    Yields:
        A point's name, and the indices of the branches that advance from it.
    """
    names = [[point.name for point in branch.points] for branch in branches]
    if all(other == names[0] for other in names):
        connected = names[0]
    starts = [0] * len(branches)
    for name in [*connected, None]:
        for i, own in enumerate(names):
            end = len(own) if name is None else own.index(name)
            yield from ((alone, [i]) for alone in own[starts[i] : end])
            starts[i] = end + 1
        if name is not None:
            yield name, list(range(len(branches)))

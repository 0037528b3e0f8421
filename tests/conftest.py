"""What several test files share: seeded tests on one thread, and a small pair of branches."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crosscoop.network import CooperativeNetwork, create_network

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start: another number gives other roundings


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_pair() -> Callable[..., CooperativeNetwork]:
    """Makes a cooperative network of 0.4 M parameters a branch; random in every parameter and every statistic, so
    that none is at a value (0, 1, an average) where a mistake would not show.
    """

    def make(strategy: Any = "cross_c1_c2", fusion: Any = "add", **options: Any) -> CooperativeNetwork:
        options = {"branches": ["test_resnet", "test_byobnet"], "num_classes": 5, "channels": 16, **options}
        network = create_network(strategy=strategy, fusion=fusion, **options)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.1 * torch.randn_like(buffer))
                if name.endswith("running_var"):
                    buffer.mul_(1 + 0.5 * torch.rand_like(buffer))
        return network.eval()

    return make

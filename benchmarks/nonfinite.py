"""The cost of checking each training step for non-finite values: without, with, and with `max_skips`, alternately.

python benchmarks/nonfinite.py
"""

import statistics
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from crosscoop.network import create_network
from crosscoop.training.callbacks import NonFinite

CASES: dict[str, tuple[list[str], int, int, int, int]] = {  # branches, channels, crop, batch, steps
    "tests' network": (["test_resnet", "test_byobnet"], 16, 32, 2, 60),
    "light": (["tf_efficientnet_lite0", "mobilenetv2_100"], 128, 160, 8, 8),
}


def measure(branches: list[str], channels: int, crop: int, batch: int, steps: int) -> list[float]:
    """Measure the median seconds of a step without the callback, with it, and with `max_skips`."""
    network = create_network(branches, 11, pretrained=False, separable=True, channels=channels).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    image, mask = torch.rand(batch, 3, crop, crop), torch.randint(11, (batch, crop, crop))
    trainer: Any = SimpleNamespace(world_size=1, precision_plugin=None, global_step=0, current_epoch=0)
    module: Any = network
    callbacks = (None, NonFinite(), NonFinite(max_skips=5))
    seconds: list[list[float]] = [[] for _ in callbacks]
    for _ in range(steps + 2):
        for callback, taken in zip(callbacks, seconds, strict=True):
            start = time.perf_counter()
            if callback:
                callback.on_train_batch_start(trainer, module, {"name": ["a"] * batch}, 0)
            optimizer.zero_grad()
            loss = sum((cross_entropy(logits, mask) for logits in network(image)), torch.zeros(()))
            if callback:
                callback.on_before_backward(trainer, module, loss)
            loss.backward()  # type: ignore[no-untyped-call]
            if callback:
                callback.on_before_optimizer_step(trainer, module, optimizer)
            optimizer.step()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[2:]) for taken in seconds]  # the first ones warm up


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, case in CASES.items():
        plain, looking, leaving = measure(*case)
        print(f"{name}: {plain * 1000:.1f} ms, ratio {looking / plain:.3f}, with max_skips {leaving / plain:.3f}")

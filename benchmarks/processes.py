"""Weak scaling: two processes with one thread each (gloo) against one, with a batch per process."""

import json
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.measure import Row, Setting, row

STEPS = 3


def run(setting: Setting) -> list[Row]:
    """Measure the wall-clock time of a training step under DDP; needs two idle cores."""
    if (os.cpu_count() or 1) < 2:
        return []
    size, branches = setting.pick(
        (64, ["test_resnet", "test_byobnet"]), (256, ["mobilenetv2_100", "tf_efficientnet_lite0"])
    )
    rows = []
    for synchronised in (False, True):
        one: list[float] = []
        two: list[float] = []
        for _ in range(setting.pick(1, 2)):
            one.append(seconds(1, size, branches, synchronised))
            two.append(seconds(2, size, branches, synchronised))
        name = "synchronised batch norm" if synchronised else "batch norm per process (the default)"
        times = None if synchronised else 0.85
        rows.append(row(f"step of each of two processes, {name}", two, "step of one process", one, times=times))
    return rows


def seconds(world_size: int, size: int, branches: list[str], synchronised: bool) -> float:
    """Measure the median seconds of a step in the slowest process."""
    port = 20000 + os.getpid() % 20000
    arguments = json.dumps([world_size, size, branches, synchronised, port])
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processes", arguments]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for rank in range(world_size)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    return max(float(output.splitlines()[-1]) for output in outputs)


def work(world_size: int, size: int, branches: list[str], synchronised: bool, port: int, rank: int) -> None:
    """Train in one process, with the network wrapped as in Lightning's strategy `ddp`."""
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import SGD

    from crosscoop.network import create_network
    from crosscoop.training.loss import CrossEntropy
    from crosscoop.training.sync_batchnorm import TimmSyncBatchNorm

    torch.set_num_threads(1)
    network: Any = create_network(branches, 21).train()
    if world_size > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
        network = DistributedDataParallel(TimmSyncBatchNorm().apply(network) if synchronised else network)
    image, mask = torch.rand(2, 3, size, size), torch.randint(21, (2, size, size))
    optimizer, loss, times = SGD(network.parameters(), lr=0.01, momentum=0.9), CrossEntropy(), []
    for _ in range(1 + STEPS):
        begin = time.perf_counter()
        optimizer.zero_grad()
        sum(loss(logits, mask) for logits in network(image)).backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    print(sorted(times[1:])[STEPS // 2])


if __name__ == "__main__":
    work(*json.loads(sys.argv[1]), int(sys.argv[2]))

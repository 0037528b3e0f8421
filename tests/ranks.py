"""The ranks of a distributed run as processes that a server forks, which has imported all that takes long."""

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["crosscoop.commands.training", "torchvision"])


def in_ranks(folder, world_size, function, *arguments):
    """Call `function(rank, *arguments)` in each rank, as if another launcher had started the ranks.

    Returns:
        The ranks' exit codes; what they printed is in `rank0.txt`, `rank1.txt`, ... of the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(target=be_a_rank, args=(folder, rank, world_size, port, function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(300)
    finally:
        for process in processes:
            process.kill()
    return [process.exitcode for process in processes]


def be_a_rank(folder, rank, world_size, port, function, arguments):
    from pytorch_lightning.utilities import rank_zero_only

    with (folder / f"rank{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": str(world_size)}  # fmt: skip
    rank_zero_only.rank = rank  # the server was asked for it at import
    torch.set_num_threads(1)
    function(rank, *arguments)


def ranks(number):
    """Options for so many of them."""
    return f"--trainer.accelerator cpu --trainer.devices {number} --trainer.strategy ddp"


def written_below(folder):
    """A list that will have every file below the folder that this process opens to write, or moves."""
    written = []

    def audit(event, arguments):
        if event == "os.rename" or (event == "open" and set(arguments[1] or "") & set("wax+")):
            written.extend(path for path in map(str, arguments[:2]) if Path(path).is_relative_to(folder))

    sys.addaudithook(audit)
    return written

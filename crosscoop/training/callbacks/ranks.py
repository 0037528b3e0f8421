"""The death of a rank that Lightning started on this machine."""

import os
import sys
import threading
import time

import pytorch_lightning as pl

from crosscoop.errors import CrosscoopError
from crosscoop.training.lightning_fixes import launched_ranks

PATIENCE = 30.0
"""Seconds that a rank has to exit by itself after the first rank has exited, as at the end of every run."""


class Ranks(pl.Callback):
    """Shutdown of all ranks when one dies, with a report of which one it was.

    Every five seconds, Lightning checks the ranks that the first one started, and kills all of them if one has died.
    This does not cover two cases: a collective operation may fail earlier, with an unhelpful stack trace, and the first
    rank itself is not checked. A rank started by hand (LOCAL_RANK=1) also ends with its shell.

    Args:
        trainer: The trainer of this process.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            arguments = (os.getppid(), trainer.global_rank)
            threading.Thread(target=end_without_parent, args=arguments, daemon=True).start()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Find the rank that died before this one failed.

        Raises:
            CrosscoopError: A rank has died.
        """
        processes = launched_ranks(trainer)
        if not processes or not isinstance(exception, RuntimeError):
            return
        until = time.monotonic() + 3  # a rank closes its connections before it has exited
        while not any(process.poll() for process in processes) and time.monotonic() < until:
            time.sleep(0.1)
        dead = [
            f"rank {rank} ended with code {code}" for rank, each in enumerate(processes, 1) if (code := each.poll())
        ]
        if dead:
            raise CrosscoopError(
                f"{', '.join(dead)}, expected all ranks to keep running. See its output above; code -9 without output "
                f"often means out of memory. The error on rank 0: {str(exception).strip().splitlines()[0]}"
            ) from exception


def end_without_parent(parent: int, rank: int) -> None:
    """Wait until the parent process has exited, and end this one if it does not exit by itself.

    Args:
        parent: Id of the parent process.
        rank: This rank, for the message.
    """
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(PATIENCE)
    print(f"crosscoop: error: rank {rank}: the first rank has exited. See its output above.", file=sys.stderr)
    os._exit(2)

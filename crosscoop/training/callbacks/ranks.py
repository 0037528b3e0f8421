"""What becomes of the ranks that Lightning started on this machine when one of them dies."""

import os
import sys
import threading
import time

import pytorch_lightning as pl

from crosscoop.errors import CrosscoopError
from crosscoop.training.lightning_fixes import launched_ranks

PATIENCE = 30.0
"""Seconds that a rank has to end by itself after the first rank has gone, as it does at the end of every run."""


class Ranks(pl.Callback):
    """Ends every rank when one dies, and says which one it was.

    Lightning looks every five seconds whether the ranks live that the first one started, and kills all if one does
    not. What it leaves out: a collective operation may fail before that, with a stack trace that is of no use; and
    nobody looks whether the first rank lives. A rank started by hand (LOCAL_RANK=1) ends with its shell, too.

    Args:
        trainer: Of this process.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            arguments = (os.getppid(), trainer.global_rank)
            threading.Thread(target=end_without_parent, args=arguments, daemon=True).start()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Look for the rank that died before this one failed.

        Raises:
            CrosscoopError: There is one.
        """
        processes = launched_ranks(trainer)
        if not processes or not isinstance(exception, RuntimeError):
            return
        until = time.monotonic() + 3  # to close a connection is not yet to have ended
        while not any(process.poll() for process in processes) and time.monotonic() < until:
            time.sleep(0.1)
        dead = [
            f"rank {rank} ended with code {code}" for rank, each in enumerate(processes, 1) if (code := each.poll())
        ]
        if dead:
            raise CrosscoopError(
                f"{', '.join(dead)}, expected all ranks to go on. Look above for what it said; code -9 without a word "
                f"is often a machine out of memory. Rank 0 saw: {str(exception).strip().splitlines()[0]}"
            ) from exception


def end_without_parent(parent: int, rank: int) -> None:
    """Wait until the parent process has gone, and end this one if it does not do so by itself.

    Args:
        parent: Its id.
        rank: This rank, to be named.
    """
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(PATIENCE)
    print(f"crosscoop: error: rank {rank}: the first rank is gone. Look above for what it said.", file=sys.stderr)
    os._exit(2)

"""A rank that dies takes the others with it; two that are asked to end leave a run to go on with.

Run as a script with a run's folder, a rank, and what happens to it, it trains as one of two ranks.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Python
from ranks import in_ranks, ranks, written_below
from test_interruption import assert_same
from tiny import fit, load

from crosscoop.training.callbacks import ranks as callback
from crosscoop.training.task import CooperativeSegmentation

EVENTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": lambda: exec("raise RuntimeError('broken')"),
    "hangs": lambda: time.sleep(1000),
    "orphaned": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(1000)),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.killpg(os.getpgid(0), signal.SIGINT),
    "nothing": lambda: None,
}


def train(own_rank, run, rank, event, *options):
    """Train with two ranks; in the sixth step, within the second epoch, something happens to one of them."""
    step, calls = CooperativeSegmentation.training_step, []

    def disturbed(self, batch, batch_idx):
        calls.append(1)
        if len(calls) == 6 and self.trainer.global_rank == rank:
            EVENTS[event]()
        return step(self, batch, batch_idx)

    CooperativeSegmentation.training_step = disturbed
    written = written_below(run)
    try:
        fit(run, ranks(2), "--data.dataset.num_train 16 --trainer.max_epochs 3", *options)
    finally:
        if own_rank > 0:
            print("written by another rank:", written)


def launched(run, rank, event, *options):
    """The same, the second rank started by Lightning; returns exit code, stderr, and whether a process is left."""
    process = Python(
        [sys.executable, __file__, str(run), str(rank), event, *options], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        # All processes hold the other end of stderr: it is at its end when the last one is.
        errors = process.communicate(timeout=240)[1]
    except subprocess.TimeoutExpired:
        errors = None
    finally:
        if any_process(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


def any_process(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


slow = pytest.mark.slow


@pytest.mark.parametrize(("rank", "event", "options", "reason"), [
    (1, "killed", "--data.num_workers 1", "code -9"),
    (1, "orphaned", "--data.num_workers 1", "rank 1: the first rank has exited"),
    pytest.param(0, "killed", "", "RuntimeError", marks=slow),  # the lost connection
    pytest.param(1, "raises", "", "broken", marks=slow),
    pytest.param(0, "raises", "", "broken", marks=slow),
    pytest.param(1, "hangs", "--trainer.strategy DDPStrategy --trainer.strategy.timeout 00:00:20", "Timed out",
                 marks=slow),
])  # fmt: skip
def test_dead_rank_ends_the_others(tmp_path, rank, event, options, reason):
    code, errors = launched(tmp_path / "run", rank, event, *options.split())
    assert errors is not None, "processes are left"
    assert code != 0 and reason in errors, errors
    assert load(tmp_path / "run" / "last.ckpt")["global_step"] == 4


@pytest.mark.parametrize("event", ["SIGTERM", pytest.param("SIGINT", marks=slow)])
def test_ranks_that_are_asked_to_end_go_on_bit_for_bit(tmp_path, event):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    if event == "SIGTERM":
        assert in_ranks(tmp_path, 2, train, whole, 0, "nothing") == [0, 0]
        assert in_ranks(tmp_path, 2, train, parts, 0, event) == [128 + signal.SIGTERM, 0]
        said = "".join((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
        assert "written by another rank: []" in said
    else:
        assert launched(whole, 0, "nothing")[0] == 0
        code, said = launched(parts, 0, event)
        assert code == 128 + signal.SIGINT
    assert said.count(f"crosscoop fit --run {parts} --resume") == 1 and "Traceback" not in said
    assert load(parts / "last.ckpt")["global_step"] == 6
    assert in_ranks(tmp_path, 2, train, parts, 0, "nothing", "--resume") == [0, 0]
    assert_same(whole, parts)


if __name__ == "__main__":
    callback.PATIENCE = 3.0
    train(int(os.environ.get("LOCAL_RANK", 0)), Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])

"""Processes of Python without the start: a server forks them, which has imported all that takes long."""

import atexit
import gc
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from pytorch_lightning.utilities import rank_zero_only

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["crosscoop.ablation.cost", "crosscoop.commands.training", "torchvision"])
FOLDERS = [str(path) for path in (Path(__file__).parent, *sorted(Path(__file__).parent.glob("*/")))]
POPEN = subprocess.Popen


class Python:
    """What `subprocess.Popen` is for a command `[sys.executable, ...]` with at most one pipe, for stdout or stderr.

    The cells of an ablation, their commands and the ranks of these are such processes, too, each a fork of the one that
    starts it.
    """

    def __init__(self, args, *, stdin=None, stdout=None, stderr=None, env=None, cwd=None, start_new_session=False):
        assert cwd is None
        ends = []
        for number, given in enumerate((stdout, stderr), 1):
            if given == subprocess.PIPE:
                reader, writer = os.pipe()
                self.pipe = os.fdopen(reader, "rb", buffering=0)
            elif given == subprocess.DEVNULL:
                writer = os.open(os.devnull, os.O_WRONLY)
            else:
                writer = os.dup(ends[0].fileno() if given == subprocess.STDOUT else given.fileno() if given else number)
            ends.append(Connection(writer, readable=False))
        nested = multiprocessing.parent_process() is not None
        context = multiprocessing.get_context("fork") if nested else SERVER
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        env = {name: value for name, value in (env or os.environ).items() if name != "WANDB_SERVICE"}  # another's
        arguments = [*map(str, args[1:])], env, start_new_session, ignored, ends, nested
        self.process = context.Process(target=_be_python, args=arguments)
        self.process.start()
        self.pid = self.process.pid
        for end in ends:
            end.close()

    returncode = property(lambda self: self.process.exitcode)

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def read(self, timeout=300):
        """What comes through the pipe until all processes have closed its other end."""
        until, chunks = time.monotonic() + timeout, [b"begin"]
        while chunks[-1]:
            if not select.select([self.pipe], [], [], max(until - time.monotonic(), 0))[0]:
                raise subprocess.TimeoutExpired("python", timeout)
            chunks.append(self.pipe.read(1 << 16))
        self.wait(timeout)
        return b"".join(chunks[1:]).decode()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _be_python(words, env, start_new_session, ignored, ends, nested):
    if start_new_session:
        os.setsid()
    _write_to(*ends)
    if nested:
        os.closerange(3, 1000)  # a new program would have none of them
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    os.environ.clear()
    _begin({**env, "PYTHONPATH": os.pathsep.join(filter(None, [*FOLDERS, env.get("PYTHONPATH")]))})
    ablation = words[:3] == ["-m", "crosscoop", "ablate"]
    subprocess.Popen = Python if ablation or nested else POPEN
    atexit._clear()  # what the server registered is the server's: W&B's would remove a folder that all share
    try:
        _run(words)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _run(words):
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _write_to(*ends):
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()


def _begin(env):
    gc.freeze()  # as in conftest.py
    os.environ |= env
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))  # the server was asked for it at import
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # the default one, for workers that load data


# -- ranks


def in_ranks(folder, world_size, function, *arguments):
    """Call `function(rank, *arguments)` in each rank, as if another launcher had started the ranks.

    Returns:
        The ranks' exit codes; what they printed is in `rank0.txt`, `rank1.txt`, ... of the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        SERVER.Process(target=_be_a_rank, args=(folder, rank, world_size, port, function, arguments))
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


def _be_a_rank(folder, rank, world_size, port, function, arguments):
    with (folder / f"rank{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _begin({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size)})  # fmt: skip
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

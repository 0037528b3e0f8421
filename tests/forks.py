"""Python processes that start in milliseconds: forks of this one, which has imported everything that takes long."""

import atexit
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from types import ModuleType

TESTS = str(Path(__file__).parent)


class Forked(subprocess.Popen):
    """A process as `subprocess.Popen` starts it, except that Python is forked and not started.

    Where W&B runs, Python is started after all.

    Modules, and what a test has patched in them, are this process's; files, environment, signals, `sys.argv` and
    `__main__` are those of a new interpreter. What it starts in its turn is forked too: a cell of an ablation, a rank.
    """

    def __init__(self, args, *, env=None, **options):
        if args[0] == sys.executable and not can_be_forked():
            env = {**os.environ} if env is None else env
            env = {**env, "PYTHONPATH": os.pathsep.join(filter(None, [TESTS, env.get("PYTHONPATH")]))}
        elif args[0] == sys.executable:
            ours = open_files()
            options["preexec_fn"] = lambda: interpret([*map(str, args[1:])], env, open_files() - ours)
        super().__init__(args, env=env, **options)


def can_be_forked():
    """Whether W&B, whose threads a fork would wait for, was not used in this process."""
    return "wandb" not in sys.modules


def open_files():
    """The numbers of this process's open files."""
    numbers = set()
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 (a Path would hide that one is the listing's)
        with suppress(OSError):
            os.fstat(number)
            numbers.add(number)
    return numbers


def interpret(arguments, environment, foreign):
    """Do what `python ARGUMENTS` does, in this process, and end it."""
    code = 1
    try:
        for number in foreign - {0, 1, 2}:  # among them the pipe that tells `Popen` that its program runs
            os.close(number)
        begin_anew(environment)
        run(arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def begin_anew(environment):
    """Forget what a new interpreter would not know."""
    from pytorch_lightning.utilities import rank_zero_only

    atexit._clear()
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it, and `Popen` has not
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for logger in map(logging.getLogger, tuple(logging.root.manager.loggerDict)):
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:  # and none of pytest's
                handler.stream = sys.stderr  # `setStream` would flush the old one, which may be closed
    warnings.resetwarnings()
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", module="runpy")  # a module that runs as `__main__` is imported already
    warnings.showwarning = lambda *what: print(warnings.formatwarning(*what[:4]), end="", file=sys.stderr)
    rank_zero_only.rank = int(os.environ.get("LOCAL_RANK", 0))  # set at import
    subprocess.Popen = Forked


def run(arguments):
    """Run `-m module`, `-c code` or a script."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        main.__spec__ = None
        exec(arguments[1], main.__dict__)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")

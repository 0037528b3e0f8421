"""The command line: each command and where it is implemented. Heavy imports wait until a command is chosen."""

import importlib
import os
import select
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from crosscoop.errors import CrosscoopError

COMMANDS = {
    "fit": ("crosscoop.commands.training:main", "Train a network."),
    "validate": ("crosscoop.commands.training:main", "Evaluate a checkpoint on the validation split."),
    "test": ("crosscoop.commands.training:main", "Evaluate a checkpoint on the test split."),
    "predict": ("crosscoop.commands.predict:main", "Predict images, a video, or a split of a data set."),
    "join": ("crosscoop.commands.join:join", "Join trained networks in one, with an ensemble and a cascade."),
    "export": ("crosscoop.commands.export:export", "Export a checkpoint to ONNX, torch.export or safetensors."),
    "push": ("crosscoop.commands.push:push", "Upload a checkpoint to the Hugging Face Hub."),
    "score": ("crosscoop.commands.score:score", "Score label PNGs written by any tool."),
    "submit": ("crosscoop.commands.submit:submit", "Pack label PNGs for the Cityscapes or PASCAL VOC server."),
    "check-data": ("crosscoop.commands.check_data:check_data", "Check every file of every split of a data set."),
    "show-configs": ("crosscoop.commands.show_configs:show_configs", "List the shipped configurations, or copy one."),
    "show-data": ("crosscoop.commands.show_data:show_data", "Draw augmented samples and the balance of the classes."),
    "report": ("crosscoop.commands.report:report", "Summarise one run, or compare several, in one HTML page."),
    "demo": ("crosscoop.commands.demo:demo", "Open a local page on which to try networks on images."),
    "ablate": ("crosscoop.commands.ablate:ablate", "Train and test every cell of a grid, and write its tables."),
    "prepare-data": ("crosscoop.commands.prepare_data:prepare_data", "Decode a data set once, for faster training."),
    "prepare-trainaug": (
        "crosscoop.commands.prepare_trainaug:prepare_trainaug",
        "Prepare PASCAL VOC's trainaug split (10,582 images) from SBD.",
    ),
}
"""Location of each command: a `main` that parses its own options, or a function whose signature defines them."""

USAGE = """\
crosscoop: semantic segmentation with cooperating branches (Ikedo and Hotta, VISAPP 2022)

usage: crosscoop COMMAND [options]

{commands}

crosscoop COMMAND --help lists a command's options.
First steps: crosscoop fit --config crosscoop:demo --run runs/demo
             crosscoop test --run runs/demo
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: The command and its options; None takes them from `sys.argv`.
    """
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        raise SystemExit(141) from None  # the exit code of a program that SIGPIPE ended


def _run(arguments: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--"]:  # torchrun ... -m crosscoop -- fit --run ...
        del words[0]
    command, *options = words or ["--help"]
    if command in ("-h", "--help", "help"):
        lines = (f"  {name:17} {summary}" for name, (_, summary) in COMMANDS.items())
        print(USAGE.format(commands="\n".join(lines)))
        return
    if command == "--version":
        from importlib.metadata import version

        print(f"crosscoop {version('crosscoop')}")
        return
    if command not in COMMANDS:
        similar = get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {similar[0]}?" if similar else ""
        fail(f"got the command {command!r}, expected one of {', '.join(COMMANDS)}.{hint} See crosscoop --help.")
    sys.path.insert(0, "")  # class paths may name modules in the working directory
    module, _, name = COMMANDS[command][0].partition(":")
    try:
        options = [_expanded(option) for option in options]
        function = getattr(importlib.import_module(module), name)
        if name == "main":  # it parses its own options
            function([command, *options])
        else:
            from crosscoop.commands.options import run

            run(function, command, options)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            raise SystemExit(130) from None  # Lightning exits with 1
        raise
    except CrosscoopError as error:
        # An error in a data loader's worker arrives with that process's stack trace in front of the message.
        fail(str(error).rpartition("crosscoop.errors.CrosscoopError: ")[2].strip())
    except OSError as error:
        if not (error.errno and error.filename):
            raise
        fail(f"{error.filename}: {error.strerror}; expected a file or folder that can be read and written.")


def _expanded(option: str) -> str:
    """Expand `crosscoop:NAME`, and `~` and variables where a shell does not: in quotes, or after `=`."""
    from crosscoop.files import expanded

    name, equals, value = option.partition("=") if option.startswith("--") else ("", "", option)
    return f"{name}{equals}{expanded(value)}"


def _reader_has_gone() -> bool:
    """Return whether stdout was closed, as by `| head`; if so, discard the remaining output."""
    output = select.poll()
    output.register(1, select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def fail(message: str) -> None:
    """Print an error message and exit with code 2."""
    print(f"crosscoop: error: {message}", file=sys.stderr)
    raise SystemExit(2)

"""Commands and options: one style, one line for each mistake."""

import importlib
import inspect
import re

import pytest
from tiny import crosscoop

from crosscoop.cli import COMMANDS
from crosscoop.commands.options import make_parser, spelled
from crosscoop.commands.predict import predict

OWN = [name for name, (_, summary) in COMMANDS.items() if name not in ("fit", "validate", "test")]


def function_of(command):
    module, _, name = COMMANDS[command][0].partition(":")
    return predict if name == "main" else getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("command", OWN)
def test_commands_and_their_options_are_in_kebab_case_and_flags_are_flags(command):
    assert re.fullmatch("[a-z-]+", command)
    function = function_of(command)
    assert function.__module__ == f"crosscoop.commands.{command.replace('-', '_')}"
    actions = {option: action for action in make_parser(function, command)._actions for option in action.option_strings}
    assert [option for option in actions if "_" in option.partition(".")[0]] == []
    for name, parameter in inspect.signature(function).parameters.items():
        if isinstance(parameter.default, bool):
            assert parameter.default is False and actions[f"--{name.replace('_', '-')}"].nargs == 0
    assert [option for option, action in actions.items() if not action.help and "." not in option] == []


def test_options_may_be_spelled_either_way():
    words = ["--dry_run", "--own-size", "--data.crop-size=3", "--ckpt_path=a_b-c.ckpt", "a_b", "-x", "--a-b.c-d"]
    assert [spelled(word) for word in words] == (
        ["--dry-run", "--own-size", "--data.crop_size=3", "--ckpt-path=a_b-c.ckpt", "a_b", "-x", "--a_b.c_d"]
    )
    assert (
        spelled("--ckpt-path", "_") == "--ckpt_path" and spelled("--last.every-n-steps", "_") == "--last.every_n_steps"
    )


@pytest.mark.parametrize(
    "command, options, message",
    [
        ("prepare_data", "", "Did you mean prepare-data?"),
        ("ablate", "--runs x --dry-rum", "unrecognized arguments: --dry-rum (did you mean --dry-run?)"),
        ("ablate", "--runs x --dry-run true", "unrecognized arguments: true"),
        ("ablate", "--runs x --workers two", "workers"),
        ("ablate", "", "required: runs"),
        ("report", "", "required: runs"),
        ("report", "x --num-images -1", "--num-images: got -1"),
        ("fit", "--trainer.max_epocs 3", "--trainer.max_epocs 3 (did you mean --trainer.max_epochs?)"),
        ("test", "--ckpt-path nowhere.ckpt", "no checkpoint nowhere.ckpt"),
    ],
)
def test_a_mistake_is_one_line(capsys, command, options, message):
    with pytest.raises(SystemExit, match="2"):
        crosscoop(command, options)
    said = capsys.readouterr().err
    assert message in said and said.startswith("crosscoop: error: ") and "Traceback" not in said
    assert len(said.splitlines()) == 1 or (command == "ablate" and "--workers" in options)

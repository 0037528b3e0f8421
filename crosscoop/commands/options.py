"""Plain functions as commands: the signature defines the options, the docstring the help."""

import inspect
from argparse import Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from inspect import Parameter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.files import expanded, include_yaml, load_yaml


class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help formatter that keeps paragraphs as written, and shows no default for flags."""

    def _get_help_string(self, action: Action) -> str:
        return str(action.help) if action.nargs == 0 else super()._get_help_string(action)


class DataOf(ActionConfigFile):
    """Option `--config` of a command that needs only the data, see `read_data`."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read the data, and ignore the rest."""
        super().__call__(parser, cfg, read_data(Path(values)), option_string)  # type: ignore[no-untyped-call]


def run(function: Callable[..., Any], command: str, options: Sequence[str]) -> None:
    """Run a function with options named as its parameters, in kebab-case.

    A boolean parameter, whose default must be False, is a flag. A required `Sequence[str]` is positional, and so may be
    `ckpt_path`, as the first argument. A function with a parameter `data` also gets the option `--config`.

    Args:
        function: The function.
        command: The command's name.
        options: The options, see `spelled`.

    Raises:
        CrosscoopError: An option is unknown, missing, or of another type.
    """
    parameters = inspect.signature(function).parameters
    parser = make_parser(function, command)
    options = [spelled(option) for option in options]
    if "ckpt_path" in parameters and options and not options[0].startswith("-"):
        options = ["--ckpt-path", *options]
    try:
        given = expanded(parser.parse_args(options))
    except ArgumentError as error:
        raise CrosscoopError(explained(error, command, parser)) from error
    instances = parser.instantiate(given)
    function(**{name: instances[dotted(name)] for name in parameters})


def make_parser(function: Callable[..., Any], command: str) -> ArgumentParser:
    """Return the parser of a function: the signature defines the options, the docstring the help.

    Args:
        function: The function.
        command: The command's name.
    """
    parameters, documented = inspect.signature(function).parameters, docstring_parser.parse(function.__doc__ or "")
    helps = {entry.arg_name: entry.description for entry in documented.params}
    parser = ArgumentParser(
        prog=f"crosscoop {command}",
        description=(inspect.getdoc(function) or "").partition("\n\nArgs:")[0],
        formatter_class=Help,
        exit_on_error=False,
        print_config=None,
    )
    if "data" in parameters:
        what = "The data, from a configuration of fit, a run's config.yaml, or a file of data options (dataset: ...)."
        parser.add_argument("--config", action=DataOf, help=what)
    for name, parameter in parameters.items():
        option, kind = spelled(f"--{dotted(name)}"), parameter.annotation
        required = parameter.default is Parameter.empty
        if kind is bool:
            parser.add_argument(option, action="store_true", help=helps[name])
        elif kind is Inference:  # as in fit, one option per field
            parser.add_class_arguments(Inference, name, sub_configs=True)
        elif required and kind == Sequence[str]:
            parser.add_argument(name, nargs="+", type=str, metavar=name.removesuffix("s").upper(), help=helps[name])
        elif "_" in name:  # jsonargparse would keep the underscore
            given = {"required": True} if required else {"default": parameter.default}
            parser.add_argument(option, type=kind, help=helps[name], **given)
        else:
            others = set[str | int](parameters) - {name}
            parser.add_function_arguments(function, as_group=False, as_positional=False, sub_configs=True, skip=others)
    return parser


def dotted(name: str) -> str:
    """Return the key of a parameter: two underscores are a dot, as in `data__dataset__root`."""
    return name.replace("__", ".")


def spelled(option: str, joint: Literal["-", "_"] = "-") -> str:
    """Spell an option as the parser expects it: `--dry_run` as `--dry-run`, but `--data.crop-size` as in YAML.

    Args:
        option: The option, with or without its value, or a value alone.
        joint: The character that joins the words of an option outside a group.
    """
    name, equals, value = option.partition("=")
    if not name.startswith("--"):
        return option
    return "--" + name[2:].replace("-", "_").replace("_", "_" if "." in name else joint) + equals + value


def values_of(options: Sequence[str]) -> dict[str, str]:
    """Return the value of each option by its name, before a parser reads them; for a flag, the argument after it.

    Args:
        options: The arguments of a command line after the command.
    """
    given = dict(pair for pair in pairwise([*options, ""]) if pair[0].startswith("--"))
    return given | dict(option.split("=", 1) for option in options if option.startswith("--") and "=" in option)


def explained(error: ArgumentError, command: str, parser: ArgumentParser) -> str:
    """Return what is wrong with an option, and which one may have been meant.

    Args:
        error: The parser's error.
        command: The command.
        parser: Its parser.
    """
    message, known = str(error).strip(), [option for action in parser._actions for option in action.option_strings]
    for word in message.partition("unrecognized arguments:")[2].split():
        if similar := get_close_matches(word.partition("=")[0], known, n=1):
            message += f" (did you mean {similar[0]}?)"
    return f"{message}. All options: crosscoop {command} --help"


def read_data(path: Path) -> str:
    """Return the YAML text of a configuration's group `data` alone.

    Args:
        path: A configuration of fit, or a file with only this group's options, including `dataset`.

    Raises:
        CrosscoopError: The file cannot be read, or does not configure data.
    """
    content = load_yaml(path)
    data = content if "dataset" in content else content.get("data")
    if data is None:
        raise CrosscoopError(
            f"--config: got {path} without data, expected a configuration of fit, a run's config.yaml, or a file with "
            "dataset: and its options."
        )
    return str(yaml.safe_dump({"data": include_yaml(data, path.parent)}))

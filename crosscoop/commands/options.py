"""Plain functions as commands: the signature is the options, the docstring the help."""

import inspect
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.files import expanded, include_yaml, load_yaml


class Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Help whose paragraphs stay as they are written."""


class DataOf(ActionConfigFile):
    """`--config` of a command that needs the data only: see `read_data`."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Take the data, and leave the rest."""
        super().__call__(parser, cfg, read_data(Path(values)), option_string)  # type: ignore[no-untyped-call]


def run(function: Callable[..., Any], command: str, options: Sequence[str]) -> None:
    """Run a function with options. One with a parameter `data` gets the option `--config` for it, too.

    Args:
        function: The function.
        command: The command that it is.
        options: The options; `--overwrite` alone means `--overwrite true`, and a first word without `--` is
            `--ckpt_path`.

    Raises:
        CrosscoopError: An option is unknown, missing, or of another type.
    """
    parameters = inspect.signature(function).parameters
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
    apart: set[str | int] = {name for name in parameters if name == "inference"}
    parser.add_function_arguments(function, as_group=False, as_positional=False, sub_configs=True, skip=apart)
    if apart:  # as in fit, every option by its name
        parser.add_class_arguments(Inference, "inference", sub_configs=True)
    flags = [f"--{name}" for name, parameter in parameters.items() if isinstance(parameter.default, bool)]
    if "ckpt_path" in parameters and options and not options[0].startswith("-"):
        options = ["--ckpt_path", *options]
    followed = pairwise([*(_with_underscores(option) for option in options), "--"])
    try:
        words = [
            f"{option}=true" if option in flags and next_.startswith("--") else option for option, next_ in followed
        ]
        given = expanded(parser.parse_args(words))
    except ArgumentError as error:
        raise CrosscoopError(f"{error}\nAll options: crosscoop {command} --help") from error
    instances = parser.instantiate(given)
    function(**{name: instances[name] for name in parameters})


def _with_underscores(option: str) -> str:
    """`--dry-run` as `--dry_run`."""
    name, equals, value = option.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if option.startswith("--") else option


def read_data(path: Path) -> str:
    """The YAML text of a configuration's group `data`, and of nothing else.

    Args:
        path: A configuration of fit, or a file with only this group's options, `dataset` among them.

    Raises:
        CrosscoopError: The file cannot be read, or names no data.
    """
    content = load_yaml(path)
    data = content if "dataset" in content else content.get("data")
    if data is None:
        raise CrosscoopError(
            f"--config: got {path} without data, expected a configuration of fit, a run's config.yaml, or a file with "
            "dataset: and its options."
        )
    return str(yaml.safe_dump({"data": include_yaml(data, path.parent)}))

"""`crosscoop show-configs`: the configurations that come with the package."""

import re
from pathlib import Path
from textwrap import indent

from crosscoop.errors import CrosscoopError
from crosscoop.files import CONFIGS, SHIPPED, replacing, shipped


def show_configs(copy: str | None = None, output: str | None = None) -> None:
    """List the configurations that come with crosscoop, or copy one to edit.

      crosscoop show-configs
      crosscoop fit --config crosscoop:voc/cross_c1_c2 --run runs/voc
      crosscoop show-configs --copy voc/cross_c1_c2 --output mine.yaml

    Wherever a command takes the path of a YAML file, it takes the name of one of these as well. Those of the group
    ablation are for crosscoop ablate --grid, the others for crosscoop fit --config.

    Args:
        copy: The configuration to copy. The copy contains the parts that the original includes from other files.
        output: The file to write; by default the configuration's own name, in the working directory.

    Raises:
        CrosscoopError: There is no such configuration, or the file exists.
    """
    if copy is None:
        if output is not None:
            raise CrosscoopError(f"--output: got {output} without --copy, expected a configuration to copy.")
        for path in sorted(CONFIGS.rglob("*.yaml")):
            if path.parent.name != "parts":
                title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
                print(f"{SHIPPED + path.relative_to(CONFIGS).with_suffix('').as_posix():43} {title}")
        return
    original = Path(copy) if Path(copy).is_relative_to(CONFIGS) else shipped(copy)  # crosscoop:NAME is a path by now
    path = Path(output or original.name)
    if path.exists():
        raise CrosscoopError(f"--output: {path} exists, expected a new file. Give another name.")
    text = with_parts(original).replace(f"configs/{original.relative_to(CONFIGS)}", str(path))
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")
    use = "ablate --grid" if original.parent.name == "ablation" else "fit --config"
    print(f"{path}: use it with crosscoop {use} {path}")


def with_parts(path: Path) -> str:
    """Return the text of a configuration in which other files are not named, but included.

    Args:
        path: The configuration.
    """

    def included(line: re.Match[str]) -> str:
        part = (path.parent / line[3]).resolve()
        return f"{line[1]}{line[2]}:\n" + indent(with_parts(part).rstrip(), line[1] + "  ")

    return re.sub(r"^( *)(\w+): ([\w./-]+\.yaml)$", included, path.read_text("utf-8"), flags=re.MULTILINE)

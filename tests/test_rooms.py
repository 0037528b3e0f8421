"""The layout of the package: data flows down the rooms once, and none imports a room above it."""

import ast
from pathlib import Path

import pytest

import crosscoop

PACKAGE = Path(crosscoop.__file__).parent
ROOMS = (
    *("version", "errors", "files", "network", "data", "evaluation", "checkpoints", "export", "prediction"),
    *("training", "report", "ablation", "commands", "cli", "__main__"),
)
"""From the ground floor up; `crosscoop/__init__.py` only hands out what lies below it."""


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.removeprefix("crosscoop.") for name in names if name.partition(".")[0] == "crosscoop"}
    return found


def test_every_module_lies_in_a_room():
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()} == {
        *ROOMS,
        "__init__",
    }


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_one_above_it(room):
    place = PACKAGE / room
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    for file in files:
        for module in imports(file):
            other = module.partition(".")[0]
            assert ROOMS.index(other) <= ROOMS.index(room), f"{file} imports crosscoop.{module}"


def test_modules_do_not_import_each_other_in_circles():
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): imports(path) for path in PACKAGE.rglob("*.py")
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way, module])}"
        if module not in done:
            for other in modules.get(module, ()):
                visit(other, (*way, module))
            done.add(module)

    for module in modules:
        visit(module, ())

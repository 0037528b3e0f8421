"""Everything that a machine with a GPU and without a package index needs, in one folder: wheels, data, weights."""

import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from crosscoop.data.datasets.camvid import CamVid
from crosscoop.data.samples import FileSample
from crosscoop.files import include_yaml, load_yaml

INSTALLED = Path(__file__).parent / "installed.txt"
ITEMS = ("wheels", "data", "weights")
LIMIT = 64 * 2**20
"""Bytes that fit into one transfer, together with the tracked files of this repository."""
PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{number}_x86_64" for number in (34, 28, 27, 17)] + ["manylinux2014_x86_64"]
PINNED = {"stringzilla": "stringzilla==3.12.5"}
"""Older releases that are a tenth as large and suffice."""
EXTRA = ("pytest", "segmentation-models-pytorch")
"""Needed beside the package's own requirements."""


def pack(folder: Path, source: Path, grid: Path, installed: Path, items: list[str]) -> None:
    """Collect the items and print their sizes.

    Args:
        folder: Receives `wheels/`, `data/` and `weights/`.
        source: Has `data/` and `weights/`, to which the grid's paths are relative.
        grid: The ablation whose data and weights are needed.
        installed: Names of packages that the machine has, one per line.
        items: What to collect; what is left out has to travel separately.

    Raises:
        SystemExit: It is more than fits into one transfer.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    base = load_yaml(grid)["base"]
    config = include_yaml(load_yaml(grid.parent / base), (grid.parent / base).parent)
    if "wheels" in items:
        wheels(folder / "wheels", set(installed.read_text().split()))
    if "data" in items:
        data(folder, source, config)
    if "weights" in items:
        modules = [f"weights/{name.partition(':')[0]}.py" for name in config["network"]["branches"] if ":" in name]
        for path in [*config["network"]["pretrained"], *modules]:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, folder / path)
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True, text=True).stdout
    sizes = {"this repository": sum(Path(path).stat().st_size for path in listed.split("\0") if Path(path).is_file())}
    for item in items:
        sizes[item] = sum(path.stat().st_size for path in (folder / item).rglob("*") if path.is_file())
    for item, size in {**sizes, "total": sum(sizes.values())}.items():
        print(f"{item:16} {size / 2**20:6.1f} MiB")
    if sum(sizes.values()) > LIMIT:
        raise SystemExit(
            f"got {sum(sizes.values()) / 2**20:.1f} MiB, expected at most {LIMIT // 2**20}. Leave weights to a second "
            "transfer with --items wheels data."
        )


def wheels(folder: Path, installed: set[str]) -> None:
    """Download the wheels of all requirements that are not installed there, in the versions installed here."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = missing([*project["dependencies"], *EXTRA], {canonicalize_name(name) for name in installed})
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    command += ["--python-version", PYTHON, "--implementation", "cp"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*map(str, command), *wanted], check=True, stderr=subprocess.DEVNULL)
    print(*sorted(path.name for path in folder.iterdir()), sep="\n")


def missing(requirements: list[str], installed: set[str]) -> list[str]:
    """Return `name==version` of the requirements, and theirs, that are not installed on the other machine.

    Args:
        requirements: Requirements as in pyproject.toml.
        installed: Canonical names of what is installed there.
    """
    found: dict[str, str] = {}
    todo = [Requirement(each) for each in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in installed or name in found:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"got no {name} here, expected the version to pack. Install it first.") from None
        found[name] = PINNED.get(name, f"{name}=={here.version}")
        for each in map(Requirement, here.requires or []):
            environments = [{"extra": extra, "python_version": PYTHON} for extra in ("", *requirement.extras)]
            if each.marker is None or any(map(each.marker.evaluate, environments)):
                todo.append(each)
    return sorted(found.values())


def data(folder: Path, source: Path, config: dict[str, Any]) -> None:
    """Copy CamVid's lists, and the images and masks that they name."""
    root = config["data"]["dataset"]["init_args"]["root"]
    dataset = CamVid(str(source / root))
    paths = [Path(f"{split}.txt") for split in ("train", "val", "test")]
    for split in ("train", "val", "test"):
        for sample in dataset.samples(split):
            assert isinstance(sample, FileSample) and sample.mask_path
            paths += [Path(path).relative_to(source / root) for path in (sample.image_path, sample.mask_path)]
    for path in paths:
        target = folder / root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / root / path, target)

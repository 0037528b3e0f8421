"""What several test files share: seeded tests on one thread, and a small pair of branches.

Imports that take long wait for the tests: xdist's first process, which runs none, needs none of them.
"""

import gc
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from crosscoop.network import CooperativeNetwork

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and elsewhere: another number rounds differently


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Let one more process than there are cores run tests, as some tests wait; each needs a gigabyte."""
    return min((os.cpu_count() or 1) + 1, 4)


@cache
def _commands() -> tuple[Any, ...]:
    """What runs a command or starts a process. A test that reaches none of these is a unit test."""
    import tiny
    from processes import Python, in_ranks

    from crosscoop import cli

    return cli.main, tiny.crosscoop, Python, in_ranks, subprocess


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let tests of GPUs run on the CPU, as a rehearsal."""
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"), help="where the tests marked gpu run")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Where tests marked gpu run."""
    import torch  # as late as a test needs it

    device: str = request.config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use; --device cpu rehearses")
    return device


@pytest.fixture(scope="module")
def browser() -> "Iterator[Chrome]":
    """A headless Chromium; what its console shows is in its log."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium, or no chromedriver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield browser
    browser.quit()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run commands or start processes, themselves or by way of a helper or a fixture."""
    seen: dict[Any, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function):
            fixtures = (getattr(item.module, name, None) for name in item.fixturenames)
            if any(_runs_commands(each, seen) for each in (item.obj, *fixtures)):
                item.add_marker(pytest.mark.command)


def pytest_collection_finish() -> None:
    """Leave what the tests import out of garbage collection, which took a tenth of their time."""
    gc.freeze()


def _runs_commands(function: Any, seen: dict[Any, bool]) -> bool:
    if any(function is each for each in _commands()):
        return True
    function = inspect.unwrap((getattr(function, "hypothesis", None) and function.hypothesis.inner_test) or function)
    if not inspect.isfunction(function) or Path(__file__).parent not in Path(function.__code__.co_filename).parents:
        return False
    if function not in seen:
        seen[function] = False
        names = set(_names(function.__code__))
        used = [function.__globals__[name] for name in names & function.__globals__.keys()]
        modules = [vars(each) for each in used if inspect.ismodule(each)]
        used += [module[name] for module in modules for name in names & module.keys()]
        seen[function] = any(_runs_commands(each, seen) for each in used)
    return seen[function]


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function and the functions inside it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_own_modules() -> Iterator[None]:
    """Let the next test's `my_loss.py` be imported: it is another file of the same name."""
    yield
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.fixture
def make_pair() -> "Callable[..., CooperativeNetwork]":
    """Makes a cooperative network of 0.4 M parameters a branch; random in every parameter and every statistic, so
    that none is at a value (0, 1, an average) where a mistake would not show.
    """
    import torch

    from crosscoop.network import create_network

    def make(strategy: Any = "cross_c1_c2", fusion: Any = "add", **options: Any) -> "CooperativeNetwork":
        options = {"branches": ["test_resnet", "test_byobnet"], "num_classes": 5, "channels": 16, **options}
        network = create_network(strategy=strategy, fusion=fusion, **options)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.1 * torch.randn_like(buffer))
                if name.endswith("running_var"):
                    buffer.mul_(1 + 0.5 * torch.rand_like(buffer))
        return network.eval()

    return make

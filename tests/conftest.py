"""What every test shares: a fixed seed, a Hypothesis profile, no waiting, and a way to switch the shape checker off."""

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator

import jaxtyping
import pytest
import torch
from hypothesis import settings

# The same examples on every run: a test that fails once fails always. `deadline` would measure the machine.
settings.register_profile("prenorm", derandomize=True, deadline=None, max_examples=40, database=None)
settings.load_profile("prenorm")

# Here os.fsync only checks that its descriptor is open, so that no test waits for the disk. What a save must sync, and
# that a power cut then loses nothing, is tested in processes of their own, by tests/faults.
vars(os)["fsync"] = os.fstat

# Without a GPU, torch.manual_seed would only queue a call for one that may appear later, with a traceback.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        vars(device)["manual_seed_all"] = lambda seed: None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays, so the garbage collector looks at none of it: not during the imports, nor in a test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(k)` make test runs every k-th case, and make test-long the others."""
    cases: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None or item.get_closest_marker("slow"):
            continue
        test = item.nodeid.partition("[")[0]
        if cases[test] % mark.args[0]:
            item.add_marker(pytest.mark.long)
        cases[test] += 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C work even if the tests were started in the background, where SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """As for a user: without jaxtyping's checker, which answers before our own errors and cannot be compiled.

    Nothing is compiled yet: torch compiles one function for a few different calls only, and takes jaxtyping's wrapper
    around each of ours for one function.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

"""The confined child: it takes requests from a pipe, lets the driver carry them out, and writes the replies."""

import importlib.machinery
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Sequence
from functools import partial
from typing import Any

from . import wire
from .confine import Plan, confine
from .driver import Driver
from .errors import described
from .supervisor import REPLIES, REQUESTS, STATUS


def work(plan: Plan, package: str | None, has_namespaces: bool) -> None:
    """Confine this process, then answer requests until there are no more.

    package: the folder of prenorm, where it shall be importable.
    """
    try:
        lines = confine(plan, has_namespaces=has_namespaces)
    except BaseException as error:
        _status({"failed": f"{type(error).__name__}: {error}"})
        return
    os.chdir(plan.scratch)
    os.environ["HOME"] = os.environ["TMPDIR"] = plan.scratch
    tempfile.tempdir = None
    _decide_about_prenorm(package)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed before a crash is kept
    _status({"confinement": lines})
    os.close(STATUS)
    driver = Driver()
    while (request := wire.read(partial(os.read, REQUESTS), plan.limits.reply)) is not None:
        _send(_encoded(driver.handle(request)))


def _status(report: dict[str, Any]) -> None:
    os.write(STATUS, json.dumps(report).encode() + b"\n")


def _encoded(reply: dict[str, Any]) -> bytes:
    try:
        return wire.encode(reply)
    except BaseException as error:  # a tensor without data, say, or one of a class that fights back
        failed = described(error)
    try:
        return wire.encode({"error": failed})
    except BaseException:
        return wire.encode({"error": {"type": "Error", "message": "(it cannot be shown)", "frames": []}})


def _send(frame: bytes) -> None:
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(REPLIES, rest) :]


def _decide_about_prenorm(package: str | None) -> None:
    """Find prenorm in package and nowhere else; without one, nowhere."""
    if package is None:
        sys.modules["prenorm"] = None  # type: ignore[assignment]  # import says so at once; it is unreadable as well
    else:
        sys.meta_path.insert(0, _Finder(package))


class _Finder:
    """Imports prenorm from its own folder, without making anything beside that folder importable."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "prenorm":
            return None
        source = os.path.join(self._package, "__init__.py")
        return importlib.util.spec_from_file_location(name, source, submodule_search_locations=[self._package])

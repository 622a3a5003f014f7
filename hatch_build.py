"""Puts the C++ kernels into the wheel where PRENORM_WHEEL names the platform that it is for, as `make wheel` does.

Without it the wheel holds the sources alone, and the kernels are built at first use.
"""

import importlib.util
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "src/prenorm/kernels/cpu"


class KernelsHook(BuildHookInterface[Any]):
    """A library for each set of instructions, and a wheel for one platform and every version of Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        platform = os.environ.get("PRENORM_WHEEL")
        if not platform or version == "editable":
            return
        build = _load(Path(self.root, KERNELS, "build.py"))
        command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
        self.scratch = tempfile.TemporaryDirectory(prefix="prenorm-wheel-")
        for isa in build.SHIPPED:
            folder = Path(self.scratch.name, isa)
            folder.mkdir()
            library = build.build(build.sources(), build.LEVELS[isa], command, folder, (*build.WARNINGS, "-s"))
            build_data["force_include"][str(library)] = f"prenorm/kernels/cpu/libraries/{isa}.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "scratch"):
            self.scratch.cleanup()


def _load(path: Path) -> Any:
    """A module of the package, without the package: what it needs is not installed here."""
    spec = importlib.util.spec_from_file_location("prenorm_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

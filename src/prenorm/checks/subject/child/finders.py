"""Where imports of a learner's find what lies beside the file, and the version of a project that is not installed."""

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class Beside(importlib.abc.MetaPathFinder):
    """Finds the learner's packages and files that lie beside what is under test."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        place = self._places.get(name)
        if place is None or path is not None:
            return None
        if place.endswith(".py"):
            return importlib.util.spec_from_file_location(name, place)
        init = os.path.join(place, "__init__.py")
        if os.path.isfile(init):
            return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[place])
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [place]
        return spec


_ANY = importlib.metadata.DistributionFinder.Context()


class Distributions(importlib.metadata.DistributionFinder):
    """What a project says of itself, where it is not installed: its version."""

    def __init__(self, versions: Mapping[str, str]) -> None:
        self._versions = {_normal(name): (name, version) for name, version in versions.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """No module comes from here."""

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context = _ANY
    ) -> Iterator[importlib.metadata.Distribution]:
        """The one of that name."""
        if context.name is not None and (found := self._versions.get(_normal(context.name))) is not None:
            yield _Distribution(*found)


class _Distribution(importlib.metadata.Distribution):
    def __init__(self, name: str, version: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename in ("METADATA", "PKG-INFO") else None

    def locate_file(self, path: Any) -> Any:
        return Path(os.devnull)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

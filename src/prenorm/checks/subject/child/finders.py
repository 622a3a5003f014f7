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


class Texts(importlib.abc.MetaPathFinder):
    """Finds modules whose text is given, by the file that they would be read from, in this folder and those in it."""

    def __init__(self, folder: str, texts: Mapping[str, str]) -> None:
        self._folder, self._texts = folder, texts

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        for folder in [self._folder] if path is None else path:
            place = os.path.join(folder, name.rpartition(".")[2])
            for file, inner in ((os.path.join(place, "__init__.py"), [place]), (f"{place}.py", None)):
                if file in self._texts:
                    loader = _TextLoader(file, self._texts[file])
                    return importlib.util.spec_from_file_location(
                        name, file, loader=loader, submodule_search_locations=inner
                    )
            if not os.path.isdir(place) and any(file.startswith(place + os.sep) for file in self._texts):
                spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = [place]
                return spec
        return None


class _TextLoader(importlib.abc.SourceLoader):
    def __init__(self, file: str, text: str) -> None:
        self._file, self._text = file, text

    def get_filename(self, fullname: str) -> str:
        return self._file

    def get_data(self, path: Any) -> bytes:
        return self._text.encode()


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

"""What to import for "FILE.py:CLASS" or "package.module:CLASS", found without running it, and without torch."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """What to import: module from root, or the file as module, and the name in it."""

    root: str
    module: str
    file: str | None
    name: str


def locate(subject: str) -> Code:
    """What to import for "FILE.py:CLASS" or "package.module:CLASS", found without running it."""
    where, colon, name = subject.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"a block is named as FILE.py:CLASS or package.module:CLASS, but {subject!r} is not.")
    path = Path(where)
    if path.is_file() and path.suffix != ".py":
        raise ConfigError(f"a file to judge ends in .py, but {where} does not; rename it.")
    if where.endswith(".py") or "/" in where:
        if not path.is_file():
            raise ConfigError(f"there is no file {where}.")
        return _in_file(path.resolve(), name)
    root = Path.cwd()
    if Path(where).is_dir() and not re.fullmatch(r"\w+(\.\w+)*", where):
        raise ConfigError(f"{where} is a folder; --batch {where} judges all that is in it.")
    try:
        spec = importlib.util.find_spec(where.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        root = folder.parent if spec.submodule_search_locations else folder
        inside = Path(root, *where.split("."))
        if "." in where and not inside.is_dir() and not list(inside.parent.glob(f"{inside.name}.*")):
            raise ConfigError(f"there is no module {where}: the package is there, but not {inside}.py.")
    elif not (root / where.replace(".", "/")).exists() and not (root / (where.replace(".", "/") + ".py")).exists():
        raise ConfigError(f"there is no module {where}; a file is named as FILE.py:CLASS.")
    return Code(root=str(root), module=where, file=None, name=name)


def _in_file(path: Path, name: str) -> Code:
    """A file of a package is imported as part of it, so that its relative imports work."""
    root, module = path.parent, re.sub(r"\W", "_", path.stem)
    while (root / "__init__.py").is_file():
        root, module = root.parent, f"{root.name}.{module}"
    return Code(root=str(root), module=module, file=str(path), name=name)

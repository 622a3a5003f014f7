"""`check("FILE.py:CLASS")`: the verdict on somebody else's block, whose code runs in a sandbox."""

import dataclasses
import importlib.util
import re
from pathlib import Path

from ..errors import ConfigError
from .judge import Code, judge
from .learner import MissingError
from .sandbox import Sandbox
from .targets import TARGETS
from .verdict import Verdict


def check(
    subject: str, *, target: str | None = None, seconds: float = 60.0, prenorm_importable: bool = True
) -> Verdict:
    """The verdict on "FILE.py:CLASS" or "package.module:CLASS".

    Raises ConfigError when there is nothing to judge: no such file, module, class or target.
    """
    if target is not None and target not in TARGETS:
        raise ConfigError(f"a target is one of {', '.join(TARGETS)}, but {target!r} is none.")
    code = locate(subject)
    with Sandbox(Path(code.root), seconds=seconds, prenorm_importable=prenorm_importable) as sandbox:
        try:
            verdict = judge(sandbox, code, target=target, deadline=sandbox.deadline)
        except MissingError as error:
            names = ", ".join(error.names) or "none"
            raise ConfigError(f"{subject}: there is no {code.name!r}; of its own it has: {names}.") from None
        return dataclasses.replace(verdict, subject=subject, confinement=sandbox.confinement)


def locate(subject: str) -> Code:
    """What to import for "FILE.py:CLASS" or "package.module:CLASS", found without running it."""
    where, colon, name = subject.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"a block is named as FILE.py:CLASS or package.module:CLASS, but {subject!r} is not.")
    if where.endswith(".py") or "/" in where:
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"there is no file {where}.")
        return _in_file(path.resolve(), name)
    root = Path.cwd()
    try:
        spec = importlib.util.find_spec(where.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        root = folder.parent if spec.submodule_search_locations else folder
    elif not (root / where.replace(".", "/")).exists() and not (root / (where.replace(".", "/") + ".py")).exists():
        raise ConfigError(f"there is no module {where}; a file is named as FILE.py:CLASS.")
    return Code(root=str(root), module=where, file=None, name=name)


def _in_file(path: Path, name: str) -> Code:
    """A file of a package is imported as part of it, so that its relative imports work."""
    root, module = path.parent, re.sub(r"\W", "_", path.stem)
    while (root / "__init__.py").is_file():
        root, module = root.parent, f"{root.name}.{module}"
    return Code(root=str(root), module=module, file=str(path), name=name)

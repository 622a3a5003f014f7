"""A learner's progress, in one small JSON file.

It is a record and not a certificate: editing it gains nothing, because a passed build holds only for the layers.py with
that hash, and the code is run to see whether the planted fault is fixed. The file is never half written, and reveals
the planted fault only as a salted hash.
"""

import hashlib
import json
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import GenericAlias
from typing import Any, get_origin

from ..errors import ConfigError

VERSION = 1


@dataclass(slots=True)
class Planted:
    """A fault in harden/layers.py: the file as it was planted, and which fault, salted and hashed."""

    sha256: str
    salt: str
    fault: str
    failed_attempts: int = 0


@dataclass(slots=True)
class OpenQuestion:
    """An unanswered question: its kind, and its numbers."""

    id: str
    kind: str
    numbers: dict[str, Any]


@dataclass(slots=True)
class Progress:
    """What was passed, and what is open."""

    build_sha256: str | None = None  # of the layers.py that passed
    attempts: int = 0  # how often questions were drawn
    questions: list[OpenQuestion] = field(default_factory=list)
    justify_passed: bool = False
    planted: Planted | None = None
    harden_passed: bool = False

    def build_passed(self, layers: Path) -> bool:
        """Whether this very file passed."""
        return self.build_sha256 is not None and self.build_sha256 == file_hash(layers)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(progress: Progress, path: Path) -> None:
    """Replace the file in one step, so that readers see the old one or the new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_text(json.dumps({"version": VERSION, **asdict(progress)}, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def load(path: Path) -> Progress:
    """Read the file. Raises ConfigError with the damaged line and a way out."""
    way_out = f"correct it, or write {{}} into {path} to start again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path.name} is not JSON (line {error.lineno}: {error.msg}); {way_out}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is no UTF-8 text; {way_out}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} must hold an object, but it holds a {type(content).__name__}; {way_out}.")
    version = content.pop("version", VERSION)
    if version != VERSION:
        raise ConfigError(
            f"{path.name} was written in version {version!r}, but this prenorm reads version {VERSION}; "
            f"install the one that wrote it, or {way_out}."
        )
    try:
        return _read(content)
    except TypeError as error:
        raise ConfigError(f"{path.name} makes no sense: {error}; {way_out}.") from error


def _read(content: dict[str, Any]) -> Progress:
    questions, planted = content.pop("questions", []), content.pop("planted", None)
    _check(Progress, {**content, "questions": questions})
    for one in questions:
        _check(OpenQuestion, one)
    if planted is not None:
        _check(Planted, planted)
    return Progress(
        **content,
        questions=[OpenQuestion(**one) for one in questions],
        planted=None if planted is None else Planted(**planted),
    )


def _check(record: type, content: Any) -> None:
    """Raise TypeError for names that are unknown or missing, and for values of another kind."""
    if not isinstance(content, dict):
        raise TypeError(f"{content!r} stands where an object should")
    for one in fields(record):
        if one.default is MISSING and one.default_factory is MISSING and one.name not in content:
            raise TypeError(f"{one.name} is missing in {content}")
    known = {one.name: one.type for one in fields(record)}
    for name, value in content.items():
        if name not in known:
            raise TypeError(f"it has {name!r}, which is none of {', '.join(known)}")
        kind: Any = get_origin(known[name]) if isinstance(known[name], GenericAlias) else known[name]
        if not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}, which is no {getattr(kind, '__name__', kind)}")

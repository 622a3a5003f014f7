"""Finding and reading text: which documents there are, in an order that no file system changes."""

import json
import os
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError

Say = Callable[[str], None]

# In Python's own library these folders hold what was installed or compiled later.
NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}

# A folder with these is a run: its metrics and vocabulary are no text to learn from.
RUN_FILES = {"config.toml", "metrics.jsonl"}


class Document(NamedTuple):
    """A text and its name: its path below the root that was given, with :index for a line or a row of a file."""

    name: str
    text: str


class Source(NamedTuple):
    """A file that was found, and whether somebody named it: then a fault in it is an error, and not passed over."""

    name: str
    path: Path
    named: bool


class Corpus:
    """Every document below some files and folders, sorted by name. It can be gone through again and again.

    Without paths: the source of Python's own standard library. A folder gives all its files that are UTF-8 text, but
    hidden ones, those of runs, and `leave_out`; others are counted in `skipped`. `.jsonl` gives a document a line,
    `.parquet` one a row. Raises DataError for a path that is missing, and for a fault in a file that was named.
    """

    def __init__(self, paths: Sequence[str] = (), *, leave_out: Path | None = None) -> None:
        self.skipped: Counter[str] = Counter()
        if paths:
            found = [source for path in paths for source in _find(Path(path))]
        else:
            found = [source for source in _find(Path(sysconfig.get_path("stdlib"))) if source.path.suffix == ".py"]
        if leave_out:
            found = [source for source in found if leave_out.resolve() not in source.path.resolve().parents]
        self.sources = sorted(found, key=lambda source: (source.name, str(source.path)))

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        for source in self.sources:
            match source.path.suffix.lower():
                case ".jsonl":
                    yield from self._numbered(source, _jsonl_texts(source.path))
                case ".parquet":
                    yield from self._numbered(source, _parquet_texts(source.path))
                case _:
                    text, fault = _read(source.path)
                    if not fault:
                        yield Document(source.name, text)
                    elif source.named:
                        raise DataError(f"{source.path} cannot be trained on: it is {fault}; name another file.")
                    else:
                        self.skipped[fault] += 1

    def _numbered(self, source: Source, texts: Iterator[str]) -> Iterator[Document]:
        for index, text in enumerate(texts):
            if text:
                yield Document(f"{source.name}:{index}", text)
            else:
                self.skipped["empty"] += 1


def _find(root: Path) -> list[Source]:
    if root.is_dir():
        return [
            Source((Path(folder) / name).relative_to(root).as_posix(), Path(folder) / name, named=False)
            for folder, folders, names in os.walk(root)
            for name in _visible(folders, names)
        ]
    if not root.exists():
        raise DataError(f"there is no file or folder at {root}; --data takes paths that exist.")
    return [Source(root.name, root, named=True)]


def _visible(folders: list[str], names: list[str]) -> list[str]:
    """The files of a folder that is walked, which then descends into those that are left in `folders`."""
    if set(names) >= RUN_FILES:
        folders.clear()
        return []
    folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_OURS]
    return [name for name in names if not name.startswith(".")]


def _read(path: Path) -> tuple[str, str]:
    """The text of a file and nothing, or nothing and what is wrong with it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "", "not a regular file"
        raw = path.read_bytes()
    except OSError as error:
        return "", f"unreadable ({error.strerror})"
    if not raw.strip():
        return "", "empty"
    if b"\0" in raw:
        return "", "binary"
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return "", "not UTF-8"


def _jsonl_texts(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_text(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _json_text(line: bytes, where: str) -> str:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from error
    return _text_field(record.get("text") if isinstance(record, dict) else None, where)


def _text_field(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise DataError(f'{where} must be an object with a string named "text", such as {{"text": "Once"}}.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has half of a surrogate pair in its text, which no UTF-8 file can hold.") from error
    return text


def _parquet_texts(path: Path) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'prenorm[parquet]'.") from error
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataError(f"{path} must have a column named text, but has {', '.join(file.schema_arrow.names)}.")
            row = 0
            for batch in file.iter_batches(columns=["text"]):
                for text in batch.column(0).to_pylist():
                    yield _text_field("" if text is None else text, f"{path}, row {row}")
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error

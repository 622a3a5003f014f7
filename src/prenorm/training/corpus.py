"""Reading text: which documents there are, in an order that no file system changes, and what had to be skipped."""

import codecs
import json
import stat
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from .sources import LeftOut, Source, find_sources

Say = Callable[[str], None]

EMPTY = "empty"
NOT_THERE = object()  # in place of a text: null is one that is empty


class Document(NamedTuple):
    """A text and its name: its path below the root that was given, with :index for a line or a row of a file."""

    name: str
    text: str


class Fault(NamedTuple):
    """Why a file, a line or a row is no document: in a word, and as the end of a sentence about it; its size."""

    reason: str
    sentence: str
    bytes: int = 0


class Corpus:
    """Every document below some files and folders, sorted by name. It can be gone through again and again.

    Without paths: the source of Python's own standard library. A folder gives all its files that `find_sources` finds.
    A file is one document of UTF-8 text; `.jsonl` gives one a line, `.parquet` one a row. A byte order mark is no part
    of a text. A text that is missing (null) or only white space is no document, in every format.

    A fault is an error in a file that was named. Below a folder it is counted, and the rest is read: `skipped` has how
    many files, lines and rows, by reason, `first` the first of each, `skipped_bytes` their size. `left_out` counts what
    no rule finds in a folder, such as hidden files; `files` how many files gave a document.
    Raises DataError for a path that is missing, and for a fault in a file that was named.
    """

    def __init__(self, paths: Sequence[str] = (), *, leave_out: Path | None = None) -> None:
        roots = [Path(path) for path in paths] or [Path(sysconfig.get_path("stdlib"))]
        found = find_sources(roots, leave_out=leave_out)
        self.sources = [source for source in found.sources if paths or source.path.suffix == ".py"]
        self.left_out = Counter(reason for _, reason in found.left_out if paths)
        self.skipped: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.skipped_bytes = self.files = 0
        self._unreadable: list[LeftOut] = found.unreadable

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        self.first.clear()
        self.skipped_bytes = self.files = 0
        for name, reason in self._unreadable:
            self._skip(name, Fault(reason, ""))
        for source in self.sources:
            for number, document in enumerate(self._documents(source)):
                self.files += number == 0
                yield document

    def _documents(self, source: Source) -> Iterator[Document]:
        for index, (place, found) in enumerate(_texts(source.path)):
            if isinstance(found, Fault):
                if source.named and not (place and found.reason == EMPTY):
                    raise DataError(f"{source.path}{place} {found.sentence}")
                self._skip(source.name + place, found)
            else:
                yield Document(f"{source.name}:{index}" if place else source.name, found)

    def _skip(self, name: str, fault: Fault) -> None:
        self.skipped[fault.reason] += 1
        self.first.setdefault(fault.reason, name)
        self.skipped_bytes += fault.bytes


Texts = Iterator[tuple[str, str | Fault]]  # where in the file, such as ", line 3", and what is there


def _texts(path: Path) -> Texts:
    """What a file gives: at least one text or fault."""
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(path.suffix.lower(), _plain)
    size, is_empty = 0, True
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            yield "", _file_fault("not a regular file")
            return
        for found in read(path, size):
            is_empty = False
            yield found
        if is_empty:
            yield "", _file_fault(EMPTY, size)
    except OSError as error:
        yield "", _file_fault(f"unreadable ({error.strerror or error})", size)


def _file_fault(reason: str, size: int = 0) -> Fault:
    return Fault(reason, f"cannot be trained on: it is {reason}; name another file.", size)


def _utf16_fault(start: bytes, size: int) -> Fault | None:
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    sentence = "cannot be trained on: it is not UTF-8 but UTF-16; iconv -f UTF-16 -t UTF-8 makes it what it must be."
    return Fault("not UTF-8 but UTF-16", sentence, size)


def _checked(text: str, size: int) -> str | Fault:
    return text if text.strip() else _file_fault(EMPTY, size)


def _plain(path: Path, size: int) -> Texts:
    raw = path.read_bytes()
    if fault := _utf16_fault(raw, size):
        yield "", fault
    elif b"\0" in raw:
        yield "", _file_fault("binary", size)
    else:
        try:
            yield "", _checked(raw.decode("utf-8-sig"), size)
        except UnicodeDecodeError:
            yield "", _file_fault("not UTF-8", size)


def _jsonl(path: Path, size: int) -> Texts:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and (fault := _utf16_fault(line, size)):
                yield "", fault
                return
            if line.strip():
                yield f", line {number}", _json_text(line)


def _json_text(line: bytes) -> str | Fault:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", f"is not JSON: {error}.", len(line))
    is_object = isinstance(record, dict) and "text" in record
    return _text_field(record["text"] if is_object else NOT_THERE, len(line))


def _text_field(text: Any, size: int) -> str | Fault:
    if text is None:
        return _file_fault(EMPTY, size)
    if not isinstance(text, str):
        example = 'must be an object with a string named "text", such as {"text": "Once"}.'
        return Fault("without a text", example, size)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        sentence = "has half of a surrogate pair in its text, which no UTF-8 file can hold."
        return Fault("half of a surrogate pair", sentence, size)
    return _checked(text, size)


def _parquet(path: Path, size: int) -> Texts:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'prenorm[data]'.") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                yield (
                    "",
                    Fault(
                        "without a text", f"must have a column named text, but has {', '.join(names) or 'none'}.", size
                    ),
                )
                return
            row = 0
            for batch in file.iter_batches(columns=["text"]):
                for value in batch.column(0):
                    yield f", row {row}", _parquet_text(value)
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        yield "", Fault("not parquet", f"cannot be read as parquet: {error}", size)


def _parquet_text(value: Any) -> str | Fault:
    try:
        return _text_field(value.as_py(), 0)
    except UnicodeDecodeError as error:
        return Fault("not UTF-8", f"has a text that is not UTF-8: {error}.")

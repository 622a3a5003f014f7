"""What is in a file: a text, a text or a conversation a line (.jsonl) or a row (.parquet); or why there is none."""

import codecs
import hashlib
import io
import itertools
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError
from .compressed import Damaged, content_suffix, open_plain
from .conversations import Conversation, conversation
from .faults import EMPTY, Fault, file_fault, surrogates_fault

NOT_THERE = object()  # in place of a text: null is one that is empty

WHOLE = -1  # the place of a document that is a whole file

LARGE = 1 << 22  # bytes: a file of text that has as many is never in memory as a whole
CHUNK = 1 << 20  # bytes of it that are
LONGEST_LINE = 1 << 28  # bytes of a line of .jsonl


class NotUtf8(Exception):
    """A file is no UTF-8, which shows in the last of `read` bytes."""

    def __init__(self, cause: UnicodeDecodeError, read: int) -> None:
        super().__init__(str(cause))
        self.cause, self.read = cause, read


class LargeText(NamedTuple):
    """The characters from `start` to `stop` of a file of text that was looked through, and is read when it is used.

    `sha256` is that of the whole text in UTF-8, `bytes` its size.
    """

    path: Path
    start: int
    stop: int
    sha256: bytes
    bytes: int

    def chunks(self) -> Iterator[str]:
        """The text in pieces. Raises DataError when the file is no longer what it was."""
        place = 0
        try:
            for chunk in _decoded(self.path):
                if piece := chunk[max(0, self.start - place) : max(0, self.stop - place)]:
                    yield piece
                place += len(chunk)
                if place >= self.stop:
                    return
        except (NotUtf8, Damaged, OSError) as error:
            raise DataError(f"{self.path} changed while it was being read; start again when it is at rest.") from error


Content = str | LargeText | Conversation


def chunks(text: str | LargeText) -> Iterator[str]:
    """A text in pieces of any size."""
    return iter([text]) if isinstance(text, str) else text.chunks()


def part(text: str | LargeText, start: int, stop: int) -> str | LargeText:
    """The characters of a text from `start` to `stop`."""
    if isinstance(text, str):
        return text[start:stop]
    return text._replace(start=text.start + start, stop=text.start + stop)


def num_characters(text: str | LargeText) -> int:
    """The length of a text."""
    return len(text) if isinstance(text, str) else text.stop - text.start


def place_in(path: Path | str, place: int) -> str:
    """A place in a file as people count it: ", line 3", ", row 0", or nothing for the whole file."""
    if place == WHOLE:
        return ""
    return f", row {place}" if content_suffix(Path(path)) == ".parquet" else f", line {place}"


Contents = Iterator[tuple[int, Content | Fault]]  # a line from 1 on, a row from 0 on, or WHOLE; and what is there


def contents(path: Path) -> Contents:
    """What a file gives: at least one document or fault."""
    read = {".jsonl": _jsonl, ".parquet": _parquet}.get(content_suffix(path), _plain)
    size, is_empty = 0, True
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            yield WHOLE, file_fault("not a regular file")
            return
        for found in read(path, size):
            is_empty = False
            yield found
        if is_empty:
            yield WHOLE, file_fault(EMPTY, size)
    except Damaged as damage:
        yield WHOLE, file_fault(str(damage), size)
    except OSError as error:
        yield WHOLE, file_fault(f"unreadable ({error.strerror or error})", size)


def _utf16_fault(start: bytes, size: int) -> Fault | None:
    if not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    sentence = "cannot be trained on: it is not UTF-8 but UTF-16; iconv -f UTF-16 -t UTF-8 makes it what it must be."
    return Fault("not UTF-8 but UTF-16", sentence, size)


def _checked(text: str, size: int) -> str | Fault:
    return text if text.strip() else file_fault(EMPTY, size)


def _plain(path: Path, size: int) -> Contents:
    with open_plain(path) as file:
        raw = file.read(LARGE)
    if fault := _utf16_fault(raw, size):
        yield WHOLE, fault
    elif b"\0" in raw:
        yield WHOLE, file_fault("binary", size)
    else:
        try:
            yield WHOLE, _large(path, size) if len(raw) == LARGE else _checked(raw.decode("utf-8-sig"), size)
        except UnicodeDecodeError as error:
            yield WHOLE, _not_utf8(error, len(raw), size)


def _not_utf8(error: UnicodeDecodeError, read: int, size: int) -> Fault:
    """read: how many bytes of the file there are up to the end of those that were decoded."""
    place = read - len(error.object) + error.start
    sentence = (
        f"cannot be trained on: it is not UTF-8, at byte {place:,} ({error.object[error.start]:#x}); iconv -f ENCODING "
        "-t UTF-8 makes it what it must be."
    )
    return Fault("not UTF-8", sentence, size)


def _large(path: Path, size: int) -> LargeText | Fault:
    """A large text after a look through all of it, since a fault at its end must be known before its start is used."""
    characters, num_bytes, is_empty, hasher = 0, 0, True, hashlib.sha256()
    try:
        for chunk in _decoded(path):
            if "\0" in chunk:
                return file_fault("binary", size)
            raw = chunk.encode("utf-8")
            hasher.update(raw)
            characters += len(chunk)
            num_bytes += len(raw)
            is_empty = is_empty and not chunk.strip()
    except NotUtf8 as error:
        return _not_utf8(error.cause, error.read, size)
    return file_fault(EMPTY, size) if is_empty else LargeText(path, 0, characters, hasher.digest(), num_bytes)


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file in pieces. Raises NotUtf8."""
    decoder, read = codecs.getincrementaldecoder("utf-8-sig")(), 0
    with open_plain(path) as file:
        while True:
            raw = file.read(CHUNK)
            read += len(raw)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise NotUtf8(error, read) from error
            yield text
            if not raw:
                return


def _jsonl(path: Path, size: int) -> Contents:
    with open_plain(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1 and (fault := _utf16_fault(line, size)):
                yield WHOLE, fault
                return
            if len(line) > LONGEST_LINE:
                yield number, Fault("too long a line", f"must have at most {LONGEST_LINE:,} bytes.", len(line))
            elif line.strip():
                yield number, _json_content(line)


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, the start."""
    while line := file.readline(LONGEST_LINE + 1):
        yield line
        while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE + 1)


def _json_content(line: bytes) -> str | Conversation | Fault:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault("not JSON", f"is not JSON: {error}.", len(line))
    return _record_content(record if isinstance(record, dict) else {}, len(line))


def _record_content(record: dict[str, Any], size: int) -> str | Conversation | Fault:
    """The text of a record, else its conversation."""
    if "messages" in record and not isinstance(record.get("text"), str):
        return conversation(record["messages"], record.get("tools") or [], size)
    text = record.get("text", NOT_THERE)
    if text is None:
        return file_fault(EMPTY, size)
    if not isinstance(text, str):
        found = "no string there" if "text" in record else _listed(record)
        sentence = (
            f'must be an object with a string named "text", or with "messages", but has {found}; give one that name.'
        )
        return Fault("without a text", sentence, size)
    return surrogates_fault(text, size) or _checked(text, size)


def _listed(names: Iterable[str]) -> str:
    """Some names of fields, for a message."""
    return ", ".join(map(repr, itertools.islice(names, 10)))[:300] or "none"


def _parquet(path: Path, size: int) -> Contents:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'prenorm[data]'.") from error
    if path.suffix.lower() != ".parquet":
        yield WHOLE, Fault("compressed parquet", "is compressed within already: decompress it and name that.", size)
        return
    try:
        # A buffer, and few rows at a time: else the whole of a row group would be in memory.
        with parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
            names = file.schema_arrow.names
            columns = [name for name in ("text", "messages", "tools") if name in names]
            if columns in ([], ["tools"]):
                sentence = f"must have a column named text or messages, but has {_listed(names)}."
                yield WHOLE, Fault("without a text", sentence, size)
                return
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for values in zip(*batch.columns, strict=True):
                    yield row, _parquet_content(dict(zip(batch.schema.names, values, strict=True)))
                    row += 1
    except (OSError, pyarrow.ArrowException) as error:
        yield WHOLE, Fault("not parquet", f"cannot be read as parquet: {error}", size)


def _parquet_content(row: Mapping[str, Any]) -> str | Conversation | Fault:
    try:
        read = {name: value.as_py() for name, value in row.items()}
        return _record_content({name: read[name] if name == "text" else _as_json(read[name]) for name in read}, 0)
    except UnicodeDecodeError as error:
        return Fault("not UTF-8", f"has a text that is not UTF-8: {error}.")


def _as_json(value: Any) -> Any:
    """A value as JSON has it, without fields that are null: a column's objects have the fields of all."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items() if each is not None or name == "content"}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return value if isinstance(value, str | int | float | None) else str(value)

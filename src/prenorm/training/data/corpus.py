"""Reading text: which documents there are, in an order that no file system changes, and what had to be skipped."""

import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from .faults import EMPTY, Fault
from .formats import Content, contents, place_in
from .sources import LeftOut, Source, find_sources

Say = Callable[[str], None]


class Document(NamedTuple):
    """A text or a conversation, and where it is from.

    `name` is its path below the root that was given, with its line or row; `file` is the number of its file in the
    corpus's sources, `root` that of the path that led to it, `place` its line (from 1), its row (from 0), or WHOLE.
    """

    name: str
    root: int
    file: int
    place: int
    content: Content


class Corpus:
    """Every document below some files and folders, by root, then by name. It can be gone through again and again.

    Without paths: the source of Python's own standard library. A folder gives all its files that `find_sources` finds.
    A file is one document of UTF-8 text; `.jsonl` gives one a line, `.parquet` one a row, each a text or a
    conversation; `.gz` and `.zst` may stand after any of these names but the last. A byte order mark is no part of a
    text. A text that is missing (null) or only white space is no document, in every format. A large file of text is not
    in memory as a whole.

    A fault is an error in a file that was named. Below a folder it is counted, and the rest is read: `skipped` has how
    many files, lines and rows, by reason, `first` the first of each, `skipped_bytes` their size. `left_out` counts what
    no rule finds in a folder, such as hidden files; `files` how many files gave a document.
    Raises DataError for a path that is missing, and for a fault in a file that was named.
    """

    def __init__(self, paths: Sequence[str] = (), *, leave_out: Path | None = None) -> None:
        self.roots = [Path(path) for path in paths] or [Path(sysconfig.get_path("stdlib"))]
        found = find_sources(self.roots, leave_out=leave_out)
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
        for number, source in enumerate(self.sources):
            is_first = True
            for document in self._documents(number, source):
                self.files += is_first
                is_first = False
                yield document

    def pass_over(self, file: int, place: int, fault: Fault) -> None:
        """Count an entry that turned out not to be a document. Raises DataError if the user named its file."""
        source = self.sources[file]
        where = place_in(source.path, place)
        if source.named and not (where and fault.reason == EMPTY):
            raise DataError(f"{source.path}{where} {fault.sentence}")
        self._skip(source.name + where, fault)

    def _documents(self, number: int, source: Source) -> Iterator[Document]:
        for place, found in contents(source.path):
            if isinstance(found, Fault):
                self.pass_over(number, place, found)
            else:
                yield Document(source.name + place_in(source.path, place), source.root, number, place, found)

    def _skip(self, name: str, fault: Fault) -> None:
        self.skipped[fault.reason] += 1
        self.first.setdefault(fault.reason, name)
        self.skipped_bytes += fault.bytes

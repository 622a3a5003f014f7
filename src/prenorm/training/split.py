"""Which documents are learned from and which are held out: by a hash of the name, so that it never changes."""

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from ..errors import DataError
from .corpus import Corpus, Document, Say

ONE_IN = 20  # a twentieth of all names is held out


def held_out(name: str) -> bool:
    """Whether the document of this name is kept from training."""
    return name_hash(name) % ONE_IN == 0


def name_hash(name: str) -> int:
    """64 bits that depend on the name alone: not on the machine, the Python version or the other documents."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


@dataclass(frozen=True)
class SplitCorpus:
    """The documents of a corpus, each with the side that it is on. It can be gone through again and again.

    `sides` says for each document in order whether it is held out; with `tail` the only document is cut in two.
    `bytes` and `checksums` are those of its text.
    """

    corpus: Corpus
    sides: tuple[bool, ...]
    bytes: tuple[int, ...]
    checksums: tuple[int, ...]
    hashes: tuple[int, ...]
    tail: bool = False

    def __iter__(self) -> Iterator[tuple[Document, bool]]:
        """(document, held out?). Raises DataError when the files are no longer those that were split."""
        documents = (part for document in self.corpus for part in _cut(document)) if self.tail else self.corpus
        for document, side, checksum in zip_longest(documents, self.sides, self.checksums):
            if document is None or side is None or zlib.crc32(document.text.encode("utf-8")) != checksum:
                raise DataError("the text changed while it was being read; start again when it is at rest.")
            yield document, side

    def texts(self, *, heldout: bool) -> Iterator[str]:
        """The texts of one side, in order."""
        return (document.text for document, side in self if side == heldout)

    def sample(self, max_bytes: int) -> Iterator[str]:
        """Training texts in order, of `max_bytes` together at most, chosen by their hashes."""
        room, shares = max_bytes, {}
        for index in sorted(range(len(self.sides)), key=lambda index: (self.hashes[index], index)):
            if not self.sides[index] and room > 0:
                shares[index] = min(self.bytes[index], room)
                room -= shares[index]
        # A share in bytes is used as one in characters, never fewer bytes: the last text is cut a little late.
        return (document.text[: shares[index]] for index, (document, _) in enumerate(self) if index in shares)


def split(corpus: Corpus, say: Say) -> SplitCorpus:
    """Read every document once and choose its side; `say` hears what was found, skipped and done for want of text.

    Raises DataError when there is no text at all.
    """
    names, sizes, checksums = [], [], []
    for document in corpus:
        names.append(document.name)
        raw = document.text.encode("utf-8")
        sizes.append(len(raw))
        checksums.append(zlib.crc32(raw))
    passed_over = _passed_over(corpus)
    if not names:
        raise DataError(f"there is no text to train on{passed_over}; --data takes UTF-8 files, and folders of them.")
    read = (
        f"Read {_count(len(names), 'document')}, {_size(sum(sizes))}, from {_count(corpus.files, 'file')}{passed_over}."
    )
    first = ", ".join(f"{_shown(name)} ({reason})" for reason, name in sorted(corpus.first.items()))
    say(f"{read} The first of each kind that was skipped: {first}." if first else read)
    hashes = tuple(name_hash(name) for name in names)
    sides = tuple(held_out(name) for name in names)
    if len(names) == 1:
        say(f"There is one document: its last 1/{ONE_IN} is held out.")
        parts = [part.text.encode("utf-8") for part in _cut(next(iter(corpus)))]
        sizes, checksums = [len(part) for part in parts], [zlib.crc32(part) for part in parts]
        return SplitCorpus(corpus, (False, True), tuple(sizes), tuple(checksums), (0, 1), tail=True)
    if len(set(sides)) == 1:
        least = min(range(len(names)), key=lambda index: (hashes[index], index))
        sides = tuple(index == least for index in range(len(names)))
        say(f"The hash of the names leaves one side empty, so one document is held out: {_shown(names[least])}.")
    return SplitCorpus(corpus, sides, tuple(sizes), tuple(checksums), hashes)


def _passed_over(corpus: Corpus) -> str:
    """How many files, lines and rows gave no document, and why."""
    skipped, left_out = _counted(corpus.skipped), _counted(corpus.left_out)
    skipped = f"; skipped {skipped}, {_size(corpus.skipped_bytes)}" if skipped else ""
    return skipped + (f"; left out {left_out}" if left_out else "")


def _counted(reasons: Counter[str]) -> str:
    listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
    return f"{reasons.total():,} ({listed})" if listed else ""


def _size(num_bytes: int) -> str:
    return _count(num_bytes, "byte") if num_bytes < 50_000 else f"{num_bytes / 1e6:,.1f} MB"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _cut(document: Document) -> tuple[Document, Document]:
    """The document without its last twentieth, and that; the cut is after a line's end where there is one near."""
    text = document.text
    place = len(text) - max(1, len(text) // ONE_IN)
    line_end = text.rfind("\n", place - len(text) // ONE_IN, place)
    place = line_end + 1 if line_end >= 0 else place
    return Document(f"{document.name} (start)", text[:place]), Document(f"{document.name} (end)", text[place:])

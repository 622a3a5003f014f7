"""Which documents are learned from and which are held out: by a hash of the name, so that it never changes."""

import hashlib
import os
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
    """

    corpus: Corpus
    sides: tuple[bool, ...]
    bytes: tuple[int, ...]
    hashes: tuple[int, ...]
    tail: bool = False

    def __iter__(self) -> Iterator[tuple[Document, bool]]:
        """(document, held out?). Raises DataError when the files are no longer those that were split."""
        documents = _cut(next(iter(self.corpus))) if self.tail else self.corpus
        for document, side in zip_longest(documents, self.sides):
            if document is None or side is None:
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
    names, sizes = [], []
    for document in corpus:
        names.append(document.name)
        sizes.append(len(document.text.encode("utf-8")))
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(corpus.skipped.items()))
    skipped = f"; skipped {corpus.skipped.total()} ({reasons})" if reasons else ""
    if not names:
        raise DataError(f"there is no text to train on{skipped}; --data takes UTF-8 files, and folders of them.")
    say(f"Read {len(names):,} documents, {sum(sizes) / 1e6:,.1f} MB{skipped}.")
    hashes = tuple(name_hash(name) for name in names)
    sides = tuple(held_out(name) for name in names)
    if len(names) == 1:
        say(f"There is one document: its last 1/{ONE_IN} is held out.")
        sizes = [len(part.text.encode("utf-8")) for part in _cut(next(iter(corpus)))]
        return SplitCorpus(corpus, (False, True), tuple(sizes), (0, 1), tail=True)
    if len(set(sides)) == 1:
        least = min(range(len(names)), key=lambda index: (hashes[index], index))
        sides = tuple(index == least for index in range(len(names)))
        say(f"The hash of the names leaves one side empty, so one document is held out: {names[least]}.")
    return SplitCorpus(corpus, sides, tuple(sizes), hashes)


def _cut(document: Document) -> tuple[Document, Document]:
    """The document without its last twentieth, and that; the cut is after a line's end where there is one near."""
    text = document.text
    place = len(text) - max(1, len(text) // ONE_IN)
    line_end = text.rfind("\n", place - len(text) // ONE_IN, place)
    place = line_end + 1 if line_end >= 0 else place
    return Document(f"{document.name} (start)", text[:place]), Document(f"{document.name} (end)", text[place:])

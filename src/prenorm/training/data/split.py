"""Which documents are learned from and which are held out: by a hash, so that a document never changes sides."""

import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ...errors import DataError
from .conversations import Conversation, text_of
from .corpus import Corpus, Document
from .formats import WHOLE, LargeText, chunks, num_characters, part

ONE_IN = 20  # a twentieth of all documents is held out
CUT_WINDOW = 1 << 20  # characters in which a line's end is looked for


def held_out(name: str, one_in: int = ONE_IN) -> bool:
    """Whether the file of this name is kept from training."""
    return name_hash(name) % one_in == 0


def name_hash(name: str) -> int:
    """64 bits that depend on the name alone: not on the machine, the Python version or the other documents."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


class Hashes(NamedTuple):
    """What says which side a document is on, 64 bits of its text's hash, and how many bytes of UTF-8 the text has.

    A file goes by its name, and so stays on its side when it is edited. A line or a row goes by its text: its number
    changes with what is put before it.
    """

    side: int
    text: int
    bytes: int


def hashes_of(document: Document) -> Hashes:
    """The hashes of a document."""
    content = document.content
    if isinstance(content, LargeText):
        sha256, size = content.sha256, content.bytes
    else:
        if isinstance(content, Conversation):
            whole = list(content) if content.tools else content.messages
            content = json.dumps(whole, sort_keys=True, ensure_ascii=False)
        raw = content.encode("utf-8")
        sha256, size = hashlib.sha256(raw).digest(), len(raw)
    text = int.from_bytes(sha256[:8], "big")
    return Hashes(name_hash(document.name) if document.place == WHOLE else text, text, size)


@dataclass(frozen=True)
class Rule:
    """How a corpus is split: one in so many by hash; the end of the only document; or the one document of a number.

    each_root: every path must give something to train on, for it has a weight. `trained` are paths of which nothing is
    held out for that.
    """

    one_in: int = ONE_IN
    each_root: bool = False
    tail: bool = False
    only: int | None = None
    trained: frozenset[int] = frozenset()

    def parts(self, number: int, document: Document, hashes: Hashes) -> list[tuple[Document, bool]]:
        """A document of this number, or its two parts, each with whether it is held out."""
        if self.tail:
            return list(zip(_cut(document, self.one_in), (False, True), strict=True))
        if self.only is not None:
            return [(document, number == self.only)]
        return [(document, hashes.side % self.one_in == 0 and document.root not in self.trained)]


class Survey:
    """What a pass through a corpus has shown, in little memory. `rule` is the one that the pass is made by."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.documents = self.bytes = self.conversations = 0
        self._kept: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}  # on each side, by path
        self._least: tuple[int, int] | None = None
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """A hash of all documents in their order."""
        return self._hasher.hexdigest()

    def add(self, document: Document, hashes: Hashes) -> list[tuple[Document, bool]]:
        """Count the next document. Gives it, or its parts, with whether each is held out."""
        parts = self.rule.parts(self.documents, document, hashes)
        self._hasher.update(b"%d %d\n" % hashes[:2])
        self.documents += 1
        self.bytes += hashes.bytes
        self.conversations += isinstance(document.content, Conversation)
        return parts

    def keep(self, number: int, root: int, side_hash: int, heldout: bool) -> None:
        """Take into account that the document of this number, or a part of it, is used on a side."""
        self._kept[heldout][root] += 1
        self._least = min(self._least or (side_hash, number), (side_hash, number))

    def better_rule(self) -> Rule | None:
        """The rule that this corpus needs, where the one that it was split by leaves nothing to train on or to hold
        out; None where there is none."""
        training, heldout = self._kept[False], self._kept[True]
        if self._least is None or self.rule.tail:
            return None
        if training.total() + heldout.total() == 1:
            return replace(self.rule, tail=True)
        lacking = frozenset(heldout.keys() - training.keys())
        if self.rule.each_root and lacking and not self.rule.trained and self.rule.only is None:
            return replace(self.rule, trained=lacking)
        if (training and heldout) or self.rule.only == self._least[1]:
            return None
        return replace(self.rule, only=self._least[1])


class Sample:
    """Training texts of `max_bytes` together at most: those of the smallest hashes, whatever else there is."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._total = max_bytes, 0
        self._largest_first: list[tuple[int, int, int, str]] = []  # -hash, -number, bytes, text

    def add(self, document: Document, hashes: Hashes, number: int) -> None:
        """Take a training document, and drop those that have no room beside it."""
        heap, worst = self._largest_first, (-hashes.side, -number)
        if self._total >= self._max_bytes and worst < heap[0][:2]:
            return
        text = _start(document, self._max_bytes)
        size = len(text.encode("utf-8"))
        heapq.heappush(heap, (*worst, size, text))
        self._total += size
        while heap and self._total - heap[0][2] >= self._max_bytes:
            self._total -= heapq.heappop(heap)[2]

    def texts(self) -> Iterator[str]:
        """The texts, in the order in which they came."""
        room, shares = self._max_bytes, []
        for _, number, size, text in sorted(self._largest_first, reverse=True):
            # A share in bytes is used as one in characters, never fewer bytes: the last text is cut a little late.
            shares.append((-number, text[: min(size, room)]))
            room -= min(size, room)
        return (text for _, text in sorted(shares))


def look_through(corpus: Corpus, rule: Rule, sample_bytes: int) -> tuple[Survey, Sample]:
    """Read a corpus to see how it must be split, by `rule` if it can be, and take a sample to train a tokenizer on."""
    better: Rule | None = rule
    while better:
        rule = better
        survey, sample = Survey(rule), Sample(sample_bytes)
        for number, document in enumerate(corpus):
            hashes = hashes_of(document)
            for each, heldout in survey.add(document, hashes):
                survey.keep(number, document.root, hashes.side, heldout)
                if not heldout:
                    sample.add(each, hashes, number)
        better = survey.better_rule()
    return survey, sample


def _start(document: Document, characters: int) -> str:
    """The first characters of what a tokenizer learns from."""
    content = document.content
    if isinstance(content, Conversation):
        return "\n".join(map(text_of, content.messages))[:characters]
    return "".join(chunks(part(content, 0, min(num_characters(content), characters))))


def _cut(document: Document, one_in: int) -> Sequence[Document]:
    """The document without its last part, and that; the cut is after a line's end where there is one near."""
    text = document.content
    if isinstance(text, Conversation):
        raise DataError("there is only one conversation, so that none can be held out; --data takes two or more.")
    length = num_characters(text)
    if length < 2:
        raise DataError("there is only one character of text, so that none can be held out; --data takes more.")
    place = length - max(1, length // one_in)
    start = max(0, place - min(length // one_in, CUT_WINDOW))
    line_end = "".join(chunks(part(text, start, place))).rfind("\n")
    place = start + line_end + 1 if line_end >= 0 else place
    halves = (part(text, 0, place), part(text, place, length))
    return [
        document._replace(name=f"{document.name} ({end})", content=half)
        for end, half in zip(("start", "end"), halves, strict=True)
    ]

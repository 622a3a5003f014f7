"""The files of one side of a folder of tokens, training or held-out, as they are written."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..tokenizer import end_of_text, special_tokens, vocabulary_size
from .arrays import ArrayRecord, ArrayWriter
from .encoding import Encoded
from .faults import Fault

SHARD_TOKENS = 1 << 27
TWO_BYTES = 2**16  # vocabularies of up to this many tokens are stored in two bytes a token, larger ones in four
TOGETHER = 1 << 16  # tokens and rows are written to a file so many at a time


class SideWriter:
    """The files of one side, training or held-out."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, roots: int) -> None:
        self.name, self.documents, self.by_root = name, 0, [0] * roots
        self.reply_ends: set[int] = set()
        self._folder, self._specials = folder, set(special_tokens(tokenizer).values())
        self._dtype = np.dtype("<u2" if vocabulary_size(tokenizer) <= TWO_BYTES else "<u4")
        self._end = np.array([end_of_text(tokenizer)[1]], np.uint32)
        self._open = ExitStack()
        self._records: dict[str, ArrayRecord] = {}
        self._shards: list[ArrayWriter] = []
        self._starts, self._documents, self._unscored = (
            _Rows(self._new(f"{name}-{what}.npy", np.dtype("<i8"))) for what in ("starts", "documents", "unscored")
        )
        self._ids: list[np.ndarray] = []
        self._waiting = 0  # tokens in _ids
        self._place = 0  # where the next token will be
        self._start = 0  # where the document began that is being written

    def add(self, part: Encoded) -> Fault | None:
        """The next slice of a document. Gives the reason where it is the last, and nothing of the document is there."""
        if part.fault:
            return part.fault
        if len(part.ids):
            if self._place == self._start:
                self._put(self._end)
            if part.scored is not None:
                self._put_unscored(part.ids, part.scored)
            self._put(part.ids)
        if not part.is_last:
            return None
        if self._place == self._start:
            return Fault("without a token", "gives no tokens at all with this tokenizer; leave it out.")
        self._starts.add(self._start)
        document, hashes = part.job.document, part.job.hashes
        self._documents.add(document.file, document.place, hashes.text - (1 << 63))  # to fit into a signed number
        self.documents += 1
        self.by_root[document.root] += 1
        self._start = self._place
        return None

    def close(self) -> dict[str, ArrayRecord]:
        """Write the last END. Gives what must be true of every file."""
        self._put(self._end)
        self._flush()
        self._starts.add(self._start)
        for what, rows in (("starts", self._starts), ("documents", self._documents), ("unscored", self._unscored)):
            self._records[f"{self.name}-{what}.npy"] = rows.close()
        for number, shard in enumerate(self._shards):
            self._records[_shard_name(self.name, number)] = shard.close()
        return self._records

    def _put(self, ids: np.ndarray) -> None:
        self._ids.append(ids)
        self._place += len(ids)
        self._waiting += len(ids)
        if self._waiting >= TOGETHER:
            self._flush()

    def _put_unscored(self, ids: np.ndarray, scored: np.ndarray) -> None:
        """Note which tokens of a conversation are not targets. The END after it is one of these, unless the
        conversation ends with a reply that no special token closes."""
        changes = np.flatnonzero(np.diff(scored)) + 1
        ends = {int(ids[place - 1]) for place in (*changes, len(ids)) if scored[place - 1]}
        self.reply_ends |= ends & self._specials
        last = bool(scored[-1]) and int(ids[-1]) not in self._specials
        padded = np.concatenate([[True], scored, [last, True]])
        self._unscored.add(*(np.flatnonzero(np.diff(padded)) + self._place).tolist())

    def _flush(self) -> None:
        ids = np.concatenate(self._ids) if self._ids else np.empty(0, np.uint32)
        self._ids, self._waiting = [], 0
        while len(ids):
            if not self._shards or self._shards[-1].items == SHARD_TOKENS:
                self._shards.append(self._new(_shard_name(self.name, len(self._shards)), self._dtype))
            room = SHARD_TOKENS - self._shards[-1].items
            self._shards[-1].append(ids[:room])
            ids = ids[room:]

    def _new(self, name: str, dtype: np.dtype) -> ArrayWriter:
        return self._open.enter_context(ArrayWriter(self._folder / name, dtype))

    def __enter__(self) -> "SideWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.__exit__(*exception)


class _Rows:
    """Numbers that come one by one and are written many at a time."""

    def __init__(self, writer: ArrayWriter) -> None:
        self._writer = writer
        self._waiting: list[int] = []

    def add(self, *numbers: int) -> None:
        self._waiting += numbers
        if len(self._waiting) >= TOGETHER:
            self._flush()

    def close(self) -> ArrayRecord:
        self._flush()
        return self._writer.close()

    def _flush(self) -> None:
        self._writer.append(np.array(self._waiting, np.int64))
        self._waiting = []


def _shard_name(side: str, number: int) -> str:
    return f"{side}-{number:05d}.npy"

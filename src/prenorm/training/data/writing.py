"""Writes a folder of tokens in one pass through the text: hashed, split, encoded on all cores, and kept on the disk."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...checkpoint.files import json_content, sync_folder
from ...errors import DataError
from ...locks import lock
from ..tokenizer import comes_back, end_of_text, special_tokens, tokenizer_files, vocabulary_size
from .arrays import ArrayRecord, ArrayWriter
from .baseline import TextMeter
from .chat import ChatTemplate
from .corpus import Corpus
from .encoding import Encoded, Job, encoded
from .folder import DATA_FILE, FILES_FILE, FORMAT, file_state, signed
from .formats import Fault, place_in
from .reading import Reading, count, shown
from .split import Rule, Survey, hashes_of

SHARD_TOKENS = 1 << 27
TWO_BYTES = 2**16  # vocabularies of up to this many tokens are stored in two bytes a token, larger ones in four
CHANGED = "the text changed while it was being read; start again when it is at rest."
TOGETHER = 1 << 16  # tokens and rows are written to a file so many at a time


def write_folder(
    target: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    rule: Rule,
    settings: Mapping[str, Any],
    seen: Survey | None = None,
) -> None:
    """Write the tokens of a corpus and its tokenizer into `target`, whole or not at all.

    settings: what they were made by, to be kept with them, such as the weights of the sources.
    seen: what an earlier pass through the corpus has shown, by the rule that it needs. Without it, and where `rule`
    leaves a side empty, the corpus is gone through once more.
    Raises DataError for text that cannot be used or has changed since, and when the folder cannot be written.
    """
    with _new_folder(target) as folder:
        better: Rule | None = seen.rule if seen else rule
        while better:
            for file in folder.iterdir():
                file.unlink()
            before, seen = seen, _write(folder, corpus, tokenizer, template, better, settings)
            if before and before.sha256 != seen.sha256:
                raise DataError(CHANGED)
            better = seen.better_rule()


def _write(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    rule: Rule,
    settings: Mapping[str, Any],
) -> Survey:
    sources = _states(corpus)
    survey, meter = Survey(rule), TextMeter()
    lost, last_lost = 0, -1

    def jobs() -> Iterator[Job]:
        for number, document in enumerate(corpus):
            hashes = hashes_of(document)
            for part, heldout in survey.add(document, hashes):
                yield Job(part, number, heldout, hashes)

    with ExitStack() as stack:
        sides = [
            stack.enter_context(_Side(folder, side, tokenizer, len(corpus.roots))) for side in ("train", "heldout")
        ]
        for part in encoded(tokenizer, template, jobs()):
            document, number, heldout, hashes = part.job
            if fault := sides[heldout].add(part):
                corpus.pass_over(document.file, document.place, fault._replace(bytes=hashes.bytes))
                survey.bytes -= 0 if rule.tail else hashes.bytes
                continue
            if part.is_last:
                survey.keep(number, document.root, hashes.side, heldout)
            if heldout:
                meter.add(part.text)
                if part.scored is None and not comes_back(tokenizer, part.ids.tolist(), part.text):
                    lost, last_lost = lost + (number != last_lost), number
        arrays = {name: record for side in sides for name, record in side.close().items()}
    if sources != _states(corpus):
        raise DataError(CHANGED)
    reading = Reading.of(corpus, documents=sum(side.documents for side in sides) - rule.tail, num_bytes=survey.bytes)
    if reading.documents <= 0:
        raise DataError(
            f"there is no text to train on{reading.passed_over}; --data takes UTF-8 files, and folders of them."
        )
    said = [str(reading)]
    if rule.tail:
        said.append(f"There is one document: its last 1/{rule.one_in} is held out.")
    said += [
        f"The hash would hold out all of {shown(str(corpus.roots[root]))}, so none of it is held out."
        for root in sorted(rule.trained)
    ]
    if rule.only is not None and sides[1].documents:
        name = _name(corpus, *_documents(folder, "heldout")[0].tolist())
        said.append(f"The hash leaves one side empty, so one document is held out: {name}.")
    if not rule.tail and (copies := _copies(folder, corpus)):
        said.append(copies)
    if lost:
        said.append(
            f"The tokenizer loses part of {lost:,} held-out documents, so bits per byte are too good to be true."
        )
    chat = (template.source, template.special_tokens) if survey.conversations or not template.is_default else None
    files = {FILES_FILE: json.dumps(sources).encode(), **tokenizer_files(tokenizer, chat)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    summary = {
        "format": FORMAT,
        "documents": survey.sha256,
        "vocab_size": vocabulary_size(tokenizer),
        "sources": [str(root) for root in corpus.roots],
        "settings": dict(settings),
        "bounds": {side.name: np.cumsum([0, *side.by_root]).tolist() for side in sides},
        "reply_ends": sorted(sides[0].reply_ends),
        "heldout_text": asdict(meter.sizes()),
        "read": asdict(reading),
        "said": said,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "arrays": {name: record._asdict() for name, record in arrays.items()},
    }
    (folder / DATA_FILE).write_bytes(json_content(signed(summary)))
    return survey


class _Side:
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
        """Where the tokens of a conversation are that are no targets, the END after it among them, but for a reply
        at its end that no special token ends."""
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

    def __enter__(self) -> "_Side":
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


def _copies(folder: Path, corpus: Corpus) -> str:
    """What is to be said of training documents that are held out as well, "" where there are none."""
    training, heldout = (_documents(folder, side) for side in ("train", "heldout"))
    order = np.argsort(heldout[:, 2], kind="stable")
    hashes, found, first = heldout[order, 2], 0, ""
    for start in range(0, len(training), TOGETHER):
        rows = training[start : start + TOGETHER]
        places = np.searchsorted(hashes, rows[:, 2]).clip(max=max(0, len(hashes) - 1))
        copies = np.flatnonzero(hashes[places] == rows[:, 2]) if len(hashes) else np.empty(0, np.int64)
        if len(copies) and not first:
            pair = (rows[copies[0]], heldout[order[places[copies[0]]]])
            first = " and ".join(_name(corpus, *row.tolist()) for row in pair)
        found += len(copies)
    if not found:
        return ""
    are = "is an exact copy" if found == 1 else "are exact copies"
    return (
        f"{count(found, 'training document')} {are} of held-out ones, such as {first}: they stay on both sides, and "
        "the held-out loss is too good by as much."
    )


def _states(corpus: Corpus) -> list[tuple[str, int, int]]:
    """The path, size and time of change of every file."""
    return [(str(source.path), *file_state(source.path)) for source in corpus.sources]


def _documents(folder: Path, side: str) -> np.ndarray:
    return np.load(folder / f"{side}-documents.npy", mmap_mode="r", allow_pickle=False).reshape(-1, 3)


def _name(corpus: Corpus, file: int, place: int, text_hash: int) -> str:
    source = corpus.sources[file]
    return shown(source.name + place_in(source.path, place))


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder under a passing name, locked, which gets its own name when all in it is on the disk."""
    passing = target.with_name(f".{target.name}.tmp")
    try:
        passing.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            descriptor = os.open(passing, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                lock(descriptor, wait=False)
            except BlockingIOError as error:
                raise DataError(
                    f"another process is writing {target}; wait for it, or choose another folder."
                ) from error
            except OSError:  # some network file systems have no locks
                pass
            for leftover in passing.iterdir():  # of a process that was killed
                leftover.unlink()
            try:
                yield passing
                for file in passing.iterdir():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
                sync_folder(passing)
                os.replace(passing, target)
                sync_folder(target.parent)
            finally:
                shutil.rmtree(passing, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{target} could not be written: {error.strerror or error}; make room, or choose another folder."
        ) from error

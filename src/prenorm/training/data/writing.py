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
from ..tokenizer import comes_back, tokenizer_files, vocabulary_size
from .baseline import TextMeter
from .chat import ChatTemplate
from .copies import Texts, copies
from .corpus import Corpus
from .encoding import Job, encoded
from .folder import DATA_FILE, FILES_FILE, FORMAT, file_state, signed
from .formats import place_in
from .reading import Reading, shown
from .side import SideWriter
from .split import Rule, Survey, hashes_of

CHANGED = "the text changed while it was being read; start again when it is at rest."


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
            stack.enter_context(SideWriter(folder, side, tokenizer, len(corpus.roots))) for side in ("train", "heldout")
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
    if not rule.tail and (same := copies(*(_texts(folder, side, corpus) for side in ("train", "heldout")))):
        said.append(same)
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


def _texts(folder: Path, side: str, corpus: Corpus) -> Texts:
    rows = _documents(folder, side)
    return Texts(rows[:, 2], lambda number: _name(corpus, *rows[number].tolist()))


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

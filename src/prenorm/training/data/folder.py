"""A folder of tokens, as it lies on the disk and as a run reads it: checked as a whole, then mapped into memory.

data.json has hashes of the tokenizer and the documents, what was read and skipped, and what must be true of the arrays.
SIDE is train or heldout: SIDE-00000.npy ... are the tokens, SIDE-starts.npy the places where documents begin,
SIDE-unscored.npy those of non-targets, SIDE-documents.npy (file, place in it, hash of the text) of each document.
files.json has the path, size and time of change of every file that was read, in the order of their numbers.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...checkpoint.files import parse_json
from ...errors import CheckpointError, DataError
from ..tokenizer import load_tokenizer
from .arrays import WAY_OUT, ArrayRecord, Look, byte_of, open_array
from .baseline import HeldOutText
from .sources import NO_TEXT
from .stream import Shards, TokenStream

FORMAT = 2
DATA_FILE, FILES_FILE = "data.json", "files.json"


@dataclass(frozen=True)
class TokenFolder:
    """What a folder of tokens has.

    `summary` is what data.json says: `sources` are the paths that it was made of, `bounds` for each side the number of
    each source's first document, and the number of all, `reply_ends` special tokens that end replies, `said` the first
    lines of a run, `read` the numbers in them, `settings` what else was asked for.
    """

    path: Path
    summary: dict[str, Any]
    tokenizer: Tokenizer
    train: TokenStream
    heldout: TokenStream
    heldout_text: HeldOutText

    @property
    def sha256(self) -> str:
        """A hash of the tokenizer and all tokens: the same for the same, wherever they lie and whenever written."""
        return _hash({"tokenizer": self.summary["files"]["tokenizer.json"], "arrays": self.summary["arrays"]})


def is_folder_of_tokens(path: Path) -> bool:
    """Whether `prenorm data` wrote this folder."""
    return all((path / name).is_file() for name in NO_TEXT["prepared tokens"])


def file_state(path: Path) -> tuple[int, int]:
    """The size of a file and when it was changed: (-1, -1) when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def signed(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of data.json with their own hash."""
    return {**summary, "sha256": _hash(summary)}


def read_folder(path: Path) -> TokenFolder:
    """The tokens in a folder, after every byte of it was checked. Raises DataError, with the file and the byte."""
    summary = read_summary(path)
    try:
        for name, sha256 in summary["files"].items():
            _check_file(path / name, sha256)
        arrays = {name: ArrayRecord(**record) for name, record in summary["arrays"].items()}
        train, heldout = (_read_stream(path, side, arrays, summary["vocab_size"]) for side in ("train", "heldout"))
        heldout_text = HeldOutText(**summary["heldout_text"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path / DATA_FILE} is not of this version ({error}); {WAY_OUT}") from error
    return TokenFolder(path, summary, load_tokenizer(path), train, heldout, heldout_text)


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {WAY_OUT}") from error
    if found != sha256:
        raise DataError(f"{path} has been changed: its SHA-256 must be {sha256}, not {found}; {WAY_OUT}")


def read_summary(path: Path) -> dict[str, Any]:
    """What data.json says. Raises DataError for one that is damaged or of another version."""
    file = path / DATA_FILE
    try:
        summary = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except CheckpointError as error:
        raise DataError(f"{error} {WAY_OUT}") from error
    if summary.get("format") != FORMAT:
        raise DataError(f"{file} must be of format {FORMAT}, not {summary.get('format')!r}; {WAY_OUT}")
    if summary.pop("sha256", None) != (expected := _hash(summary)):
        raise DataError(f"{file} is damaged: its fields have the SHA-256 {expected}, and it says another; {WAY_OUT}")
    return {**summary, "sha256": expected}


def _hash(summary: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def _read_stream(folder: Path, side: str, arrays: Mapping[str, ArrayRecord], vocab_size: int) -> TokenStream:
    def opened(name: str, look: Look = lambda items, first: None) -> np.ndarray:
        return open_array(folder / name, arrays[name], look)

    shards = sorted(name for name in arrays if name.startswith(f"{side}-") and name[len(side) + 1].isdigit())
    tokens = Shards([opened(name, _ids_below(vocab_size, folder / name)) for name in shards])
    starts_file = folder / f"{side}-starts.npy"
    starts = opened(starts_file.name, _no_empty_document(starts_file))
    if starts[0] != 0 or starts[-1] != len(tokens) - 1:
        raise DataError(
            f"{starts_file} must go from 0 to the last token, {len(tokens) - 1:,}, but goes from {starts[0]:,} to "
            f"{starts[-1]:,} at byte {byte_of(len(starts) - 1, starts.dtype):,}; {WAY_OUT}"
        )
    documents = opened(f"{side}-documents.npy").reshape(-1, 3)

    @cache
    def files() -> list[list[Any]]:
        found: list[list[Any]] = json.loads((folder / FILES_FILE).read_bytes())
        return found

    def place_of(number: int) -> tuple[str, int]:
        file, place, _ = documents[number].tolist()
        return files()[file][0], place

    return TokenStream(tokens, starts, opened(f"{side}-unscored.npy"), place_of=place_of, text_hashes=documents[:, 2])


def _ids_below(vocab_size: int, path: Path) -> Look:
    def look(ids: np.ndarray, first: int) -> None:
        if len(ids) and int(ids.max()) >= vocab_size:
            place = int(np.argmax(ids >= vocab_size))
            raise DataError(
                f"{path} must have token ids below {vocab_size:,}, the size of the vocabulary, but has "
                f"{ids[place]:,} at byte {byte_of(first + place, ids.dtype):,}; {WAY_OUT}"
            )

    return look


def _no_empty_document(path: Path) -> Look:
    last: int | None = None

    def look(starts: np.ndarray, first: int) -> None:
        nonlocal last
        before = starts[:1] - 2 if last is None else np.array([last], starts.dtype)
        lengths = np.diff(starts, prepend=before)
        if len(lengths) and int(lengths.min()) < 2:  # END and a token
            place = first + int(np.argmax(lengths < 2))
            raise DataError(
                f"{path} must have documents of at least one token, but document {place - 1:,} has none: the next "
                f"begins at byte {byte_of(place, starts.dtype):,}; {WAY_OUT}"
            )
        last = int(starts[-1]) if len(starts) else last

    return look

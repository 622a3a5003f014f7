"""Why a file, a line or a row is no document."""

from typing import NamedTuple

EMPTY = "empty"


class Fault(NamedTuple):
    """Why a file, a line or a row is no document: in a word, and as the end of a sentence about it; its size."""

    reason: str
    sentence: str
    bytes: int = 0


def file_fault(reason: str, size: int = 0) -> Fault:
    """That of a file as a whole."""
    return Fault(reason, f"cannot be trained on: it is {reason}; name another file.", size)


def surrogates_fault(text: str, size: int) -> Fault | None:
    """That of a text with half of a surrogate pair; None for all others."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        sentence = "has half of a surrogate pair in its text, which no UTF-8 file can hold."
        return Fault("half of a surrogate pair", sentence, size)
    return None

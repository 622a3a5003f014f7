"""What the lab trains on: bytes of Python's own standard library."""

import functools
import hashlib
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import DataError
from ..training.data.conversations import Conversation
from ..training.data.corpus import Corpus, Document
from ..training.data.formats import chunks
from ..training.data.split import held_out

TRAINING_BYTES = 4_000_000  # many times what the longest of the lab's trainings reads

LEAST_BYTES = 10_000


class Text(NamedTuple):
    """Bytes to learn from, bytes that are held out, and a name that other text would not have."""

    training: Tensor
    heldout: Tensor
    digest: str


@functools.cache
def python_text() -> Text:
    """The standard library's first files by name; a twentieth of them, chosen by name, are held out.

    Raises DataError where the library's source is not installed.
    """
    sides: dict[bool, list[bytes]] = {False: [], True: []}
    room = TRAINING_BYTES
    for document in Corpus():
        raw, side = _bytes(document), held_out(document.name)
        sides[side].append(raw)
        room -= 0 if side else len(raw)
        if room <= 0:
            break
    training, heldout = (b"\n".join(sides[side]) for side in (False, True))
    if min(len(training), len(heldout)) < LEAST_BYTES:
        raise DataError(
            f"the lab trains on Python's own standard library, and must find {LEAST_BYTES:,} bytes of source to learn "
            f"from and to hold out, but found {len(training):,} and {len(heldout):,}; use a Python that has it."
        )
    digest = hashlib.sha256(training + b"\0" + heldout).hexdigest()
    return Text(_tensor(training), _tensor(heldout), digest)


def draw_rows(text: Tensor, rows: int, context: int, generator: torch.Generator) -> Int[Tensor, "rows context_and_one"]:
    """Rows of context + 1 bytes from anywhere in a text: inputs without the last byte, targets without the first."""
    starts = torch.randint(len(text) - context, (rows, 1), generator=generator)
    return text[starts + torch.arange(context + 1)].long()


def byte_entropy() -> float:
    """The loss on the held-out text of whoever knows only how frequent each byte is in the other, nats a byte."""
    text = python_text()
    counts, heldout = (torch.bincount(one, minlength=256).double() for one in (text.training, text.heldout))
    shares = (counts + 1) / (counts + 1).sum()  # a byte that was never read has no loss without end
    return float(-(heldout / heldout.sum() * shares.log()).sum())


def _tensor(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def _bytes(document: Document) -> bytes:
    assert not isinstance(document.content, Conversation)  # source code holds none
    return "".join(chunks(document.content)).encode()

"""Documents to tokens, on all cores: while some are encoded, the next are read and those before them are written."""

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ..tokenizer import encode, with_special_tokens
from .chat import Chat, ChatError, ChatTemplate
from .conversations import Conversation
from .corpus import Document
from .faults import Fault
from .formats import chunks
from .split import Hashes

SLICE_CHARACTERS = 1 << 18  # a text is encoded in slices of this size, many at once, so that memory stays small


class Job(NamedTuple):
    """A document, its number, which side it is on, and its hashes."""

    document: Document
    number: int
    heldout: bool
    hashes: Hashes


class Encoded(NamedTuple):
    """A slice of a document, or all of it: its tokens, and which of them are targets (None: all).

    `text` is what the targets spell. `fault` is why there are no tokens of a conversation.
    """

    job: Job
    text: str
    is_last: bool
    ids: np.ndarray
    scored: np.ndarray | None = None
    fault: Fault | None = None


class _Part(NamedTuple):
    job: Job
    text: str
    is_last: bool
    chat: Chat | None = None
    fault: Fault | None = None


def encoded(tokenizer: Tokenizer, template: ChatTemplate, jobs: Iterable[Job]) -> Iterator[Encoded]:
    """The slices of all documents in order. Raises DataError for a text that the tokenizer has no tokens for."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chat_tokenizer = cache(lambda: with_special_tokens(tokenizer))  # a copy takes time: once there is a conversation
    pending: deque[Future[list[Encoded]]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # tokenizers works outside of Python's lock
        try:
            for group in _groups(_parts(jobs, template)):
                pending.append(pool.submit(_encoded_group, tokenizer, chat_tokenizer, group))
                if len(pending) > workers + 1:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _encoded_group(tokenizer: Tokenizer, chat_tokenizer: Callable[[], Tokenizer], group: list[_Part]) -> list[Encoded]:
    texts = iter(encode(tokenizer, [part.text for part in group if part.chat is None]))
    done = []
    for job, text, is_last, chat, fault in group:
        if chat is None:
            done.append(Encoded(job, text, is_last, _as_array(next(texts)), fault=fault))
        else:
            replies = "".join(chat.text[start:stop] for start, stop in chat.replies)
            done.append(Encoded(job, replies, is_last, *_encoded_chat(tokenizer, chat_tokenizer(), chat)))
    return done


def _encoded_chat(tokenizer: Tokenizer, chat_tokenizer: Tokenizer, chat: Chat) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a conversation, and which of them have some character of a reply."""
    ids, offsets, place = list[int](), list[tuple[int, int]](), 0
    for start, stop in [*chat.spelled, (len(chat.text), len(chat.text))]:
        for encoder, first, last in ((chat_tokenizer, place, start), (tokenizer, start, stop)):
            if first < last:
                encoding = encoder.encode(chat.text[first:last], add_special_tokens=False)
                ids += encoding.ids
                offsets += [(first + a, first + b) for a, b in encoding.offsets]
        place = stop
    bounds = np.array(offsets, np.int64).reshape(-1, 2)
    scored = np.zeros(len(ids), np.bool_)
    for start, stop in chat.replies:
        scored |= (bounds[:, 0] < stop) & (bounds[:, 1] > start)
    return _as_array(ids), scored


def _as_array(ids: list[int]) -> np.ndarray:
    """The same numbers; `array` takes them from a list in a third of the time that numpy needs."""
    return np.frombuffer(array("I", ids), np.uint32)


def _parts(jobs: Iterable[Job], template: ChatTemplate) -> Iterator[_Part]:
    for job in jobs:
        content = job.document.content
        if isinstance(content, Conversation):
            try:
                chat = template.chat(content.messages, content.tools)
            except ChatError as error:
                yield _Part(job, "", True, fault=Fault("not for the chat template", f"{error}.", 0))
            except RecursionError:
                yield _Part(job, "", True, fault=Fault("not for the chat template", "is nested too deeply.", 0))
            else:
                yield _Part(job, chat.text, True, chat)
        else:
            yield from _marked_last(job, slices(chunks(content)))


def _marked_last(job: Job, texts: Iterator[str]) -> Iterator[_Part]:
    before = next(texts)
    for text in texts:
        yield _Part(job, before, False)
        before = text
    yield _Part(job, before, True)


def slices(texts: Iterable[str]) -> Iterator[str]:
    """A text in slices, each but the first beginning with a line's end, where no token would have crossed.

    A line that is longer than a slice is cut where the slice is full.
    """
    text = ""
    for more in texts:
        text += more
        start = 0
        while len(text) - start > SLICE_CHARACTERS:
            line_end = text.rfind("\n", start + 1, start + SLICE_CHARACTERS)
            end = line_end if line_end >= 0 else start + SLICE_CHARACTERS
            yield text[start:end]
            start = end
        text = text[start:]
    yield text


def _groups(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts in groups of about a slice's size."""
    group: list[_Part] = []
    characters = 0
    for part in parts:
        group.append(part)
        characters += len(part.text)
        if characters >= SLICE_CHARACTERS or len(group) == SLICE_CHARACTERS // 64:
            yield group
            group, characters = [], 0
    if group:
        yield group

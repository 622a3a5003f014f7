"""Streaming detokenisation: the pieces, joined, equal what the tokenizer decodes from all ids at once.

A piece is emitted as soon as no later token can change it, and never taken back. How soon depends on the decoder:

- ByteLevel joins the bytes of all tokens and decodes them as UTF-8, with U+FFFD for invalid bytes. At most three bytes
  are held back, until their character is complete.
- ByteFallback decodes each run of tokens such as <0xE5> as UTF-8, and emits one U+FFFD per byte if the run as a whole
  is not valid UTF-8. A run is held back until it ends or becomes invalid, but for at most MOST_WAITING tokens: if a
  longer run becomes invalid later, the characters already emitted stay, where the tokenizer would have U+FFFD.
- The others (Metaspace, WordPiece, Strip, Fuse, ...) depend on a token and its neighbours. Nothing is held back.

With a decoder that may look further (a replacement in fused text, a decoder in Python), all text comes at the end.
A literal U+FFFD is ordinary text. Derived from the decoders of tokenizers 0.23.
"""

import codecs
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from tokenizers import Tokenizer

MOST_WAITING = 1024
CONTEXT = 8  # preceding tokens that a piece is decoded with, because a decoder strips the first token's space
REPLACEMENT = "\ufffd"

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders that depend only on one token, and on whether it is the first, the last, or equal to the previous one.
_NEAR = {"Replace", "WordPiece", "ByteFallback", "Fuse", "Strip", "Metaspace", "BPEDecoder", "CTC"}


@runtime_checkable
class Characters(Protocol):
    """The text of a growing reply. Special tokens and ids unknown to the tokenizer have no text."""

    def take(self, token: int) -> str:
        """The text that becomes final with this token."""

    def finish(self) -> str:
        """The remaining text, once no token follows."""


def characters_of(tokenizer: Tokenizer) -> Callable[[Sequence[int]], Characters]:
    """A function that starts the text of a reply, given the prompt's token ids."""
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}

    def text_of(token: int) -> str | None:
        return None if token in special else tokenizer.id_to_token(token)

    decoders = _decoders(tokenizer)
    names = [decoder["type"] for decoder in decoders]
    if {"ByteLevel"} <= {*names} <= {"ByteLevel", "Fuse"}:
        return lambda prompt_ids: _ByteLevel(text_of)
    if _looks_near(decoders):
        return lambda prompt_ids: _Neighbours(tokenizer, text_of, "ByteFallback" in names, prompt_ids)
    return lambda prompt_ids: _AtTheEnd(tokenizer, prompt_ids)


def _decoders(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The decoders in order, as in tokenizer.json; one of type "unknown" for a decoder that it cannot express."""
    if tokenizer.decoder is None:
        return []
    try:
        pending = [json.loads(tokenizer.decoder.__getstate__())]
    except Exception:  # a decoder in Python; tokenizers raises nothing narrower
        return [{"type": "unknown"}]
    decoders = []
    while pending:
        decoder = pending.pop(0)
        if decoder["type"] == "Sequence":
            pending = decoder["decoders"] + pending
        else:
            decoders.append(decoder)
    return decoders


def _looks_near(decoders: list[dict[str, Any]]) -> bool:
    names = [decoder["type"] for decoder in decoders]
    fused = names[names.index("Fuse") :] if "Fuse" in names else []
    before_bytes = decoders[: names.index("ByteFallback")] if "ByteFallback" in names else []
    return (
        {*names} <= _NEAR
        and {*fused} <= {"Fuse", "Strip"}
        and all(one["type"] == "Replace" and one["pattern"] == {"String": "▁"} for one in before_bytes)
    )


class _ByteLevel:
    def __init__(self, text_of: Callable[[int], str | None]) -> None:
        self._text_of = text_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: int) -> str:
        text = self._text_of(token) or ""
        if _BYTES.keys() >= {*text}:
            return self._utf8.decode(bytes(_BYTES[character] for character in text))
        return self._utf8.decode(text.encode())  # an added token, stored as plain text

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of ByteLevel stands for: printable ones for themselves, U+0100 on for the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class _Neighbours:
    def __init__(
        self, tokenizer: Tokenizer, text_of: Callable[[int], str | None], byte_fallback: bool, prompt_ids: Sequence[int]
    ) -> None:
        self._tokenizer, self._text_of, self._byte_fallback = tokenizer, text_of, byte_fallback
        self._run: list[int]  # byte tokens whose text is not final yet
        self._broken: bool  # the run is not valid UTF-8, so its text is one U+FFFD per byte
        self._keep([token for token in prompt_ids if text_of(token) is not None])
        self._start_run()

    def take(self, token: int) -> str:
        text = self._text_of(token)
        if text is None:
            return ""
        byte = self._byte(text)
        if byte is None:
            return self.finish() + self._decode([token])
        if self._broken:
            return REPLACEMENT
        self._run.append(token)
        try:
            self._utf8.decode(byte)
        except UnicodeDecodeError:
            self._broken = True
            return self._give_up()
        if len(self._run) < MOST_WAITING or self._is_incomplete():
            return ""
        piece = self._decode(self._run)
        self._run = []
        return piece

    def finish(self) -> str:
        """The text of the pending run of bytes, now that it has ended."""
        piece = self._give_up() if self._is_incomplete() else self._decode(self._run)
        self._start_run()
        return piece

    def _start_run(self) -> None:
        self._run = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._broken = False

    def _is_incomplete(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _give_up(self) -> str:
        """One U+FFFD for each pending byte."""
        run, self._run = self._run, []
        self._keep(self._context + run)
        return REPLACEMENT * len(run)

    def _decode(self, tokens: list[int]) -> str:
        if not tokens:
            return ""
        with_context = self._context + tokens
        piece = self._tokenizer.decode(with_context)[self._given :]
        self._keep(with_context)
        return piece

    def _keep(self, tokens: list[int]) -> None:
        """Keep the last of these tokens as context for the next piece, starting at a character boundary."""
        start, earliest = max(0, len(tokens) - CONTEXT), len(tokens) - CONTEXT - 3
        while (
            start > max(0, earliest)
            and (byte := self._byte(self._text_of(tokens[start]) or ""))
            and 0x80 <= byte[0] < 0xC0
        ):
            start -= 1
        self._context = tokens[start:]
        self._given = len(self._tokenizer.decode(self._context)) if self._context else 0

    def _byte(self, text: str) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(text) if self._byte_fallback else None
        return bytes.fromhex(match[1]) if match else None


class _AtTheEnd:
    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)
        self._given = len(tokenizer.decode(self._ids)) if self._ids else 0

    def take(self, token: int) -> str:
        self._ids.append(token)
        return ""

    def finish(self) -> str:
        return self._tokenizer.decode(self._ids)[self._given :]

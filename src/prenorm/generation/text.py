"""Text generation: prompts, stop strings and whole characters around a model that works on token ids."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from tokenizers import Tokenizer

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from .characters import Characters, characters_of
from .prompts import end_ids

END_OF_TEXT = "<|endoftext|>"
DEFAULT_NEW_TOKENS = 128
_UNDECODED = "the tokenizer cannot decode what was generated"


@runtime_checkable
class LanguageModel(Protocol):
    """The interface that text generation needs from a model, as `prenorm.TransformerLM` has it.

    stream yields one token per prompt at each step, None after its end; with logprobs=True (tokens, logprobs).
    """

    config: ModelConfig
    eos_token_ids: tuple[int, ...]

    def stream(self, prompts: list[list[int]], **options: Any) -> Iterator[Any]: ...


@dataclass(frozen=True, slots=True)
class Completion:
    """The continuation of a prompt, and why it ended: at a stop string, an end-of-text id, or the maximum length.

    text excludes the prompt and is cut before the stop string; token_ids are all new ids, including those that ended
    it. logprobs: the natural log of the model's own probability of each of them, None unless requested.
    """

    prompt: str
    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "eos", "length"]
    logprobs: list[float] | None = None


class TextGenerator:
    """Continues texts with a model and its tokenizer.

    Prompts are encoded with the tokenizer's post-processor; if that gives no tokens (an empty prompt), the text starts
    from the end-of-text token.
    eos_token_id: the ids that end a text; None: the model's own (`model.eos_token_ids`), or the tokenizer's
    <|endoftext|> if the model has none.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, eos_token_id: int | Sequence[int] | None = None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        if eos_token_id is None:
            eos_token_id = model.eos_token_ids or tokenizer.token_to_id(END_OF_TEXT)
        self._eos_token_ids = end_ids(eos_token_id)

    def stream(self, prompt: str, *, stop: str | Sequence[str] = (), **options: Any) -> Generator[str, None, None]:
        """The continuation in pieces of whole characters, each as soon as it is final.

        Joined, they equal what the tokenizer decodes from all tokens at once; U+FFFD for bytes that form no character.
        What may be the beginning of a stop string is held back until it is known not to be.
        options: those of `TransformerLM.stream`, whose errors are raised at the call; without max_new_tokens, 128, or
        as many as the model has room for, or as make max_length tokens with the longest prompt. Closing the generator
        cancels it.
        """
        if options.get("logprobs"):
            raise ConfigError("a text stream does not support logprobs; generate([prompt], logprobs=True) does.")
        (reply,), steps = self._start([prompt], stop, options)

        def pieces() -> Generator[str, None, None]:
            for ((token, _),) in steps:
                assert token is not None  # with a single prompt, the steps end when it does
                if piece := reply.take(token):
                    yield piece
                if reply.finish_reason:
                    break
            if rest := reply.finish():
                yield rest

        return pieces()

    def generate(self, prompts: Sequence[str], *, stop: str | Sequence[str] = (), **options: Any) -> list[Completion]:
        """The continuation of each prompt, all in one batch. options and errors: those of `stream`.

        logprobs=True fills `Completion.logprobs`.
        """
        if isinstance(prompts, str):
            raise ConfigError(f"prompts must be a list of texts, not one text; [{prompts!r}] would do.")
        replies, steps = self._start(prompts, stop, options)
        for step in steps:
            for reply, (token, logprob) in zip(replies, step, strict=True):
                if token is not None:
                    reply.take(token, logprob)
            if all(reply.finish_reason for reply in replies):
                break
        logprobs = bool(options.get("logprobs"))
        return [reply.completion(prompt, logprobs=logprobs) for reply, prompt in zip(replies, prompts, strict=True)]

    def _start(
        self, prompts: Sequence[str], stop: str | Sequence[str], options: dict[str, Any]
    ) -> tuple[list["_Reply"], Iterator[list[tuple[int | None, float | None]]]]:
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        for one in stops:
            if not isinstance(one, str) or not one:
                raise ConfigError(f"a stop string must be text of at least one character, not {one!r}; leave it out.")
        rows = [self.encode(prompt) for prompt in prompts]
        logprobs = bool(options.get("logprobs"))
        begin = characters_of(self._tokenizer)
        replies = [_Reply(begin(row), stops, self._eos_token_ids) for row in rows]
        max_length = options.pop("max_length", None)
        if options.get("max_new_tokens") is None:
            longest = max(map(len, rows), default=0)
            room = self._model.config.max_seq_len - longest + 1  # the last one is not fed back
            room = min(room, DEFAULT_NEW_TOKENS, max_length - longest if max_length else room)
            options["max_new_tokens"] = max(1, room)
        steps = self._model.stream(rows, eos_token_id=self._eos_token_ids, **options)
        return replies, (
            list(zip(*step, strict=True)) if logprobs else [(token, None) for token in step] for step in steps
        )

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a prompt, at least one. Raises ConfigError for text that has none."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"a prompt must be text that UTF-8 can encode, but character {error.start} of one is the lone "
                f"surrogate {prompt[error.start]!r}; remove it."
            ) from None
        with of_tokenizers("the tokenizer cannot encode this prompt"):
            ids = self._tokenizer.encode(prompt).ids or self._eos_token_ids[:1]
        if not ids:
            raise ConfigError(
                "an empty prompt starts from the end-of-text token, but neither the model nor the tokenizer "
                f"({END_OF_TEXT}) has one; give a prompt."
            )
        return ids


@contextmanager
def of_tokenizers(problem: str) -> Iterator[None]:
    """CheckpointError for whatever the tokenizers library raises inside: bare Exceptions, and panics of its Rust."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{problem}: {error}") from error


@dataclass(slots=True)
class _Reply:
    """The growing continuation of one prompt."""

    characters: Characters
    stops: tuple[str, ...]
    eos_token_ids: list[int]
    held: str = ""  # a possible start of a stop string
    finish_reason: Literal["stop", "eos", "length"] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    def take(self, token: int, logprob: float | None = None) -> str:
        """The text that became final with this token; empty once the reply has ended."""
        if self.finish_reason:
            return ""
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        with of_tokenizers(_UNDECODED):
            text = self.characters.take(token)
        piece = self._add(text)
        if self.finish_reason is None and token in self.eos_token_ids:
            self.finish_reason = "eos"
        return piece

    def finish(self) -> str:
        """The text that was held back, once no token follows."""
        if self.finish_reason == "stop":
            return ""
        with of_tokenizers(_UNDECODED):
            text = self.characters.finish()
        rest = self._add(text) + self.held
        self.pieces.append(self.held)
        self.held = ""
        self.finish_reason = self.finish_reason or "length"
        return rest

    def _add(self, text: str) -> str:
        """The part of the text that is certain to be shown."""
        piece, self.held, stopped = _up_to_stop(self.held + text, self.stops)
        self.pieces.append(piece)
        if stopped:
            self.finish_reason = "stop"
        return piece

    def completion(self, prompt: str, *, logprobs: bool) -> Completion:
        self.finish()
        assert self.finish_reason
        given = self.logprobs if logprobs else None
        return Completion(prompt, "".join(self.pieces), self.token_ids, self.finish_reason, given)


def _up_to_stop(text: str, stops: tuple[str, ...]) -> tuple[str, str, bool]:
    """The text before the first complete stop string, the end that may start one, and whether one is complete."""
    complete = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    if complete:
        return text[: min(complete)[1]], "", True
    starts = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    final = len(text) - max(starts, default=0)
    return text[:final], text[final:], False

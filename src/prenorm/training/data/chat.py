"""Conversations as text, by the template that a chat model's tokenizer brings, and which parts of it are replies."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ...checkpoint.files import read_json
from ...errors import CheckpointError, DataError
from .conversations import is_reply, text_of

# For tokenizers that bring none: the roles in words, each reply ended by the end-of-text token.
DEFAULT_TEMPLATE = """\
{% for message in messages %}
{{ message['role'] | capitalize }}: {{ message['content'] | trim }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}

{% endfor %}
{% if add_generation_prompt %}Assistant:{% endif %}
"""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class ChatError(Exception):
    """A conversation that the template refuses, or whose replies cannot be told from the rest. Says why."""


class Chat(NamedTuple):
    """A conversation as text, and where in it the replies are, each with the sign that ends it.

    `spelled` is where a message spells the name of a special token, which must not be read as one.
    """

    text: str
    replies: list[tuple[int, int]]
    spelled: list[tuple[int, int]]


class ChatTemplate:
    """A chat template in Jinja, run in a sandbox.

    `special_tokens` are what it may name, such as eos_token; `ends` are all special tokens of the tokenizer.
    `strftime_now` is not defined: the same text must come out tomorrow. `where` names the template in messages.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], ends: Sequence[str], *, where: str) -> None:
        self.source, self.special_tokens, self.is_default = source, dict(special_tokens), source == DEFAULT_TEMPLATE
        self._ends, self._where = [end for end in ends if end], where

    def chat(self, messages: Messages, tools: Tools = ()) -> Chat:
        """The text of a conversation and its replies: what the model is to write after a prompt that ends in its turn.

        The template may mark them by {% generation %}; else a reply is what a message of the role assistant adds to the
        text before it; where that text changes later (some templates take earlier thoughts out), it is the content,
        with the special token that follows. Calls of tools are part of a reply. Raises ChatError, also for tools that
        the text does not name, and DataError when there is no such template.
        """
        if any(mark in json.dumps([messages, tools], ensure_ascii=False) for mark in _MARKS):
            raise ChatError("has one of two code points that stand for no character, U+FDD0 and U+FDD1")
        text, marked = _unmarked(self._render(messages, tools, _MARKS))
        self._check_tools(messages, tools)
        replies = marked or [
            self._reply(messages, tools, number, text) for number, message in enumerate(messages) if is_reply(message)
        ]
        trimmed = [self._trimmed(text, start, stop) for start, stop in replies]
        return Chat(text, trimmed, self._spelled(messages, tools, text))

    def _check_tools(self, messages: Messages, tools: Tools) -> None:
        """Raise ChatError where the text leaves out a tool or a call: their names are marked, and looked for."""
        names: list[str] = []

        def marked(each: Mapping[str, Any]) -> Mapping[str, Any]:
            function = each.get("function", each)
            if not (isinstance(function, Mapping) and isinstance(name := function.get("name"), str)):
                return each
            names.append(name)
            function = {**function, "name": name.join(_MARKS)}
            return {**each, "function": function} if "function" in each else function

        talk = [
            {**message, "tool_calls": [marked(call) for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in messages
        ]
        given = [marked(tool) for tool in tools]
        if names:
            text, spans = _unmarked(self._render(talk, given, _NO_MARKS))
            if left_out := Counter(names) - Counter(text[start:stop] for start, stop in spans):
                raise ChatError(
                    f"has a tool, {next(iter(left_out))}, that the chat template leaves out; use a tokenizer whose "
                    "template has tools"
                )

    def _spelled(self, messages: Messages, tools: Tools, text: str) -> list[tuple[int, int]]:
        """Where in the text a special token's name comes from a message: a mark is put into it, and looked for."""
        names = re.compile("|".join(re.escape(end) for end in sorted(self._ends, key=len, reverse=True)) or r"(?!)")

        def marked(value: Any) -> Any:
            if isinstance(value, str):
                return names.sub(lambda name: _MARKS[0] + name[0] + _MARKS[1], value)
            if isinstance(value, Mapping):
                return {key: each if key == "role" else marked(each) for key, each in value.items()}
            return [marked(each) for each in value] if isinstance(value, list | tuple) else value

        if [*messages, *tools] == (changed := marked([*messages, *tools])):
            return []
        same, spans = _unmarked(self._render(changed[: len(messages)], changed[len(messages) :], _NO_MARKS))
        if same != text:
            raise ChatError("spells a special token, which the chat template changes")
        return spans

    @cached_property
    def _template(self) -> Any:
        """The template, once there is a conversation."""
        try:
            import jinja2
        except ImportError as error:
            raise DataError("reading conversations needs jinja2: pip install jinja2.") from error
        try:
            return _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise DataError(f"{self._where} is not a chat template: {error}.") from error

    def ends_turn(self, text: str) -> bool:
        """Whether a text ends in a special token."""
        return text.endswith(tuple(self._ends))

    def _reply(self, messages: Messages, tools: Tools, number: int, text: str) -> tuple[int, int]:
        """Where the reply of this number is in the whole text."""
        try:
            before = self._render(messages[:number], tools, _NO_MARKS, add_generation_prompt=True)
            after = self._render(messages[: number + 1], tools, _NO_MARKS)
        except ChatError:  # some templates refuse a beginning
            before, after = text, ""
        if len(before) < len(after) and text.startswith(after) and after.startswith(before):
            return len(before), len(after)
        content = text_of(messages[number])
        # A mark outside of white space would keep a template from trimming it. Calls of tools are not in the content.
        for bare in () if messages[number].get("tool_calls") else (content, content.strip()):
            marked = content.replace(bare, bare.join(_MARKS), 1)
            changed = [*messages[:number], {**messages[number], "content": marked}, *messages[number + 1 :]]
            same, spans = _unmarked(self._render(changed, tools, _NO_MARKS))
            if same == text and len(spans) == 1:
                start, stop = spans[0]
                end = next((end for end in self._ends if text[stop:].lstrip().startswith(end)), "")
                return start, text.index(end, stop) + len(end) if end else stop
        raise ChatError("has a reply that cannot be told from the rest of what the chat template writes")

    def _trimmed(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """A span without what follows the special token that ends it."""
        bare = text[start:stop].rstrip()
        return (start, start + len(bare)) if self.ends_turn(bare) else (start, stop)

    def _render(
        self, messages: Messages, tools: Tools, marks: tuple[str, str], *, add_generation_prompt: bool = False
    ) -> str:
        template = self._template
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                generation_marks=marks,
                **self.special_tokens,
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise ChatError(f"is refused by the chat template: {error}") from error


def load_template(tokenizer: Path | None, end: str, specials: Sequence[str]) -> ChatTemplate:
    """The chat template beside a tokenizer.json: chat_template.jinja, or that in tokenizer_config.json, or the default.

    end: the tokenizer's end-of-text token; specials: all its special tokens. Raises DataError.
    """
    tokens = {"bos_token": end, "eos_token": end}
    if tokenizer is None:
        return ChatTemplate(DEFAULT_TEMPLATE, tokens, specials, where="the default")
    config, file = tokenizer.parent / "tokenizer_config.json", tokenizer.parent / "chat_template.jinja"
    try:
        fields = read_json(config) if config.exists() else {}
        source = file.read_text(encoding="utf-8") if file.exists() else _template_in(fields)
    except (CheckpointError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"the chat template beside {tokenizer} cannot be read: {error}") from error
    for name, value in fields.items():
        if name.endswith("_token") and isinstance(text := value["content"] if isinstance(value, dict) else value, str):
            tokens[name] = text
    where = str(file if file.exists() else config)
    return ChatTemplate(source or DEFAULT_TEMPLATE, tokens, specials, where=where)


def _template_in(config: Mapping[str, Any]) -> str | None:
    """The template in a tokenizer_config.json: a string, or the default one of several with names."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


_MARKS = ("\ufdd0", "\ufdd1")  # noncharacters, around what is to be found again
_NO_MARKS = ("", "")


def _unmarked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and where they stood."""
    parts = text.replace(_MARKS[1], _MARKS[0]).split(_MARKS[0])
    places = [sum(map(len, parts[: number + 1])) for number in range(len(parts) - 1)]
    return "".join(parts), list(zip(places[::2], places[1::2], strict=False))


def _environment() -> Any:
    """Jinja as transformers sets it up, whose templates these are, with the tag {% generation %}."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Puts `generation_marks` around what is between {% generation %} and {% endgeneration %}."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 wants it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            marks = nodes.Name("generation_marks", "load")
            first, second = (nodes.Output([nodes.Getitem(marks, nodes.Const(i), "load")]) for i in (0, 1))
            return [node.set_lineno(line) for node in (first, *body, second)]

    def refuse(message: str) -> None:
        raise ValueError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment

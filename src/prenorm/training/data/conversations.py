"""Conversations as records hold them: messages, and the tools that they may call."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .faults import EMPTY, Fault, file_fault, surrogates_fault


class Conversation(NamedTuple):
    """Messages, each an object with at least a role, and a content or tool calls; one or more are replies.

    `tools` describes the tools that may be called, as the chat template takes them.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []  # noqa: RUF012  # never changed


def conversation(messages: Any, tools: Any, size: int) -> Conversation | Fault:
    """The conversation in a record, or why there is none."""
    if messages is None or messages == []:
        return file_fault(EMPTY, size)
    read = [_message(message) for message in messages] if isinstance(messages, list) else []
    talk = [message for message in read if message is not None]
    if not talk or len(talk) < len(read):
        sentence = (
            'must have messages that are objects with two strings, such as {"role": "user", "content": "Hi"}; content '
            "may also be a list of one text, or be missing beside tool_calls."
        )
        return Fault("without messages", sentence, size)
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return Fault("without tools", "must have tools that are a list of objects.", size)
    if not any(map(is_reply, talk)):
        sentence = "must have a message of the role assistant with some text, which is what is learned from it."
        return Fault("without a reply", sentence, size)
    try:
        text = json.dumps([talk, tools], ensure_ascii=False)
    except RecursionError:
        return Fault("without messages", "must have messages that are not nested so deeply.", size)
    return surrogates_fault(text, size) or Conversation(talk, tools)


def _message(message: Any) -> dict[str, Any] | None:
    """A message without fields that are null, its content a string where there is one. None: it is no message."""
    if not isinstance(message, dict):
        return None
    message = {name: value for name, value in message.items() if value is not None or name == "content"}
    match message.get("content"):
        case [{"type": "text", "text": str(text)}]:
            message["content"] = text
    calls = message.get("tool_calls", [])
    known = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    content_known = isinstance(message.get("content"), str) or (bool(calls) and message.get("content") is None)
    return message if isinstance(message.get("role"), str) and known and content_known else None


def is_reply(message: Mapping[str, Any]) -> bool:
    """Whether a message is one to learn from: the assistant says something, or calls a tool."""
    return message["role"] == "assistant" and bool(text_of(message).strip() or message.get("tool_calls"))


def text_of(message: Mapping[str, Any]) -> str:
    """The content of a message, "" where it has none beside its tool calls."""
    return message.get("content") or ""

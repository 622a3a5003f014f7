import pytest

from prenorm.training.data.conversations import Conversation, conversation, is_reply, text_of
from prenorm.training.data.faults import Fault

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HELLO | {"tool_calls": None, "name": None}, HELLO),
        (HELLO | {"content": [{"type": "text", "text": "Hello"}]}, HELLO),
        (HELLO | {"content": None, "tool_calls": [CALL]},) * 2,
        ({"role": "assistant", "tool_calls": [CALL]},) * 2,
        (HELLO | {"reasoning_content": "Hm"},) * 2,
    ],
)
def test_messages_are_taken_as_chat_programs_write_them(message, expected):
    assert conversation([HI, message], [], 0) == Conversation([HI, expected])


@pytest.mark.parametrize(
    "content",
    [[{"type": "image", "url": "a.png"}], [{"type": "text", "text": "a"}] * 2, [], ["Hello"], {"text": "a"}, 5],
)
def test_a_content_that_is_more_than_one_text_is_refused(content):
    found = conversation([HI, HELLO | {"content": content}], [], 0)
    assert isinstance(found, Fault)
    assert found.reason == "without messages"


def test_tool_calls_are_something_to_learn_and_must_be_objects():
    called = HELLO | {"content": None, "tool_calls": [CALL]}
    assert is_reply(called)
    assert text_of(called) == ""
    assert not is_reply(HI | {"tool_calls": [CALL]})
    for calls in ([], "add", ["add"], [[CALL]]):
        found = conversation([HI, called | {"tool_calls": calls}], [], 0)
        assert isinstance(found, Fault)


def test_tools_must_be_objects():
    assert conversation([HI, HELLO], [CALL], 0) == Conversation([HI, HELLO], [CALL])
    for tools in ("add", ["add"], {"name": "add"}):
        found = conversation([HI, HELLO], tools, 0)
        assert isinstance(found, Fault)
        assert found.reason == "without tools"

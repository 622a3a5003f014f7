import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prenorm.checks.subject.child import wire

LONGEST = 1 << 20

shapes = st.lists(st.integers(0, 4), max_size=4)
tensors = st.builds(
    lambda shape, dtype, seed: _random(shape, wire.DTYPES[dtype], seed),
    shapes,
    st.sampled_from(sorted(wire.DTYPES)),
    st.integers(0, 1000),
)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf")))
leaves = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats() | texts | tensors
values = st.dictionaries(texts, st.recursive(leaves, lambda v: st.lists(v) | st.dictionaries(texts, v), max_leaves=8))


@given(values)
def test_what_is_sent_arrives(value: dict) -> None:
    assert _same(_through(wire.encode(value)), value)


@given(values, st.data())
def test_pieces_of_any_size_make_the_same_reply(value: dict, data: st.DataObject) -> None:
    frame, reader = wire.encode(value), wire.Reader(LONGEST)
    while reader.wanted:
        size = data.draw(st.integers(1, reader.wanted))
        reader.feed(frame[:size])
        frame = frame[size:]
    assert _same(reader.value(), value)


def test_strides_conjugates_and_views_arrive_as_their_numbers() -> None:
    square = torch.randn(4, 4, dtype=torch.complex64)
    value = {"a": square.T, "b": square.conj(), "c": square.conj().imag, "d": torch.ones(1).expand(3), "e": square[::2]}
    assert _same(_through(wire.encode(value)), {name: tensor.clone() for name, tensor in value.items()})


def test_nothing_shares_memory_with_the_frame() -> None:
    frame = bytearray(wire.encode({"x": torch.zeros(3)}))
    x = _through(frame)["x"]
    frame[-1] = 255
    assert x.equal(torch.zeros(3))


def test_a_byte_that_is_no_boolean_becomes_one() -> None:
    x = _through(_frame({"x": {"\0": 0}}, [["bool", [2]]], b"\xff\x00"))["x"]
    assert x.view(torch.uint8).tolist() == [1, 0]


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_make_plain_values(data: bytes) -> None:
    _refused_or_plain(data)


@given(values, st.data())
def test_a_damaged_frame_is_refused_or_makes_plain_values(value: dict, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    _refused_or_plain(bytes(frame))


@pytest.mark.parametrize(
    ("value", "tensors", "body"),
    [
        ([], [], b""),
        ({"x": {"\0": 0}}, [], b""),
        ({"x": {"\0": -1}}, [["uint8", [1]]], b"x"),
        ({"x": {"\0": True}}, [["uint8", [1]], ["uint8", [1]]], b"xx"),
        ({"x": {"\0": 0, "y": 1}}, [["uint8", [1]]], b"x"),
        ({"x": {"\0": 0}}, [["uint8", [2]]], b"x"),
        ({"x": {"\0": 0}}, [["uint8", [1]]], b"xx"),
        ({"x": {"\0": 0}}, [["uint8", [-1, -1]]], b"x"),
        ({"x": {"\0": 0}}, [["uint8", [1.0]]], b"x"),
        ({"x": {"\0": 0}}, [["uint8", [True]]], b"x"),
        ({"x": {"\0": 0}}, [["uint8", [0, 1 << 30, 1 << 30, 1 << 30]]], b""),
        ({"x": {"\0": 0}}, [["uint8", [1] * 9]], b"x"),
        ({"x": {"\0": 0}}, [["qint8", [1]]], b"x"),
        ({"x": {"\0": 0}}, [["__class__", [1]]], b"x"),
        ({"x": {"\0": 0}}, {"0": 1}, b"x"),
        ({"x": {"\0": 0}}, [["uint8", [1], 3]], b"x"),
        ({"x": 1 << 63}, [], b""),
        ({}, [["uint8", [0]]] * (wire.MOST_TENSORS + 1), b""),
    ],
)
def test_a_frame_that_does_not_add_up_is_refused(value: object, tensors: object, body: bytes) -> None:
    with pytest.raises(wire.WireError):
        _through(_frame(value, tensors, body))


@pytest.mark.parametrize(
    "text", [b"", b"nothing", b"[" * 100_000, b'{"value": ' + b"9" * 5000 + b', "tensors": []}', b"\xff\xfe", b"{}"]
)
def test_a_text_that_is_no_reply_is_refused(text: bytes) -> None:
    with pytest.raises(wire.WireError):
        _through(wire.HEAD.pack(wire.MAGIC, len(text), 0) + text)


def test_a_reply_nested_too_deeply_is_refused() -> None:
    value: object = 1
    for _ in range(wire.DEEPEST + 2):
        value = [value]
    with pytest.raises(wire.WireError, match="nested too deeply"):
        _through(_frame({"x": value}, [], b""))
    with pytest.raises(wire.WireError, match="nested too deeply"):
        wire.encode({"x": value})


def test_too_long_a_reply_is_refused_by_its_head() -> None:
    with pytest.raises(wire.TooLongError, match="at most"):
        wire.Reader(1000).feed(wire.HEAD.pack(wire.MAGIC, 2, 1 << 60))
    with pytest.raises(wire.TooLongError):
        wire.Reader(1 << 62).feed(wire.HEAD.pack(wire.MAGIC, wire.LONGEST_TEXT + 1, 0))


def test_what_is_no_reply_is_refused_by_its_first_byte() -> None:
    with pytest.raises(wire.WireError, match="begin"):
        wire.Reader(1000).feed(b"x")


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(wire.WireError, match="after its end"):
        wire.Reader(1000).feed(wire.encode({}) + b"x")


def test_strings_are_made_harmless_for_a_terminal_except_where_they_must_be_exact() -> None:
    frame = wire.encode({"a\x1b": "\x1b[2J\ud800\u202eok\n"})
    assert _through(frame) == {"a?": "?[2J??ok\n"}
    stream = memoryview(frame)

    def receive(size: int) -> bytes:
        nonlocal stream
        piece, stream = bytes(stream[:size]), stream[size:]
        return piece

    assert wire.read(receive, LONGEST) == {"a\x1b": "\x1b[2J\ud800\u202eok\n"}
    assert wire.read(receive, LONGEST) is None


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {"\0": 0}, b"bytes", torch.ones(2).to_sparse(), torch.ones(2, device="meta"), print]
)
def test_what_has_no_form_is_not_sent(value: object) -> None:
    with pytest.raises((wire.WireError, RuntimeError, NotImplementedError)):
        wire.encode({"x": value})


def test_a_number_that_no_reader_takes_is_sent_as_text() -> None:
    assert _through(wire.encode({"n": 1 << 70}))["n"] == hex(1 << 70)


def _random(shape: list[int], dtype: torch.dtype, seed: int) -> Tensor:
    data = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), generator=torch.Generator().manual_seed(seed))
    data = data % 2 if dtype == torch.bool else data
    return data.to(torch.uint8).view(dtype).reshape(shape)  # every pattern of bits, NaN and infinity too


def _frame(value: object, tensors: object, body: bytes) -> bytes:
    text = json.dumps({"value": value, "tensors": tensors}).encode()
    return wire.HEAD.pack(wire.MAGIC, len(text), len(body)) + text + body


def _through(frame: bytes | bytearray) -> dict:
    reader = wire.Reader(LONGEST)
    reader.feed(bytes(frame))
    assert reader.wanted == 0
    return reader.value()


def _refused_or_plain(data: bytes) -> None:
    reader = wire.Reader(LONGEST)
    try:
        reader.feed(data)
        if reader.wanted == 0:
            assert _is_plain(reader.value())
    except wire.WireError:
        pass


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, Tensor)


def _same(one: object, other: object) -> bool:
    if isinstance(other, Tensor):
        if not (isinstance(one, Tensor) and one.dtype == other.dtype and one.shape == other.shape):
            return False
        flat = [x.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for x in (one, other)]
        return flat[0].equal(flat[1])
    if isinstance(other, dict):
        return isinstance(one, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in other)
    if isinstance(other, list):
        return isinstance(one, list) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(other, float):
        return isinstance(one, float) and (one == other or (math.isnan(one) and math.isnan(other)))
    return type(one) is type(other) and one == other

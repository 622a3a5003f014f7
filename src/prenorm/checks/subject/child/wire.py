"""How requests and replies travel: a head, a JSON text, and the tensors' raw bytes. No pickle: nothing is executed.

Frame: b"PRN1", the length of the JSON text (4 bytes), the length of the tensors (8 bytes), both little-endian, then
the text and the tensors. The text is {"value": ..., "tensors": [[dtype, shape], ...]}; a tensor within the value is
{"\\u0000": number}. Tensors lie one after the other, contiguous, little-endian.
The reader trusts nothing: what it gives holds only None, bool, int, float, str, list, dict and tensors of plain dtypes.
"""

import ctypes
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAGIC = b"PRN1"
HEAD = struct.Struct("<4sIQ")
LONGEST_TEXT = 4 << 20
MOST_TENSORS = 10_000
DEEPEST = 32
_TENSOR = "\0"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Terminals obey control characters; half a surrogate pair cannot be printed.
_UNPRINTABLE = dict.fromkeys((*range(32), *range(127, 160), *range(8234, 8239), *range(8294, 8298)), "?") | {
    ord("\n"): "\n",
    ord("\t"): "\t",
}


class WireError(ValueError):
    """Bytes that are no frame, or a value that cannot be put into one."""


class TooLongError(WireError):
    """A frame that is longer than its reader takes."""


def encode(value: dict[str, Any]) -> bytes:
    """The frame for value."""
    tensors: list[Tensor] = []
    text = json.dumps({"value": _flat(value, tensors, 0), "tensors": [_described(one) for one in tensors]}).encode()
    body = [_bytes(one) for one in tensors]
    return b"".join([HEAD.pack(MAGIC, len(text), sum(map(len, body))), text, *body])


class Reader:
    """Puts a frame together from pieces, and refuses it as soon as it can be no frame.

    longest: in bytes. exact: leave the strings as they are, instead of making them harmless for a terminal.
    """

    def __init__(self, longest: int, *, exact: bool = False) -> None:
        self._longest = longest
        self._exact = exact
        self._held = bytearray()

    @property
    def wanted(self) -> int:
        """How many bytes are still missing, as far as is known; 0 when the frame is complete."""
        if len(self._held) < HEAD.size:
            return HEAD.size - len(self._held)
        _, text, body = HEAD.unpack_from(self._held)
        return HEAD.size + text + body - len(self._held)

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. WireError if this is no frame, TooLongError if it is a very long one."""
        before = len(self._held)
        self._held += piece
        if not self._held.startswith(MAGIC[: len(self._held)]):
            raise WireError("it does not begin like a reply")
        if before < HEAD.size <= len(self._held):
            _, text, body = HEAD.unpack_from(self._held)
            if text > LONGEST_TEXT or HEAD.size + text + body > self._longest:
                raise TooLongError(f"a reply of {text + body} bytes; at most {self._longest} are taken")
        if self.wanted < 0:
            raise WireError("there are bytes after its end")

    def value(self) -> dict[str, Any]:
        """What the complete frame holds. WireError if it is none."""
        _, text, _ = HEAD.unpack_from(self._held)
        try:
            content = json.loads(self._held[HEAD.size : HEAD.size + text])
        except (ValueError, RecursionError) as error:
            raise WireError(f"its text is no JSON: {type(error).__name__}") from None
        if not isinstance(content, dict) or content.keys() != {"value", "tensors"}:
            raise WireError("its text has not the two parts of a reply")
        tensors = _tensors(content["tensors"], memoryview(self._held)[HEAD.size + text :])
        value = _nested(content["value"], tensors, str if self._exact else harmless, 0)
        if not isinstance(value, dict):
            raise WireError("it is no dictionary")
        return value


def read(receive: Callable[[int], bytes], longest: int) -> dict[str, Any] | None:
    """The next frame of a stream that can be waited for, strings and all; None at its end."""
    reader = Reader(longest, exact=True)
    while wanted := reader.wanted:
        if not (piece := receive(min(wanted, 1 << 20))):
            return None
        reader.feed(piece)
    return reader.value()


def harmless(text: str) -> str:
    """text with a question mark for each character that a terminal would obey or cannot show."""
    return text.encode(errors="replace").decode().translate(_UNPRINTABLE)


def _flat(value: Any, tensors: list[Tensor], depth: int) -> Any:
    if depth > DEEPEST:
        raise WireError("the value is nested too deeply")
    match value:
        case Tensor():
            tensors.append(value)
            return {_TENSOR: len(tensors) - 1}
        case dict():
            if any(not isinstance(key, str) or key.startswith(_TENSOR) for key in value):
                raise WireError("the keys of a dictionary must be strings")
            return {key: _flat(item, tensors, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_flat(item, tensors, depth + 1) for item in value]
        case bool() | float() | str() | None:
            return value
        case int():
            return value if abs(value) < 1 << 63 else f"{value:#x}"[:40]
    raise WireError(f"a {type(value).__name__} cannot be sent")


def _described(tensor: Tensor) -> list[Any]:
    if tensor.dtype not in _NAMES:
        raise WireError(f"a tensor of {tensor.dtype} cannot be sent")
    return [_NAMES[tensor.dtype], list(tensor.shape)]


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size()) if plain.numel() else b""


def _tensors(described: Any, body: memoryview) -> list[Tensor]:
    if not isinstance(described, list) or len(described) > MOST_TENSORS:
        raise WireError("its list of tensors is none")
    tensors = []
    for one in described:
        match one:
            case [str(name), list(shape)] if name in DTYPES and len(shape) <= 8 and all(map(_is_size, shape)):
                pass
            case _:
                raise WireError("it describes a tensor that cannot be")
        if math.prod(max(size, 1) for size in shape) > 1 << 40:
            raise WireError("it describes a tensor that is too large")
        dtype = DTYPES[name]
        length = math.prod(shape) * dtype.itemsize
        if length > len(body):
            raise WireError("it has fewer bytes than its tensors have")
        tensors.append(_tensor(bytearray(body[:length]), dtype, shape))
        body = body[length:]
    if len(body):
        raise WireError("it has more bytes than its tensors have")
    return tensors


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 <= size < 1 << 31


def _tensor(data: bytearray, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:  # any other byte than 0 and 1 in one has no meaning in C++
        return torch.frombuffer(data, dtype=torch.uint8).ne(0).reshape(shape)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _nested(value: Any, tensors: list[Tensor], spelled: Callable[[str], str], depth: int) -> Any:
    if depth > DEEPEST:
        raise WireError("its value is nested too deeply")
    match value:
        case dict() if _TENSOR in value:
            number = value[_TENSOR]
            if len(value) != 1 or type(number) is not int or not 0 <= number < len(tensors):
                raise WireError("it names a tensor that is not there")
            return tensors[number]
        case dict():
            return {spelled(key): _nested(item, tensors, spelled, depth + 1) for key, item in value.items()}
        case list():
            return [_nested(item, tensors, spelled, depth + 1) for item in value]
        case str():
            return spelled(value)
        case int() if not -(1 << 63) <= value < 1 << 63:
            raise WireError("it has a number that is too large")
    return value

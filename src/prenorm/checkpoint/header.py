"""What a safetensors file says of itself, read and checked before anything is allocated.

The file is a header length (8 bytes, little endian), the header in JSON, then the tensors' bytes without gaps.
"""

import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..errors import CheckpointError
from .files import MAX_JSON_BYTES, json_text, name_text, parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Far beyond what weights have. Products of more and of larger numbers take long.
MAX_DIMS = 16
MAX_NUMBER = 2**63 - 1

# The first bytes of files that are not safetensors but pickles: torch.save's archive, and a bare pickle.
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class TensorInfo(NamedTuple):
    """What a header says of one tensor. `begin` and `end` count bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a safetensors file says of itself: its tensors by name, free text, and where the tensors' bytes begin.

    version: what tells the file that was read from one that has taken its place since.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    start: int
    version: tuple[int, ...]


def dtype_name(dtype: torch.dtype) -> str:
    """What a header calls a dtype: F32, BF16, ... (PyTorch's own name where the format has none)."""
    return _NAMES.get(dtype, str(dtype))


def read_header(path: Path, *, at_most: int = MAX_JSON_BYTES) -> Header:
    """The header of a file, of at most so many bytes, checked against the file's own length. No tensor is read.

    Raises CheckpointError for a file that is cut short or no safetensors, and for a header whose tensors overlap, leave
    gaps, appear twice, or do not have the bytes that their shape and dtype need.
    """
    try:
        with open(path, "rb") as file:
            version = version_of(file)
            size = file.seek(0, 2)
            file.seek(0)
            first = file.read(8)
            length = int.from_bytes(first, "little")
            # 640 is b"\x80\x02\0\0\0\0\0\0": what begins as a pickle does may be the length of a header, too.
            if length > at_most and first.startswith(_PICKLES):
                raise CheckpointError(
                    f"{path} is a pickle under another name, which runs code when it is opened; where you trust it, "
                    "load it with torch.load and save its tensors with safetensors.torch.save_file."
                )
            if length > at_most:
                raise CheckpointError(
                    f"{path}: a safetensors header has at most {at_most:,} bytes, but this one claims "
                    f"{length:,}; it is not a safetensors file, or not one of a model that prenorm can hold."
                )
            if size < 8 + length:
                raise _cut_short(path, size, 8 + length)
            fields = parse_json(file.read(length), f"the header of {path}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise CheckpointError(
            f"the header of {path}: __metadata__ must be an object of texts, not {json_text(metadata)}."
        )
    tensors = {name: _tensor_info(path, name, entry) for name, entry in fields.items()}
    _check_layout(path, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length, version)


def version_of(file: BinaryIO | Path) -> tuple[int, ...]:
    """What changes when another file takes the place of one, or when it is written to."""
    status = os.stat(file if isinstance(file, Path) else file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **others} if (
            not others
            and len(shape) <= MAX_DIMS
            and all(type(number) is int and 0 <= number <= MAX_NUMBER for number in (*shape, begin, end))
        ):
            info = TensorInfo(dtype, tuple(shape), begin, end)
        case _:
            raise CheckpointError(
                f"the header of {path}: {name_text(name)} needs a dtype, a shape and two offsets, not "
                f"{json_text(entry)}."
            )
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"the header of {path}: {name_text(name)} of shape {shape} in {dtype} needs "
            f"{math.prod(shape) * DTYPES[dtype].itemsize} bytes, but has {end - begin}."
        )
    return info


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_size: int) -> None:
    """Refuse a file whose tensors overlap, leave gaps, or do not end where the file ends."""
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.begin != end or info.end < info.begin:
            raise CheckpointError(
                f"the header of {path}: tensors must follow one another without gaps, but {name_text(name)} goes from "
                f"{info.begin} to {info.end} where {end} is next."
            )
        end = info.end
    if end > data_size:
        raise _cut_short(path, data_size, end)
    if end < data_size:
        raise CheckpointError(f"{path} has {data_size - end} bytes after its last tensor, which belong to nothing.")


def _cut_short(path: Path, size: int, needed: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut short, or is not a safetensors file: it needs at least {needed:,} bytes, but has {size:,}; "
        "copy or download it again."
    )

"""The safetensors format: tensors in one file, after a JSON header that is checked before anything is allocated.

The file is a header length (8 bytes, little endian), the header, then the tensors' bytes without gaps.
The library reads the tensors. What it lets through is refused here: the same name twice, a header of a hundred
megabytes. Writing is ours, because the library's own temporary file escapes `write_atomically`: it is not synced to
the disk, stays behind when the process is killed, and gives a file that only its owner may read.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .files import MAX_JSON_BYTES, parse_json

_DTYPES = {
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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class TensorInfo(NamedTuple):
    """What a header says of one tensor. `begin` and `end` count bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a safetensors file says of itself: its tensors by name, and free text."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def dtype_name(dtype: torch.dtype) -> str:
    """What a header calls a dtype: F32, BF16, ... (PyTorch's own name where the format has none)."""
    return _NAMES.get(dtype, str(dtype))


def tensors_content(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[BinaryIO], None]:
    """A safetensors file, as a function that `write_atomically` calls. Tensors may be strided, shared, on any device.

    They go through memory one at a time. Raises CheckpointError for dtypes that the format has no name for.
    """
    foreign = sorted(f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in _NAMES)
    if foreign:
        raise CheckpointError(f"safetensors files hold {', '.join(_DTYPES)}, but not {', '.join(foreign)}; convert it.")
    # Widest first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _encode_header({name: tensors[name] for name in order}, metadata or {})

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in order:
            # A copy, because contiguous() keeps odd strides where a tensor has one element or none.
            plain = tensors[name].detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            file.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    return write


def _encode_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def read_tensors(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file (all, or those named), in `dtype` (None: as stored) on `device` (None: CPU).

    They are copies: the library's own tensors are windows on the file, and change with it.
    Raises CheckpointError, naming the file, when it is not whole, and when a number is beyond the range of `dtype`.
    """
    header = read_header(path)
    foreign = sorted({info.dtype for info in header.tensors.values() if info.dtype not in _DTYPES})
    if foreign:
        raise CheckpointError(f"{path} holds tensors of dtype {', '.join(foreign)}; known are {', '.join(_DTYPES)}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {
                name: _cast(file.get_tensor(name), dtype, device or "cpu", f"{path}: {name}")
                for name in (header.tensors if names is None else names)
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def _cast(tensor: Tensor, dtype: torch.dtype | None, device: torch.device | str, source: str) -> Tensor:
    """A copy of a tensor. Raises CheckpointError where a finite number would become infinite."""
    cast = tensor.to(dtype=dtype, copy=True)
    if _is_narrower(cast.dtype, tensor.dtype) and bool((cast.isinf() & tensor.isfinite()).any()):
        raise CheckpointError(
            f"{source} must fit into {dtype}, whose largest number is {torch.finfo(cast.dtype).max:.4g}, but has "
            f"{tensor[tensor.isfinite()].abs().max().item():.4g} in it; dtype={tensor.dtype} keeps it as it is stored."
        )
    return cast.to(device)


def _is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    floats = dtype.is_floating_point and than.is_floating_point
    return floats and torch.finfo(dtype).max < torch.finfo(than).max


def read_header(path: Path) -> Header:
    """What a safetensors file says of itself, checked against its own length. No tensor is read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_JSON_BYTES:
                raise CheckpointError(
                    f"{path}: a safetensors header has at most {MAX_JSON_BYTES:,} bytes, but this one claims "
                    f"{length:,}; it is not a safetensors file, or not one of a model that prenorm can hold."
                )
            if size < 8 + length:
                raise _cut_short(path, size, 8 + length)
            fields = parse_json(file.read(length), f"the header of {path}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"the header of {path}: __metadata__ must be an object, not {metadata!r}.")
    tensors = {name: _tensor_info(path, name, entry) for name, entry in fields.items()}
    _check_layout(path, tensors, size - 8 - length)
    return Header(tensors, metadata)


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            info = TensorInfo(dtype, tuple(shape), begin, end)
        case _:
            raise CheckpointError(
                f"the header of {path}: {name} needs a dtype, a shape and two offsets, not {entry!r}."
            )
    if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise CheckpointError(
            f"the header of {path}: {name} of shape {shape} in {dtype} needs "
            f"{math.prod(shape) * _DTYPES[dtype].itemsize} bytes, but has {end - begin}."
        )
    return info


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_size: int) -> None:
    """Refuse a file whose tensors overlap, leave gaps, or do not end where the file ends."""
    end = 0
    for name, info in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if info.begin != end or info.end < info.begin:
            raise CheckpointError(
                f"the header of {path}: tensors must follow one another without gaps, but {name} goes from "
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

"""Tensors to and from safetensors files, one at a time: neither way is anything in memory twice.

Both are ours. The library's writer leaves a temporary file that is not synced to the disk and that only its owner may
read. Its reader maps the file, whose pages then count beside the tensors that were made of them (mapped.py maps only
for tensors that stay as they are stored).
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from . import read_at
from .files import listed, name_text
from .header import DTYPES, Header, TensorInfo, dtype_name, read_header, version_of
from .mapped import views_of
from .read_at import fill
from .sums import Blocks

# Of a tensor that changes its dtype or device on the way: so few that torch casts them on the thread that read them.
# Larger buffers, freed between tensors that stay, leave holes in the heap: with 16 MB a gigabyte takes 1.3.
CHUNK_NUMBERS = 2**15

# Of the first tensor in a file, so that tensors begin with a cache line where the file is mapped.
ALIGNMENT = 64


def tensors_content(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[BinaryIO], None]:
    """A safetensors file, as a function that `write_atomically` calls. Tensors may be strided, shared, on any device.

    They go through memory one at a time. Raises CheckpointError for dtypes that the format has no name for.
    """
    known = set(DTYPES.values())
    foreign = sorted(f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.dtype not in known)
    if foreign:
        raise CheckpointError(f"safetensors files hold {', '.join(DTYPES)}, but not {', '.join(foreign)}; convert it.")
    # Widest first, so that every tensor starts at a multiple of its item size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header = _encode_header({name: tensors[name] for name in order}, metadata or {})

    def write(file: BinaryIO) -> None:
        file.write(header)
        for name in order:
            file.write(bytes_of(tensors[name]))

    return write


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as a file has them."""
    # A copy, because contiguous() keeps odd strides where a tensor has one element or none.
    plain = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return _bytes(plain)


def _encode_header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    return struct.pack("<Q", len(encoded)) + encoded


def read_tensors(
    path: Path,
    names: Iterable[str] | None = None,
    *,
    header: Header | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    mapped: dict[Path, tuple[int, ...]] | None = None,
    blocks: Blocks | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file (all, or those named), in `dtype` (None: as stored) on `device` (None: CPU).

    header: the file's own, where it was read before. mapped: tensors that keep their dtype may be views of a large file
    (mapped.py), whose version is then noted here; None: all are copies. blocks: those of the file; where converted
    tensors lie, they are compared on the way.
    Raises CheckpointError, naming the file, when it is not whole, when a number is beyond the range of `dtype`, and
    when there is no memory for them.
    """
    header = header or read_header(path)
    wanted, place = list(header.tensors if names is None else names), torch.device(device or "cpu")
    foreign = sorted({header.tensors[name].dtype for name in wanted} - {*DTYPES})
    if foreign:
        raise CheckpointError(f"{path} holds tensors of dtype {listed(foreign)}; known are {', '.join(DTYPES)}.")
    with _opened(path, header) as (file, threads):
        viewed: dict[str, Tensor] = {}
        if mapped is not None and place.type == "cpu":
            same = [name for name in wanted if dtype in (None, DTYPES[header.tensors[name].dtype])]
            viewed = views_of(file, header, same)
            mapped |= {path: header.version} if viewed else {}

        def read(name: str) -> Tensor:
            source = f"{path}: {name_text(name)}"
            return _read(file, header.start, header.tensors[name], dtype, place, source, blocks)

        others = [name for name in wanted if name not in viewed]
        return viewed | dict(zip(others, threads.map(read, others), strict=True))


class Box(NamedTuple):
    """A part of a tensor in a file, and where it is read to: a tensor of the stored dtype, on the CPU, maybe a view."""

    name: str
    begins: tuple[int, ...]  # of the part, along each axis of what is stored
    target: Tensor


def read_boxes(path: Path, boxes: Iterable[Box], header: Header) -> None:
    """Read parts of the tensors in a file, bit for bit. Raises CheckpointError, naming the file, if it is not whole."""
    with _opened(path, header) as (file, threads):

        def read(box: Box) -> None:
            _read_box(file, header.start, header.tensors[box.name], box, f"{path}: {name_text(box.name)}")

        list(threads.map(read, boxes))


@contextmanager
def _opened(path: Path, header: Header) -> Iterator[tuple[BinaryIO, ThreadPoolExecutor]]:
    """The file with this header, and threads that may all read from it."""
    try:
        with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(_most_threads()) as threads:
            if version_of(file) != header.version:
                raise CheckpointError(f"{path} was replaced while it was read; open the folder again.")
            yield file, threads
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def is_converted(info: TensorInfo, dtype: torch.dtype | None, device: torch.device | str | None) -> bool:
    """Whether reading a tensor takes it to another dtype, or to another device than the CPU."""
    return dtype not in (None, DTYPES[info.dtype]) or torch.device(device or "cpu").type != "cpu"


def _read(
    file: BinaryIO,
    start: int,
    info: TensorInfo,
    dtype: torch.dtype | None,
    device: torch.device,
    source: str,
    blocks: Blocks | None,
) -> Tensor:
    """One tensor. start: where the bytes of the first one begin. Several threads may read from the file at once."""
    stored, begin, end = DTYPES[info.dtype], start + info.begin, start + info.end
    try:
        tensor = torch.empty(info.shape, dtype=dtype or stored, device=device)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit into memory: {error}.") from error
    if not is_converted(info, dtype, device):
        fill(file, begin, _bytes(tensor), source)
        return tensor
    if blocks is not None and begin % stored.itemsize == 0:  # or a number could lie in two blocks
        pieces = blocks.read(file, begin, end)
    else:
        pieces = _pieces(file, begin, end, stored, source)
    left = tensor.view(-1)
    for piece in pieces if tensor.numel() else ():
        numbers = torch.frombuffer(piece, dtype=stored)
        cast, left = left[: len(numbers)], left[len(numbers) :]
        for target, chunk in zip(cast.split(CHUNK_NUMBERS), numbers.split(CHUNK_NUMBERS), strict=True):
            target.copy_(chunk)
        _check_range(cast, numbers, source)
    return tensor


def _pieces(file: BinaryIO, begin: int, end: int, stored: torch.dtype, source: str) -> Iterator[memoryview]:
    """The bytes from `begin` to `end`, a few numbers at a time, each piece valid until the next is asked for."""
    room = memoryview(bytearray(min(end - begin, CHUNK_NUMBERS * stored.itemsize)))
    while begin < end:
        piece = room[: end - begin]
        fill(file, begin, piece, source)
        yield piece
        begin += len(piece)


def _read_box(file: BinaryIO, start: int, info: TensorInfo, box: Box, source: str) -> None:
    """One part of a tensor. Where it lies in one run of bytes it is read at once, otherwise some rows at a time."""
    target, row = box.target, math.prod(info.shape[1:])
    place = start + info.begin + (box.begins[0] * row * target.itemsize if info.shape else 0)
    if target.shape[1:] == info.shape[1:] and target.is_contiguous():
        fill(file, place, _bytes(target), source)
        return
    rows = max(1, CHUNK_NUMBERS // row)
    columns = tuple(slice(begin, begin + size) for begin, size in zip(box.begins[1:], target.shape[1:], strict=True))
    for begin in range(0, len(target), rows):
        part = target[begin : begin + rows]
        chunk = torch.empty((len(part), *info.shape[1:]), dtype=target.dtype)
        fill(file, place + begin * row * target.itemsize, _bytes(chunk), source)
        part.copy_(chunk[(slice(None), *columns)])


def _most_threads() -> int:
    return min(4, torch.get_num_threads()) if read_at.IN_THREADS else 1


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _check_range(cast: Tensor, stored: Tensor, source: str) -> None:
    """Raise CheckpointError where a finite number became infinite."""
    if not _is_narrower(cast.dtype, stored.dtype):
        return
    low, high = (one.item() for one in cast.aminmax())  # a tenth of the time of isinf
    if low > -math.inf and high < math.inf:  # neither is so for NaN
        return
    if bool((cast.isinf().cpu() & stored.isfinite()).any()):
        raise CheckpointError(
            f"{source} must fit into {cast.dtype}, whose largest number is {torch.finfo(cast.dtype).max:.4g}, but has "
            f"{stored[stored.isfinite()].abs().max().item():.4g} in it; dtype={stored.dtype} keeps it as it is stored."
        )


def _is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    floats = dtype.is_floating_point and than.is_floating_point
    return floats and torch.finfo(dtype).max < torch.finfo(than).max

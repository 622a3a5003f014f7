"""A call of a C++ function with its right results, as bytes: the first lines of driver.cpp say in which order."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prenorm.kernels.cpu.header import STRUCTS, layout

from ...oracle.tolerance import FEW, array, error, rms

THREADS = 3
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.int64: 2}  # Output::Dtype in driver.cpp


@dataclass(frozen=True)
class Output:
    """A tensor that a kernel fills: what is right, in float64 or integers, and what the plain formula gives."""

    expected: Tensor
    plain: Tensor
    before: Tensor | None = None  # what is there before the call; None: NaN

    def tensor(self) -> Tensor:
        """As it is before the call, contiguous."""
        nothing = torch.full_like(self.plain, math.nan if self.plain.is_floating_point() else -7)
        return (nothing if self.before is None else self.before.clone()).contiguous()

    def limit(self) -> float:
        """The root mean square that its errors may have."""
        if not self.plain.is_floating_point():
            return 0.0
        assert self.plain.numel() >= FEW, "too few numbers for a root mean square"
        oracle = array(self.expected)
        return 2 * error(self.plain, oracle) + torch.finfo(self.plain.dtype).eps * rms(oracle)


@dataclass(frozen=True)
class Table:
    """Structs one after the other, to which a call points."""

    struct: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Call:
    """A function of the library and the fields of its struct by name: numbers, tensors, Output; None is null."""

    symbol: str
    struct: str
    fields: Mapping[str, Any]
    returns: int = 0


@dataclass
class Memory:
    """The buffers of a call, the pointers among them, and its outputs; see driver.cpp."""

    buffers: list[bytes] = field(default_factory=list)
    pointers: list[tuple[int, int, int, int]] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    known: dict[int, int] = field(default_factory=dict)  # buffers by where their storage is
    held: list[Tensor] = field(default_factory=list)  # so that no two storages are at one place

    def add_structs(self, name: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """The number of the buffer that holds them, one after the other."""
        number = len(self.buffers)
        self.buffers.append(b"")
        packed = b""
        for row in rows:
            assert row.keys() <= {one.name for one in STRUCTS[name]}, f"{name} has no such fields: {sorted(row)}"
            values: list[Any] = []
            for one in STRUCTS[name]:
                value = row.get(one.name)
                if one.code != "P":
                    values += value if one.is_array else [value]
                    continue
                if value is not None:
                    self.pointers.append((number, len(packed) + 8 * len(values), *self.add(value)))
                values.append(0)
            packed += layout(name).pack(*values)
        self.buffers[number] = packed
        return number

    def add(self, value: Tensor | Output | Table) -> tuple[int, int]:
        """The buffer that holds it, and at which byte."""
        if isinstance(value, Table):
            return self.add_structs(value.struct, value.rows), 0
        x = value.tensor() if isinstance(value, Output) else value
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known[storage.data_ptr()] = len(self.buffers)
            self.buffers.append(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes())
            self.held.append(x)
        buffer, start = self.known[storage.data_ptr()], int(x.storage_offset()) * x.element_size()
        if isinstance(value, Output):
            head = struct.pack("<4qd", buffer, start, CODES[x.dtype], x.numel(), value.limit())
            self.outputs.append(head + array(value.expected).tobytes())
        return buffer, start


def encoded(call: Call) -> bytes:
    """A call as driver.cpp reads it."""
    memory = Memory()
    memory.add_structs(call.struct, [{"threads": THREADS, **call.fields}])
    name = call.symbol.encode()
    parts = [numbers(len(name)), name, numbers(call.returns), numbers(len(memory.buffers))]
    parts += [part for one in memory.buffers for part in (numbers(len(one)), one)]
    parts += [numbers(len(memory.pointers)), *(numbers(*one) for one in memory.pointers)]
    return b"".join((*parts, numbers(len(memory.outputs)), *memory.outputs))


def numbers(*given: int) -> bytes:
    """Integers of 8 bytes."""
    return struct.pack(f"<{len(given)}q", *given)

"""Choices made by bytes: what a fuzzer changes in its bytes changes one choice, and the structure stays."""

from collections.abc import Sequence
from typing import Any, TypeVar

One = TypeVar("One")

NUMBERS = (0, 1, -1, 2, 3, 4, 8, 16, 31, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, 1.5, -2.5, 1e-30, 1e30, 1e308, 5e-324, 10000.0)
TEXTS = ("", "a", "silu", "llama", "F32", "\x00", "\ud800", "é", "\x1b[31m", "..", "/", "true", "1", "x" * 300)


class Choices:
    """A stream of choices. When the bytes are used up, each is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        size = 1 if limit <= 256 else 2
        taken = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(taken, "little") % max(1, limit)

    def one(self, of: Sequence[One]) -> One:
        return of[self.below(len(of))]

    def rest(self) -> bytes:
        taken, self._place = self._data[self._place :], len(self._data)
        return taken

    def value(self, near: Sequence[Any] = (), depth: int = 0) -> Any:
        """A value that JSON has, often one of those near."""
        kind = self.below(11 if depth < 3 else 8)
        if kind < 3 and near:
            return self.one(near)
        match kind:
            case 0 | 1:
                return self.one(NUMBERS)
            case 2 | 3:
                return self.below(300) - 20
            case 4:
                return self.one(FLOATS)
            case 5:
                return self.one(TEXTS)
            case 6:
                return self.one((True, False, None))
            case 7:
                return self.below(65536) / 256 - 10
            case 8 | 9:
                return [self.value(near, depth + 1) for _ in range(self.below(5))]
            case _:
                return {str(self.one(TEXTS)): self.value(near, depth + 1) for _ in range(self.below(4))}

    def changed(self, value: Any, near: Sequence[Any] = (), depth: int = 0) -> Any:
        """A JSON value with one thing changed in it: replaced, left out, added, or inside one of its parts."""
        kind = self.below(8)
        if isinstance(value, dict) and value and kind < 6:
            key = self.one(sorted(value))
            if kind == 0:
                return {name: one for name, one in value.items() if name != key}
            if kind == 1:
                return {**value, str(self.one([*near, *TEXTS])): self.value(near)}
            if kind == 2:
                return {(str(self.one([*near, *TEXTS])) if name == key else name): one for name, one in value.items()}
            if kind == 3:
                return {**value, key: value[self.one(sorted(value))]}
            return {**value, key: self.changed(value[key], near, depth + 1)}
        if isinstance(value, list) and value and kind < 6:
            place = self.below(len(value))
            if kind == 0:
                return value[:place] + value[place + 1 :]
            if kind == 1:
                return [*value[:place], self.value(near), *value[place:]]
            return [*value[:place], self.changed(value[place], near, depth + 1), *value[place + 1 :]]
        if isinstance(value, bool) and kind < 6:
            return not value
        if type(value) is int and kind < 4:
            return value + self.below(9) - 4
        return self.value(near)

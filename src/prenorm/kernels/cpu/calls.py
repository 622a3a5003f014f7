"""How Python calls C++: one struct a call, whose fields are named, and one function for each dtype."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import torch

from . import native
from .header import compiled

Key = TypeVar("Key", bound=Hashable)
ERRORS = {1: MemoryError, 2: IndexError}  # what a function returns that is not 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile calls it and does not trace it
def is_there() -> bool:
    """Whether there is a library."""
    return not native.unavailable_reason()


class Function(Generic[Key]):
    """A C++ function for each of several keys, mostly dtypes, all of which take one struct of calls.h.

    fields: what a call hands over after the key, in this order, which need not be the struct's; by position, since
    keywords cost a small norm 5 % of its time. Pointers that are not among them are null; the number of threads is
    torch's. call(key, ...) raises MemoryError where memory ran out.
    available(): the functions by key, empty without a library.
    """

    def __init__(self, struct: str, names: Mapping[Key, str], fields: str) -> None:
        self.functions = _Functions(names)
        self.available = functools.cache(self.functions.found)
        known = {"functions": self.functions, "errors": ERRORS, "threads": torch.get_num_threads}
        body = "wrong = functions[key](pack({values}))\n if wrong: raise errors[wrong]"
        self.call = compiled(struct, "call(key, {fields})", body, known, fields.split())


class _Functions(dict[Key, Callable[[bytes], int]]):
    """By key; looked up at first use, and from then on without running Python."""

    def __init__(self, names: Mapping[Key, str]) -> None:
        self.names = names

    def found(self) -> Mapping[Key, Callable[[bytes], int]]:
        library = native.load().library
        self.clear()
        if library is not None:
            self.update({key: library[name] for key, name in self.names.items()})
        return self

    def __missing__(self, key: Key) -> Callable[[bytes], int]:
        return {**self.found()}[key]

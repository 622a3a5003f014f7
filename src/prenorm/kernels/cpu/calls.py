"""How Python calls C++: one struct a call, whose fields are named, and one function for each dtype."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from . import native
from .header import compiled

Key = TypeVar("Key", bound=Hashable)
ERRORS = {1: MemoryError, 2: IndexError}  # what a function gives that is not 0


class Function(Generic[Key]):
    """A C++ function for each of several keys, mostly dtypes, all of which take one struct of calls.h.

    call(key, field=..., ...) raises MemoryError where memory ran out. available(): by key, empty without a library.
    """

    def __init__(self, struct: str, names: Mapping[Key, str]) -> None:
        self.names = names
        self.available = functools.cache(self._find)
        body = "wrong = available()[key](pack({values}))\n if wrong: raise errors[wrong]"
        self.call = compiled(struct, body, {"available": self.available, "errors": ERRORS}, first="key, ")

    def _find(self) -> Mapping[Key, Callable[[bytes], int]]:
        """The functions by key, looked up at first use; none where there is no library."""
        library = native.load().library
        return {} if library is None else {key: library[name] for key, name in self.names.items()}

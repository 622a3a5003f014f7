"""Values that stand for guesses: what raises the same with them is not due to the guess.

Unread may be stored and passed on, but not looked at. Guessed is a number that may be computed with.
"""

from typing import Any, NoReturn


class ReadError(TypeError):
    """Something depends on a value that was only guessed."""


def _raising(*_: Any, **__: Any) -> NoReturn:
    raise ReadError("a value that was guessed is used")


_USES = (
    "call bool len iter next getitem setitem delitem contains enter exit int float index complex hash "
    "eq ne lt le gt ge neg pos abs invert round setattr"
)
_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift divmod"
_NAMES = [*_USES.split(), *(side + name for name in _BINARY.split() for side in ("", "r"))]


def _attribute(self: Any, name: str) -> Any:
    if name in ("__class__", "__dict__"):  # isinstance() and copies ask for them
        return object.__getattribute__(self, name)
    return _raising()


Unread = type("Unread", (), {f"__{name}__": _raising for name in _NAMES} | {"__getattribute__": _attribute})
"""Its class: every operation that Python knows raises."""


class Guessed(int):
    """A number that may be computed with, and decides nothing: it raises where it is compared, or is no size.

    An error that says "int" of the argument says "Guessed" of this one.
    """

    __bool__ = __hash__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _raising

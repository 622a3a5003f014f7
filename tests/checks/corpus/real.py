"""x."""

from .editing import Example

RIGHT: list[Example] = []

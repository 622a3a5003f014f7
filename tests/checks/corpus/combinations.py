"""x."""

from .editing import Made

FAULTY: list[Made] = []

"""What can go wrong: every error that prenorm raises on purpose.

A message states the rule, the values that broke it, and a way out.
"""


class PrenormError(Exception):
    """The base of every error below."""


class ConfigError(PrenormError, ValueError):
    """Numbers or switches that no model, layer or run can have."""


class ShapeError(PrenormError, ValueError):
    """A tensor whose shape or dtype does not fit where it was handed in."""


class RangeError(PrenormError, ValueError, IndexError):
    """A token id, a position or a length outside the table that it looks into."""


class CheckpointError(PrenormError, RuntimeError):
    """A folder or file of weights that cannot be read, trusted or written."""


class DataError(PrenormError, ValueError):
    """Text that cannot be trained on: missing, unreadable, empty or too short."""


class KernelError(PrenormError, RuntimeError):
    """The library of C++ kernels cannot be loaded or built."""

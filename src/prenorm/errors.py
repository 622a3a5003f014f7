"""Every error that prenorm raises on purpose.

A message states the rule, the values that broke it, and a way out.
"""


class PrenormError(Exception):
    """The base class of all errors below."""


class ConfigError(PrenormError, ValueError):
    """An invalid setting, argument or combination of them."""


class ShapeError(PrenormError, ValueError):
    """A tensor with the wrong shape or dtype."""


class RangeError(PrenormError, ValueError, IndexError):
    """A token id, position or length out of range."""


class CheckpointError(PrenormError, RuntimeError):
    """A model folder or weight file that cannot be read, trusted or written."""


class DataError(PrenormError, ValueError):
    """Text that cannot be trained on: missing, unreadable, empty or too short."""


class KernelError(PrenormError, RuntimeError):
    """The library of C++ kernels cannot be loaded or built."""


class ProcessError(PrenormError, RuntimeError):
    """Processes of one run that do not find each other, or one of them that was lost."""

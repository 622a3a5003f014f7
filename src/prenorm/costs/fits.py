"""The largest batch and context that fit into a given memory."""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from ..errors import ConfigError
from .activations import Dtype
from .architecture import Architecture
from .memory import OPTIMIZERS, decoding, peak

# Bytes per unit: 24GB, 24G and 24000000000 are the same, and so are 24GiB and 24Gi. Case does not matter.
UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    UNITS |= dict.fromkeys((_letter, f"{_letter}b"), 1000**_power)
    UNITS |= dict.fromkeys((f"{_letter}i", f"{_letter}ib"), 1024**_power)


def fits(model: Architecture, memory: int, batch: int, context: int, dtype: Dtype) -> dict[str, Any]:
    """The largest batch at this context, and the largest context at this batch; 0 where not even 1 fits.

    For training None where nobody has counted what the model's parts save.

    A context is at most the model's max_seq_len.
    """

    def largest(size: Callable[[int, int], int]) -> dict[str, int]:
        return {
            "batch": _largest(lambda n: size(n, context) <= memory),
            "context": _largest(lambda n: size(batch, n) <= memory, at_most=model.max_seq_len),
        }

    return {
        "bytes": memory,
        "training": None
        if model.uncounted
        else {
            optimizer: {
                name: largest(
                    lambda b, c, o=optimizer, k=every: peak(model, b, c, dtype=dtype, optimizer=o, every=k)  # type: ignore[misc]
                )
                for name, every in (("plain", 0), ("checkpointed", 1))
            }
            for optimizer in OPTIMIZERS
        },
        "decoding": largest(lambda b, c: decoding(model, b, c, dtype)),
    }


def parse_bytes(text: str) -> int:
    """24GB, 80GiB, 1.5 TB, 24000000000, ... as bytes. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNITS:
        raise ConfigError(
            "a memory size must be a number of bytes, or a number with a unit from kB to TB or KiB to TiB, such as "
            f"24GB or 80GiB, not {text!r}."
        )
    size = Fraction(match[1]) * UNITS[match[2]]
    if not 1 <= size < 2**63:
        raise ConfigError(f"a memory size must be at least 1 byte and below 2^63 bytes, not {text!r}.")
    return int(size)


def _largest(fit: Callable[[int], bool], at_most: int | None = None) -> int:
    """The largest integer that fits, given that all smaller ones fit too."""
    if not fit(1):
        return 0
    good, bad = 1, 2
    while at_most is None or bad <= at_most:
        if not fit(bad):
            break
        good, bad = bad, 2 * bad
    else:
        bad = at_most + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fit(middle) else (good, middle)
    return good

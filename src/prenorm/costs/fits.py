"""The largest batch and context whose bytes fit into a memory."""

import re
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .activations import Dtype
from .architecture import Architecture
from .memory import OPTIMIZERS, decoding, peak

UNITS = {"B": 1, **{f"{letter}B": 1000**n for n, letter in enumerate("KMGT", 1)}}
UNITS |= {f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", 1)}
_BY_LOWER_CASE = {unit.lower(): size for unit, size in UNITS.items()}


def fits(model: Architecture, memory: int, batch: int, context: int, dtype: Dtype) -> dict[str, Any]:
    """The largest batch at this context, and the largest context at this batch; 0 where not even 1 fits.

    A context is at most the model's max_seq_len.
    """

    def largest(size: Callable[[int, int], int]) -> dict[str, int]:
        return {
            "batch": _largest(lambda n: size(n, context) <= memory),
            "context": _largest(lambda n: size(batch, n) <= memory, at_most=model.max_seq_len),
        }

    return {
        "bytes": memory,
        "training": {
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
    """24GB, 80GiB, 1.5 TB, ... as bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    if match is None or match[2].lower() not in _BY_LOWER_CASE or float(match[1]) == 0:
        raise ConfigError(f"a memory must be a positive number and a unit, such as 24GB or 80GiB, not {text!r}.")
    whole = float(match[1]) * _BY_LOWER_CASE[match[2].lower()]
    if whole > 2**63:
        raise ConfigError(f"a memory must have fewer than 2^63 bytes, not {text!r}.")
    return int(whole)


def _largest(fit: Callable[[int], bool], at_most: int | None = None) -> int:
    """The largest whole number that fits, all smaller ones fitting too."""
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

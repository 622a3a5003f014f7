"""Validation of the arguments of layers and records: sizes, head sizes, probabilities, switches."""

import dataclasses
import difflib
import operator
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeGuard

from .errors import ConfigError

LARGEST_SIZE = 2**64 - 1  # the largest seed of torch; sizes stay far below
MOST_TRIED = 2**16  # head counts tried when suggesting a valid one; a hostile file may claim any number


class Spelling(NamedTuple):
    """How messages spell the name and value of a field: as in Python, or as in the file that they come from."""

    name: Callable[[str], str] = str
    value: Callable[[Any], str] = repr


IN_PYTHON = Spelling()


def attention_sizes(
    d_model: int,
    num_heads: int,
    num_kv_heads: int | None,
    head_dim: int | None,
    *,
    rotary: bool = True,
    spelling: Spelling = IN_PYTHON,
) -> tuple[int, int]:
    """Check the head sizes and fill in those left as None. Returns (num_kv_heads, head_dim); raises ConfigError."""
    check_size("d_model", d_model, spelling=spelling)
    check_size("num_heads", num_heads, spelling=spelling)
    names = ("d_model", "num_heads", "num_kv_heads", "head_dim")
    width_name, heads_name, kv_heads_name, head_dim_name = map(spelling.name, names)
    if head_dim is None:
        if d_model % num_heads:
            step = 2 * num_heads  # for an even d_model, which rotary and sinusoidal positions need
            wider = step * -(-d_model // step)
            near = range(1, min(d_model, 2 * num_heads, MOST_TRIED) + 1)  # beyond that, 1 is closer
            fitting = [n for n in near if d_model % n == 0 and (d_model // n % 2 == 0 or not rotary)]
            nearest = min(fitting, key=lambda n: abs(n - num_heads), default=None)
            heads = "" if nearest is None else f" or {heads_name}={nearest}"
            raise ConfigError(
                f"{heads_name} must divide {width_name}, but {num_heads} does not divide {d_model}; "
                f"{width_name}={wider}{heads} would{f' (or give {head_dim_name})' if rotary else ''}."
            )
        head_dim = d_model // num_heads
    check_size("head_dim", head_dim, spelling=spelling)
    if rotary and head_dim % 2:
        raise ConfigError(
            f"{head_dim_name} must be even, because rotary embedding rotates pairs, but it is {head_dim} "
            f"({width_name} {d_model}, {heads_name} {num_heads}); {head_dim_name}={head_dim + 1} would do."
        )
    if num_kv_heads is None:
        num_kv_heads = num_heads
    check_size("num_kv_heads", num_kv_heads, spelling=spelling)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"{kv_heads_name} must divide {heads_name}, but {num_kv_heads} does not divide {num_heads}; "
            f"{kv_heads_name}={nearest_divisor(num_heads, num_kv_heads)} would."
        )
    return num_kv_heads, head_dim


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` closest to `wanted`, the smaller of two equally close; for huge numbers a small one."""
    tried = range(1, min(number, MOST_TRIED) + 1)
    return min((n for n in tried if number % n == 0), key=lambda n: abs(n - wanted))


def check_size(name: str, value: object, *, at_least: int = 1, spelling: Spelling = IN_PYTHON) -> None:
    """Raise ConfigError unless `value` is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or not at_least <= value <= LARGEST_SIZE:
        limits = f"from {at_least} to {LARGEST_SIZE}" if _is_huge(value) else f"of at least {at_least}"
        raise ConfigError(f"{spelling.name(name)} must be an integer {limits}, not {_shown(value, spelling)}.")


def as_size(name: str, value: Any, *, at_least: int = 1) -> int:
    """An argument as an int; NumPy integers and integer scalar tensors are accepted. Raises as `check_size` does."""
    dtype = str(getattr(value, "dtype", ""))
    if not isinstance(value, int) and "int" in dtype and getattr(value, "ndim", 1) == 0:
        value = operator.index(value)
    check_size(name, value, at_least=at_least)
    return int(value)


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    spelling: Spelling = IN_PYTHON,
) -> None:
    """Raise ConfigError unless `value` is a finite number above (or at least) the given bound."""
    largest = sys.float_info.max  # compared, because math.isfinite fails for larger integers
    named, shown = spelling.name(name), _shown(value, spelling)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise ConfigError(f"{named} must be a finite number, not {shown}.")
    if above is not None and value <= above:
        raise ConfigError(f"{named} must be greater than {above:g}, not {shown}.")
    if at_least is not None and value < at_least:
        raise ConfigError(f"{named} must be at least {at_least:g}, not {shown}.")


def check_flag(name: str, value: object, *, spelling: Spelling = IN_PYTHON) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        true, false = spelling.value(True), spelling.value(False)
        raise ConfigError(f"{spelling.name(name)} must be {true} or {false}, not {_shown(value, spelling)}.")


def check_dropout(value: object, *, spelling: Spelling = IN_PYTHON) -> None:
    """Raise ConfigError unless `value` is a probability below 1."""
    check_number("dropout", value, at_least=0.0, spelling=spelling)
    if value >= 1:  # type: ignore[operator]
        shown = _shown(value, spelling)
        raise ConfigError(f"{spelling.name('dropout')} must be below 1, not {shown}: 1 would drop everything.")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known name, if there is a close one."""
    nearest = difflib.get_close_matches(str(name).lower(), list(known), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


def _shown(value: object, spelling: Spelling) -> str:
    return f"one of {value.bit_length()} bits" if _is_huge(value) else spelling.value(value)


def _is_huge(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and abs(value) > LARGEST_SIZE  # Python refuses to print very large integers


def record_from(record: type[Any], what: str, fields: Any) -> Any:
    """The record with these fields, by name. Raises ConfigError for unknown and for missing fields."""
    if not isinstance(fields, dict):
        raise ConfigError(f"{what} must be an object with fields, not {fields!r}.")
    known = {field.name: field for field in dataclasses.fields(record)}
    unknown = sorted(fields.keys() - known.keys())
    if unknown:
        raise ConfigError(f"{what} has no field named {', '.join(unknown)}.")
    missing = [n for n, field in known.items() if field.default is dataclasses.MISSING and n not in fields]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}.")
    return record(**fields)

"""Numbers that layers and records are built from, checked: sizes, head sizes, probabilities."""

import math
import sys

from .errors import ConfigError


def attention_sizes(
    d_model: int, num_heads: int, num_kv_heads: int | None, head_dim: int | None, *, rotary: bool = True
) -> tuple[int, int]:
    """Check the head sizes and fill in those left as None. Returns (num_kv_heads, head_dim); raises ConfigError."""
    check_size("d_model", d_model)
    check_size("num_heads", num_heads)
    if head_dim is None:
        if d_model % num_heads:
            step = 2 * num_heads  # for an even d_model, which rotary and sinusoidal positions need
            wider = step * math.ceil(d_model / step)
            near = range(1, min(d_model, 2 * num_heads) + 1)  # beyond, 1 is nearer
            fitting = [n for n in near if d_model % n == 0 and (d_model // n % 2 == 0 or not rotary)]
            nearest = min(fitting, key=lambda n: abs(n - num_heads), default=None)
            heads = "" if nearest is None else f" or num_heads={nearest}"
            raise ConfigError(
                f"num_heads must divide d_model, but {num_heads} does not divide {d_model}; "
                f"d_model={wider}{heads} would{' (or give head_dim)' if rotary else ''}."
            )
        head_dim = d_model // num_heads
    check_size("head_dim", head_dim)
    if rotary and head_dim % 2:
        raise ConfigError(
            f"head_dim must be even, because rotary embedding turns pairs, but it is {head_dim} "
            f"(d_model {d_model}, num_heads {num_heads}); head_dim={head_dim + 1} would do."
        )
    if num_kv_heads is None:
        num_kv_heads = num_heads
    check_size("num_kv_heads", num_kv_heads)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"num_kv_heads must divide num_heads, but {num_kv_heads} does not divide {num_heads}; "
            f"num_kv_heads={nearest_divisor(num_heads, num_kv_heads)} would."
        )
    return num_kv_heads, head_dim


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`, the smaller one of two."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


def check_size(name: str, value: object, *, at_least: int = 1) -> None:
    """Raise ConfigError unless `value` is an integer of at least 1, or of at least another bound."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} must be a whole number of at least {at_least}, not {value!r}.")


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raise ConfigError unless `value` is a finite number above (or at least) the given bound."""
    largest = sys.float_info.max  # compared, because math.isfinite cannot take a whole number beyond it
    if isinstance(value, bool) or not isinstance(value, int | float) or not -largest <= value <= largest:
        raise ConfigError(f"{name} must be a finite number, not {value!r}.")
    if above is not None and value <= above:
        raise ConfigError(f"{name} must be greater than {above:g}, not {value!r}.")
    if at_least is not None and value < at_least:
        raise ConfigError(f"{name} must be at least {at_least:g}, not {value!r}.")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {value!r}.")


def check_dropout(value: object) -> None:
    """Raise ConfigError unless `value` is a probability below 1."""
    check_number("dropout", value, at_least=0.0)
    if value >= 1:  # type: ignore[operator]
        raise ConfigError(f"dropout must be below 1, not {value!r}: 1 would drop everything.")

"""The record of how rotary frequencies are scaled for contexts longer than those of the original training."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .errors import ConfigError
from .validation import IN_PYTHON, Spelling, check_flag, check_number, check_size

Kind = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are scaled for contexts longer than those of the original training.

    linear: every frequency is divided by `factor` (Chen et al. 2023, arXiv:2306.15595).
    dynamic: the base grows with the length of sequences longer than original_max_seq_len (bloc97 and emozilla 2023).
    yarn: frequencies with more than beta_fast rotations within original_max_seq_len are kept, those with fewer than
    beta_slow rotations are divided by `factor`, and those between are interpolated (Peng et al. 2023,
    arXiv:2309.00071). truncate: the bounds are rounded outwards to pair indices.
    llama3: wavelengths above original_max_seq_len / low_freq_factor are stretched by `factor`, those below
    original_max_seq_len / high_freq_factor are kept, and those between have interpolated frequencies
    (Llama 3.1, arXiv:2407.21783 and its reference code).
    longrope: frequency i is divided by short_factors[i] in sequences of at most original_max_seq_len tokens, and by
    long_factors[i] in longer ones (Ding et al. 2024, arXiv:2402.13753).

    attention_factor (yarn and longrope): multiplies cosines and sines. Default: as in the paper.
    short_factors and long_factors are tuples of numbers.
    """

    kind: Kind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    short_factors: Any = ()
    long_factors: Any = ()

    def __post_init__(self) -> None:
        for name in ("short_factors", "long_factors"):  # JSON and TOML have lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_scaling({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the sequence length."""
        return self.kind in ("dynamic", "longrope")


def check_scaling(fields: Mapping[str, Any], spelling: Spelling = IN_PYTHON) -> None:
    """Raise ConfigError for invalid fields of a RopeScaling. `spelling`: how messages spell names and values."""
    kind = fields["kind"]
    if kind not in get_args(Kind):
        kinds = ", ".join(map(repr, get_args(Kind)))
        raise ConfigError(f"rope_scaling kind must be one of {kinds}, not {kind!r}.")
    check_number("rope_scaling factor", fields["factor"], at_least=1.0, spelling=spelling)
    for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        check_number(f"rope_scaling {name}", fields[name], above=0.0, spelling=spelling)
    check_size("rope_scaling original_max_seq_len", fields["original_max_seq_len"], spelling=spelling)
    check_flag("rope_scaling truncate", fields["truncate"], spelling=spelling)
    if fields["attention_factor"] is not None:
        check_number("rope_scaling attention_factor", fields["attention_factor"], above=0.0, spelling=spelling)
    _check_order(fields, "llama3", "low_freq_factor", "high_freq_factor", "Llama 3.1 has 4.0 and 1.0", spelling)
    _check_order(fields, "yarn", "beta_slow", "beta_fast", "the paper has 32 and 1", spelling)
    if kind == "longrope":
        for name in ("short_factors", "long_factors"):
            check_factors(f"rope_scaling {name}", fields[name], spelling)
        if fields["original_max_seq_len"] < 2 and fields["attention_factor"] is None:
            raise ConfigError(
                f"{spelling.name('rope_scaling original_max_seq_len')} must be at least 2 for longrope, unless "
                f"{spelling.name('rope_scaling attention_factor')} is given."
            )


def check_factors(name: str, factors: Any, spelling: Spelling) -> None:
    """Raise ConfigError unless these are numbers above 0, at least one."""
    if not isinstance(factors, tuple | list) or not factors:
        raise ConfigError(
            f"{spelling.name(name)} must be a number for each pair of features, not {spelling.value(factors)}."
        )
    for factor in factors:
        check_number(name, factor, above=0.0, spelling=spelling)


def _check_order(
    fields: Mapping[str, Any], kind: str, smaller: str, larger: str, example: str, spelling: Spelling
) -> None:
    low, high = fields[smaller], fields[larger]
    if fields["kind"] == kind and high <= low:
        raise ConfigError(
            f"{spelling.name(f'rope_scaling {larger}')} must be greater than {smaller}, but {high} "
            f"is not greater than {low}; {example}."
        )


def check_rotated(rotary_dim: int, theta: float, scaling: RopeScaling, spelling: Spelling = IN_PYTHON) -> None:
    """Raise ConfigError unless this scaling is valid for rotary_dim features and base theta."""
    if scaling.kind == "dynamic" and rotary_dim < 4:
        raise ConfigError(
            f"rope_scaling kind 'dynamic' needs at least two pairs of rotated features, but {rotary_dim} features "
            "rotate."
        )
    if scaling.kind == "yarn" and theta <= 1:
        raise ConfigError(f"{spelling.name('rope_theta')} must be greater than 1 for yarn, not {theta}.")
    if scaling.kind != "longrope":
        return
    for name in ("short_factors", "long_factors"):
        if len(getattr(scaling, name)) != rotary_dim // 2:
            raise ConfigError(
                f"{spelling.name(f'rope_scaling {name}')} must have one number for each of the {rotary_dim // 2} pairs "
                f"that are rotated, but has {len(getattr(scaling, name))}."
            )

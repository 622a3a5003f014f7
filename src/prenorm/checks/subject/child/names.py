"""The names that a line such as `Block(d_model, num_heads, d_ff)` or `block(x, freqs_cis, mask)` may use.

They are worked out beside the learner's code, from plain numbers that the judge sends. The learner's own names stand
beside them; where both have one, ours counts, and `module.NAME` is the learner's.
"""

import ast
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import meanings
from .meanings import counts_repeats, meaning_of
from .tensors import first_tensor
from .unread import Guessed, Unread
from .weighted import weighted

TABLES = ("cos", "sin", "angles", "freqs_cis")


def of_build(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes and settings: d_model num_heads num_kv_heads head_dim d_ff max_seq_len theta eps dropout causal dtype ...

    values: those that the judge sets, by name.
    """
    names = {"causal": True, "dtype": torch.float32, "device": torch.device("cpu"), **values}
    names["theta"] = names["rope_theta"] = values.get("rope_theta", values.get("theta", 10000.0))
    names |= {"rows": rows, "weighted": weighted(values), "unread": Unread(), "guessed": Guessed}
    return names | {"torch": torch, "nn": nn, "F": nn.functional, "math": math}


def of_call(wanted: Iterable[str], settings: Mapping[str, Any], x: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
    """What one call may use beside the settings: x batch seq positions mask added cos ...; those wanted."""
    seq = x.shape[-2]
    positions = values.get("positions")
    positions = torch.arange(seq, device=x.device) if positions is None else positions.to(x.device)
    mask = values.get("mask")
    mask = torch.ones(seq, seq, dtype=torch.bool, device=x.device).tril() if mask is None else mask.to(x.device)
    made: dict[str, Callable[[], Any]] = {
        "x": lambda: x,
        "seq": lambda: seq,
        "device": lambda: x.device,
        "dtype": lambda: x.dtype,
        "batch": lambda: x.shape[0],
        "positions": lambda: positions,
        "mask": lambda: mask,
        "swapped": lambda: swapped,
        "each": lambda: each,
        "summed": lambda: summed,
        "added": lambda: lambda allowed: added(allowed, x.dtype),
        "rows": lambda: lambda table, places: rows(table, places, x.dtype),
        "cos": lambda: _angles(settings, positions).cos().to(x.dtype),
        "sin": lambda: _angles(settings, positions).sin().to(x.dtype),
        "angles": lambda: _angles(settings, positions).to(x.dtype),
        "freqs_cis": lambda: _turns(_angles(settings, positions), x.dtype),
    }
    return {name: made[name]() for name in wanted if name in made}


OF_CALLS = frozenset(
    ("block", "x", "seq", "batch", "positions", "mask", "swapped", "each", "added", "rows", "device", "dtype", *TABLES)
)
"""The names that of_call and the driver give to a call; a learner's of the same name do not count in it."""


def swapped(block: Callable[..., Any]) -> Callable[..., Tensor]:
    """A block for (seq, batch, d_model), to be called with (batch, seq, d_model)."""

    def call(x: Tensor, *others: Any, **named: Any) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"x must be (batch, seq, d_model), but it is {tuple(x.shape)}")
        turned = x.transpose(0, 1)
        return first_tensor(block(turned, *others, **named), turned.shape).transpose(0, 1)

    return call


def each(block: Callable[..., Any]) -> Callable[..., Tensor]:
    """A block for one sequence (seq, d_model), to be called with (batch, seq, d_model)."""

    def call(x: Tensor, *others: Any, **named: Any) -> Tensor:
        if x.dim() != 3:
            raise ValueError(f"x must be (batch, seq, d_model), but it is {tuple(x.shape)}")
        return torch.stack([first_tensor(block(one, *others, **named), one.shape) for one in x])

    return call


def summed(block: Callable[..., Any]) -> Callable[..., Tensor]:
    """A block that leaves its last residual to the next one, and gives (the last branch's output, the residual)."""

    def call(*args: Any, **named: Any) -> Tensor:
        given = block(*args, **named)
        two = given[:2] if isinstance(given, tuple | list) else ()
        if len(two) < 2 or not all(isinstance(one, Tensor) and one.shape == two[0].shape for one in two):
            raise TypeError("the block does not give two tensors of the same shape, a branch and the residual")
        return two[0] + two[1]

    return call


def changer(modules: Iterable[types.ModuleType], own: types.ModuleType) -> Callable[..., types.ModuleType]:
    """What sets numbers of the learner's files, such as n_embd = 384, wherever they are defined or imported."""

    def changed(**numbers: Any) -> types.ModuleType:
        for module in [*modules, own]:
            vars(module).update({name: value for name, value in numbers.items() if name in vars(module)})
        return own

    return changed


def added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that is added to scores: 0 where a query may attend, minus infinity where not."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, -math.inf)


def rows(table: Any, positions: Tensor, dtype: torch.dtype = torch.float32) -> Any:
    """The rows of a table at these positions; of each, where there are several, such as (cos, sin).

    In a narrower dtype real numbers are rounded to it, as a model that is moved to it rounds its own.
    """
    if isinstance(table, tuple | list):
        return tuple(rows(one, positions, dtype) for one in table)
    found = table[positions.to(table.device)]
    return found.to(dtype) if found.is_floating_point() and dtype.itemsize < 4 else found


def used(line: str) -> set[str]:
    """The names that a line uses."""
    return {node.id for node in ast.walk(ast.parse(line.strip(), mode="eval")) if isinstance(node, ast.Name)}


def _angles(settings: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Position times frequency, (..., seq, head_dim / 2), in float64."""
    head_dim = settings["head_dim"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    frequencies = float(settings["theta"]) ** -exponents
    return positions[..., None].double() * frequencies.to(positions.device)


def _turns(angles: Tensor, dtype: torch.dtype) -> Tensor:
    wide = angles.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.polar(torch.ones_like(wide), wide)


class UnknownEntryError(KeyError, AttributeError):
    """A block asks a configuration of ours for an entry whose name says nothing."""

    __str__ = Exception.__str__  # a KeyError's would be in quotes


class Config(dict[str, Any]):
    """A configuration for blocks that take one: an object with attributes, and a dictionary, that knows usual names.

    What it is given counts first; then, for what is no size, what base has. `read` holds the usual names asked for, and
    parts of it such as config.model, which know the same names. Where base must not be read, nothing may depend on
    sizes whose names are only nearly usual.
    """

    def __init__(self, settings: Mapping[str, Any], given: Mapping[str, Any], base: Any = None) -> None:
        super().__init__(given)
        vars(self).update(given)
        self.__dict__["_base"] = base
        self.__dict__["_settings"] = settings
        self.__dict__["read"] = {}

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = self.__dict__[name] = value

    def __missing__(self, name: str) -> Any:
        known = name.lower() if name.isupper() else name
        meaning = meaning_of(known, loosely=True)
        base, settings = self.__dict__["_base"], self.__dict__["_settings"]
        if isinstance(base, Unread):
            if meaning in SIZES and meaning_of(known) is None:
                return base
            base = None
        if meaning not in SIZES and base is not None and hasattr(base, name):
            return getattr(base, name)
        line = None if name.startswith("__") or meaning is None else WRITTEN.get(meaning)
        if line is None and PART.search(name):
            self.__dict__["read"][name] = self[name] = self.__dict__[name] = Part(settings, {}, self.__dict__["_base"])
            return self[name]
        if line is None:
            raise UnknownEntryError(f"the configuration has no {name!r}")
        if meaning == "num_kv_heads" and counts_repeats(known, self.__dict__["read"]):
            line = WRITTEN["kv_repeats"]
        self.__dict__["read"][name] = line
        return eval(line, dict(settings))

    def asked(self) -> dict[str, Any]:
        """What was asked for: the usual names and how they are written, and of parts the same."""
        read: dict[str, Any] = self.__dict__["read"]
        return {name: one.asked() if isinstance(one, Config) else one for name, one in read.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """As a dictionary's, with the usual names."""
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: object) -> bool:
        return self.get(name, self) is not self if isinstance(name, str) else False


class Part(Config):
    """A part of a configuration, such as config.model; what is compared or looked up was no part, but a setting."""

    def _is_none(self, *_: object) -> NoReturn:
        raise UnknownEntryError("the configuration has no such part, but a setting of that name")

    __eq__ = __ne__ = __hash__ = _is_none  # type: ignore[assignment]


class Maker(Config):
    """What lines call `config`: it makes configurations, and is one, with the usual names."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings, {})
        self.__dict__["_made"] = [self]

    def __call__(self, base: Any = None, **given: Any) -> Config:
        made: list[Config] = self.__dict__["_made"]
        made.append(Config(self.__dict__["_settings"], given, base))
        return made[-1]

    def asked(self) -> dict[str, Any]:
        """What was asked of all."""
        others = self.__dict__["_made"][1:]
        return super().asked() | {name: line for one in others for name, line in one.asked().items()}


PART = re.compile(
    r"^(model|block|transformer|decoder|network|net|arch(itecture)?|llm|gpt)?_?(config|cfg|args|params|hparams)?$", re.I
)
SIZES = (*meanings.SIZES, "rope_theta", "eps", "dropout")
WRITTEN = {
    "d_model": "d_model",
    "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "kv_repeats": "num_heads // num_kv_heads",
    "head_dim": "head_dim",
    "d_ff": "d_ff",
    "max_seq_len": "max_seq_len",
    "rope_theta": "theta",
    "eps": "eps",
    "dropout": "dropout",
    "causal": "causal",
    "dtype": "dtype",
    "device": "device",
    "layer": "0",
    "layers": "1",
    "vocabulary": "64",
    "max_batch": "64",
    "window": "max_seq_len",
    "multiple": "1",
    "batch": "64",
    "bias": "False",
    "expansion": "d_ff / d_model",
    "cache": "None",
    "activation": "'silu'",
    "on": "True",
    "off": "False",
}
"""How what an argument means is written in a line."""


def namespace(modules: Iterable[types.ModuleType], own: types.ModuleType | None) -> dict[str, Any]:
    """The learner's names: of the module under test first, then of what it was imported with."""
    names: dict[str, Any] = {}
    for module in [*modules, *([own] if own is not None else [])]:
        names |= {name: value for name, value in vars(module).items() if not name.startswith("__")}
    return names | ({"module": own} if own is not None else {})


def sizes_in(module: types.ModuleType) -> dict[str, str]:
    """The plain numbers of a file that are named as sizes and settings of a block, with what they mean."""
    found = {name: meaning_of(name.lower()) for name, value in vars(module).items() if type(value) in (int, float)}
    return {name: meaning for name, meaning in found.items() if meaning in SIZES}

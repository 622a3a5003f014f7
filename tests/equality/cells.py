"""The cells of the grid: each is one way of running one model on one input, drawn by a fixed seed.

A factor is a field of a cell and the values it may have. FACTORS says which values each subject has, HONOURS which of
them a path can honour; a cell is only ever drawn from what is possible, so that none has to be skipped.
"""

import dataclasses
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Values = tuple[Any, ...]

D_MODEL, D_FF, VOCAB, TARGET_VOCAB = 32, 24, 29, 23
ROOM = 160  # positions that every model has
SUBJECTS = ("block", "lm", "encoder-decoder", "family")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One way of running one model on one input. A field that the subject or the path does not have is None."""

    path: str
    subject: str
    dtype: str
    heads: tuple[int, int, int]  # of queries, of keys and values, and head_dim
    sees: str | int | None = None  # "all", "past", or itself and so many places - 1 before it
    qk_norm: bool | None = None
    interleaved: bool | None = None
    theta: float | None = None
    scaling: str | None = None
    biases: str | None = None
    layers: tuple[int, ...] | None = None
    tied: bool | None = None
    family: str | None = None  # of cases.FAMILIES
    positions_are: Any = None  # of the encoder-decoder: "sinusoidal" or "learned"
    eps: float = 1e-6
    weights: int  # the seed of the weights

    leading: tuple[int, ...] | None = None  # the dims before (seq, d_model); None where there are rows
    seq: int | None = None
    rows: tuple[int, ...] | None = None  # the lengths of rows, or documents, that differ
    mask: str | None = None
    positions: str | None = None  # which token_positions are given
    cut: str | None = None  # how the tokens are cut into chunks
    grad: str | None = None  # whether gradients are recorded, where nothing is trained
    every: int | None = None  # use_checkpointing
    layout: str | None = None  # of the input in memory
    inputs: int  # the seed of the inputs

    @property
    def causal(self) -> bool:
        """Whether no token sees a later one."""
        return self.sees != "all"

    @property
    def window(self) -> int | None:
        """The places that a query sees, where these are counted."""
        return self.sees if isinstance(self.sees, int) else None

    @property
    def model(self) -> "Cell":
        """The same model under the same kind of call: what two cells share that can share a compiled module."""
        sizes: dict[str, Any] = {
            "leading": None if self.leading is None else (0,) * len(self.leading),
            "seq": None,
            "rows": None,
        }
        return dataclasses.replace(self, **sizes, inputs=0)

    def chunks(self, seq: int) -> list[int]:
        """How `seq` tokens come, a chunk at a time."""
        chance = random.Random(self.inputs)
        if self.cut == "whole":
            return [seq]
        if self.cut == "one by one":
            return [1] * seq
        if self.cut == "prompt, then one by one":
            prompt = chance.randint(0, seq)
            return [prompt] + [1] * (seq - prompt)
        if self.cut == "longer than the window":
            assert self.window is not None
            return _cut(seq, self.window + 1, self.window + 9, chance)
        if self.cut == "with empty chunks":
            return [size for chunk in _cut(seq, 1, 7, chance) for size in (0, chunk)] + [0]
        assert self.cut == "any sizes"
        return _cut(seq, 1, max(1, seq // 2), chance)


def _cut(seq: int, least: int, most: int, chance: random.Random) -> list[int]:
    chunks = []
    while seq > 0:
        chunks.append(min(seq, chance.randint(least, most)))
        seq -= chunks[-1]
    return chunks


LEADING = ((), (1,), (3,), (2, 3), (0,), (2, 0))
LENGTHS = (1, 18, 24, 29, 33, 40)
ROWS = ((17, 3, 12), (1, 20, 9, 4), (0, 15, 28), (33, 12), (16, 16))
CUTS = ("whole", "one by one", "any sizes", "prompt, then one by one", "with empty chunks")

_OF_ALL = {
    "dtype": ("float64", "float32", "bfloat16"),
    "eps": (1e-6, 1e-2),
    "leading": LEADING,
    "seq": LENGTHS,
    "rows": ROWS,
    "cut": CUTS,
    "grad": ("recorded", "no_grad", "inference_mode"),
    "every": (1, 2),
    "layout": ("contiguous", "transposed", "every second", "offset"),
}
_OF_BLOCKS = {
    "heads": ((4, 4, 8), (4, 2, 8), (4, 1, 6), (6, 3, 4), (1, 1, 32)),
    "sees": ("all", "past", 1, 5, 16),
    "qk_norm": (False, True),
    "interleaved": (False, True),
    "theta": (10000.0, 30.0),
    "scaling": ("none", "linear", "llama3"),
    "biases": ("none", "qkv", "o", "both"),
    "positions": ("default", "(seq,)", "(..., seq)"),
}
FACTORS: dict[str, dict[str, Values]] = {
    "block": _OF_ALL
    | _OF_BLOCKS
    | {
        "mask": (
            "none",
            "(q, kv)",
            "(..., 1, q, kv)",
            "(..., heads, q, kv)",
            "(..., 1, 1, kv)",
            "padding",
            "documents",
            "documents and a mask",
        ),
    },
    "lm": _OF_ALL
    | _OF_BLOCKS
    | {
        "sees": ("past", 1, 5, 16),
        "mask": ("none", "padding", "documents"),
        "layers": ((1,), (2,)),
        "tied": (False, True),
    },
    "encoder-decoder": _OF_ALL
    | {
        "heads": ((4, 4, 8), (2, 2, 16), (1, 1, 32)),
        "mask": ("none", "padding", "padding of the source", "padding of the target", "documents"),
        "layers": ((1, 1), (2, 1), (1, 2)),
        "tied": (False, True),
        "positions_are": ("sinusoidal", "learned"),
    },
    "family": _OF_ALL
    | {
        "heads": ((4, 4, 8), (4, 2, 8), (4, 1, 6)),
        "family": (
            "gemma2",
            "gemma3",
            "olmo2",
            "exaone4",
            "granite",
            "glm4",
            "smollm3",
            "yarn",
            "olmo",
            "nemotron",
            "cohere",
            "stablelm",
            "gpt2",
            "gpt_neox",
        ),
        "sees": ("past",),
        "mask": ("none", "padding", "documents"),
        "positions": ("default", "(seq,)", "(..., seq)"),
        "layers": ((2,),),
        "tied": (False, True),
    },
}

# Every model has these; which of the other factors a path has, and which of their values, is said path by path.
_MODEL = (
    "dtype",
    "heads",
    "sees",
    "qk_norm",
    "interleaved",
    "theta",
    "scaling",
    "biases",
    "layers",
    "tied",
    "family",
    "positions_are",
    "eps",
)
_WHOLE = {"leading": LEADING, "seq": (*LENGTHS, 140), "mask": None, "positions": None}  # None: every value
# A cache has one batch dimension and is causal, and in it a row holds one document.
_CAUSAL = ("past", 1, 5, 16)
_CACHED = {
    "sees": _CAUSAL,
    "leading": ((1,), (3,), (0,)),
    "seq": LENGTHS,
    "mask": ("none", "(q, kv)", "(..., 1, q, kv)", "(..., heads, q, kv)", "(..., 1, 1, kv)"),
    "positions": None,
    "grad": None,
}
# Rows of different lengths are padded by the path itself, and the truth is each of them alone.
_RAGGED = {"rows": None, "positions": ("default", "(..., seq)")}
_RAGGED_CACHED = {"sees": _CAUSAL, "rows": None, "positions": ("default",), "grad": None}
# Packed, they are documents, of which none is empty.
_PACKED = _RAGGED | {"rows": ((17, 3, 12), (1, 20, 9, 4), (5, 15, 28), (33, 12), (16, 16))}
# A graph is compiled for one number of dims; sizes 0 and 1 would each be a graph of their own.
_COMPILED = {"leading": ((2,), (3,), (5,)), "seq": (18, 24, 29, 33, 40), "mask": None, "positions": None}
# One graph serves all sizes, 1 too.
_EXPORTED = _COMPILED | {"leading": ((1,), (2,), (5,)), "seq": (1, 18, 24, 33, 40, 140)}
# Half a minute each: three models of each subject.
_FEW = {
    "heads": ((4, 4, 8), (4, 2, 8), (4, 1, 6)),
    "sees": ("past", 5),
    "biases": ("none", "both"),
    "mask": ("none", "documents", "(..., 1, q, kv)"),
    "positions": ("default", "(..., seq)"),
}

HONOURS: dict[str, dict[str, Values | None]] = {
    "plain": _WHOLE | {"layout": None},
    "the reference formulas": _WHOLE,
    "under no_grad": _WHOLE,
    "under inference_mode": _WHOLE,
    "chunks with a cache": _CACHED | {"cut": ("any sizes", "prompt, then one by one", "with empty chunks")},
    "token by token": _CACHED | {"cut": ("one by one",)},
    "all at once with a cache": {key: value for key, value in _CACHED.items() if key != "grad"} | {"cut": ("whole",)},
    "the last chunk trained": {"sees": _CAUSAL, "leading": ((1,), (3,)), "seq": (18, 24, 29, 33, 40)}
    | {"positions": None, "cut": ("any sizes",), "subject": ("block",)},
    "a cache used again": _CACHED | {"cut": ("any sizes",), "mask": ("none",)},
    "rolling cache": _CACHED
    | {"sees": (1, 5, 16), "seq": (20, 33, 60, 140), "subject": ("block", "lm"), "mask": ("none",)}
    | {"cut": ("one by one", "any sizes", "prompt, then one by one", "longer than the window", "with empty chunks")},
    "padded on the left": _RAGGED,
    "padded on the right": _RAGGED,
    "padded on both sides": _RAGGED,
    "lists through pad": _PACKED | {"subject": ("lm", "encoder-decoder", "family"), "positions": ("default",)},
    "rows through pad_sequence": _RAGGED,
    "padded on the left, cached, then more": _RAGGED_CACHED,
    "padded on the right, cached, then more": _RAGGED_CACHED,
    "padded on both sides, cached, then more": _RAGGED_CACHED,
    "rows out of step in a cache": _RAGGED_CACHED,
    "packed documents": _PACKED,
    "packed documents, ids repeated": _PACKED | {"subject": ("block", "lm", "family")},
    "packed documents, padding between": _PACKED,
    "packed in another order": _PACKED | {"subject": ("encoder-decoder",), "positions": ("default",)},
    "checkpointed": _WHOLE | {"every": None},
    "checkpointed, dropout on": _WHOLE | {"every": None},
    "functional_call": _WHOLE,
    "made on meta, assigned": _WHOLE,
    "made on meta, to_empty": _WHOLE,
    "to bfloat16 and back": _WHOLE,
    "to float64 and back": _WHOLE,
    "saved and loaded": _WHOLE | {"subject": ("lm", "encoder-decoder", "family")},
    "explicit positions": _WHOLE | {"positions": ("default",), "subject": ("block", "lm", "family")},
    "explicit mask": _WHOLE | {"sees": _CAUSAL, "subject": ("block",)},
    "compiled (aot_eager)": _COMPILED,
    "compiled (inductor)": _COMPILED | _FEW | {"subject": ("block", "lm", "encoder-decoder")},
    "compiled with a cache": _CACHED
    | {"subject": ("block", "lm"), "leading": ((2,), (3,)), "seq": (24, 33, 40), "mask": ("none",)}
    | {"positions": ("default",), "cut": ("one by one", "any sizes"), "grad": ("no_grad",)},
    "exported": _EXPORTED,
    "ONNX Runtime": _EXPORTED | {"dtype": ("float32",), "subject": ("block", "lm", "encoder-decoder")},
}
# What costs seconds a model is drawn for few models, each with several inputs: models, inputs each.
GRAPHS = {
    "compiled (aot_eager)": {"block": (8, 6), "lm": (6, 6), "encoder-decoder": (5, 6), "family": (14, 3)},
    "compiled (inductor)": {"block": (3, 5), "lm": (3, 5), "encoder-decoder": (3, 5)},
    "compiled with a cache": {"block": (5, 5), "lm": (5, 5)},
    "exported": {"block": (8, 6), "lm": (6, 6), "encoder-decoder": (5, 6), "family": (14, 3)},
    "ONNX Runtime": {"block": (8, 5), "lm": (6, 5), "encoder-decoder": (5, 5)},
}
EACH = 72  # cells of a path and subject otherwise


def possible(path: str, subject: str) -> dict[str, Values]:
    """The values of every factor that a path can honour, nothing where it cannot run the subject."""
    honours, factors = HONOURS[path], FACTORS[subject]
    if subject not in (honours.get("subject") or SUBJECTS):
        return {}
    values = {name: factors[name] for name in _MODEL if name in factors}
    for name, allowed in honours.items():
        if name in factors:
            wanted = factors[name] if allowed is None else allowed
            has_them = name in ("leading", "seq", "rows", "cut")  # every subject, or what the path is about
            values[name] = tuple(value for value in wanted if has_them or value in factors[name])
    return values


def draw(paths: tuple[str, ...]) -> list[Cell]:
    """The whole grid, in one order, by one seed. A cell is the same whatever other paths there are."""
    return [cell for path in paths for subject in SUBJECTS for cell in _draw(path, subject)]


def _draw(path: str, subject: str) -> Iterator[Cell]:
    values = possible(path, subject)
    if not values:
        return
    chance = random.Random(f"{path}, {subject}")
    of_call = [name for name in ("leading", "seq", "rows") if name in values]
    models, each = GRAPHS[path][subject] if path in GRAPHS else (EACH, 1)
    per_model = {name: _evenly(values[name], models, chance) for name in values if name not in of_call}
    per_call = {name: _evenly(values[name], models * each, chance) for name in of_call}
    seen = set()
    for number in range(models * each):
        model = number // each
        chosen = {name: column[model] for name, column in per_model.items()}
        chosen |= {name: column[number] for name, column in per_call.items()}
        cell = Cell(path=path, subject=subject, **chosen, weights=model, inputs=number)
        if cell not in seen:
            seen.add(cell)
            yield cell


def _evenly(values: Values, count: int, chance: random.Random) -> list[Any]:
    """`count` values, each as often as any other give or take one, in an order that says nothing of other factors."""
    rounds = [chance.sample(values, len(values)) for _ in range(math.ceil(count / len(values)))]
    return [value for one in rounds for value in one][:count]

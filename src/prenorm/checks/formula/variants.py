"""Variants of formulas: activations, scales, masks, frequencies, shifts, means, and roundings."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

Sines = tuple[Tensor, Tensor]
"""cos and sin."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch_functional.silu,
    "gelu": torch_functional.gelu,
    "tanh-gelu": lambda x: torch_functional.gelu(x, approximate="tanh"),
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "relu squared": lambda x: torch.relu(x).square(),
    "x^2": torch.square,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "no": lambda x: x,
    "softplus": torch_functional.softplus,
    "elu": torch_functional.elu,
    "selu": torch_functional.selu,
    "relu6": torch_functional.relu6,
    "mish": torch_functional.mish,
    "leaky relu": torch_functional.leaky_relu,
    "hard-swish": torch_functional.hardswish,
    "silu twice": lambda x: torch_functional.silu(torch_functional.silu(x)),
    # A factor or a power of a formula is lost.
    "gelu without its factor x": lambda x: (1 + torch.erf(x / math.sqrt(2))) / 2,
    "tanh-gelu without its factor x": lambda x: (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "tanh-gelu with x^2 for x^3": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2))),
    "twice gelu": lambda x: 2 * torch_functional.gelu(x),
    "twice tanh-gelu": lambda x: 2 * torch_functional.gelu(x, approximate="tanh"),
}

RARE = frozenset(
    {"x^2", "selu", "relu6", "multiplied", "up squared", "cos in place of sin", "sin in place of cos"}
    | {name for name in ACTIVATIONS if "without" in name or "with x^2" in name or name.startswith("twice")}
)
"""Names of any table here, and of gates, that are tried as the only fault."""

ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: ACTIVATIONS[name] for name in ("no", "gelu", "tanh-gelu", "relu", "silu", "tanh", "sigmoid")},
    "an RMSNorm without a weight": lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6),
}
"""What the output of a sublayer may go through by mistake."""

SCALES: dict[str, Callable[[int, int, int, int], float]] = {  # of head_dim, d_model, num_heads, seq
    "1/sqrt(head_dim)": lambda dim, width, heads, seq: dim**-0.5,
    "1": lambda dim, width, heads, seq: 1.0,
    "1/head_dim": lambda dim, width, heads, seq: 1 / dim,
    "1/sqrt(d_model)": lambda dim, width, heads, seq: width**-0.5,
    "1/d_model": lambda dim, width, heads, seq: 1 / width,
    "1/sqrt(d_model / num_heads)": lambda dim, width, heads, seq: (width / heads) ** -0.5,
    "1/sqrt(num_heads)": lambda dim, width, heads, seq: heads**-0.5,
    "1/num_heads": lambda dim, width, heads, seq: 1 / heads,
    "1/sqrt(seq)": lambda dim, width, heads, seq: seq**-0.5,
    "1/seq": lambda dim, width, heads, seq: 1 / seq,
    "sqrt(head_dim)": lambda dim, width, heads, seq: dim**0.5,
    "head_dim": lambda dim, width, heads, seq: float(dim),
}

NO_SOFTMAX: dict[str, Callable[[Tensor], Tensor]] = {  # possible replacements
    "none": lambda scores: scores,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}

MASKS: dict[str, Callable[[Tensor], Tensor]] = {  # where a query may attend, by how far keys are ahead of it
    "none": lambda ahead: torch.ones_like(ahead, dtype=torch.bool),
    "causal": lambda ahead: ahead <= 0,
    "strict": lambda ahead: ahead < 0,
    "next": lambda ahead: ahead <= 1,
    "future": lambda ahead: ahead >= 0,
    "future_strict": lambda ahead: ahead > 0,
}

# Exponents of theta for pair i of n, in a vector of size dim of a model of the given width; then what multiplies it.
FREQUENCIES: dict[str, Callable[[Tensor, int, int, float], Tensor]] = {
    "standard": lambda i, dim, width, theta: theta ** (-2 * i / dim),
    "theta^(-i/head_dim)": lambda i, dim, width, theta: theta ** (-i / dim),
    "theta^(-2i/d_model)": lambda i, dim, width, theta: theta ** (-2 * i / width),
    "theta^(+2i/head_dim)": lambda i, dim, width, theta: theta ** (2 * i / dim),
    "theta^(-4i/head_dim)": lambda i, dim, width, theta: theta ** (-4 * i / dim),
    "theta^(-2(i+1)/head_dim)": lambda i, dim, width, theta: theta ** (-2 * (i + 1) / dim),
    "theta^(-(2i+1)/head_dim)": lambda i, dim, width, theta: theta ** (-(2 * i + 1) / dim),
    "theta^(-(i+1)/head_dim)": lambda i, dim, width, theta: theta ** (-(i + 1) / dim),
    "theta^(-i/(head_dim/2 - 1))": lambda i, dim, width, theta: theta ** (-i / max(dim / 2 - 1, 1)),
    "theta^(-2i/num_heads)": lambda i, dim, width, theta: theta ** (-2 * i * dim / width),
    "the same for every pair": lambda i, dim, width, theta: torch.ones_like(i),
    "1/(theta 2i/head_dim)": lambda i, dim, width, theta: 1 / (theta * (2 * i / dim)).clamp(min=1e-12),
    "in degrees": lambda i, dim, width, theta: theta ** (-2 * i / dim) * (math.pi / 180),
    "times 180/pi": lambda i, dim, width, theta: theta ** (-2 * i / dim) * (180 / math.pi),
    "times 2 pi": lambda i, dim, width, theta: theta ** (-2 * i / dim) * (2 * math.pi),
    "10^(-2i/head_dim ln theta)": lambda i, dim, width, theta: 10 ** (-2 * i / dim * math.log(theta)),
    "exp(-2i/head_dim log10 theta)": lambda i, dim, width, theta: torch.exp(-2 * i / dim * math.log10(theta)),
    "exp(-2i/head_dim)": lambda i, dim, width, theta: torch.exp(-2 * i / dim),
    "2^(-2i/head_dim)": lambda i, dim, width, theta: 2 ** (-2 * i / dim),
    "reversed": lambda i, dim, width, theta: theta ** (-2 * i.flip(0) / dim),
    "half of it": lambda i, dim, width, theta: theta ** (-2 * i / dim) / 2,
    "twice of it": lambda i, dim, width, theta: theta ** (-2 * i / dim) * 2,
}

# A pair (a, b) after its turn, from cos and sin of its first and of its second member, and the direction.
TURNS: dict[str, Callable[[Tensor, Tensor, Sines, Sines, int], tuple[Tensor, Tensor]]] = {
    "rotation": lambda a, b, one, two, way: (a * one[0] - way * b * one[1], b * two[0] + way * a * two[1]),
    "the other way": lambda a, b, one, two, way: TURNS["rotation"](a, b, one, two, -way),
    "both sines with one sign": lambda a, b, one, two, way: (
        a * one[0] + way * b * one[1],
        b * two[0] + way * a * two[1],
    ),
    "cos and sin exchanged": lambda a, b, one, two, way: TURNS["rotation"](a, b, one[::-1], two[::-1], way),
    "cos and sin exchanged in the first": lambda a, b, one, two, way: TURNS["rotation"](a, b, one[::-1], two, way),
    "cos and sin exchanged in the second": lambda a, b, one, two, way: TURNS["rotation"](a, b, one, two[::-1], way),
    "cos in place of sin": lambda a, b, one, two, way: (a * one[0] - way * b * one[0], b * two[0] + way * a * two[0]),
    "sin in place of cos": lambda a, b, one, two, way: (a * one[1] - way * b * one[1], b * two[1] + way * a * two[1]),
    "the first overwritten": lambda a, b, one, two, way: (
        first := a * one[0] - way * b * one[1],
        b * two[0] + way * first * two[1],
    ),
    "the second overwritten": lambda a, b, one, two, way: (
        a * one[0] - way * (second := b * two[0] + way * a * two[1]) * one[1],
        second,
    ),
}

LARGE_ANGLES = frozenset({"theta^(+2i/head_dim)", "times 180/pi"})
"""Frequencies whose angles are so large that float32, in which most code computes them, keeps only a few digits."""

SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "no": lambda positions: positions,
    "the next": lambda positions: positions + 1,
    "the one before": lambda positions: positions - 1,
    "the one before, or 0": lambda positions: (positions - 1).clamp(min=0),
    "the next, and for the last the first": lambda positions: positions.roll(-1, -1),
    "the one before, and for the first the last": lambda positions: positions.roll(1, -1),
    "the next, or the last": lambda positions: torch.minimum(positions + 1, positions.amax(-1, keepdim=True)),
}

SQUARES: dict[str, Callable[[Tensor], Tensor]] = {  # under the root, without eps
    "rms": lambda x: x.square().mean(-1, keepdim=True),
    "layer": lambda x: x.square().mean(-1, keepdim=True),
    "layer_unbiased": lambda x: x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1),
    "var(x), unbiased": lambda x: x.var(-1, keepdim=True),
    "no_sqrt": lambda x: x.square().mean(-1, keepdim=True),
    "sequence": lambda x: x.square().mean(-2, keepdim=True),
    "all": lambda x: x.square().mean((-2, -1), keepdim=True),
    "batch": lambda x: x.square().mean(-3, keepdim=True),
    "sum(x^2)": lambda x: x.square().sum(-1, keepdim=True),
    "var(x)": lambda x: x.var(-1, keepdim=True, unbiased=False),
    "sum(x^2) / (d_model - 1)": lambda x: x.square().sum(-1, keepdim=True) / (x.shape[-1] - 1),
    "mean(|x|)^2": lambda x: x.abs().mean(-1, keepdim=True).square(),
    "max(|x|)^2": lambda x: x.abs().amax(-1, keepdim=True).square(),
    "mean(x)^2": lambda x: x.mean(-1, keepdim=True).square(),
    "mean(x^2)^(2/3)": lambda x: x.square().mean(-1, keepdim=True) ** (2 / 3),
    "mean(x^2)^(1/2)": lambda x: x.square().mean(-1, keepdim=True) ** (1 / 2),
    "mean(x^2)^2": lambda x: x.square().mean(-1, keepdim=True).square(),
    "multiplied": lambda x: x.square().mean(-1, keepdim=True),
}
SQUARES |= {f"{kind}_no_sqrt": SQUARES[kind] for kind in ("layer", "layer_unbiased")}

Unbracketed = Callable[[Tensor, Tensor, Tensor, Tensor | float], Tensor]
"""A function of x, its mean, its standard deviation and the weight."""
_UNBRACKETED: dict[str, Unbracketed] = {
    "weight * x - mean / std": lambda x, mean, std, weight: weight * x - mean / std,
    "weight * (x - mean / std)": lambda x, mean, std, weight: weight * (x - mean / std),
    "x - weight * mean / std": lambda x, mean, std, weight: x - weight * mean / std,
}
UNBRACKETED: dict[str, tuple[str, Unbracketed]] = {  # first the kind of its standard deviation
    **{name: ("layer", formula) for name, formula in _UNBRACKETED.items()},
    **{f"{name}, unbiased": ("layer_unbiased", formula) for name, formula in _UNBRACKETED.items()},
}
"""LayerNorms that lost the parentheses around x - mean."""


def _tables(angle: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rounded(dtype: torch.dtype, *parts: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Tables of which these parts are in another dtype; angles of rounded frequencies are products in that dtype."""

    def tables(at: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
        if "frequencies" in parts:
            frequency = frequency.to(dtype)
            at = at.to(dtype) if "angles" in parts else at
        angle = (at * frequency).to(dtype if "angles" in parts else torch.float64)
        return _tables(angle.double(), dtype if "cos and sin" in parts else torch.float64)

    return tables


TABLES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {  # of positions and frequencies, in float64
    "exact": lambda at, frequency: _tables(at * frequency),
    "cos and sin in bfloat16": _rounded(torch.bfloat16, "cos and sin"),
    "cos and sin in float16": _rounded(torch.float16, "cos and sin"),
    **{
        f"{said} in {name}": _rounded(dtype, *parts)
        for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16))
        for said, parts in (
            ("angles", ("angles",)),
            ("frequencies", ("frequencies",)),
            ("frequencies and angles", ("frequencies", "angles")),
            ("angles, cos and sin", ("angles", "cos and sin")),
            ("frequencies, cos and sin", ("frequencies", "cos and sin")),
            ("frequencies, angles, cos and sin", ("frequencies", "angles", "cos and sin")),
        )
    },
}
"""What may be rounded: each part by itself, or with what is computed from it in the same dtype."""

"""The block with switches: the right one as it is by default, and with any one switch turned, one fault.

It shares no code with the package's own block. Weights may have leading axes, one entry for each way to read a
learner's parameters, so that all readings are tried at once.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .variants import ACTIVATIONS, FREQUENCIES, NO_SOFTMAX, SCALES, SHIFTS, SQUARES, TABLES

Weights = dict[str, Tensor]
"""q k v o gate up down: (readings, 1, out, in). Their biases q_bias ..., norm1 norm1_bias norm2 norm2_bias, q_norm
k_norm: (readings, 1, 1, size). A missing name is a missing weight."""

Number = float | Tensor
"""A number of a spec, or, while it is fitted, one for each entry of the first axis, so that many are tried at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """Every choice in a block. The defaults are the right block, with the paper's conventions."""

    # The residual lines.
    post: str = ""  # the sublayers whose norm follows the sum: "1", "2" or "12"
    pre_too: bool = False  # those norms stand before their sublayers as well
    before_sum: bool = False  # they follow the sublayer, not the sum
    sandwich: bool = False  # norms of their own follow the sublayers, beside those before them
    branch: Number = 1.0  # what the sublayers' outputs are multiplied by
    residual1: str = "input"  # none | normed | doubled
    residual2: str = "hidden"  # none | normed | doubled | input | both (h and the input)
    parallel: str = "no"  # own: the feed-forward reads norm2(x); shared: norm1(x)
    detached: tuple[str, ...] = ()  # residuals (1, 2) that let no gradient through
    # The norms.
    norm1: str = "rms"  # none | gain | layer | no_sqrt | a name of SQUARES
    norm2: str = "rms"
    weight1: str = "own"  # none
    weight2: str = "own"
    norm_factor: float = 1.0
    plus_one: bool = False  # weights are kept as w - 1
    eps1: float = 1e-6
    eps2: float = 1e-6
    eps_place1: str = "under"  # outside: added to the root; clamp, clamp_square: its least value, or its square's
    eps_place2: str = "under"
    # Rotary positions.
    rope_on: str = "qk"  # any of q, k, v; "" is none
    rope_input: str = "no"  # what else is turned: x | before_norm | normed | qk (what those projections read)
    rope_input_axis: str = "width"  # head: each head's share of it by itself
    rope_axis: str = "head"  # width: over d_model, before heads are split
    pairing: str = "interleaved"  # half
    direction: int = 1
    theta: Number = 10000.0
    frequency: str = "standard"  # a name of FREQUENCIES
    frequencies: tuple[Number, ...] = ()  # of each pair; if any, theta says nothing
    signs: str = "rotation"  # of both sines: plus | minus
    mixed: bool = False  # tables are laid out for the other pairing
    rotary_fraction: float = 1.0
    tables: str = "exact"  # a name of TABLES
    query_shift: str = "no"  # names of SHIFTS
    key_shift: str = "no"
    # Attention.
    mask: str = "none"  # causal | strict | next | future | future_strict
    fill: float = -math.inf
    fill_by: str = "replacing"  # adding | multiplying
    empty_rows: str = "nan"  # zero
    softmax: str = "keys"  # queries ("queries, with the largest of the keys") | heads | nothing | one of NO_SOFTMAX
    masked_after: bool = False  # weights are masked, not scores
    scaled_after: bool = False  # weights are scaled, not scores
    softcap: Number = math.inf  # scores are softcap * tanh(scores / softcap)
    alibi: bool = False  # scores fall with distance, for each head at its own slope
    scale: str = "1/sqrt(head_dim)"  # a name of SCALES
    factor: Number = 1.0  # on top of it
    split: str = "standard"  # flat | dims_first | swapped | never
    split_of: str = "qkv"  # which projections are split in that way
    merge: str = "standard"  # flat | dims_first
    tiled: bool = False
    qk_norm: str = "none"  # before_rope | after_rope | whole (over d_model)
    output: str = "projected"  # none
    # The feed-forward.
    activation: str = "silu"  # a name of ACTIVATIONS
    gating: str = "gate"  # product | plain | both


def block(
    spec: Spec, weights: Weights, x: Tensor, positions: Tensor, num_heads: int, *, allowed: Tensor | None = None
) -> Tensor:
    """The block's output, (readings, batch, seq, d_model). x: (batch, seq, d_model); positions: (batch or 1, seq).

    allowed: (seq, seq), True where a query (row) may attend to a key; it comes on top of spec.mask.
    """
    x = x[None]
    if spec.rope_input == "x":
        x = _stream(spec, x, positions, x.shape[-1] // num_heads)
    if "1" in spec.post:
        inner = _norm1(spec, weights, x) if spec.pre_too else x
        added = attention(spec, weights, inner, positions, num_heads, allowed)
        if spec.before_sum:
            h = _plus(spec, "1", x, inner, _norm1(spec, weights, added))
        else:
            h = _norm1(spec, weights, _plus(spec, "1", x, inner, added))
        normed = h
    else:
        source = _stream(spec, x, positions, x.shape[-1] // num_heads) if spec.rope_input == "before_norm" else x
        normed = _norm1(spec, weights, source)
        added = attention(spec, weights, normed, positions, num_heads, allowed)
        h = _plus(spec, "1", x, normed, _after(spec, weights, "norm1", added))
    inner = h if spec.parallel == "no" else x
    if "2" in spec.post:
        inner = _norm2(spec, weights, inner) if spec.pre_too else inner
        added = feed_forward(spec, weights, inner)
        if spec.before_sum:
            return _plus(spec, "2", h, h, _norm2(spec, weights, added), x)
        return _norm2(spec, weights, _plus(spec, "2", h, h, added, x))
    normed2 = normed if spec.parallel == "shared" else _norm2(spec, weights, inner)
    return _plus(spec, "2", h, normed2, _after(spec, weights, "norm2", feed_forward(spec, weights, normed2)), x)


def _after(spec: Spec, weights: Weights, name: str, added: Tensor) -> Tensor:
    """What a sublayer gives, through the norm behind it where there is one."""
    if not spec.sandwich:
        return added
    kind, eps = (
        (spec.norm1, (spec.eps1, spec.eps_place1)) if name == "norm1" else (spec.norm2, (spec.eps2, spec.eps_place2))
    )
    return norm(spec, kind, eps, weights, (f"{name}_after", f"{name}_after_bias"), added)


def _plus(spec: Spec, which: str, stream: Tensor, normed: Tensor, added: Tensor, x: Tensor | None = None) -> Tensor:
    kind = spec.residual1 if which == "1" else spec.residual2
    added = added * along(spec.branch, added)
    if kind == "none":
        return added
    if kind == "input" and x is not None:
        stream = x
    if kind == "both" and x is not None:
        stream = stream + x
    if kind == "normed":
        stream = normed
    if which in spec.detached:
        stream = stream.detach()
    return stream + stream + added if kind == "doubled" else stream + added


def _norm1(spec: Spec, weights: Weights, x: Tensor) -> Tensor:
    names = () if spec.weight1 == "none" else ("norm1", "norm1_bias")
    return norm(spec, spec.norm1, (spec.eps1, spec.eps_place1), weights, names, x)


def _norm2(spec: Spec, weights: Weights, x: Tensor) -> Tensor:
    names = () if spec.weight2 == "none" else ("norm2", "norm2_bias")
    return norm(spec, spec.norm2, (spec.eps2, spec.eps_place2), weights, names, x)


def norm(spec: Spec, kind: str, eps: tuple[float, str], weights: Weights, names: tuple[str, ...], x: Tensor) -> Tensor:
    """The norm of one kind; eps is the number and its place, names are those of its weight and bias."""
    if kind == "none":
        return x
    y = x if kind == "gain" else _scaled(kind, *eps, x) * spec.norm_factor
    if names and names[0] in weights:
        y = y * (weights[names[0]] + 1 if spec.plus_one else weights[names[0]])
    if names and names[1] and names[1] in weights:
        y = y + weights[names[1]]
    return y


def _scaled(kind: str, eps: float, place: str, x: Tensor) -> Tensor:
    if kind in ("layer", "layer_unbiased"):
        x = x - x.mean(-1, keepdim=True)
    square = SQUARES[kind](x)
    if kind == "no_sqrt":
        return x / (square + eps)
    root = {
        "under": lambda: (square + eps).sqrt(),
        "outside": lambda: square.sqrt() + eps,
        "clamp": lambda: square.sqrt().clamp(min=eps),
        "clamp_square": lambda: square.clamp(min=eps).sqrt(),
    }[place]()
    return x / root


def feed_forward(spec: Spec, weights: Weights, x: Tensor) -> Tensor:
    """The feed-forward, down(silu(gate) * up) where nothing is switched."""
    active = ACTIVATIONS[spec.activation]
    up = linear(weights, "up", x)
    if spec.gating == "plain" or "gate" not in weights:
        return linear(weights, "down", active(up))
    gate = linear(weights, "gate", x)
    inner = {
        "gate": lambda: active(gate) * up,
        "product": lambda: active(gate * up),
        "both": lambda: active(gate) * active(up),
        "sum": lambda: active(gate) + up,
    }[spec.gating]()
    return linear(weights, "down", inner)


def are_several(number: Number) -> bool:
    """Whether it is one for each entry of the first axis."""
    return isinstance(number, Tensor)


def along(number: Number, x: Tensor) -> Number:
    """A number, or one for each entry of x's first axis."""
    return number.view(-1, *[1] * (x.dim() - 1)) if isinstance(number, Tensor) else number


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """x times the weight of that name, plus its bias if there is one."""
    weight = weights[name][:, 0].mT  # tokens of all sequences in one product a reading
    y = (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])
    return y + weights[name + "_bias"] if name + "_bias" in weights else y


def attention(
    spec: Spec, weights: Weights, x: Tensor, positions: Tensor, num_heads: int, allowed: Tensor | None = None
) -> Tensor:
    """Self-attention of x, (readings, batch, seq, d_model)."""
    width = weights["q"].shape[-1]
    head_dim = weights["q"].shape[-2] // num_heads
    if spec.split == "swapped":  # as many heads as a head has dimensions, and the other way round
        num_heads, head_dim = head_dim, num_heads
    if spec.split == "never":
        head_dim *= num_heads
    turned = _stream(spec, x, positions, head_dim) if spec.rope_input in ("normed", "qk") else x
    inputs = {"q": turned, "k": turned, "v": x if spec.rope_input == "qk" else turned}
    seen = spec.mask in ("none", "causal") and allowed is None
    alone = x.shape[-2] == 1 and seen and spec.softmax == "keys" and not spec.scaled_after
    parts = {}
    for name, source in inputs.items():
        if alone and name != "v":  # of one score the softmax is 1, and most searches look at one token
            continue
        part = linear(weights, name, source)
        if spec.qk_norm == "whole" and name != "v":  # over d_model, all heads together
            part = norm(spec, "rms", (spec.eps1, spec.eps_place1), weights, (f"{name}_norm", ""), part)
        places = SHIFTS[{"q": spec.query_shift, "k": spec.key_shift, "v": "no"}[name]](positions)
        if spec.rope_axis == "width" and name in spec.rope_on:
            part = rotated(spec, part, places, width)
        part = _split(spec.split if name in spec.split_of else "standard", part, head_dim)
        part = _normed_heads(spec, weights, name, "before_rope", part)
        if spec.rope_axis == "head" and name in spec.rope_on:
            part = rotated(spec, part, places[:, None], width)
        parts[name] = _normed_heads(spec, weights, name, "after_rope", part)
    heads = 1 if spec.split == "never" else num_heads
    mixed = v = _grouped(spec, parts["v"], heads)
    if not alone:
        q, k = parts["q"], _grouped(spec, parts["k"], heads)
        scale = SCALES[spec.scale](q.shape[-1], width, num_heads, x.shape[-2]) * along(spec.factor, q)
        scores = q @ k.mT * (1 if spec.scaled_after else scale)
        mixed = _probabilities(spec, _shaped(spec, scores, heads), allowed) @ v
        mixed = mixed * scale if spec.scaled_after else mixed
    joined = _merge(spec, mixed)
    return joined if spec.output == "none" or "o" not in weights else linear(weights, "o", joined)


def _shaped(spec: Spec, scores: Tensor, num_heads: int) -> Tensor:
    """Scores with what some models do to them before the softmax."""
    if are_several(spec.softcap) or spec.softcap != math.inf:
        cap = along(spec.softcap, scores)
        scores = cap * torch.tanh(scores / cap)
    if spec.alibi:
        slopes = 2.0 ** (-8 * torch.arange(1, num_heads + 1, dtype=scores.dtype) / num_heads)
        places = torch.arange(scores.shape[-1], dtype=scores.dtype)
        scores = scores - slopes[:, None, None] * (places[:, None] - places).abs()
    return scores


def _probabilities(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    if spec.masked_after:
        return _softmax(spec, scores) * _seen(spec, scores, allowed)
    return _softmax(spec, _masked(spec, scores, allowed))


def _split(how: str, x: Tensor, head_dim: int) -> Tensor:
    """To (..., heads, seq, head_dim)."""
    heads = x.shape[-1] // head_dim
    if how == "flat":
        return x.reshape(*x.shape[:-2], heads, x.shape[-2], head_dim)
    if how == "dims_first":
        return x.unflatten(-1, (head_dim, heads)).movedim(-1, -3)
    return x.unflatten(-1, (heads, head_dim)).transpose(-3, -2)


def _merge(spec: Spec, x: Tensor) -> Tensor:
    heads, seq, head_dim = x.shape[-3:]
    if spec.merge == "flat":
        return x.reshape(*x.shape[:-3], seq, heads * head_dim)
    if spec.merge == "dims_first":
        return x.movedim(-3, -1).flatten(-2)
    if spec.merge in ("mean", "sum"):  # of the heads, once for each of them
        joined = x.mean(-3) if spec.merge == "mean" else x.sum(-3)
        return torch.cat([joined] * heads, -1)
    if spec.merge == "flat_dims":  # (heads, head_dim, seq) is cut as if it were (seq, heads * head_dim)
        return x.mT.reshape(*x.shape[:-3], seq, heads * head_dim)
    return x.transpose(-3, -2).flatten(-2)


def _grouped(spec: Spec, x: Tensor, num_heads: int) -> Tensor:
    copies = num_heads // x.shape[-3]
    if copies == 1:
        return x
    return torch.cat([x] * copies, -3) if spec.tiled else x.repeat_interleave(copies, -3)


def _normed_heads(spec: Spec, weights: Weights, name: str, when: str, x: Tensor) -> Tensor:
    if spec.qk_norm != when or name == "v":
        return x
    kind = spec.norm1 if spec.norm1 == spec.norm2 and spec.norm1 not in ("none", "gain", "sequence", "batch") else "rms"
    y = _scaled(kind, spec.eps1, spec.eps_place1, x)
    weight, bias = weights.get(name + "_norm"), weights.get(name + "_norm_bias")
    if weight is not None:
        y = y * (weight[..., None, :] + 1 if spec.plus_one else weight[..., None, :])
    return y if bias is None else y + bias[..., None, :]


def _seen(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    """(seq, seq), True where a query may attend to a key."""
    queries, keys = (torch.arange(size) for size in scores.shape[-2:])
    ahead = keys - queries[:, None]
    seen = {
        "none": torch.ones_like(ahead, dtype=torch.bool),
        "causal": ahead <= 0,
        "strict": ahead < 0,
        "next": ahead <= 1,
        "future": ahead >= 0,
        "future_strict": ahead > 0,
    }[spec.mask]
    return seen if allowed is None else seen & allowed


def _masked(spec: Spec, scores: Tensor, allowed: Tensor | None) -> Tensor:
    seen = _seen(spec, scores, allowed)
    if spec.fill_by == "multiplying":
        return scores * seen
    if spec.fill_by == "adding":
        return torch.where(seen, scores, scores + spec.fill)
    return scores.masked_fill(~seen, spec.fill)


def _softmax(spec: Spec, scores: Tensor) -> Tensor:
    if spec.softmax == "nothing":  # an axis of size 1
        return torch.ones_like(scores)
    if spec.softmax in NO_SOFTMAX:
        return NO_SOFTMAX[spec.softmax](scores)
    if spec.softmax == "queries, with the largest of the keys":
        exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
        return exponentials / exponentials.sum(-2, keepdim=True)
    probabilities = scores.softmax({"keys": -1, "queries": -2, "heads": -3}[spec.softmax])
    return probabilities.nan_to_num(0.0) if spec.empty_rows == "zero" else probabilities


def _stream(spec: Spec, x: Tensor, positions: Tensor, head_dim: int) -> Tensor:
    """Vectors of d_model, turned."""
    if spec.rope_input_axis == "width":
        return rotated(spec, x, positions, x.shape[-1])
    parts = x.unflatten(-1, (-1, head_dim)).transpose(-3, -2)
    return rotated(spec, parts, positions[:, None], x.shape[-1]).transpose(-3, -2).flatten(-2)


def _cos_sin(spec: Spec, x: Tensor, dim: int, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines in float64, for the first dim entries of vectors x."""
    numbers = (spec.theta, *spec.frequencies)
    if any(map(are_several, numbers)):
        return _table(spec.frequency, spec.tables, dim, width, positions, *(along(number, x) for number in numbers))
    places = positions.shape, tuple(positions.flatten().tolist())
    return _known_table(spec.frequency, spec.tables, dim, width, *places, *numbers)


@functools.lru_cache(maxsize=256)  # a search makes each table once
def _known_table(
    frequency: str, tables: str, dim: int, width: int, shape: torch.Size, positions: tuple[int, ...], *numbers: Number
) -> tuple[Tensor, Tensor]:
    return _table(frequency, tables, dim, width, torch.tensor(positions).view(shape), *numbers)


def _table(
    frequency: str, tables: str, dim: int, width: int, positions: Tensor, theta: Any, *frequencies: Number
) -> tuple[Tensor, Tensor]:
    pair = torch.arange(dim // 2, dtype=torch.float64)
    of_pairs = FREQUENCIES[frequency](pair, dim, width, theta)
    if frequencies:
        given = [torch.as_tensor(number, dtype=torch.float64) for number in frequencies[: len(pair)]]
        of_pairs = torch.cat([torch.atleast_1d(number) for number in given], -1)
    cos, sin = TABLES[tables](positions[..., None].double(), of_pairs)
    return cos.double(), sin.double()


def rotated(spec: Spec, x: Tensor, positions: Tensor, width: int) -> Tensor:
    """x with its last axis turned; positions broadcast against x.shape[:-1] from the right."""
    dim = int(x.shape[-1] * spec.rotary_fraction)
    cos, sin = (table.to(x.dtype) for table in _cos_sin(spec, x, dim, positions, width))
    sin = sin * spec.direction
    turning, rest = x[..., :dim], x[..., dim:]
    first, second = (cos, sin), (cos, sin)  # of both members of a pair
    if spec.mixed:
        place = torch.arange(dim) // 2 if spec.pairing == "half" else torch.arange(dim) % (dim // 2)
        halves = place.chunk(2) if spec.pairing == "half" else (place[0::2], place[1::2])
        first, second = ((cos[..., half], sin[..., half]) for half in halves)
    a, b = (turning[..., 0::2], turning[..., 1::2]) if spec.pairing == "interleaved" else turning.chunk(2, -1)
    plus, minus = {"rotation": (1, -1), "plus": (1, 1), "minus": (-1, -1)}[spec.signs]
    pair_of = (a * first[0] + minus * b * first[1], plus * a * second[1] + b * second[0])
    turned = torch.stack(pair_of, -1).flatten(-2) if spec.pairing == "interleaved" else torch.cat(pair_of, -1)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned

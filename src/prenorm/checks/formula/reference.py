"""The block with switches: correct by default, and with one fault for each switch that is set.

It shares no code with the package's own block. Weights have a leading axis, one entry for each way to read a
learner's parameters, so that all readings are computed at once.
"""

from torch import Tensor

from .attention import attention
from .norm import norm
from .rotation import stream
from .spec import Spec, Weights, along, linear
from .variants import ACTIVATIONS, ENDS


def block(
    spec: Spec, weights: Weights, x: Tensor, positions: Tensor, num_heads: int, *, allowed: Tensor | None = None
) -> Tensor:
    """The block's output, (readings, batch, seq, d_model). x: (batch, seq, d_model); positions: (batch or 1, seq).

    allowed: (seq, seq), True where a query (row) may attend to a key; it comes on top of spec.mask.
    """
    x = x[None]
    if spec.rope_input == "x":
        x = stream(spec, x, positions, x.shape[-1] // num_heads)
    if "1" in spec.post:
        inner = _norm1(spec, weights, x) if spec.pre_too else x
        added = attention(spec, weights, inner, positions, num_heads, allowed)
        if spec.before_sum:
            h = _plus(spec, "1", x, inner, _norm1(spec, weights, added))
        else:
            h = _norm1(spec, weights, _plus(spec, "1", x, inner, added))
        normed = h
    else:
        source = stream(spec, x, positions, x.shape[-1] // num_heads) if spec.rope_input == "before_norm" else x
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
    """A sublayer's output, through the norm or the scale that follows it if there is one."""
    if spec.layer_scale:
        return added * weights[f"{name}_after"]
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
    if kind == "attention" and x is not None:
        stream = stream - x
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


def feed_forward(spec: Spec, weights: Weights, x: Tensor) -> Tensor:
    """The feed-forward, down(silu(gate) * up) by default."""
    active = ACTIVATIONS[spec.activation]
    up = linear(weights, "up", x)
    if spec.gating == "plain" or "gate" not in weights:
        return ENDS[spec.end2](linear(weights, "down", active(up)))
    gate = linear(weights, "gate", x)
    inner = {
        "gate": lambda: active(gate) * up,
        "product": lambda: active(gate * up),
        "both": lambda: active(gate) * active(up),
        "sum": lambda: active(gate) + up,
        "up squared": lambda: gate.sigmoid() * up * up,
    }[spec.gating]()
    return ENDS[spec.end2](linear(weights, "down", inner))

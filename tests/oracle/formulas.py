"""The papers' formulas in float64 NumPy: plain loops, no torch, nothing shared with the package.

Arrays are as in the package: x (..., seq, d_model), attention tensors (heads, seq, head_dim), weights (d_out, d_in).
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Places = Array | NDArray[np.int64]  # positions
Scaling = Mapping[str, float | str] | None  # {"kind": "linear" | "llama3", "factor": ..., ...}


def rms_norm(x: Array, weight: Array, eps: float = 1e-6) -> Array:
    """Zhang and Sennrich 2019, equation 4, with eps under the root."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    """x / (1 + e^-x), with e^-x kept in range."""
    return np.where(x >= 0, x / (1 + np.exp(-np.abs(x))), x * np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """Shazeer 2020, section 2."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def frequency(pair: int, head_dim: int, theta: float, scaling: Scaling = None) -> float:
    """Radians a token of one pair (Su et al. 2021, section 3.2.2), stretched as Meta's Llama 3.1 code does."""
    plain = theta ** (-2.0 * pair / head_dim)
    if scaling is None:
        return plain
    factor = float(scaling["factor"])
    if scaling["kind"] == "linear":
        return plain / factor
    low_freq_factor, high_freq_factor = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    original = float(scaling["original_max_seq_len"])
    wavelength = 2 * math.pi / plain
    if wavelength < original / high_freq_factor:
        return plain
    if wavelength > original / low_freq_factor:
        return plain / factor
    smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
    return (1 - smooth) * plain / factor + smooth * plain


def rope(
    x: Array,
    positions: Places,
    theta: float = 10000.0,
    *,
    interleaved: bool = True,
    scaling: Scaling = None,
) -> Array:
    """Every pair of features is a complex number, and turning it is multiplying it by e^(i position frequency)."""
    head_dim = x.shape[-1]
    turned = np.empty(np.broadcast_shapes(x.shape, (*positions.shape, head_dim)))
    for pair in range(head_dim // 2):
        a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + head_dim // 2)
        turn = np.exp(1j * positions * frequency(pair, head_dim, theta, scaling))
        number = (x[..., a] + 1j * x[..., b]) * turn
        turned[..., a], turned[..., b] = number.real, number.imag
    return turned


def may_attend(q_seq: int, kv_seq: int, *, causal: bool = False, window: int | None = None) -> NDArray[np.bool_]:
    """Who sees whom by place, the last query standing at the last key."""
    allowed = np.ones((q_seq, kv_seq), dtype=bool)
    for query in range(q_seq):
        place = kv_seq - q_seq + query
        for key in range(kv_seq):
            if causal and key > place:
                allowed[query, key] = False
            if window is not None and key <= place - window:
                allowed[query, key] = False
    return allowed


def attention(q: Array, k: Array, v: Array, allowed: NDArray[np.bool_] | None = None) -> Array:
    """Vaswani et al. 2017, equation 1, a query at a time; q is (heads, seq, head_dim), k and v may have fewer heads.

    `allowed` broadcasts to (heads, q_seq, kv_seq). A query that sees no key gives zeros.
    """
    heads, q_seq, head_dim = q.shape
    group = heads // k.shape[0]
    allowed = np.broadcast_to(True if allowed is None else allowed, (heads, q_seq, k.shape[1]))
    out = np.zeros((heads, q_seq, v.shape[-1]))
    for head in range(heads):
        for query in range(q_seq):
            seen = allowed[head, query].nonzero()[0]
            if len(seen) == 0:
                continue
            scores = k[head // group, seen] @ q[head, query] / math.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            out[head, query] = weights @ v[head // group, seen] / weights.sum()
    return out


def documents(segment_ids: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """One row of ids -> who belongs together, (seq, seq), and each token's position in its document, 0 for padding."""
    together = np.zeros((len(segment_ids), len(segment_ids)), dtype=bool)
    positions = np.zeros(len(segment_ids), dtype=np.int64)
    start = 0
    for here in range(len(segment_ids)):
        if here > 0 and segment_ids[here] != segment_ids[here - 1]:
            start = here
        if segment_ids[here] >= 0:
            positions[here] = here - start
            together[here, start : here + 1] = together[start : here + 1, here] = True
    return together, positions


def cross_entropy(logits: Array, targets: NDArray[np.int64], ignore_index: int = -100) -> float:
    """The mean of -log softmax(logits)[target], a row at a time, over the rows that have a target."""
    losses = []
    for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), strict=True):
        if target != ignore_index:
            losses.append(math.log(np.exp(row - row.max()).sum()) + row.max() - row[target])
    return math.fsum(losses) / len(losses) if losses else 0.0


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Ba et al. 2016, equation 4, with eps under the root."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps) * weight + bias


def gelu(x: Array) -> Array:
    """Hendrycks and Gimpel 2016, section 2: x times the normal distribution function of x, a number at a time."""
    return np.array([0.5 * number * (1 + math.erf(number / math.sqrt(2))) for number in x.flat]).reshape(x.shape)


def sinusoid(position: int, d_model: int) -> Array:
    """Vaswani et al. 2017, section 3.5: the vector of one position."""
    angles = [position / 10000 ** (2 * i / d_model) for i in range(d_model // 2)]
    return np.array([number for angle in angles for number in (math.sin(angle), math.cos(angle))])


def same_document(target_ids: NDArray[np.int64], source_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Two rows of segment ids -> which target token reads which source token, (target seq, source seq)."""
    return np.array([[t == s and t >= 0 for s in source_ids] for t in target_ids]).reshape(
        len(target_ids), len(source_ids)
    )

"""Every choice in a block, and its weights."""

import math
from dataclasses import dataclass

from torch import Tensor

from .variants import LARGE_ANGLES

Weights = dict[str, Tensor]
"""q k v o attention_gate gate up down: (readings, 1, out, in). Their biases q_bias ..., norm1 norm1_bias norm2
norm2_bias, q_norm k_norm: (readings, 1, 1, size). A missing name is a missing weight."""

Number = float | Tensor
"""A number of a spec; while it is fitted, one for each entry of the first axis, to try many at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """Every choice in a block. The defaults are the correct block, with the paper's conventions."""

    # The residual lines.
    post: str = ""  # the sublayers whose norm follows the sum: "1", "2" or "12"
    pre_too: bool = False  # those norms stand before their sublayers as well
    before_sum: bool = False  # they follow the sublayer, not the sum
    sandwich: bool = False  # norms of their own follow the sublayers, beside those before them
    layer_scale: bool = False  # a weight for each dimension multiplies the sublayers' outputs
    branch: Number = 1.0  # what the sublayers' outputs are multiplied by
    end1: str = "no"  # what the output of attention goes through: a name of ENDS
    end2: str = "no"  # that of the feed-forward
    residual1: str = "input"  # none | normed | doubled
    residual2: str = "hidden"  # none | normed | doubled | input | both (h and the input) | attention (h less the input)
    parallel: str = "no"  # own: the feed-forward reads norm2(x); shared: norm1(x)
    detached: tuple[str, ...] = ()  # residuals (1, 2) that let no gradient through
    # The norms.
    norm1: str = "rms"  # none | gain | layer | no_sqrt | a name of SQUARES or UNBRACKETED
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
    turn: str = "rotation"  # a name of TURNS
    turn_of: str = "qkv"  # what is turned in that way; the others are rotated
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
    split: str = "standard"  # flat | flat_dims | dims_first | swapped | never
    split_of: str = "qkv"  # which projections are split in that way
    merge: str = "standard"  # flat | dims_first
    tiled: bool = False  # query head h reads key-value head h mod num_kv_heads
    tiled_of: str = "kv"  # the keys or the values alone
    qk_norm: str = "none"  # before_rope | after_rope | whole (over d_model)
    qk_norm_kind: str = "same"  # as the block's norms; or rms, layer
    qk_eps: float | None = None  # None: eps1
    output: str = "projected"  # none
    attention_gate: str = "no"  # before | after the output projection: a sigmoid of the input multiplies it
    # The feed-forward.
    activation: str = "silu"  # a name of ACTIVATIONS
    gating: str = "gate"  # product | plain | both | sum | up squared

    @property
    def mixes_sequences(self) -> bool:
        """Whether a sequence's output depends on the others of its batch."""
        return "batch" in (self.norm1, self.norm2)

    @property
    def loses_angles(self) -> bool:
        """Whether a block that computes its angles in float32 rounds them so much that it shows."""
        return self.frequency in LARGE_ANGLES

    @property
    def shows_eps(self) -> bool:
        """Whether a norm reads a sublayer's output alone, which is smaller than the stream: its eps shows."""
        return self.sandwich or self.before_sum or "none" in (self.residual1, self.residual2)


def are_several(number: Number) -> bool:
    """Whether there is one number for each entry of the first axis."""
    return isinstance(number, Tensor)


def along(number: Number, x: Tensor) -> Number:
    """A number, or one for each entry of x's first axis in a shape that broadcasts."""
    return number.view(-1, *[1] * (x.dim() - 1)) if isinstance(number, Tensor) else number


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """x times the weight of that name, plus its bias if there is one."""
    weight = weights[name][:, 0].mT  # tokens of all sequences in one product a reading
    y = (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])
    return y + weights[name + "_bias"] if name + "_bias" in weights else y

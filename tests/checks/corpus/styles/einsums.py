"""Attention in einsum, with a head axis in the weights: (d_model, heads, head_dim), output (heads, head_dim, d_model)."""

from ..editing import Style

STYLE = Style(
    "einsums",
    "Layer",
    '''from math import prod

import torch
from torch import Tensor, einsum, nn


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    y = y / (y.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return (y * gain).to(x.dtype)


class Layer(nn.Module):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=4096, rope_theta=10_000.0, eps=1e-6, causal=False,
        device=None, dtype=None,
    ):
        super().__init__()
        kind = dict(device=device, dtype=dtype)
        head_dim = d_model // num_heads
        self.eps, self.causal, self.head_dim = eps, causal, head_dim
        self.Wq = nn.Parameter(torch.empty(d_model, num_heads, head_dim, **kind))
        self.Wk = nn.Parameter(torch.empty(d_model, num_heads, head_dim, **kind))
        self.Wv = nn.Parameter(torch.empty(d_model, num_heads, head_dim, **kind))
        self.Wo = nn.Parameter(torch.empty(num_heads, head_dim, d_model, **kind))
        self.Wgate = nn.Parameter(torch.empty(d_model, d_ff, **kind))
        self.Wup = nn.Parameter(torch.empty(d_model, d_ff, **kind))
        self.Wdown = nn.Parameter(torch.empty(d_ff, d_model, **kind))
        self.gain_a = nn.Parameter(torch.ones(d_model, **kind))
        self.gain_f = nn.Parameter(torch.ones(d_model, **kind))
        for weight in (self.Wq, self.Wk, self.Wv, self.Wgate, self.Wup):
            nn.init.normal_(weight, std=d_model**-0.5)
        nn.init.normal_(self.Wo, std=prod(self.Wo.shape[:2]) ** -0.5)
        nn.init.normal_(self.Wdown, std=d_ff**-0.5)
        frequency = rope_theta ** -(torch.arange(head_dim // 2, device=device, dtype=torch.float64) * 2 / head_dim)
        angle = einsum("t,f->tf", torch.arange(max_seq_len, device=device, dtype=torch.float64), frequency)
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """x: ... seq heads head_dim"""
        cosine = self.cosine[positions].unsqueeze(-2)
        sine = self.sine[positions].unsqueeze(-2)
        a, b = x.tensor_split(2, dim=-1)
        return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1).to(x.dtype)

    def attend(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        q = einsum("...td,dhk->...thk", x, self.Wq)
        k = einsum("...td,dhk->...thk", x, self.Wk)
        v = einsum("...td,dhk->...thk", x, self.Wv)
        q = self.turn(q, positions)
        k = self.turn(k, positions)
        logits = einsum("...qhk,...thk->...hqt", q, k) / self.head_dim**0.5
        if self.causal:
            place = torch.arange(x.shape[-2], device=x.device)
            past = place[:, None] >= place[None, :]
            mask = past if mask is None else mask & past
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        probabilities = logits.softmax(dim=-1)
        mixed = einsum("...hqt,...thk->...qhk", probabilities, v)
        return einsum("...qhk,hkd->...qd", mixed, self.Wo)

    def feed(self, x: Tensor) -> Tensor:
        gate = einsum("...d,df->...f", x, self.Wgate)
        up = einsum("...d,df->...f", x, self.Wup)
        return einsum("...f,fd->...d", gate.sigmoid() * gate * up, self.Wdown)

    def forward(self, x: Tensor, token_positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        h = x + self.attend(rms(x, self.gain_a, self.eps), token_positions, mask)
        return h + self.feed(rms(h, self.gain_f, self.eps))
''',
)

CAUSAL = STYLE.right("causal", ("causal=False,", "causal=True,"))
HEADS_FIRST = STYLE.right(
    "heads_first",
    *(
        edit
        for name in ("Wq", "Wk", "Wv")
        for edit in (
            (
                f"self.{name} = nn.Parameter(torch.empty(d_model, num_heads, head_dim, **kind))",
                f"self.{name} = nn.Parameter(torch.empty(num_heads, head_dim, d_model, **kind))",
            ),
            (f'einsum("...td,dhk->...thk", x, self.{name})', f'einsum("...td,hkd->...thk", x, self.{name})'),
        )
    ),
)
RIGHT = [STYLE.right(), CAUSAL, HEADS_FIRST]

FIRST = "h = x + self.attend(rms(x, self.gain_a, self.eps), token_positions, mask)"
SECOND = "return h + self.feed(rms(h, self.gain_f, self.eps))"
NORM = "y = y / (y.square().mean(dim=-1, keepdim=True) + eps).sqrt()"
TURN_Q, TURN_K = "q = self.turn(q, positions)", "k = self.turn(k, positions)"
LOGITS = 'einsum("...qhk,...thk->...hqt", q, k) / self.head_dim**0.5'
MIXED = 'mixed = einsum("...hqt,...thk->...qhk", probabilities, v)'

fault = STYLE.faulty
FAULTY = [
    fault("no_norm", "gain_only", (FIRST, FIRST.replace("rms(x, self.gain_a, self.eps)", "x * self.gain_a"))),
    fault("missing_residual_attention", "h_is_attention", (FIRST, FIRST.replace("h = x + ", "h = "))),
    fault("missing_residual_ffn", "feed_alone", (SECOND, SECOND.replace("return h + ", "return "))),
    fault(
        "residual_from_normed",
        "h_normed_first",
        (SECOND, "h = rms(h, self.gain_f, self.eps)\n        return h + self.feed(h)"),
    ),
    fault("ffn_residual_from_input", "x_plus_feed", (SECOND, SECOND.replace("return h + ", "return x + "))),
    fault("parallel_sublayers", "x_everywhere", (SECOND, SECOND.replace("rms(h,", "rms(x,"))),
    fault("shared_norm", "gain_a_twice", (SECOND, SECOND.replace("gain_f", "gain_a"))),
    fault(
        "norm_created_each_call",
        "ones_each_time",
        (SECOND, SECOND.replace("self.gain_f", "nn.Parameter(torch.ones_like(self.gain_a))")),
    ),
    fault("layer_norm", "centred", (NORM, f"y = y - y.mean(dim=-1, keepdim=True)\n    {NORM}")),
    fault("norm_without_sqrt", "sqrt_left_out", (NORM, NORM.replace(".sqrt()", ""))),
    fault("norm_wrong_mean", "largest", (NORM, "y = y / (y.square().amax(dim=-1, keepdim=True) + eps).sqrt()")),
    fault("norm_without_upcast", "own_dtype", ("y = x.to(torch.promote_types(x.dtype, torch.float32))", "y = x")),
    fault(
        "wrong_eps",
        "squared",
        ("self.eps, self.causal, self.head_dim = eps, causal", "self.eps, self.causal, self.head_dim = eps**2, causal"),
    ),
    fault(
        "eps_ignored",
        "attribute_of_the_class",
        (
            "self.eps, self.causal, self.head_dim = eps, causal, head_dim",
            "self.causal, self.head_dim = causal, head_dim",
        ),
        ("class Layer(nn.Module):\n", "class Layer(nn.Module):\n    eps = 1e-6\n\n"),
    ),
    fault("norm_weight_missing", "gain_not_read", ("return (y * gain).to(x.dtype)", "return y.to(x.dtype)")),
    fault(
        "missing_rope",
        "turn_by_nothing",
        (TURN_Q, "q = self.turn(q, 0 * positions)"),
        (TURN_K, "k = self.turn(k, 0 * positions)"),
    ),
    fault(
        "rope_in_block",
        "normed_stream_turned_as_well",
        (
            'q = einsum("...td,dhk->...thk", x, self.Wq)',
            'x = self.turn(x.unflatten(-1, (-1, self.head_dim)), positions).flatten(-2)\n        q = einsum("...td,dhk->...thk", x, self.Wq)',
        ),
    ),
    fault("rope_on_values", "third_line", (TURN_K, f"{TURN_K}\n        v = self.turn(v, positions)")),
    fault("rope_on_queries_only", "k_forgotten", (TURN_K, "k = k.contiguous()")),
    fault("rope_half_split", "tensor_split", target="prenorm"),
    fault(
        "rope_over_heads",
        "unsqueeze_of_the_sequence",
        ("cosine = self.cosine[positions].unsqueeze(-2)", "cosine = self.cosine[: x.shape[-2]]"),
        ("sine = self.sine[positions].unsqueeze(-2)", "sine = self.sine[: x.shape[-2]]"),
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_bf16_tables",
        "half_tables",
        ("angle.cos().float()", "angle.cos().half()"),
        ("angle.sin().float()", "angle.sin().half()"),
    ),
    fault("rope_theta_ignored", "theta_of_the_paper", ("frequency = rope_theta **", "frequency = 1e4 **")),
    fault("rope_wrong_frequency", "over_whole_width", ("* 2 / head_dim)", "* 2 / d_model)")),
    fault(
        "rope_wrong_frequency",
        "counted_from_one",
        (
            "torch.arange(head_dim // 2, device=device, dtype=torch.float64)",
            "torch.arange(1, head_dim // 2 + 1, device=device, dtype=torch.float64)",
        ),
    ),
    fault(
        "token_positions_ignored",
        "overwritten",
        ("        if token_positions is None:\n            token_positions =", "        token_positions ="),
    ),
    fault("positions_off_by_one", "queries_one_earlier", (TURN_Q, "q = self.turn(q, (positions - 1).clamp(min=0))")),
    fault(
        "positions_off_by_one",
        "table_one_ahead",
        ("self.cosine[positions]", "self.cosine[positions + 1]"),
        ("self.sine[positions]", "self.sine[positions + 1]"),
        also="sequence_length_fixed",
    ),
    fault("causal_mask", "causal_by_default", base=CAUSAL, target="prenorm", also="rope_half_split"),
    fault(
        "causal_off_by_one",
        "strictly_greater",
        ("place[:, None] >= place[None, :]", "place[:, None] > place[None, :]"),
        base=CAUSAL,
    ),
    fault(
        "causal_off_by_one",
        "one_more",
        ("place[:, None] >= place[None, :]", "place[:, None] + 1 >= place[None, :]"),
        base=CAUSAL,
    ),
    fault("mask_inverted", "tilde_forgotten", ("logits.masked_fill(~mask", "logits.masked_fill(mask")),
    fault(
        "mask_inverted",
        "sign_of_comparison",
        ("place[:, None] >= place[None, :]", "place[:, None] <= place[None, :]"),
        base=CAUSAL,
    ),
    fault("mask_ignored", "not_in_place", ("logits = logits.masked_fill(", "logits.masked_fill(")),
    fault("mask_value_too_small", "minus_ten_thousand", ("~mask, -torch.inf", "~mask, -1e4")),
    fault("softmax_wrong_dim", "queries", ("logits.softmax(dim=-1)", "logits.softmax(dim=-2)")),
    fault("missing_attention_scale", "bare_einsum", (LOGITS, LOGITS.replace(" / self.head_dim**0.5", ""))),
    fault("wrong_attention_scale", "multiplied", (LOGITS, LOGITS.replace(" / self", " * self"))),
    fault(
        "wrong_head_split",
        "heads_and_sizes_swapped",
        (LOGITS, 'einsum("...qhk,...thk->...hqt", q.mT, k.mT) / self.head_dim**0.5'),
        ('...hqt,...thk->...qhk", probabilities, v)', '...hqt,...thk->...qhk", probabilities, v.mT).mT'),
    ),
    fault(
        "heads_not_merged",
        "reshaped",
        (MIXED, 'mixed = einsum("...hqt,...thk->...hqk", probabilities, v).reshape(v.shape)'),
    ),
    fault(
        "missing_output_projection",
        "flattened",
        ('return einsum("...qhk,hkd->...qd", mixed, self.Wo)', "return mixed.flatten(-2)"),
    ),
    fault("wrong_activation", "tanh", ("gate.sigmoid() * gate * up", "gate.tanh() * up")),
    fault("wrong_activation", "relu_squared", ("gate.sigmoid() * gate * up", "gate.relu().square() * up")),
    fault("gate_after_product", "both_in_silu", ("gate.sigmoid() * gate * up", "(gate * up).sigmoid() * gate * up")),
    fault("swapped_gate_up", "sigmoid_of_up", ("gate.sigmoid() * gate * up", "up.sigmoid() * up * gate")),
    fault(
        "unexpected_bias",
        "of_the_gate",
        ("self.gain_a = nn", "self.Bgate = nn.Parameter(torch.zeros(d_ff, **kind))\n        self.gain_a = nn"),
        ("x, self.Wgate)", "x, self.Wgate) + self.Bgate"),
        base=CAUSAL,
        target="llama",
    ),
    fault(
        "leading_dims",
        "letters_for_three_axes",
        ('logits = einsum("...qhk,...thk->...hqt", q, k)', 'logits = einsum("bqhk,bthk->bhqt", q, k)'),
    ),
    fault(
        "modifies_input",
        "add_underscore",
        (FIRST, "h = x.add_(self.attend(rms(x, self.gain_a, self.eps), token_positions, mask))"),
    ),
    fault("not_deterministic", "random_rounding", (SECOND, "h = h + 1e-3 * torch.rand_like(h)\n        " + SECOND)),
    fault(
        "gradient_wrong",
        "softmax_detached_inside",
        (
            "probabilities = logits.softmax(dim=-1)",
            "weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()\n        probabilities = weights / weights.sum(dim=-1, keepdim=True).detach()",
        ),
    ),
    fault("gradient_missing", "weight_used_as_data", ("x, self.Wup)", "x, self.Wup.data)")),
    fault(
        "constructor_error",
        "missing_dimension",
        ("torch.empty(d_ff, d_model, **kind)", "torch.empty(d_ff, d_model, *kind)"),
    ),
    fault(
        "timeout",
        "sleeps",
        ("from math import prod\n", "import time\nfrom math import prod\n"),
        ("        if token_positions is None:\n", "        time.sleep(10**8)\n        if token_positions is None:\n"),
    ),
]

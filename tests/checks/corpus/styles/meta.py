"""The style of Meta's Llama: complex rotations, wq wk wv wo, w1 w2 w3, an additive causal mask."""

from ..editing import Style

STYLE = Style(
    "meta",
    "TransformerBlock",
    '''"""A decoder layer with rotations as complex numbers."""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float, **factory):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, **factory))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


def precompute_freqs_cis(dim: int, end: int, theta: float, device=None):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, device=device)[: (dim // 2)].float() / dim))
    t = torch.arange(end, device=device, dtype=torch.float32)
    freqs = torch.outer(t, freqs)
    return torch.polar(torch.ones_like(freqs), freqs)


def apply_rotary_emb(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor):
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis.unsqueeze(-2)
    xq_out = torch.view_as_real(xq_ * freqs_cis).flatten(-2)
    xk_out = torch.view_as_real(xk_ * freqs_cis).flatten(-2)
    return xq_out.type_as(xq), xk_out.type_as(xk)


class Attention(nn.Module):
    def __init__(self, dim: int, n_heads: int, **factory):
        super().__init__()
        self.n_heads = n_heads
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False, **factory)
        self.wk = nn.Linear(dim, n_heads * self.head_dim, bias=False, **factory)
        self.wv = nn.Linear(dim, n_heads * self.head_dim, bias=False, **factory)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False, **factory)

    def forward(self, x: torch.Tensor, freqs_cis: torch.Tensor, mask: Optional[torch.Tensor]):
        *lead, seqlen, _ = x.shape
        xq, xk, xv = self.wq(x), self.wk(x), self.wv(x)
        xq = xq.view(*lead, seqlen, self.n_heads, self.head_dim)
        xk = xk.view(*lead, seqlen, self.n_heads, self.head_dim)
        xv = xv.view(*lead, seqlen, self.n_heads, self.head_dim)

        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)

        xq = xq.transpose(-3, -2)
        keys = xk.transpose(-3, -2)
        values = xv.transpose(-3, -2)
        scores = torch.matmul(xq, keys.transpose(-2, -1)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores + mask
        scores = F.softmax(scores.float(), dim=-1).type_as(xq)
        output = torch.matmul(scores, values)
        output = output.transpose(-3, -2).contiguous().view(*lead, seqlen, -1)
        return self.wo(output)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, **factory):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False, **factory)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False, **factory)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False, **factory)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        max_seq_len: int = 2048,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-5,
        causal: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.causal = causal
        self.attention = Attention(d_model, num_heads, **factory)
        self.feed_forward = FeedForward(d_model, d_ff, **factory)
        self.attention_norm = RMSNorm(d_model, eps=norm_eps, **factory)
        self.ffn_norm = RMSNorm(d_model, eps=norm_eps, **factory)
        freqs_cis = precompute_freqs_cis(d_model // num_heads, max_seq_len, rope_theta, device)
        self.register_buffer("freqs_cis", freqs_cis, persistent=False)

    def forward(self, x: torch.Tensor, token_positions: Optional[torch.Tensor] = None):
        seqlen = x.shape[-2]
        freqs_cis = self.freqs_cis[:seqlen] if token_positions is None else self.freqs_cis[token_positions]
        mask = None
        if self.causal:
            mask = torch.full((seqlen, seqlen), float("-inf"), device=x.device)
            mask = torch.triu(mask, diagonal=1)
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        out = h + self.feed_forward(self.ffn_norm(h))
        return out
''',
)

NOT_CAUSAL = STYLE.right("both_ways", ("causal: bool = True", "causal: bool = False"))
CAST_LAST = STYLE.right(
    "cast_last",
    ("output = self._norm(x.float()).type_as(x)", "output = self._norm(x.float())"),
    ("return output * self.weight", "return (output * self.weight).type_as(x)"),
)
RIGHT = [STYLE.right(), NOT_CAUSAL, CAST_LAST]

FIRST = "h = x + self.attention(self.attention_norm(x), freqs_cis, mask)"
SECOND = "out = h + self.feed_forward(self.ffn_norm(h))"
NORM = "return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)"
TRIU = "mask = torch.triu(mask, diagonal=1)"
FREQS = "freqs = 1.0 / (theta ** (torch.arange(0, dim, 2, device=device)[: (dim // 2)].float() / dim))"
SPLIT_V = "xv = xv.view(*lead, seqlen, self.n_heads, self.head_dim)"
PICK = "self.freqs_cis[:seqlen] if token_positions is None else self.freqs_cis[token_positions]"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "llama_of_2017",
        (FIRST, "h = self.attention_norm(x + self.attention(x, freqs_cis, mask))"),
        (SECOND, "out = self.ffn_norm(h + self.feed_forward(h))"),
    ),
    fault("no_norm", "feed_forward", (SECOND, "out = h + self.feed_forward(h)")),
    fault(
        "residual_from_normed", "second_line", (SECOND, "h = self.ffn_norm(h)\n        out = h + self.feed_forward(h)")
    ),
    fault(
        "residual_detached",
        "first_under_no_grad",
        (
            FIRST,
            "with torch.no_grad():\n            shortcut = x.clone()\n        h = shortcut + self.attention(self.attention_norm(x), freqs_cis, mask)",
        ),
    ),
    fault("ffn_residual_from_input", "x_for_h", (SECOND, "out = x + self.feed_forward(self.ffn_norm(h))")),
    fault("parallel_sublayers", "norm_of_x", (SECOND, "out = h + self.feed_forward(self.ffn_norm(x))")),
    fault(
        "shared_norm",
        "same_module_twice",
        ("self.ffn_norm = RMSNorm(d_model, eps=norm_eps, **factory)", "self.ffn_norm = self.attention_norm"),
    ),
    fault(
        "norm_created_each_call",
        "in_forward",
        (
            "        self.attention_norm = RMSNorm(d_model, eps=norm_eps, **factory)\n",
            "        self.norm_eps, self.factory = norm_eps, factory\n",
        ),
        (
            FIRST,
            "h = x + self.attention(RMSNorm(x.shape[-1], self.norm_eps, device=x.device, dtype=x.dtype)(x), freqs_cis, mask)",
        ),
    ),
    fault(
        "layer_norm",
        "mean_subtracted",
        ("output = self._norm(x.float())", "output = self._norm(x.float() - x.float().mean(-1, keepdim=True))"),
    ),
    fault("norm_wrong_mean", "sum", (NORM, NORM.replace(".mean(", ".sum("))),
    fault("shared_projection", "values_of_keys", ("self.wk(x), self.wv(x)", "self.wk(x), self.wk(x)")),
    fault("norm_wrong_mean", "absolute_value", (NORM, "return x / (x.abs().mean(-1, keepdim=True) + self.eps)")),
    fault("norm_without_upcast", "no_float", ("self._norm(x.float()).type_as(x)", "self._norm(x)")),
    fault("wrong_eps", "fixed_addition", ("self.eps = eps", "self.eps = eps + 1e-2")),
    fault("eps_ignored", "hard_coded", ("+ self.eps)", "+ 1e-6)"), base=CAST_LAST),
    fault("norm_weight_missing", "no_multiplication", ("return output * self.weight", "return output")),
    fault(
        "missing_rope",
        "copy_thrown_away",
        ("xq, xk = apply_rotary_emb(xq, xk, freqs_cis)", "rotated = apply_rotary_emb(xq, xk, freqs_cis)"),
    ),
    fault(
        "rope_over_heads",
        "head_axis",
        ("freqs_cis = freqs_cis.unsqueeze(-2)\n", "freqs_cis = freqs_cis[..., : xq.shape[-2], :]\n"),
        (PICK, "self.freqs_cis"),
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_on_values",
        "instead_of_queries_too",
        (
            "xq, xk = apply_rotary_emb(xq, xk, freqs_cis)",
            "xq, xk = apply_rotary_emb(xq, xk, freqs_cis)\n        xv, _ = apply_rotary_emb(xv, xv, freqs_cis)",
        ),
    ),
    fault(
        "rope_on_queries_only", "keys_unrotated", ("xq_out.type_as(xq), xk_out.type_as(xk)", "xq_out.type_as(xq), xk")
    ),
    fault("rope_interleaved", "complex_pairs", target="llama"),
    fault(
        "rope_bf16_tables",
        "angles_rounded",
        (
            "    t = torch.arange(end, device=device, dtype=torch.float32)\n",
            "    t = torch.arange(end, device=device, dtype=torch.bfloat16)\n",
        ),
        ("torch.outer(t, freqs)", "torch.outer(t, freqs.bfloat16()).float()"),
    ),
    fault(
        "rope_theta_ignored",
        "default_argument",
        ("end: int, theta: float, device=None", "end: int, theta: float = 10000.0, device=None"),
        ("max_seq_len, rope_theta, device)", "max_seq_len, device=device)"),
    ),
    fault(
        "rope_wrong_frequency",
        "over_d_model",
        ("precompute_freqs_cis(d_model // num_heads,", "precompute_freqs_cis(d_model // num_heads, d_model,"),
        ("(dim: int, end: int,", "(dim: int, width: int, end: int,"),
        (".float() / dim))", ".float() / width))"),
    ),
    fault(
        "rope_wrong_frequency",
        "starts_at_one",
        ("torch.arange(0, dim, 2, device=device)", "torch.arange(1, dim + 1, 2, device=device)"),
    ),
    fault(
        "positions_off_by_one",
        "keys_one_later",
        ("xk_ * freqs_cis)", "xk_ * freqs_cis.roll(-1, dims=-3))"),
        base=NOT_CAUSAL,
    ),
    fault("causal_off_by_one", "diagonal_two", (TRIU, "mask = torch.triu(mask, diagonal=2)")),
    fault("causal_off_by_one", "diagonal_hidden", (TRIU, "mask = torch.triu(mask, diagonal=0)")),
    fault("mask_inverted", "tril_for_triu", (TRIU, "mask = torch.tril(mask, diagonal=-1)")),
    fault("mask_ignored", "sum_thrown_away", ("scores = scores + mask", "scores + mask")),
    fault("mask_value_too_small", "minus_one_hundred", ('float("-inf")', "-100.0")),
    fault("missing_attention_scale", "forgotten", (" / math.sqrt(self.head_dim)", "")),
    fault("wrong_attention_scale", "whole_width", ("math.sqrt(self.head_dim)", "math.sqrt(x.shape[-1])")),
    fault(
        "wrong_head_split",
        "values_without_transpose",
        (SPLIT_V, "xv = xv.view(*lead, self.n_heads, seqlen, self.head_dim)"),
        ("values = xv.transpose(-3, -2)", "values = xv"),
        base=NOT_CAUSAL,
    ),
    fault(
        "heads_not_merged",
        "no_transpose",
        ("output = output.transpose(-3, -2).contiguous()", "output = output.contiguous()"),
    ),
    fault("missing_output_projection", "not_called", ("return self.wo(output)", "return output")),
    fault("swapped_gate_up", "w3_for_w1", ("F.silu(self.w1(x)) * self.w3(x)", "F.silu(self.w3(x)) * self.w1(x)")),
    fault(
        "unexpected_bias",
        "everywhere_in_attention",
        (
            "self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False, **factory)",
            "self.wo = nn.Linear(n_heads * self.head_dim, dim, **factory)",
        ),
        target="llama",
        also="rope_interleaved",
    ),
    fault(
        "modifies_input",
        "in_place_sum",
        (FIRST, "x += self.attention(self.attention_norm(x), freqs_cis, mask)\n        h = x"),
    ),
    fault(
        "wrong_device_buffer",
        "plain_attribute",
        ('self.register_buffer("freqs_cis", freqs_cis, persistent=False)', "self.freqs_cis = freqs_cis"),
    ),
    fault(
        "sequence_length_fixed",
        "mask_of_max_seq_len",
        (
            '            mask = torch.full((seqlen, seqlen), float("-inf"), device=x.device)',
            '            size = self.freqs_cis.shape[0]\n            mask = torch.full((size, size), float("-inf"), device=x.device)',
        ),
    ),
    fault(
        "retains_state",
        "step_counter",
        ("seqlen = x.shape[-2]", "seqlen = x.shape[-2]\n        self.seen = self.seen + 1"),
        ("self.causal = causal", "self.causal = causal\n        self.seen = 0"),
        (SECOND, "out = h + self.feed_forward(self.ffn_norm(h)) / self.seen"),
    ),
    fault(
        "import_error",
        "module_missing",
        (
            "import torch\nimport torch.nn.functional",
            "import torch\nimport torch.nn.model_parallel\nimport torch.nn.functional",
        ),
    ),
    fault(
        "forward_error",
        "mask_argument_missing",
        (
            "self.attention(self.attention_norm(x), freqs_cis, mask)",
            "self.attention(self.attention_norm(x), freqs_cis)",
        ),
    ),
]

"""Grouped-query attention: fewer heads for keys and values. Halves are paired; causal unless told otherwise."""

from ..editing import Style

STYLE = Style(
    "grouped",
    "GroupedQueryBlock",
    """import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float, device=None, dtype=None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        xf = x.float()
        ms = (xf * xf).mean(-1, keepdim=True)
        return (xf * torch.rsqrt(ms + self.eps) * self.weight.float()).to(x.dtype)


class GroupedQueryAttention(nn.Module):
    def __init__(
        self, dim: int, n_heads: int, n_kv_heads: int, max_len: int, theta: float, causal: bool, device=None, dtype=None
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.head_dim = dim // n_heads
        self.causal = causal
        kv_dim = n_kv_heads * self.head_dim
        self.q = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.kv = nn.Linear(dim, 2 * kv_dim, bias=False, device=device, dtype=dtype)
        self.o = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)
        inv_freq = theta ** (torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / -self.head_dim)
        phase = torch.arange(max_len, device=device, dtype=torch.float32).unsqueeze(1) * inv_freq.unsqueeze(0)
        self.register_buffer("cos", phase.cos(), persistent=False)
        self.register_buffer("sin", phase.sin(), persistent=False)

    def rotary(self, x: Tensor, pos: Tensor) -> Tensor:
        # x: (..., T, H, D)
        cos = self.cos[pos][..., None, :]
        sin = self.sin[pos][..., None, :]
        lo, hi = x.split(self.head_dim // 2, dim=-1)
        return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1).to(x.dtype)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        *lead, t, c = x.shape
        q = self.q(x).view(*lead, t, self.n_heads, self.head_dim)
        k, v = self.kv(x).view(*lead, t, 2, self.n_kv_heads, self.head_dim).unbind(-3)
        q, k = self.rotary(q, pos), self.rotary(k, pos)

        groups = self.n_heads // self.n_kv_heads
        k = k.repeat_interleave(groups, dim=-2)
        v = v.repeat_interleave(groups, dim=-2)

        q, k, v = q.transpose(-2, -3), k.transpose(-2, -3), v.transpose(-2, -3)
        att = q @ k.transpose(-2, -1) * self.head_dim**-0.5
        if self.causal:
            hidden = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            att = att.masked_fill(hidden, float("-inf"))
        y = att.softmax(-1) @ v
        return self.o(y.transpose(-2, -3).reshape(*lead, t, c))


class GroupedQueryBlock(nn.Module):
    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        num_kv_heads: int | None = None,
        max_seq_len: int = 2048,
        rope_theta: float = 10000.0,
        eps: float = 1e-6,
        causal: bool = True,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        kv = num_kv_heads or num_heads
        self.pre_attention = RMSNorm(d_model, eps, device, dtype)
        self.attention = GroupedQueryAttention(
            d_model, num_heads, kv, max_seq_len, rope_theta, causal, device, dtype
        )
        self.pre_mlp = RMSNorm(d_model, eps, device, dtype)
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(d_ff, d_model, bias=False, device=device, dtype=dtype)

    def mlp(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).tensor_split(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        pos = torch.arange(x.shape[-2], device=x.device) if token_positions is None else token_positions
        x = x + self.attention(self.pre_attention(x), pos)
        x = x + self.mlp(self.pre_mlp(x))
        return x
""",
)

KEYS = "k = k.repeat_interleave(groups, dim=-2)"
VALUES = "v = v.repeat_interleave(groups, dim=-2)"
NOT_CAUSAL = STYLE.right("both_ways", ("causal: bool = True", "causal: bool = False"))
EXPANDED = STYLE.right(
    "expanded",
    (KEYS, "k = k[..., :, None, :].expand(*lead, t, -1, groups, -1).flatten(-3, -2)"),
    (VALUES, "v = v[..., :, None, :].expand(*lead, t, -1, groups, -1).flatten(-3, -2)"),
)
TILED = STYLE.right(
    "tiled", (KEYS, "k = torch.cat([k] * groups, dim=-2)"), (VALUES, "v = torch.cat([v] * groups, dim=-2)")
)
RIGHT = [STYLE.right(), NOT_CAUSAL, EXPANDED, TILED]

FIRST, SECOND = "x = x + self.attention(self.pre_attention(x), pos)", "x = x + self.mlp(self.pre_mlp(x))"
NORM = "return (xf * torch.rsqrt(ms + self.eps) * self.weight.float()).to(x.dtype)"
TURN = "q, k = self.rotary(q, pos), self.rotary(k, pos)"
HIDDEN = "hidden = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)"
ATT = "att = q @ k.transpose(-2, -1) * self.head_dim**-0.5"
GLU = "return self.down(F.silu(gate) * up)"

fault = STYLE.faulty
FAULTY = [
    fault("gqa_tiled_instead_of_repeated", "cat", base=TILED, target="llama"),
    fault(
        "gqa_tiled_instead_of_repeated",
        "repeat",
        (KEYS, "k = k.repeat(*[1] * (k.ndim - 2), groups, 1)"),
        (VALUES, "v = v.repeat(*[1] * (v.ndim - 2), groups, 1)"),
        target="llama",
    ),
    fault(
        "gqa_tiled_instead_of_repeated",
        "expand_before_the_heads",
        (
            "k = k[..., :, None, :].expand(*lead, t, -1, groups, -1).flatten(-3, -2)",
            "k = k[..., None, :, :].expand(*lead, t, groups, -1, -1).flatten(-3, -2)",
        ),
        (
            "v = v[..., :, None, :].expand(*lead, t, -1, groups, -1).flatten(-3, -2)",
            "v = v[..., None, :, :].expand(*lead, t, groups, -1, -1).flatten(-3, -2)",
        ),
        base=EXPANDED,
        target="llama",
    ),
    fault(
        "gqa_tiled_instead_of_repeated",
        "modulo",
        (KEYS, "own = torch.arange(self.n_heads, device=x.device) % self.n_kv_heads\n        k = k[..., own, :]"),
        (VALUES, "v = v[..., own, :]"),
        target="llama",
    ),
    fault("post_norm", "attention_only", (FIRST, "x = self.pre_attention(x + self.attention(x, pos))")),
    fault("no_norm", "attention", (FIRST, "x = x + self.attention(x, pos)")),
    fault("missing_residual_attention", "forgotten", (FIRST, FIRST.replace("x = x + ", "x = "))),
    fault("missing_residual_ffn", "forgotten", (SECOND, SECOND.replace("x = x + ", "x = "))),
    fault(
        "residual_from_normed", "n_for_x", (FIRST, "n = self.pre_attention(x)\n        x = n + self.attention(n, pos)")
    ),
    fault("residual_detached", "mlp", (SECOND, SECOND.replace("x = x + ", "x = x.detach() + "))),
    fault("doubled_residual", "plus_equals", (FIRST, FIRST.replace("x = x + ", "x = x + x + "))),
    fault(
        "shared_norm",
        "assigned_twice",
        ("self.pre_mlp = RMSNorm(d_model, eps, device, dtype)", "self.pre_mlp = self.pre_attention"),
    ),
    fault("layer_norm", "variance", ("xf = x.float()\n", "xf = x.float() - x.float().mean(-1, keepdim=True)\n")),
    fault(
        "norm_wrong_mean",
        "half_of_the_features",
        ("ms = (xf * xf).mean(-1, keepdim=True)", "ms = (xf * xf)[..., : xf.shape[-1] // 2].mean(-1, keepdim=True)"),
    ),
    fault(
        "norm_over_sequence",
        "mean_of_means",
        ("ms = (xf * xf).mean(-1, keepdim=True)", "ms = (xf * xf).mean(-1, keepdim=True).mean(-2, keepdim=True)"),
    ),
    fault("norm_without_upcast", "no_float", ("xf = x.float()", "xf = x")),
    fault("wrong_eps", "root", ("torch.rsqrt(ms + self.eps)", "torch.rsqrt(ms + self.eps**0.5)")),
    fault("eps_ignored", "not_added", ("torch.rsqrt(ms + self.eps)", "torch.rsqrt(ms)")),
    fault(
        "missing_rope",
        "position_zero",
        (
            "pos = torch.arange(x.shape[-2], device=x.device) if token_positions is None else token_positions",
            "pos = torch.zeros(x.shape[-2], dtype=torch.long, device=x.device)",
        ),
    ),
    fault(
        "rope_on_values", "v_as_well", (TURN, "q, k, v = self.rotary(q, pos), self.rotary(k, pos), self.rotary(v, pos)")
    ),
    fault("rope_on_queries_only", "k_given_back", (TURN, "q, k = self.rotary(q, pos), k")),
    fault("rope_half_split", "split_in_two", base=NOT_CAUSAL, target="paper"),
    fault(
        "rope_wrong_direction",
        "lo_and_hi",
        ("[lo * cos - hi * sin, hi * cos + lo * sin]", "[lo * cos + hi * sin, hi * cos - lo * sin]"),
        target="llama",
    ),
    fault(
        "rope_interleaved",
        "strides",
        ("lo, hi = x.split(self.head_dim // 2, dim=-1)", "lo, hi = x[..., 0::2], x[..., 1::2]"),
        (
            "torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1)",
            "torch.stack([lo * cos - hi * sin, hi * cos + lo * sin], dim=-1).flatten(-2)",
        ),
        target="llama",
    ),
    fault(
        "rope_over_heads",
        "sequence_axis_missed",
        ("cos = self.cos[pos][..., None, :]", "cos = self.cos[: x.shape[-2]]"),
        ("sin = self.sin[pos][..., None, :]", "sin = self.sin[: x.shape[-2]]"),
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_bf16_tables",
        "positions_in_bf16",
        (
            "torch.arange(max_len, device=device, dtype=torch.float32).unsqueeze(1)",
            "torch.arange(max_len, device=device).bfloat16().float().unsqueeze(1)",
        ),
    ),
    fault("rope_theta_ignored", "base_in_the_formula", ("inv_freq = theta ** (", "inv_freq = 10_000 ** (")),
    fault(
        "rope_wrong_frequency",
        "negative_twice",
        ("dtype=torch.float32) / -self.head_dim)", "dtype=torch.float32) / self.head_dim)"),
    ),
    fault(
        "token_positions_ignored",
        "condition_reversed",
        (
            "if token_positions is None else token_positions",
            "if token_positions is not None or x.ndim else token_positions",
        ),
    ),
    fault(
        "positions_off_by_one",
        "k_ahead",
        (TURN, "q, k = self.rotary(q, pos), self.rotary(k, pos + 1)"),
        also="sequence_length_fixed",
    ),
    fault("causal_mask", "default", target="paper", also="rope_half_split"),
    fault("causal_off_by_one", "triu_two", (HIDDEN, HIDDEN.replace("triu(1)", "triu(2)"))),
    fault("causal_off_by_one", "triu_zero", (HIDDEN, HIDDEN.replace("triu(1)", "triu()")), ('float("-inf")', "-1e9")),
    fault("mask_inverted", "tril", (HIDDEN, HIDDEN.replace("triu(1)", "tril(-1)"))),
    fault("mask_ignored", "flag_not_kept", ("self.causal = causal", "self.causal = False")),
    fault("mask_value_too_small", "minus_thousand", ('float("-inf")', "-1000.0")),
    fault("softmax_wrong_dim", "queries", ("att.softmax(-1)", "att.softmax(-2)"), base=NOT_CAUSAL),
    fault("missing_attention_scale", "forgotten", (ATT, ATT.replace(" * self.head_dim**-0.5", ""))),
    fault(
        "wrong_attention_scale",
        "kv_width",
        (ATT, ATT.replace("self.head_dim**-0.5", "(self.n_kv_heads * self.head_dim) ** -0.5")),
    ),
    fault(
        "wrong_head_split",
        "queries_viewed",
        (
            "q = self.q(x).view(*lead, t, self.n_heads, self.head_dim)",
            "q = self.q(x).view(*lead, self.n_heads, t, self.head_dim).transpose(-2, -3)",
        ),
    ),
    fault("heads_not_merged", "reshape_only", ("y.transpose(-2, -3).reshape(*lead, t, c)", "y.reshape(*lead, t, c)")),
    fault(
        "missing_output_projection",
        "y_returned",
        ("return self.o(y.transpose(-2, -3).reshape(*lead, t, c))", "return y.transpose(-2, -3).reshape(*lead, t, c)"),
    ),
    fault("wrong_activation", "relu", (GLU, GLU.replace("F.silu", "F.relu"))),
    fault("gate_after_product", "brackets", (GLU, "return self.down(F.silu(gate * up))")),
    fault(
        "unexpected_bias",
        "kv",
        ("self.kv = nn.Linear(dim, 2 * kv_dim, bias=False,", "self.kv = nn.Linear(dim, 2 * kv_dim, bias=True,"),
        target="llama",
    ),
    fault("leading_dims", "three_axes", ("*lead, t, c = x.shape", "b, t, c = x.shape\n        lead = [b]")),
    fault(
        "leading_dims",
        "batches_mixed",
        (
            "x = x + self.mlp(self.pre_mlp(x))\n        return x",
            "x = x + self.mlp(self.pre_mlp(x))\n        return x.reshape(shape)",
        ),
        (
            "        x = x + self.attention(",
            "        shape = x.shape\n        x = x.reshape(-1, *x.shape[-2:]) if x.ndim < 4 else x.flatten(1, 2)\n        pos = pos if x.shape[-2] == pos.shape[-1] else torch.arange(x.shape[-2], device=x.device)\n        x = x + self.attention(",
        ),
    ),
    fault(
        "wrong_dtype",
        "weight_kept_wide",
        (NORM, "return xf * torch.rsqrt(ms + self.eps) * self.weight.float()"),
        ("q = self.q(x)", "x = x.to(self.q.weight.dtype)\n        q = self.q(x)"),
        ("gate, up = self.gate_up(x)", "x = x.to(self.down.weight.dtype)\n        gate, up = self.gate_up(x)"),
        (SECOND, "x = x.float() + self.mlp(self.pre_mlp(x))"),
    ),
    fault(
        "wrong_device_buffer",
        "tables_outside",
        ('self.register_buffer("sin", phase.sin(), persistent=False)', "self.sin = phase.sin()"),
    ),
    fault(
        "sequence_length_fixed",
        "table_not_cut",
        (
            "pos = torch.arange(x.shape[-2], device=x.device) if",
            "pos = torch.arange(self.attention.cos.shape[0], device=x.device) if",
        ),
    ),
    fault(
        "gradient_wrong",
        "norm_under_no_grad",
        (
            "        ms = (xf * xf).mean(-1, keepdim=True)",
            "        with torch.no_grad():\n            ms = (xf * xf).mean(-1, keepdim=True)",
        ),
    ),
    fault(
        "batch_coupled",
        "batch_mean_in_mlp",
        (GLU, "hidden = F.silu(gate) * up\n        return self.down(hidden - hidden.mean(0, keepdim=True))"),
    ),
    fault("not_deterministic", "shuffled_groups", (KEYS, KEYS + "[..., torch.randperm(self.n_heads), :]")),
    fault(
        "dropout_in_eval", "alpha_dropout", ("y = att.softmax(-1) @ v", "y = F.dropout(att.softmax(-1), 0.1, True) @ v")
    ),
    fault(
        "import_error",
        "annotation_unknown",
        ("def mlp(self, x: Tensor) -> Tensor:", "def mlp(self, x: Float) -> Tensor:"),
    ),
    fault("missing_softmax", "sigmoid", ("att.softmax(-1)", "att.sigmoid()")),
    fault(
        "mask_after_softmax",
        "filled_with_zero",
        (
            '            att = att.masked_fill(hidden, float("-inf"))\n        y = att.softmax(-1) @ v',
            "            att = att.softmax(-1).masked_fill(hidden, 0.0)\n        y = att @ v",
        ),
    ),
    fault("rope_not_a_rotation", "both_plus", ("lo * cos - hi * sin", "lo * cos + hi * sin")),
]

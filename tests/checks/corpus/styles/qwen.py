"""The style of Qwen: biases on q, k and v, RMSNorm on queries and keys, grouped heads, always causal."""

from ..editing import Style

STYLE = Style(
    "qwen",
    "QwenLayer",
    '''import torch
from torch import nn
from torch.nn import functional as F


class Norm(nn.Module):
    """RMSNorm; the last dim may be the model's or a head's."""

    def __init__(self, size, eps=1e-6, **kw):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, **kw))
        self.eps = eps

    def forward(self, h):
        dtype = h.dtype
        h = h.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * h.to(dtype)


def rotary_table(head_dim, length, theta, device):
    inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float) / head_dim)
    angle = torch.arange(length, device=device, dtype=torch.float).outer(inv_freq).repeat(1, 2)
    return angle.cos(), angle.sin()


def turn(h, cos, sin):
    a, b = h.float().chunk(2, -1)
    return (h.float() * cos + torch.cat((-b, a), -1) * sin).to(h.dtype)


class QwenAttention(nn.Module):
    def __init__(self, d_model, num_heads, num_kv_heads, eps, **kw):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = d_model // num_heads
        self.q_proj = nn.Linear(d_model, num_heads * self.head_dim, bias=True, **kw)
        self.k_proj = nn.Linear(d_model, num_kv_heads * self.head_dim, bias=True, **kw)
        self.v_proj = nn.Linear(d_model, num_kv_heads * self.head_dim, bias=True, **kw)
        self.o_proj = nn.Linear(num_heads * self.head_dim, d_model, bias=False, **kw)
        self.q_norm = Norm(self.head_dim, eps, **kw)
        self.k_norm = Norm(self.head_dim, eps, **kw)

    def forward(self, h, cos, sin):
        lead, length = h.shape[:-2], h.shape[-2]
        q = self.q_norm(self.q_proj(h).view(*lead, length, -1, self.head_dim)).transpose(-3, -2)
        k = self.k_norm(self.k_proj(h).view(*lead, length, -1, self.head_dim)).transpose(-3, -2)
        v = self.v_proj(h).view(*lead, length, -1, self.head_dim).transpose(-3, -2)
        q, k = turn(q, cos, sin), turn(k, cos, sin)
        group = self.num_heads // self.num_kv_heads
        k = k.unsqueeze(-3).expand(*lead, -1, group, -1, -1).reshape(q.shape)
        v = v.unsqueeze(-3).expand(*lead, -1, group, -1, -1).reshape(q.shape)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(-3, -2).reshape(*lead, length, -1))


class QwenMLP(nn.Module):
    def __init__(self, d_model, d_ff, **kw):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False, **kw)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False, **kw)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False, **kw)

    def forward(self, h):
        return self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class QwenLayer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, num_kv_heads=None, max_seq_len=4096, rope_theta=10000.0, eps=1e-6, device=None, dtype=None):
        super().__init__()
        kw = {"device": device, "dtype": dtype}
        self.self_attn = QwenAttention(d_model, num_heads, num_kv_heads or num_heads, eps, **kw)
        self.mlp = QwenMLP(d_model, d_ff, **kw)
        self.input_layernorm = Norm(d_model, eps, **kw)
        self.post_attention_layernorm = Norm(d_model, eps, **kw)
        cos, sin = rotary_table(d_model // num_heads, max_seq_len, rope_theta, device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, h, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(h.shape[-2], device=h.device)
        cos, sin = self.cos[token_positions].unsqueeze(-3), self.sin[token_positions].unsqueeze(-3)
        h = h + self.self_attn(self.input_layernorm(h), cos, sin)
        h = h + self.mlp(self.post_attention_layernorm(h))
        return h
''',
)

NOT_CAUSAL = STYLE.right("both_ways", ("is_causal=True", "is_causal=False"))
NO_QK_NORM = STYLE.right(
    "without_qk_norm",
    (
        "q = self.q_norm(self.q_proj(h).view(*lead, length, -1, self.head_dim)).transpose",
        "q = self.q_proj(h).view(*lead, length, -1, self.head_dim).transpose",
    ),
    (
        "k = self.k_norm(self.k_proj(h).view(*lead, length, -1, self.head_dim)).transpose",
        "k = self.k_proj(h).view(*lead, length, -1, self.head_dim).transpose",
    ),
    (
        "        self.q_norm = Norm(self.head_dim, eps, **kw)\n        self.k_norm = Norm(self.head_dim, eps, **kw)\n",
        "",
    ),
)
RIGHT = [STYLE.right(), NOT_CAUSAL, NO_QK_NORM]

FIRST, SECOND = (
    "h = h + self.self_attn(self.input_layernorm(h), cos, sin)",
    "h = h + self.mlp(self.post_attention_layernorm(h))",
)
NORM = "h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)"
TURN = "q, k = turn(q, cos, sin), turn(k, cos, sin)"
SDPA = "out = F.scaled_dot_product_attention(q, k, v, is_causal=True)"
BY_HAND = "allowed = torch.ones(length, length, dtype=torch.bool, device=h.device).tril()\n        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)"

fault = STYLE.faulty
FAULTY = [
    fault("post_norm", "mlp_only", (SECOND, "h = self.post_attention_layernorm(h + self.mlp(h))")),
    fault("no_norm", "mlp", (SECOND, "h = h + self.mlp(h)")),
    fault("missing_residual_attention", "forgotten", (FIRST, FIRST.replace("h = h + ", "h = "))),
    fault("missing_residual_ffn", "forgotten", (SECOND, SECOND.replace("h = h + ", "h = "))),
    fault(
        "residual_from_normed",
        "overwritten",
        (FIRST, "h = self.input_layernorm(h)\n        h = h + self.self_attn(h, cos, sin)"),
    ),
    fault("residual_detached", "data", (SECOND, SECOND.replace("h = h + ", "h = h.data + "))),
    fault(
        "ffn_residual_from_input",
        "skip_of_the_input",
        (FIRST, "skip = h\n        " + FIRST),
        (SECOND, SECOND.replace("h = h + ", "h = skip + ")),
    ),
    fault(
        "parallel_sublayers",
        "both_at_once",
        (FIRST, "n = h\n        " + FIRST),
        (SECOND, SECOND.replace("layernorm(h)", "layernorm(n)")),
    ),
    fault("doubled_residual", "inside_the_mlp", (SECOND, "h = h + (h + self.mlp(self.post_attention_layernorm(h)))")),
    fault(
        "shared_norm",
        "input_layernorm_for_both",
        (SECOND, SECOND.replace("post_attention_layernorm", "input_layernorm")),
        ("        self.post_attention_layernorm = Norm(d_model, eps, **kw)\n", ""),
    ),
    fault(
        "norm_created_each_call",
        "in_forward",
        (SECOND, "h = h + self.mlp(Norm(h.shape[-1], self.input_layernorm.eps, device=h.device, dtype=h.dtype)(h))"),
        ("        self.post_attention_layernorm = Norm(d_model, eps, **kw)\n", ""),
    ),
    fault("layer_norm", "mean_removed", (NORM, "h = h - h.mean(-1, keepdim=True)\n        " + NORM)),
    fault("norm_without_sqrt", "division", (NORM, NORM.replace("* torch.rsqrt(", "/ ("))),
    fault("norm_wrong_mean", "sum", (NORM, NORM.replace("mean(-1", "sum(-1"))),
    fault("norm_without_upcast", "half", ("        h = h.float()\n", "")),
    fault("norm_weight_missing", "h_only", ("return self.weight * h.to(dtype)", "return h.to(dtype)")),
    fault(
        "eps_ignored",
        "norms_of_the_block",
        ("self.input_layernorm = Norm(d_model, eps, **kw)", "self.input_layernorm = Norm(d_model, **kw)"),
        (
            "self.post_attention_layernorm = Norm(d_model, eps, **kw)",
            "self.post_attention_layernorm = Norm(d_model, **kw)",
        ),
    ),
    fault("wrong_eps", "tenfold", ("self.eps = eps", "self.eps = 10 * eps")),
    fault("eps_outside_sqrt", "after_the_root", (NORM, "h = h / (h.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)")),
    fault("missing_rope", "not_turned", (TURN, "assert cos.shape == sin.shape")),
    fault("rope_on_values", "turned_too", (TURN, TURN + "\n        v = turn(v, cos, sin)")),
    fault("rope_on_queries_only", "keys_left", (TURN, "q = turn(q, cos, sin)")),
    fault(
        "rope_in_block",
        "stream_turned_before_the_norm",
        (
            FIRST,
            "h = turn(h.unflatten(-1, (-1, cos.shape[-1])).transpose(-2, -3), cos, sin).transpose(-2, -3).flatten(-2)\n        "
            + FIRST,
        ),
    ),
    fault(
        "rope_theta_ignored",
        "constant",
        (
            "rotary_table(d_model // num_heads, max_seq_len, rope_theta, device)",
            "rotary_table(d_model // num_heads, max_seq_len, 1e4, device)",
        ),
    ),
    fault(
        "rope_wrong_frequency",
        "starts_at_two",
        (
            "torch.arange(0, head_dim, 2, device=device, dtype=torch.float)",
            "torch.arange(2, head_dim + 2, 2, device=device, dtype=torch.float)",
        ),
    ),
    fault(
        "token_positions_ignored",
        "seq_only",
        ("        if token_positions is None:\n", "        if token_positions is None or True:\n"),
    ),
    fault(
        "positions_off_by_one",
        "keys_behind",
        (TURN, "q, k = turn(q, cos, sin), turn(k, cos.roll(1, -2), sin.roll(1, -2))"),
    ),
    fault("causal_off_by_one", "tril_one", (SDPA, BY_HAND.replace("tril()", "tril(1)"))),
    fault("causal_off_by_one", "tril_minus_one", (SDPA, BY_HAND.replace("tril()", "tril(-1)"))),
    fault("mask_inverted", "triu", (SDPA, BY_HAND.replace("tril()", "triu()"))),
    fault(
        "mask_value_too_small",
        "added_number",
        (SDPA, BY_HAND.replace("attn_mask=allowed", "attn_mask=(~allowed).to(q.dtype) * -20.0")),
    ),
    fault("missing_attention_scale", "scale", (SDPA, SDPA.replace("is_causal", "scale=1.0, is_causal"))),
    fault(
        "wrong_attention_scale",
        "scale_of_the_width",
        (SDPA, SDPA.replace("is_causal", "scale=h.shape[-1] ** -0.5, is_causal")),
    ),
    fault(
        "wrong_head_split",
        "values_viewed",
        (
            "v = self.v_proj(h).view(*lead, length, -1, self.head_dim).transpose(-3, -2)",
            "v = self.v_proj(h).view(*lead, -1, length, self.head_dim)",
        ),
    ),
    fault("heads_not_merged", "reshape", ("out.transpose(-3, -2).reshape(", "out.reshape(")),
    fault(
        "missing_output_projection",
        "not_called",
        (
            "return self.o_proj(out.transpose(-3, -2).reshape(*lead, length, -1))",
            "return out.transpose(-3, -2).reshape(*lead, length, -1)",
        ),
    ),
    fault("wrong_activation", "gelu", ("F.silu(self.gate_proj(h))", "F.gelu(self.gate_proj(h))")),
    fault(
        "gate_after_product",
        "brackets",
        ("F.silu(self.gate_proj(h)) * self.up_proj(h)", "F.silu(self.gate_proj(h) * self.up_proj(h))"),
    ),
    fault(
        "swapped_gate_up",
        "swapped",
        ("F.silu(self.gate_proj(h)) * self.up_proj(h)", "self.gate_proj(h) * F.silu(self.up_proj(h))"),
    ),
    fault("unexpected_bias", "as_in_qwen2", base=NO_QK_NORM, target="llama"),
    fault(
        "gqa_tiled_instead_of_repeated",
        "unsqueezed_before_the_heads",
        (
            "k = k.unsqueeze(-3).expand(*lead, -1, group, -1, -1)",
            "k = k.unsqueeze(-4).expand(*lead, group, -1, -1, -1)",
        ),
        (
            "v = v.unsqueeze(-3).expand(*lead, -1, group, -1, -1)",
            "v = v.unsqueeze(-4).expand(*lead, group, -1, -1, -1)",
        ),
        base=NO_QK_NORM,
        target="llama",
        also="unexpected_bias",
    ),
    fault("modifies_input", "in_place", (FIRST, FIRST.replace("h = h + ", "h += "))),
    fault(
        "wrong_device_buffer",
        "cpu_tables_cut_in_forward",
        ('self.register_buffer("cos", cos, persistent=False)', "self.cos = cos"),
        ('self.register_buffer("sin", sin, persistent=False)', "self.sin = sin"),
    ),
    fault(
        "gradient_missing",
        "frozen_bias",
        ("        self.q_norm = Norm(", "        self.v_proj.bias.requires_grad_(False)\n        self.q_norm = Norm("),
    ),
    fault(
        "retains_state",
        "cache_of_values",
        (
            SDPA,
            "if self.last is not None and self.last.shape == v.shape:\n            v = 0.5 * v + 0.5 * self.last.to(v)\n        self.last = v.detach()\n        "
            + SDPA,
        ),
        ("        self.q_norm = Norm(", "        self.last = None\n        self.q_norm = Norm("),
    ),
    fault("constructor_error", "divided_by_none", ("num_kv_heads or num_heads, eps", "num_heads // num_kv_heads, eps")),
]

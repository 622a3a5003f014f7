"""The style of nanoGPT: one fused projection for q, k and v, another for gate and up, short names."""

from ..editing import Style

STYLE = Style(
    "nanogpt",
    "Block",
    '''"""One block of a small GPT: rotary, RMSNorm, no bias anywhere."""

import math

import torch
import torch.nn as nn
from torch.nn import functional as F


class RMSNorm(nn.Module):

    def __init__(self, ndim, eps, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, input):
        y = input.float()
        y = y * torch.rsqrt(torch.mean(y * y, dim=-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(input.dtype)


def apply_rope(x, cos, sin):
    # x: (..., nh, T, hs), first half of the features is paired with the second half
    d = x.size(-1) // 2
    x1, x2 = x[..., :d].float(), x[..., d:].float()
    y1 = x1 * cos - x2 * sin
    y2 = x2 * cos + x1 * sin
    return torch.cat([y1, y2], -1).type_as(x)


class SelfAttention(nn.Module):

    def __init__(self, n_embd, n_head, block_size, rope_base, causal, dropout, device=None, dtype=None):
        super().__init__()
        assert n_embd % n_head == 0
        # key, query, value projections for all heads, but in a batch
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False, device=device, dtype=dtype)
        # output projection
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False, device=device, dtype=dtype)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)
        self.n_head = n_head
        self.n_embd = n_embd
        self.causal = causal
        seen = torch.tril(torch.ones(block_size, block_size, device=device))
        self.register_buffer("bias", seen, persistent=False)
        hs = n_embd // n_head
        freq = rope_base ** (-torch.arange(0, hs, 2, device=device, dtype=torch.float32) / hs)
        t = torch.arange(block_size, device=device, dtype=torch.float32)
        ang = t[:, None] * freq[None, :]
        self.register_buffer("cos", torch.cos(ang), persistent=False)
        self.register_buffer("sin", torch.sin(ang), persistent=False)

    def forward(self, x, pos=None):
        T, C = x.size()[-2:]
        hs = C // self.n_head
        q, k, v = self.c_attn(x).split(self.n_embd, dim=-1)
        q = q.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)
        k = k.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)
        v = v.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)
        if pos is None:
            cos, sin = self.cos[:T], self.sin[:T]
        else:
            cos, sin = self.cos[pos].unsqueeze(-3), self.sin[pos].unsqueeze(-3)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        if self.causal:
            att = att.masked_fill(self.bias[:T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(-3, -2).contiguous().view(x.shape)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):

    def __init__(self, n_embd, d_ff, dropout, device=None, dtype=None):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 2 * d_ff, bias=False, device=device, dtype=dtype)
        self.c_proj = nn.Linear(d_ff, n_embd, bias=False, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        gate, up = self.c_fc(x).chunk(2, dim=-1)
        x = F.silu(gate) * up
        x = self.c_proj(x)
        return self.dropout(x)


class Block(nn.Module):

    def __init__(self, d_model, num_heads, d_ff, max_seq_len=1024, rope_theta=10000.0, eps=1e-6, causal=True,
                 dropout=0.0, device=None, dtype=None):
        super().__init__()
        self.ln_1 = RMSNorm(d_model, eps, device, dtype)
        self.attn = SelfAttention(d_model, num_heads, max_seq_len, rope_theta, causal, dropout, device, dtype)
        self.ln_2 = RMSNorm(d_model, eps, device, dtype)
        self.mlp = MLP(d_model, d_ff, dropout, device, dtype)

    def forward(self, x, token_positions=None):
        x = x + self.attn(self.ln_1(x), token_positions)
        x = x + self.mlp(self.ln_2(x))
        return x
''',
)

NOT_CAUSAL = STYLE.right("both_ways", ("causal=True", "causal=False"))
RIGHT = [
    STYLE.right(),
    NOT_CAUSAL,
    STYLE.right("up_before_gate", ("gate, up = self.c_fc", "up, gate = self.c_fc")),
    STYLE.right(
        "turning_back",
        ("y1 = x1 * cos - x2 * sin", "y1 = x1 * cos + x2 * sin"),
        ("y2 = x2 * cos + x1 * sin", "y2 = x2 * cos - x1 * sin"),
    ),
]

FIRST, SECOND = "x = x + self.attn(self.ln_1(x), token_positions)", "x = x + self.mlp(self.ln_2(x))"
NORM = "y = y * torch.rsqrt(torch.mean(y * y, dim=-1, keepdim=True) + self.eps)"
SCALE = "(1.0 / math.sqrt(k.size(-1)))"
FILL = 'att = att.masked_fill(self.bias[:T, :T] == 0, float("-inf"))'
SOFTMAX = "att = F.softmax(att, dim=-1)"
TURN = "q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)"
SPLIT_V = "v = v.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)"
ACT = "x = F.silu(gate) * up"

fault = STYLE.faulty
FAULTY = [
    fault("post_norm", "x_after_first", (FIRST, "x = self.ln_1(x + self.attn(x, token_positions))")),
    fault("no_norm", "both", (FIRST, "x = x + self.attn(x, token_positions)"), (SECOND, "x = x + self.mlp(x)")),
    fault("missing_residual_ffn", "equals_sign", (SECOND, "x = self.mlp(self.ln_2(x))")),
    fault("residual_from_normed", "walrus", (FIRST, "x = (n := self.ln_1(x)) + self.attn(n, token_positions)")),
    fault("doubled_residual", "x_on_both_sides", (FIRST, FIRST + " + x")),
    fault(
        "parallel_sublayers",
        "one_sum",
        (FIRST, "return x + self.attn(self.ln_1(x), token_positions) + self.mlp(self.ln_2(x))"),
        (f"        {SECOND}\n        return x\n", ""),
    ),
    fault(
        "ffn_residual_from_input",
        "old_x_kept",
        (FIRST, "h = x + self.attn(self.ln_1(x), token_positions)"),
        (SECOND, "x = x + self.mlp(self.ln_2(h))"),
    ),
    fault(
        "shared_norm",
        "ln_1_twice",
        (SECOND, "x = x + self.mlp(self.ln_1(x))"),
        ("        self.ln_2 = RMSNorm(d_model, eps, device, dtype)\n", ""),
    ),
    fault(
        "norm_created_each_call",
        "second_norm",
        (SECOND, "x = x + self.mlp(RMSNorm(x.size(-1), self.ln_1.eps, x.device, x.dtype)(x))"),
        ("        self.ln_2 = RMSNorm(d_model, eps, device, dtype)\n", ""),
    ),
    fault("layer_norm", "torch_function", (NORM, "y = F.layer_norm(y, y.shape[-1:], eps=self.eps)")),
    fault("norm_without_sqrt", "reciprocal", (NORM, NORM.replace("torch.rsqrt(", "torch.reciprocal("))),
    fault("norm_over_sequence", "all_but_last", (NORM, NORM.replace("dim=-1", "dim=-2")), base=NOT_CAUSAL),
    fault(
        "norm_without_upcast", "type_kept", ("y = input.float()", "y = input"), ("self.weight.float()", "self.weight")
    ),
    fault("wrong_eps", "doubled", ("self.eps = eps", "self.eps = 2 * eps")),
    fault("eps_ignored", "left_out", (" + self.eps)", ")")),
    fault(
        "eps_outside_sqrt",
        "rsqrt_plus_eps",
        (NORM, "y = y / (torch.mean(y * y, dim=-1, keepdim=True).sqrt() + self.eps)"),
    ),
    fault("missing_rope", "tables_unused", (TURN, "assert q.shape == k.shape")),
    fault("rope_on_values", "values_too", (TURN, f"{TURN}\n        v = apply_rope(v, cos, sin)")),
    fault(
        "rope_over_heads",
        "before_the_transpose",
        ("q = q.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)", "q = q.view(*x.shape[:-1], self.n_head, hs)"),
        ("k = k.view(*x.shape[:-1], self.n_head, hs).transpose(-3, -2)", "k = k.view(*x.shape[:-1], self.n_head, hs)"),
        ("cos, sin = self.cos[:T], self.sin[:T]", "cos, sin = self.cos[: self.n_head], self.sin[: self.n_head]"),
        (
            "cos, sin = self.cos[pos].unsqueeze(-3), self.sin[pos].unsqueeze(-3)",
            "cos, sin = self.cos[: self.n_head], self.sin[: self.n_head]",
        ),
        (TURN, "q, k = apply_rope(q, cos, sin).transpose(-3, -2), apply_rope(k, cos, sin).transpose(-3, -2)"),
        also="missing_rope token_positions_ignored",
    ),
    fault("rope_theta_ignored", "constant", ("freq = rope_base ** (", "freq = 10000.0 ** (")),
    fault("rope_wrong_frequency", "minus_sign_missing", ("freq = rope_base ** (-torch", "freq = rope_base ** (torch")),
    fault("rope_half_split", "halves", base=NOT_CAUSAL, target="paper"),
    fault(
        "rope_interleaved",
        "strides_of_two",
        ("x1, x2 = x[..., :d].float(), x[..., d:].float()", "x1, x2 = x[..., ::2].float(), x[..., 1::2].float()"),
        ("torch.cat([y1, y2], -1).type_as(x)", "torch.stack([y1, y2], -1).flatten(-2).type_as(x)"),
        ("    d = x.size(-1) // 2\n", ""),
        target="llama",
    ),
    fault(
        "rope_wrong_direction",
        "signs",
        ("y1 = x1 * cos - x2 * sin", "y1 = x1 * cos + x2 * sin"),
        ("y2 = x2 * cos + x1 * sin", "y2 = x2 * cos - x1 * sin"),
        target="llama",
    ),
    fault(
        "rope_bf16_tables",
        "tables_of_dtype",
        ('"cos", torch.cos(ang),', '"cos", torch.cos(ang).to(torch.bfloat16),'),
        ('"sin", torch.sin(ang),', '"sin", torch.sin(ang).to(torch.bfloat16),'),
    ),
    fault("token_positions_ignored", "named_otherwise", (FIRST, "x = x + self.attn(self.ln_1(x), pos=None)")),
    fault(
        "positions_off_by_one",
        "table_from_one",
        (
            "q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)",
            "q, k = apply_rope(q, cos, sin), apply_rope(k, ahead_cos, ahead_sin)",
        ),
        (
            "            cos, sin = self.cos[:T], self.sin[:T]\n",
            "            cos, sin = self.cos[:T], self.sin[:T]\n            ahead_cos, ahead_sin = self.cos[1 : T + 1], self.sin[1 : T + 1]\n",
        ),
        (
            "            cos, sin = self.cos[pos].unsqueeze(-3), self.sin[pos].unsqueeze(-3)\n",
            "            cos, sin = self.cos[pos].unsqueeze(-3), self.sin[pos].unsqueeze(-3)\n            ahead_cos, ahead_sin = self.cos[pos + 1].unsqueeze(-3), self.sin[pos + 1].unsqueeze(-3)\n",
        ),
        also="sequence_length_fixed",
    ),
    fault("causal_mask", "bias_buffer", target="paper", also="rope_half_split"),
    fault(
        "causal_off_by_one",
        "tril_minus_one",
        (
            "torch.tril(torch.ones(block_size, block_size, device=device))",
            "torch.tril(torch.ones(block_size, block_size, device=device), -1)",
        ),
        (', float("-inf"))', ", -1e9)"),
    ),
    fault(
        "causal_off_by_one",
        "greater_than_one",
        (
            "torch.tril(torch.ones(block_size, block_size, device=device))",
            "torch.tril(torch.ones(block_size, block_size, device=device), 1)",
        ),
    ),
    fault("mask_inverted", "equal_to_one", ("[:T, :T] == 0", "[:T, :T] == 1"), (', float("-inf"))', ", -1e30)")),
    fault("mask_ignored", "result_dropped", (FILL, FILL.removeprefix("att = "))),
    fault("mask_value_too_small", "multiplied", (FILL, "att = att * self.bias[:T, :T].to(att.dtype)")),
    fault("softmax_wrong_dim", "one", (SOFTMAX, "att = F.softmax(att, dim=-2)"), base=NOT_CAUSAL),
    fault("missing_attention_scale", "deleted", (f" * {SCALE}", "")),
    fault("wrong_attention_scale", "number_of_heads", (SCALE, "(1.0 / math.sqrt(self.n_head * k.size(-1)))")),
    fault(
        "wrong_head_split",
        "view_of_values",
        (SPLIT_V, "v = v.reshape(*x.shape[:-2], self.n_head, T, hs)"),
        base=NOT_CAUSAL,
    ),
    fault("heads_not_merged", "view_at_once", ("y = y.transpose(-3, -2).contiguous()", "y = y.contiguous()")),
    fault("missing_output_projection", "dropout_only", ("self.resid_dropout(self.c_proj(y))", "self.resid_dropout(y)")),
    fault("wrong_activation", "tanh_gelu", (ACT, 'x = F.gelu(gate, approximate="tanh") * up')),
    fault("wrong_activation", "silu_missing", (ACT, "x = gate * up")),
    fault("gate_after_product", "brackets", (ACT, "x = F.silu(gate * up)")),
    fault("leading_dims", "b_t_c", ("T, C = x.size()[-2:]", "B, T, C = x.size()")),
    fault(
        "dropout_in_eval",
        "training_always",
        ("att = self.attn_dropout(att)", "att = F.dropout(att, 0.2, training=True)"),
    ),
    fault(
        "not_deterministic", "noise_on_scores", (SOFTMAX, "att = F.softmax(att + 0.05 * torch.randn_like(att), dim=-1)")
    ),
    fault("sequence_length_fixed", "mask_not_cut", ("self.bias[:T, :T] == 0", "self.bias == 0")),
    fault("gradient_wrong", "probabilities_detached", (SOFTMAX, "att = F.softmax(att, dim=-1).detach()")),
    fault(
        "retains_state",
        "running_mean",
        (NORM, "y = y * torch.rsqrt(self.average(torch.mean(y * y, dim=-1, keepdim=True)) + self.eps)"),
        (
            "    def forward(self, input):",
            "    def average(self, now):\n        mean = now.detach().mean()\n        self.running = mean if self.running is None else 0.9 * self.running + 0.1 * mean\n        return now + 0.5 * self.running\n\n    running = None\n\n    def forward(self, input):",
        ),
        also="norm_wrong_mean batch_coupled wrong_device_buffer",
    ),
    fault("import_error", "relative_import", ("import math\n", "import math\n\nfrom .model import GPTConfig\n")),
    fault("constructor_error", "assertion", ("assert n_embd % n_head == 0", "assert n_embd % n_head != 0")),
    fault(
        "timeout",
        "constructor_loops",
        (
            "        self.n_head = n_head\n",
            "        self.n_head = n_head\n        while n_embd > 1:\n            n_embd = n_embd // 2 + 1\n",
        ),
    ),
    fault(
        "mask_after_softmax",
        "lines_swapped",
        (
            '            att = att.masked_fill(self.bias[:T, :T] == 0, float("-inf"))\n        att = F.softmax(att, dim=-1)\n',
            "            att = F.softmax(att, dim=-1)\n            att = att.masked_fill(self.bias[:T, :T] == 0, 0)\n",
        ),
    ),
]

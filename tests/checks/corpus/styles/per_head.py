"""One module a head, kept in a list; their outputs are concatenated. Always causal."""

from ..editing import Style

STYLE = Style(
    "per_head",
    "Block",
    '''import torch
import torch.nn as nn
import torch.nn.functional as F


class Rope(nn.Module):
    """Rotates neighbouring features; one table for all heads."""

    def __init__(self, head_size, context_length, theta, device=None):
        super().__init__()
        exponent = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
        speed = torch.exp(-exponent * torch.log(torch.tensor(theta, device=device)))
        angle = torch.arange(context_length, device=device, dtype=torch.float32)[:, None] * speed
        table = torch.stack((angle.cos(), angle.sin()))
        self.register_buffer("table", table, persistent=False)

    def forward(self, x, positions):
        cos, sin = self.table[0][positions], self.table[1][positions]
        pairs = x.unflatten(-1, (-1, 2))
        first, second = pairs[..., 0], pairs[..., 1]
        y = torch.empty_like(pairs, dtype=torch.promote_types(x.dtype, cos.dtype))
        y[..., 0] = first * cos - second * sin
        y[..., 1] = first * sin + second * cos
        return y.flatten(-2).to(x.dtype)


class Head(nn.Module):
    """One head of self-attention."""

    def __init__(self, n_embed, head_size, rope, device=None, dtype=None):
        super().__init__()
        self.key = nn.Linear(n_embed, head_size, bias=False, device=device, dtype=dtype)
        self.query = nn.Linear(n_embed, head_size, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(n_embed, head_size, bias=False, device=device, dtype=dtype)
        self.rope = rope

    def forward(self, x, positions):
        T = x.shape[-2]
        k = self.rope(self.key(x), positions)
        q = self.rope(self.query(x), positions)
        v = self.value(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        tril = torch.tril(torch.ones(T, T, device=x.device))
        wei = wei.masked_fill(tril == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        return wei @ v


class MultiHeadAttention(nn.Module):
    """Several heads of self-attention, side by side."""

    def __init__(self, n_embed, num_heads, context_length, theta, dropout, device=None, dtype=None):
        super().__init__()
        head_size = n_embed // num_heads
        rope = Rope(head_size, context_length, theta, device)
        self.heads = nn.ModuleList(Head(n_embed, head_size, rope, device, dtype) for _ in range(num_heads))
        self.proj = nn.Linear(n_embed, n_embed, bias=False, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, positions):
        out = torch.cat([head(x, positions) for head in self.heads], dim=-1)
        return self.dropout(self.proj(out))


class FeedForward(nn.Module):
    def __init__(self, n_embed, d_ff, dropout, device=None, dtype=None):
        super().__init__()
        self.gate = nn.Linear(n_embed, d_ff, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(n_embed, d_ff, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(d_ff, n_embed, bias=False, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        gate = self.gate(x)
        up = self.up(x)
        return self.dropout(self.down(F.silu(gate) * up))


class RMSNorm(nn.Module):
    def __init__(self, size, eps, device=None, dtype=None):
        super().__init__()
        self.g = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x):
        norm = x.float().pow(2).mean(-1, keepdim=True).add(self.eps).rsqrt()
        return (x.float() * norm * self.g.float()).to(x.dtype)


class Block(nn.Module):
    """Transformer block: communication followed by computation."""

    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=512, theta=10000.0, eps=1e-6, dropout=0.0, device=None, dtype=None
    ):
        super().__init__()
        self.sa = MultiHeadAttention(d_model, num_heads, max_seq_len, theta, dropout, device, dtype)
        self.ffwd = FeedForward(d_model, d_ff, dropout, device, dtype)
        self.norm1 = RMSNorm(d_model, eps, device, dtype)
        self.norm2 = RMSNorm(d_model, eps, device, dtype)

    def forward(self, x, token_positions=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        x = x + self.sa(self.norm1(x), token_positions)
        x = x + self.ffwd(self.norm2(x))
        return x
''',
)

NOT_CAUSAL = STYLE.right(
    "both_ways",
    ('        wei = wei.masked_fill(tril == 0, float("-inf"))\n', ""),
    ("        tril = torch.tril(torch.ones(T, T, device=x.device))\n", ""),
    ("        T = x.shape[-2]\n", ""),
)
RIGHT = [STYLE.right(), NOT_CAUSAL]

FIRST, SECOND = "x = x + self.sa(self.norm1(x), token_positions)", "x = x + self.ffwd(self.norm2(x))"
NORM = "norm = x.float().pow(2).mean(-1, keepdim=True).add(self.eps).rsqrt()"
TRIL = "tril = torch.tril(torch.ones(T, T, device=x.device))"
FILL = 'wei = wei.masked_fill(tril == 0, float("-inf"))'
JOIN = "out = torch.cat([head(x, positions) for head in self.heads], dim=-1)"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "norm_of_the_sum",
        (SECOND, "x = self.norm2(x + self.ffwd(x))"),
        (FIRST, "x = self.norm1(x + self.sa(x, token_positions))"),
    ),
    fault("missing_residual_attention", "sa_only", (FIRST, FIRST.replace("x = x + ", "x = "))),
    fault("residual_from_normed", "norm_first", (SECOND, "x = self.norm2(x)\n        x = x + self.ffwd(x)")),
    fault("doubled_residual", "out_added_again", (SECOND, "out = x + self.ffwd(self.norm2(x))\n        x = x + out")),
    fault(
        "ffn_residual_from_input",
        "names_crossed",
        (FIRST, "y = x + self.sa(self.norm1(x), token_positions)"),
        (SECOND, "x = x + self.ffwd(self.norm2(y))"),
    ),
    fault(
        "parallel_sublayers",
        "communication_beside_computation",
        (FIRST, "a = self.sa(self.norm1(x), token_positions)"),
        (SECOND, "x = x + a + self.ffwd(self.norm2(x))"),
    ),
    fault(
        "layer_norm",
        "nn_layer_norm",
        (
            "self.norm1 = RMSNorm(d_model, eps, device, dtype)",
            "self.norm1 = nn.LayerNorm(d_model, eps, device=device, dtype=dtype)",
        ),
        (
            "self.norm2 = RMSNorm(d_model, eps, device, dtype)",
            "self.norm2 = nn.LayerNorm(d_model, eps, device=device, dtype=dtype)",
        ),
    ),
    fault("norm_without_sqrt", "reciprocal", (NORM, NORM.replace(".rsqrt()", ".reciprocal()"))),
    fault("norm_over_sequence", "wrong_axis", (NORM, NORM.replace("mean(-1", "mean(-2")), base=NOT_CAUSAL),
    fault(
        "norm_without_upcast",
        "no_float",
        (NORM, NORM.replace("x.float()", "x")),
        ("(x.float() * norm * self.g.float()).to(x.dtype)", "x * norm * self.g"),
    ),
    fault(
        "eps_outside_sqrt",
        "order_of_calls",
        (NORM, NORM.replace(".add(self.eps).rsqrt()", ".sqrt().add(self.eps).reciprocal()")),
    ),
    fault("eps_ignored", "fixed", ("self.eps = eps", "self.eps = 1e-5")),
    fault("wrong_eps", "hundredfold", ("add(self.eps)", "add(100 * self.eps)")),
    fault(
        "missing_rope",
        "heads_do_not_turn",
        ("k = self.rope(self.key(x), positions)", "k = self.key(x)"),
        ("q = self.rope(self.query(x), positions)", "q = self.query(x)"),
    ),
    fault("rope_on_values", "value_like_the_others", ("v = self.value(x)", "v = self.rope(self.value(x), positions)")),
    fault("rope_on_queries_only", "key_plain", ("k = self.rope(self.key(x), positions)", "k = self.key(x)")),
    fault(
        "rope_over_heads",
        "table_of_all_features",
        (
            "rope = Rope(head_size, context_length, theta, device)",
            "rope = Rope(n_embed, context_length, theta, device)",
        ),
        ("k = self.rope(self.key(x), positions)", "k = self.rope(self.key(x), positions, self.place)"),
        ("q = self.rope(self.query(x), positions)", "q = self.rope(self.query(x), positions, self.place)"),
        (
            "def forward(self, x, positions):\n        cos, sin = self.table[0][positions], self.table[1][positions]",
            "def forward(self, x, positions, place):\n        own = slice(place * x.shape[-1] // 2, (place + 1) * x.shape[-1] // 2)\n        cos, sin = self.table[0][positions][..., own], self.table[1][positions][..., own]",
        ),
        ("        self.rope = rope\n", "        self.rope = rope\n        self.place = place\n"),
        (
            "def __init__(self, n_embed, head_size, rope, device",
            "def __init__(self, n_embed, head_size, rope, place, device",
        ),
        (
            "Head(n_embed, head_size, rope, device, dtype) for _ in range",
            "Head(n_embed, head_size, rope, place, device, dtype) for place in range",
        ),
        also="rope_wrong_frequency",
    ),
    fault(
        "rope_in_block",
        "x_turned_before_the_norm",
        (FIRST, "x = self.sa.turn(x, token_positions)\n        " + FIRST),
        ("k = self.rope(self.key(x), positions)", "k = self.key(x)"),
        ("q = self.rope(self.query(x), positions)", "q = self.query(x)"),
        (
            "class FeedForward",
            "class Turned(MultiHeadAttention):\n    def turn(self, x, positions):\n        rope = self.heads[0].rope\n        return torch.cat([rope(part, positions) for part in x.chunk(len(self.heads), dim=-1)], dim=-1)\n\n\nclass FeedForward",
        ),
        ("self.sa = MultiHeadAttention(", "self.sa = Turned("),
    ),
    fault("rope_interleaved", "neighbours", target="llama"),
    fault(
        "rope_wrong_direction",
        "minus_and_plus",
        ("first * cos - second * sin", "first * cos + second * sin"),
        ("first * sin + second * cos", "second * cos - first * sin"),
        base=NOT_CAUSAL,
        target="prenorm",
    ),
    fault(
        "rope_bf16_tables",
        "whole_module_cast",
        ('self.register_buffer("table", table,', 'self.register_buffer("table", table.to(torch.bfloat16),'),
    ),
    fault(
        "rope_theta_ignored",
        "default_of_the_class",
        (
            "def __init__(self, head_size, context_length, theta, device=None)",
            "def __init__(self, head_size, context_length, theta=10000.0, device=None)",
        ),
        ("Rope(head_size, context_length, theta, device)", "Rope(head_size, context_length, device=device)"),
    ),
    fault("rope_wrong_frequency", "inverse", ("torch.exp(-exponent *", "torch.exp(exponent *")),
    fault("rope_wrong_frequency", "log_of_base_ten", ("torch.log(torch.tensor", "torch.log10(torch.tensor")),
    fault(
        "token_positions_ignored",
        "heads_count_themselves",
        ("k = self.rope(", "positions = torch.arange(T, device=x.device)\n        k = self.rope("),
    ),
    fault(
        "positions_off_by_one",
        "keys_look_ahead",
        ("k = self.rope(self.key(x), positions)", "k = self.rope(self.key(x), positions + 1)"),
        also="sequence_length_fixed",
    ),
    fault("causal_mask", "tril", target="prenorm"),
    fault(
        "causal_off_by_one", "diagonal_of_one", (TRIL, TRIL.replace("device=x.device)", "device=x.device), diagonal=1"))
    ),
    fault(
        "causal_off_by_one",
        "itself_hidden",
        (TRIL, TRIL.replace("device=x.device)", "device=x.device), diagonal=-1")),
        (FILL, FILL.replace('float("-inf")', "-1e9")),
    ),
    fault("mask_inverted", "ones_filled", ("tril == 0", "tril == 1"), ('float("-inf")', "-1e30")),
    fault("mask_value_too_small", "added_minus_ten", (FILL, "wei = wei - 10 * (1 - tril).to(wei.dtype)")),
    fault("softmax_wrong_dim", "dim_one", ("F.softmax(wei, dim=-1)", "F.softmax(wei, dim=-2)"), base=NOT_CAUSAL),
    fault("missing_attention_scale", "deleted", (" * k.shape[-1] ** -0.5", "")),
    fault("wrong_attention_scale", "embedding_size", ("k.shape[-1] ** -0.5", "x.shape[-1] ** -0.5")),
    fault(
        "heads_not_merged",
        "summed",
        (JOIN, "out = sum(head(x, positions) for head in self.heads)"),
        ("self.proj = nn.Linear(n_embed, n_embed, bias", "self.proj = nn.Linear(head_size, n_embed, bias"),
    ),
    fault(
        "heads_not_merged",
        "averaged_and_tiled",
        (
            JOIN,
            "out = torch.stack([head(x, positions) for head in self.heads]).mean(0)\n        out = torch.cat([out] * len(self.heads), dim=-1)",
        ),
    ),
    fault(
        "missing_output_projection",
        "heads_returned",
        ("return self.dropout(self.proj(out))", "return self.dropout(out)"),
        ("        self.proj = nn.Linear(n_embed, n_embed, bias=False, device=device, dtype=dtype)\n", ""),
    ),
    fault(
        "wrong_activation",
        "two_matrices",
        ("self.down(F.silu(gate) * up)", "self.down(F.silu(up))"),
        ("        gate = self.gate(x)\n", ""),
        ("        self.gate = nn.Linear(n_embed, d_ff, bias=False, device=device, dtype=dtype)\n", ""),
    ),
    fault("gate_after_product", "brackets", ("F.silu(gate) * up", "F.silu(gate * up)")),
    fault("swapped_gate_up", "arguments", ("F.silu(gate) * up", "gate * F.silu(up)")),
    fault(
        "unexpected_bias",
        "nn_linear_default",
        ("self.proj = nn.Linear(n_embed, n_embed, bias=False,", "self.proj = nn.Linear(n_embed, n_embed,"),
        base=NOT_CAUSAL,
        target="prenorm",
    ),
    fault(
        "leading_dims",
        "concatenated_along_two",
        ("for head in self.heads], dim=-1)", "for head in self.heads], dim=2)"),
    ),
    fault(
        "leading_dims",
        "batch_folded",
        ("        out = torch.cat(", "        b, t, c = x.shape\n        out = torch.cat("),
    ),
    fault(
        "dropout_in_eval",
        "functional_default",
        ("return self.dropout(self.proj(out))", "return F.dropout(self.proj(out), 0.1)"),
    ),
    fault(
        "not_deterministic",
        "heads_in_random_order",
        (
            JOIN,
            "order = torch.randperm(len(self.heads))\n        out = torch.cat([self.heads[i](x, positions) for i in order.tolist()], dim=-1)",
        ),
    ),
    fault("wrong_device_buffer", "tril_on_cpu", (TRIL, "tril = torch.tril(torch.ones(T, T))")),
    fault(
        "gradient_missing",
        "frozen_heads",
        (
            "self.heads = nn.ModuleList(Head(n_embed, head_size, rope, device, dtype) for _ in range(num_heads))",
            "self.heads = nn.ModuleList(Head(n_embed, head_size, rope, device, dtype).requires_grad_(i == 0) for i in range(num_heads))",
        ),
    ),
    fault(
        "sequence_length_fixed",
        "context_length_mask",
        (TRIL, "tril = torch.tril(torch.ones(self.rope.table.shape[1], self.rope.table.shape[1], device=x.device))"),
    ),
    fault(
        "retains_state",
        "keys_of_earlier_calls",
        (
            "        wei = q @",
            "        if self.past is not None and self.past[0].shape[:-2] == k.shape[:-2]:\n            k, v = torch.cat((self.past[0], k), -2), torch.cat((self.past[1], v), -2)\n        self.past = (k.detach(), v.detach())\n        wei = q @",
        ),
        (
            "        tril = torch.tril(torch.ones(T, T, device=x.device))",
            "        tril = torch.tril(torch.ones(T, k.shape[-2], device=x.device), k.shape[-2] - T)",
        ),
        ("        self.rope = rope\n", "        self.rope = rope\n        self.past = None\n"),
        also="wrong_device_buffer wrong_dtype",
    ),
    fault(
        "forward_error",
        "last_token_only",
        (
            "        x = x + self.ffwd(self.norm2(x))\n        return x\n",
            "        x = x + self.ffwd(self.norm2(x))\n        return x[..., -1, :]\n",
        ),
    ),
    fault(
        "timeout",
        "import_loops",
        ("class Rope(nn.Module):", "n = 1\nwhile n != 100:\n    n = n * 2 % 1024\n\n\nclass Rope(nn.Module):"),
    ),
]

"""Tables that no constructor made: kept by length and device at the first call. Rotation by minus the angle."""

from ..editing import Style

STYLE = Style(
    "lazy",
    "Transformer",
    '''from torch import nn
import torch


def _phase(positions, size, theta):
    i = torch.arange(size // 2, device=positions.device, dtype=torch.float32)
    return positions.to(torch.float32).unsqueeze(-1) * torch.pow(theta, -2.0 * i / size)


class RootMeanSquare(nn.Module):
    def __init__(self, features, eps, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.alpha = nn.Parameter(torch.ones(features, device=device, dtype=dtype))

    def forward(self, x):
        z = x.float()
        z = z / (torch.mean(z**2, -1, keepdim=True) + self.eps) ** 0.5
        return z.mul(self.alpha).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, features, heads, theta, device=None, dtype=None):
        super().__init__()
        self.heads, self.size, self.theta = heads, features // heads, theta
        self.qkv = nn.Linear(features, features * 3, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(features, features, bias=False, device=device, dtype=dtype)
        self._tables = {}

    def tables(self, length, device):
        """cos and sin for 0 .. length-1, made once for each length and device."""
        if (length, device) not in self._tables:
            phase = _phase(torch.arange(length, device=device), self.size, self.theta)
            self._tables[length, device] = torch.cos(phase), torch.sin(phase)
        return self._tables[length, device]

    def rotate(self, x, cos, sin):
        a, b = x[..., : self.size // 2], x[..., self.size // 2 :]
        return torch.cat((a * cos + b * sin, b * cos - a * sin), -1).type_as(x)

    def forward(self, x, token_positions):
        length = x.shape[-2]
        if token_positions is None:
            cos, sin = self.tables(length, x.device)
        else:
            phase = _phase(token_positions, self.size, self.theta).unsqueeze(-3)
            cos, sin = phase.cos(), phase.sin()
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.heads, self.size)
        q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)
        q = self.rotate(q, cos, sin)
        k = self.rotate(k, cos, sin)
        scores = (q / self.size**0.5) @ k.transpose(-1, -2)
        allowed = torch.arange(length, device=x.device)[:, None] >= torch.arange(length, device=x.device)
        scores = torch.where(allowed, scores, torch.tensor(float("-inf"), device=x.device, dtype=x.dtype))
        p = scores.softmax(-1)
        y = (p @ v).transpose(-3, -2)
        return self.out(y.reshape(x.shape))


class Transformer(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, rope_theta=10000.0, eps=1e-6, device=None, dtype=None):
        super().__init__()
        where = dict(device=device, dtype=dtype)
        self.rms_a = RootMeanSquare(d_model, eps, **where)
        self.attention = Attention(d_model, num_heads, rope_theta, **where)
        self.rms_b = RootMeanSquare(d_model, eps, **where)
        self.w_gate = nn.Linear(d_model, d_ff, bias=False, **where)
        self.w_in = nn.Linear(d_model, d_ff, bias=False, **where)
        self.w_out = nn.Linear(d_ff, d_model, bias=False, **where)
        self.silu = nn.SiLU()

    def forward(self, x, token_positions=None):
        h = self.attention(self.rms_a(x), token_positions).add(x)
        n = self.rms_b(h)
        return self.w_out(self.silu(self.w_gate(n)).mul(self.w_in(n))).add(h)
''',
)

FORWARD = STYLE.right(
    "turning_forward", ("(a * cos + b * sin, b * cos - a * sin)", "(a * cos - b * sin, b * cos + a * sin)")
)
NOT_CAUSAL = STYLE.right(
    "both_ways",
    (
        '        scores = torch.where(allowed, scores, torch.tensor(float("-inf"), device=x.device, dtype=x.dtype))\n',
        "",
    ),
    ("        allowed = torch.arange(length, device=x.device)[:, None] >= torch.arange(length, device=x.device)\n", ""),
)
RIGHT = [STYLE.right(), FORWARD, NOT_CAUSAL]

FIRST = "h = self.attention(self.rms_a(x), token_positions).add(x)"
SECOND = "return self.w_out(self.silu(self.w_gate(n)).mul(self.w_in(n))).add(h)"
NORM = "z = z / (torch.mean(z**2, -1, keepdim=True) + self.eps) ** 0.5"
TURN_Q, TURN_K = "q = self.rotate(q, cos, sin)", "k = self.rotate(k, cos, sin)"
ALLOWED = "torch.arange(length, device=x.device)[:, None] >= torch.arange(length, device=x.device)"
INFINITE = 'torch.tensor(float("-inf"), device=x.device, dtype=x.dtype)'
PHASE = "torch.pow(theta, -2.0 * i / size)"

fault = STYLE.faulty
FAULTY = [
    fault("post_norm", "rms_of_h", (FIRST, "h = self.rms_a(self.attention(x, token_positions).add(x))")),
    fault("no_norm", "n_is_h", ("n = self.rms_b(h)", "n = h")),
    fault("missing_residual_attention", "add_missing", (FIRST, FIRST.removesuffix(".add(x)"))),
    fault("missing_residual_ffn", "add_missing", (SECOND, SECOND.removesuffix(".add(h)"))),
    fault("residual_from_normed", "add_n", (SECOND, SECOND.replace(".add(h)", ".add(n)"))),
    fault("residual_detached", "add_data", (FIRST, FIRST.replace(".add(x)", ".add(x.data)"))),
    fault("ffn_residual_from_input", "add_x", (SECOND, SECOND.replace(".add(h)", ".add(x)"))),
    fault("doubled_residual", "alpha", (FIRST, FIRST.replace(".add(x)", ".add(x, alpha=2)"))),
    fault("parallel_sublayers", "rms_of_x", ("n = self.rms_b(h)", "n = self.rms_b(x)")),
    fault("shared_norm", "rms_a_twice", ("n = self.rms_b(h)", "n = self.rms_a(h)")),
    fault(
        "norm_created_each_call",
        "lazily_every_time",
        ("n = self.rms_b(h)", "n = RootMeanSquare(h.shape[-1], self.rms_a.eps, device=h.device, dtype=h.dtype)(h)"),
    ),
    fault(
        "layer_norm", "mean_out", ("z = x.float()", "z = x.float()\n        z = z - torch.mean(z, -1, keepdim=True)")
    ),
    fault("norm_without_sqrt", "exponent", (NORM, NORM.replace("** 0.5", "** 1"))),
    fault("norm_over_sequence", "axis", (NORM, NORM.replace("z**2, -1", "z**2, -2")), base=NOT_CAUSAL),
    fault("norm_wrong_mean", "sum", (NORM, NORM.replace("torch.mean", "torch.sum"))),
    fault("norm_without_upcast", "no_float", ("z = x.float()", "z = x")),
    fault("eps_outside_sqrt", "bracket", (NORM, "z = z / (torch.mean(z**2, -1, keepdim=True) ** 0.5 + self.eps)")),
    fault("eps_ignored", "missing", (NORM, NORM.replace(" + self.eps", ""))),
    fault("wrong_eps", "plus_a_hundredth", (NORM, NORM.replace("self.eps", "self.eps + 1e-2"))),
    fault("norm_weight_missing", "mul_missing", ("z.mul(self.alpha)", "z")),
    fault("missing_rope", "copies_lost", (TURN_Q, TURN_Q[4:]), (TURN_K, TURN_K[4:])),
    fault("rope_on_values", "v", (TURN_K, f"{TURN_K}\n        v = self.rotate(v, cos, sin)")),
    fault("rope_on_queries_only", "k_lost", (TURN_K, TURN_K[4:])),
    fault(
        "rope_in_block",
        "x_before_everything",
        (
            FIRST,
            "cos, sin = self.attention.tables(x.shape[-2], x.device)\n        parts = x.unflatten(-1, (self.attention.heads, -1)).transpose(-3, -2)\n        x = self.attention.rotate(parts, cos, sin).transpose(-3, -2).flatten(-2)\n        "
            + FIRST,
        ),
    ),
    fault(
        "rope_half_split",
        "halves",
        base=STYLE.right(
            "turning_forward_both_ways",
            ("(a * cos + b * sin, b * cos - a * sin)", "(a * cos - b * sin, b * cos + a * sin)"),
            (
                '        scores = torch.where(allowed, scores, torch.tensor(float("-inf"), device=x.device, dtype=x.dtype))\n',
                "",
            ),
        ),
        target="paper",
    ),
    fault("rope_wrong_direction", "plus_and_minus", target="llama"),
    fault(
        "rope_over_heads",
        "heads_by_place",
        ("q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)", "q, k, v = qkv.movedim(-3, 0)"),
        (
            "            cos, sin = self.tables(length, x.device)\n        else:",
            "            cos, sin = self.tables(self.heads, x.device)\n        else:",
        ),
        (
            TURN_Q,
            "cos, sin = self.tables(self.heads, x.device)\n        q = self.rotate(q, cos, sin).transpose(-3, -2)",
        ),
        (TURN_K, "k = self.rotate(k, cos, sin).transpose(-3, -2)\n        v = v.transpose(-3, -2)"),
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_bf16_tables",
        "kept_in_bf16",
        ("= torch.cos(phase), torch.sin(phase)", "= torch.cos(phase).bfloat16(), torch.sin(phase).bfloat16()"),
    ),
    fault(
        "rope_bf16_tables",
        "phase_in_bf16",
        ("positions.to(torch.float32).unsqueeze(-1)", "positions.to(torch.bfloat16).unsqueeze(-1)"),
        (PHASE, PHASE + ".to(torch.bfloat16)"),
    ),
    fault(
        "rope_theta_ignored",
        "default",
        ("def _phase(positions, size, theta):", "def _phase(positions, size, theta):\n    theta = 10000.0"),
    ),
    fault("rope_wrong_frequency", "factor", (PHASE, "torch.pow(theta, -1.0 * i / size)")),
    fault("rope_wrong_frequency", "one_more", (PHASE, "torch.pow(theta, -2.0 * (i + 1) / size)")),
    fault(
        "token_positions_ignored",
        "tables_always",
        ("        if token_positions is None:\n            cos", "        if True:\n            cos"),
    ),
    fault(
        "positions_off_by_one",
        "keys_by_the_next",
        (
            TURN_K,
            "one = _phase(torch.ones(1, device=x.device), self.size, self.theta)\n        k = self.rotate(self.rotate(k, cos, sin), one.cos(), one.sin())",
        ),
    ),
    fault("causal_off_by_one", "greater", (ALLOWED, ALLOWED.replace(">=", ">"))),
    fault("causal_off_by_one", "plus_one", (ALLOWED, ALLOWED.replace(" >=", " + 1 >="))),
    fault("mask_inverted", "lesser_or_equal", (ALLOWED, ALLOWED.replace(">=", "<="))),
    fault("mask_value_too_small", "tiny", (INFINITE, "torch.finfo(x.dtype).tiny")),
    fault("mask_value_too_small", "minus_a_thousand", (INFINITE, "-1e3")),
    fault("softmax_wrong_dim", "axis", ("scores.softmax(-1)", "scores.softmax(-2)"), base=NOT_CAUSAL),
    fault("missing_attention_scale", "q_undivided", ("(q / self.size**0.5) @ k", "q @ k")),
    fault(
        "wrong_attention_scale",
        "q_and_k_divided",
        ("(q / self.size**0.5) @ k.transpose", "(q / self.size**0.5) @ (k / self.size**0.5).transpose"),
    ),
    fault(
        "wrong_head_split",
        "no_transpose",
        (
            "q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)",
            "q, k, v = qkv.movedim(-3, 0).reshape(3, *x.shape[:-2], self.heads, length, self.size)",
        ),
        base=NOT_CAUSAL,
    ),
    fault("heads_not_merged", "transpose_missing", ("y = (p @ v).transpose(-3, -2)", "y = p @ v")),
    fault("missing_output_projection", "y", ("return self.out(y.reshape(x.shape))", "return y.reshape(x.shape)")),
    fault("wrong_activation", "hardswish", ("nn.SiLU()", "nn.Hardswish()")),
    fault(
        "wrong_activation",
        "w_in_alone",
        (SECOND, SECOND.replace("self.silu(self.w_gate(n)).mul(self.w_in(n))", "self.silu(self.w_in(n))")),
        ("        self.w_gate = nn.Linear(d_model, d_ff, bias=False, **where)\n", ""),
    ),
    fault(
        "gate_after_product",
        "silu_last",
        (
            SECOND,
            SECOND.replace(
                "self.silu(self.w_gate(n)).mul(self.w_in(n))", "self.silu(self.w_gate(n).mul(self.w_in(n)))"
            ),
        ),
    ),
    fault(
        "swapped_gate_up",
        "silu_of_w_in",
        (
            SECOND,
            SECOND.replace(
                "self.silu(self.w_gate(n)).mul(self.w_in(n))", "self.silu(self.w_in(n)).mul(self.w_gate(n))"
            ),
        ),
    ),
    fault("modifies_input", "add_underscore", (FIRST, "h = x.add_(self.attention(self.rms_a(x), token_positions))")),
    fault(
        "dropout_in_eval",
        "feature_dropout",
        (SECOND, SECOND.replace("self.w_in(n)", "nn.functional.dropout(self.w_in(n), 0.05, True)")),
    ),
    fault("not_deterministic", "noisy_tables", (TURN_Q, "cos = cos + 0.02 * torch.randn_like(cos)\n        " + TURN_Q)),
    fault(
        "wrong_device_buffer",
        "kept_by_length_alone",
        ("if (length, device) not in self._tables:", "if length not in self._tables:"),
        ("self._tables[length, device] = torch", "self._tables[length] = torch"),
        ("return self._tables[length, device]", "return self._tables[length]"),
    ),
    fault(
        "retains_state",
        "tables_turned_further",
        (
            "        return self._tables[length, device]",
            "        cos, sin = self._tables[length, device]\n        self._tables[length, device] = cos * cos - sin * sin, 2 * cos * sin\n        return cos, sin",
        ),
        also="rope_wrong_frequency",
    ),
    fault(
        "sequence_length_fixed",
        "tables_of_whole_blocks",
        (
            "if (length, device) not in self._tables:",
            "length = 8 * ((length + 7) // 8)\n        if (length, device) not in self._tables:",
        ),
    ),
    fault("leading_dims", "four_names", ("length = x.shape[-2]\n", "batch, length, features = x.shape\n")),
    fault(
        "leading_dims",
        "permute_of_five",
        ("q, k, v = qkv.movedim(-3, 0).transpose(-3, -2)", "q, k, v = qkv.permute(2, 0, 3, 1, 4)"),
    ),
    fault("batch_coupled", "tokens_of_all", (SECOND, "n = n - n.mean(0, keepdim=True)\n        " + SECOND)),
    fault("gradient_missing", "first_half_detached", (SECOND, SECOND.replace("self.w_in(n)", "self.w_in(n).detach()"))),
    fault(
        "gradient_wrong",
        "norm_detached",
        (NORM, "z = z / ((torch.mean(z**2, -1, keepdim=True) + self.eps) ** 0.5).detach()"),
    ),
    fault("wrong_dtype", "sum_in_float32", (SECOND, SECOND.replace(".add(h)", ".float().add(h)"))),
    fault(
        "forward_error",
        "no_forward",
        ("    def forward(self, x, token_positions=None):", "    def forwards(self, x, token_positions=None):"),
    ),
    fault(
        "import_error",
        "neighbour_missing",
        (
            "import torch\n\n\ndef _phase",
            "import torch\nfrom .layers_of_mine import RootMeanSquare as Base\n\n\ndef _phase",
        ),
    ),
    fault(
        "timeout",
        "table_until_found",
        ("if (length, device) not in self._tables:", "while (length, str(device)) not in self._tables:"),
    ),
]

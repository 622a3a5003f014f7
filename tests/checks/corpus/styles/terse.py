"""Research code: short names that say nothing, so that nobody is helped by them."""

from ..editing import Style

STYLE = Style(
    "terse",
    "B",
    """import torch
from torch import nn

P = nn.Parameter


class B(nn.Module):
    def __init__(s, d, n, f, theta=1e4, eps=1e-6, device=None, dtype=None):
        super().__init__()
        o = dict(device=device, dtype=dtype)
        s.n, s.h, s.t, s.e = n, d // n, theta, eps
        s.a = P(torch.randn(3, n, d // n, d, **o) * d**-0.5)
        s.b = P(torch.randn(d, d, **o) * d**-0.5)
        s.c = P(torch.randn(2, f, d, **o) * d**-0.5)
        s.d = P(torch.randn(d, f, **o) * f**-0.5)
        s.g = P(torch.ones(2, d, **o))

    def r(s, x, i):
        y = x.float()
        return (y * (y.pow(2).mean(-1, True) + s.e).rsqrt() * s.g[i]).to(x.dtype)

    def z(s, x, p):
        w = s.t ** -(torch.arange(0, s.h, 2, device=x.device).float() / s.h)
        p = (p.float()[..., None] * w).unsqueeze(-3)
        u, v = x.float().chunk(2, -1)
        return torch.cat((u * p.cos() - v * p.sin(), v * p.cos() + u * p.sin()), -1).to(x.dtype)

    def forward(s, x, p=None):
        if p is None:
            p = torch.arange(x.shape[-2], device=x.device)
        y = s.r(x, 0)
        q, k, v = torch.einsum("...td,ahkd->a...htk", y, s.a)
        q, k = s.z(q, p), s.z(k, p)
        m = (q @ k.mT / s.h**0.5).softmax(-1) @ v
        m = m.transpose(-2, -3).flatten(-2)
        x = x + m @ s.b.T
        y = s.r(x, 1)
        u, v = torch.einsum("...td,afd->a...tf", y, s.c)
        return x + (u.sigmoid() * u * v) @ s.d.T
""",
)

CAUSAL = STYLE.right(
    "causal",
    (
        "m = (q @ k.mT / s.h**0.5).softmax(-1) @ v",
        "m = q @ k.mT / s.h**0.5\n        m = m + torch.full_like(m, -torch.inf).triu(1)\n        m = m.softmax(-1) @ v",
    ),
)
RIGHT = [
    STYLE.right(),
    CAUSAL,
    STYLE.right(
        "turning_back",
        (
            "u * p.cos() - v * p.sin(), v * p.cos() + u * p.sin()",
            "u * p.cos() + v * p.sin(), v * p.cos() - u * p.sin()",
        ),
    ),
]

NORM = "return (y * (y.pow(2).mean(-1, True) + s.e).rsqrt() * s.g[i]).to(x.dtype)"
FIRST, SECOND = "x = x + m @ s.b.T", "return x + (u.sigmoid() * u * v) @ s.d.T"
FIRST_NORM, SECOND_NORM = "y = s.r(x, 0)", "y = s.r(x, 1)"
TURN = "q, k = s.z(q, p), s.z(k, p)"
MIX = "m = (q @ k.mT / s.h**0.5).softmax(-1) @ v"
MERGE = "m = m.transpose(-2, -3).flatten(-2)"
RATE = "w = s.t ** -(torch.arange(0, s.h, 2, device=x.device).float() / s.h)"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "r_of_sums",
        (FIRST_NORM, "y = x"),
        (FIRST, "x = s.r(x + m @ s.b.T, 0)"),
        (SECOND_NORM, "y = x"),
        (SECOND, "return s.r(x + (u.sigmoid() * u * v) @ s.d.T, 1)"),
    ),
    fault("no_norm", "second", (SECOND_NORM, "y = x")),
    fault("missing_residual_attention", "x_replaced", (FIRST, "x = m @ s.b.T")),
    fault("missing_residual_ffn", "x_dropped", (SECOND, SECOND.replace("x + ", ""))),
    fault("residual_from_normed", "y_for_x", (FIRST, "x = y + m @ s.b.T")),
    fault("residual_from_normed", "y_for_x_at_the_end", (SECOND, SECOND.replace("x + ", "y + "))),
    fault("residual_detached", "second", (SECOND, SECOND.replace("x + ", "x.detach() + "))),
    fault("doubled_residual", "times_two", (FIRST, "x = 2 * x + m @ s.b.T")),
    fault("parallel_sublayers", "y_kept", (SECOND_NORM, "y = s.r(x - m @ s.b.T, 1)")),
    fault(
        "ffn_residual_from_input",
        "m_taken_away_again",
        (SECOND, "return x - m @ s.b.T + (u.sigmoid() * u * v) @ s.d.T"),
    ),
    fault("shared_norm", "index_zero", (SECOND_NORM, "y = s.r(x, 0)")),
    fault("layer_norm", "centred", ("y = x.float()\n", "y = x.float() - x.float().mean(-1, True)\n")),
    fault(
        "norm_without_sqrt",
        "power",
        (
            NORM,
            NORM.replace(".rsqrt()", " ** -1").replace(
                "(y.pow(2).mean(-1, True) + s.e) ** -1", "(y.pow(2).mean(-1, True) + s.e) ** -1.0"
            ),
        ),
    ),
    fault("norm_over_sequence", "axis", (NORM, NORM.replace("mean(-1,", "mean(-2,"))),
    fault("norm_wrong_mean", "sum", (NORM, NORM.replace("mean(-1,", "sum(-1,"))),
    fault(
        "norm_wrong_mean",
        "standard_deviation",
        (NORM, NORM.replace("y.pow(2).mean(-1, True)", "y.var(-1, keepdim=True)")),
    ),
    fault("norm_without_upcast", "x_as_it_is", ("y = x.float()\n", "y = x\n")),
    fault(
        "eps_outside_sqrt",
        "after",
        (NORM, NORM.replace("(y.pow(2).mean(-1, True) + s.e).rsqrt()", "(y.pow(2).mean(-1, True).sqrt() + s.e) ** -1")),
    ),
    fault("eps_ignored", "literal", (NORM, NORM.replace("s.e", "1e-6"))),
    fault("wrong_eps", "times_d", (NORM, NORM.replace("s.e", "s.e * x.shape[-1]"))),
    fault("norm_weight_missing", "first_row_only", (NORM, NORM.replace(" * s.g[i]", ""))),
    fault("missing_rope", "z_unused", (f"        {TURN}\n", "")),
    fault("missing_rope", "cancelled", (TURN, "q, k = s.z(s.z(q, p), -p), s.z(s.z(k, p), -p)")),
    fault("rope_on_values", "v", (TURN, "q, k, v = s.z(q, p), s.z(k, p), s.z(v, p)")),
    fault("rope_on_queries_only", "k_as_it_is", (TURN, "q = s.z(q, p)")),
    fault(
        "rope_in_block",
        "x_first",
        (
            FIRST_NORM,
            "w = s.t ** -(torch.arange(0, x.shape[-1], 2, device=x.device).float() / x.shape[-1])\n        w = p.float()[..., None] * w\n        a, b = x.chunk(2, -1)\n        x = torch.cat((a * w.cos() - b * w.sin(), b * w.cos() + a * w.sin()), -1).to(x.dtype)\n        "
            + FIRST_NORM,
        ),
        (f"        {TURN}\n", ""),
    ),
    fault(
        "rope_over_heads",
        "head_number",
        (
            "p = (p.float()[..., None] * w).unsqueeze(-3)",
            "p = (torch.arange(s.n, device=x.device).float()[:, None] * w).unsqueeze(-2)",
        ),
        also="missing_rope token_positions_ignored",
    ),
    fault("rope_half_split", "chunks", target="paper"),
    fault("rope_wrong_direction", "minus_p", (TURN, "q, k = s.z(q, -p), s.z(k, -p)"), base=CAUSAL, target="llama"),
    fault(
        "rope_bf16_tables",
        "p_in_dtype",
        (
            "p = (p.float()[..., None] * w).unsqueeze(-3)",
            "p = (p.to(x.dtype)[..., None] * w.to(x.dtype)).unsqueeze(-3).float()",
        ),
    ),
    fault("rope_theta_ignored", "constant", (RATE, RATE.replace("s.t **", "1e4 **"))),
    fault(
        "rope_wrong_frequency",
        "no_two",
        (RATE, RATE.replace("torch.arange(0, s.h, 2, device=x.device)", "torch.arange(s.h // 2, device=x.device)")),
    ),
    fault(
        "rope_wrong_frequency",
        "hundredth_of_a_turn",
        ("p = (p.float()[..., None] * w).unsqueeze(-3)", "p = (p.float()[..., None] * w / 100).unsqueeze(-3)"),
    ),
    fault(
        "rope_wrong_frequency",
        "turns_for_radians",
        ("p = (p.float()[..., None] * w).unsqueeze(-3)", "p = (2 * torch.pi * p.float()[..., None] * w).unsqueeze(-3)"),
    ),
    fault("token_positions_ignored", "condition_gone", ("        if p is None:\n            p =", "        p =")),
    fault("positions_off_by_one", "k_plus_one", (TURN, "q, k = s.z(q, p), s.z(k, p + 1)")),
    fault("causal_off_by_one", "two", ("triu(1)", "triu(2)"), base=CAUSAL),
    fault("causal_off_by_one", "zero", ("triu(1)", "triu(0)"), base=CAUSAL),
    fault("causal_mask", "triu", base=CAUSAL, target="paper", also="rope_half_split"),
    fault("mask_inverted", "tril", ("triu(1)", "tril(-1)"), base=CAUSAL),
    fault("mask_value_too_small", "minus_thirty", ("-torch.inf", "-30"), base=CAUSAL),
    fault("softmax_wrong_dim", "queries", (MIX, MIX.replace("softmax(-1)", "softmax(-2)"))),
    fault("missing_attention_scale", "no_h", (MIX, "m = (q @ k.mT).softmax(-1) @ v")),
    fault("wrong_attention_scale", "h_itself", (MIX, MIX.replace("s.h**0.5", "s.h"))),
    fault(
        "wrong_attention_scale",
        "after_the_softmax",
        (MIX, "m = (q @ k.mT).softmax(-1) / s.h**0.5 @ v"),
        also="missing_attention_scale",
    ),
    fault("wrong_head_split", "reshape_of_values", (TURN, TURN + "\n        v = v.transpose(-2, -3).reshape(k.shape)")),
    fault("heads_not_merged", "reshape", (MERGE, "m = m.reshape(x.shape)")),
    fault("missing_output_projection", "m_alone", (FIRST, "x = x + m")),
    fault("wrong_activation", "silu_missing", (SECOND, SECOND.replace("u.sigmoid() * u * v", "u * v"))),
    fault("wrong_activation", "elu", (SECOND, SECOND.replace("u.sigmoid() * u * v", "nn.functional.elu(u) * v"))),
    fault(
        "gate_after_product",
        "sigmoid_of_product",
        (SECOND, SECOND.replace("u.sigmoid() * u * v", "(u * v).sigmoid() * u * v")),
    ),
    fault("modifies_input", "augmented", (FIRST, "x += m @ s.b.T")),
    fault(
        "leading_dims",
        "three_letters",
        ('torch.einsum("...td,ahkd->a...htk", y, s.a)', 'torch.einsum("btd,ahkd->abhtk", y, s.a)'),
    ),
    fault(
        "dropout_in_eval",
        "module_made_in_forward",
        (SECOND, SECOND.replace("(u.sigmoid() * u * v)", "nn.Dropout(0.1)(u.sigmoid() * u * v)")),
    ),
    fault(
        "not_deterministic",
        "random_start",
        (
            "        if p is None:\n            p = torch.arange(x.shape[-2], device=x.device)",
            "        if p is None:\n            p = torch.arange(x.shape[-2], device=x.device) * torch.randint(1, 9, ()).item()",
        ),
    ),
    fault(
        "gradient_missing",
        "plain_tensor",
        ("s.d = P(torch.randn(d, f, **o) * f**-0.5)", "s.d = torch.randn(d, f, **o) * f**-0.5"),
        (SECOND, SECOND.replace("s.d.T", "s.d.T.to(x)")),
        also="wrong_device_buffer",
    ),
    fault("gradient_missing", "data", ("y, s.c)", "y, s.c.data)")),
    fault(
        "gradient_wrong",
        "straight_through",
        (SECOND, "a = u.sigmoid() * u\n        return x + ((a.detach() + u - u.detach()) * v) @ s.d.T"),
    ),
    fault("wrong_device_buffer", "rates_on_cpu", (RATE, RATE.replace(", device=x.device", ""))),
    fault(
        "wrong_dtype",
        "upcast_at_the_door",
        (
            "        if p is None:\n",
            "        x = x.float() if x.dtype == torch.bfloat16 else x\n        if p is None:\n",
        ),
        ("y, s.a)", "y, s.a.to(y.dtype))"),
        ("m @ s.b.T", "m @ s.b.T.to(m.dtype)"),
        ("y, s.c)", "y, s.c.to(y.dtype))"),
        ("@ s.d.T", "@ s.d.T.to(x.dtype)"),
    ),
    fault("batch_coupled", "batch_mean_removed", (MERGE, MERGE + "\n        m = m - m.mean(0, keepdim=True)")),
    fault(
        "retains_state",
        "x_of_before",
        (
            FIRST_NORM,
            "if s.x is not None and s.x.shape == x.shape:\n            x = x + 0.1 * s.x.to(x)\n        s.x = x.detach()\n        "
            + FIRST_NORM,
        ),
        ("        s.n, s.h,", "        s.x = None\n        s.n, s.h,"),
    ),
    fault("forward_error", "axis_out_of_range", (MERGE, "m = m.transpose(-2, -5).flatten(-2)")),
    fault("constructor_error", "super_with_arguments", ("super().__init__()", "super().__init__(d, n, f)")),
    fault("import_error", "misspelled", ("P = nn.Parameter", "P = nn.Paramater")),
    fault("missing_softmax", "left_out", ("(q @ k.mT / s.h**0.5).softmax(-1) @ v", "(q @ k.mT / s.h**0.5) @ v")),
]

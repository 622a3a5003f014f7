"""Pure functions over a dictionary of parameters; the module only holds them. The rotation is by minus the angle."""

from ..editing import Style

STYLE = Style(
    "functional",
    "Block",
    '''"""A functional core (block_forward) and a thin module around it."""

import math

import torch
from torch import nn


def rmsnorm(params, x, *, eps):
    wide = x.float()
    inverse = (wide.pow(2).mean(dim=-1, keepdim=True) + eps).pow(-0.5)
    return (wide * inverse * params).type(x.dtype)


def rotate(x, position, *, theta):
    half = x.shape[-1] // 2
    rate = theta ** -(torch.arange(half, dtype=torch.float32, device=x.device) / half)
    phase = position.float()[..., None, :, None] * rate
    wave = torch.polar(torch.ones_like(phase), -phase)
    number = torch.view_as_complex(x.float().reshape(*x.shape[:-1], half, 2))
    return torch.view_as_real(number * wave).flatten(-2).type(x.dtype)


def split(x, heads):
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def join(x):
    return x.swapaxes(-2, -3).flatten(-2)


def attention(params, x, position, mask, *, heads, theta):
    q, k, v = (split(x @ params[name].T, heads) for name in ("wq", "wk", "wv"))
    q = rotate(q, position, theta=theta)
    k = rotate(k, position, theta=theta)
    score = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        score = score + torch.zeros_like(mask, dtype=score.dtype).masked_fill(~mask, -math.inf)
    weight = torch.softmax(score, dim=-1)
    mixed = torch.einsum("...qk,...kd->...qd", weight, v)
    return join(mixed) @ params["wo"].T


def swiglu(params, x):
    gate = x @ params["gate"].T
    up = x @ params["up"].T
    return (nn.functional.silu(gate) * up) @ params["down"].T


def block_forward(params, x, position, mask, *, heads, theta, eps):
    x = x + attention(params, rmsnorm(params["norm_attention"], x, eps=eps), position, mask, heads=heads, theta=theta)
    x = x + swiglu(params, rmsnorm(params["norm_mlp"], x, eps=eps))
    return x


def init(d_model, d_ff, **factory):
    shapes = {
        "wq": (d_model, d_model),
        "wk": (d_model, d_model),
        "wv": (d_model, d_model),
        "wo": (d_model, d_model),
        "gate": (d_ff, d_model),
        "up": (d_ff, d_model),
        "down": (d_model, d_ff),
    }
    params = {name: torch.randn(shape, **factory) / math.sqrt(shape[1]) for name, shape in shapes.items()}
    params["norm_attention"] = torch.ones(d_model, **factory)
    params["norm_mlp"] = torch.ones(d_model, **factory)
    return params


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, theta=10000.0, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.params = nn.ParameterDict(init(d_model, d_ff, device=device, dtype=dtype))
        self.num_heads = num_heads
        self.theta = theta
        self.eps = eps

    def forward(self, x, token_positions=None, mask=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        return block_forward(
            self.params, x, token_positions, mask, heads=self.num_heads, theta=self.theta, eps=self.eps
        )
''',
)

POSITIVE = STYLE.right(
    "turning_forward", ("torch.polar(torch.ones_like(phase), -phase)", "torch.polar(torch.ones_like(phase), phase)")
)
CAUSAL = STYLE.right(
    "causal",
    (
        "    if mask is not None:\n",
        "    past = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()\n    mask = past if mask is None else mask & past\n    if mask is not None:\n",
    ),
)
LLAMA_BUT_PAIRS = STYLE.right(
    "turning_forward_causal",
    ("torch.polar(torch.ones_like(phase), -phase)", "torch.polar(torch.ones_like(phase), phase)"),
    (
        "    if mask is not None:\n",
        "    past = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()\n    mask = past if mask is None else mask & past\n    if mask is not None:\n",
    ),
)
RIGHT = [STYLE.right(), POSITIVE, CAUSAL, LLAMA_BUT_PAIRS]

FIRST = (
    'x = x + attention(params, rmsnorm(params["norm_attention"], x, eps=eps), position, mask, heads=heads, theta=theta)'
)
SECOND = 'x = x + swiglu(params, rmsnorm(params["norm_mlp"], x, eps=eps))'
INVERSE = "inverse = (wide.pow(2).mean(dim=-1, keepdim=True) + eps).pow(-0.5)"
TURN_Q, TURN_K = "q = rotate(q, position, theta=theta)", "k = rotate(k, position, theta=theta)"
RATE = "rate = theta ** -(torch.arange(half, dtype=torch.float32, device=x.device) / half)"
SCORE = 'score = torch.einsum("...qd,...kd->...qk", q, k) / math.sqrt(q.shape[-1])'
FILL = "score = score + torch.zeros_like(mask, dtype=score.dtype).masked_fill(~mask, -math.inf)"
GLU = 'return (nn.functional.silu(gate) * up) @ params["down"].T'

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "composed_the_other_way",
        (
            FIRST,
            'x = rmsnorm(params["norm_attention"], x + attention(params, x, position, mask, heads=heads, theta=theta), eps=eps)',
        ),
        (SECOND, 'x = rmsnorm(params["norm_mlp"], x + swiglu(params, x), eps=eps)'),
    ),
    fault("no_norm", "swiglu_of_x", (SECOND, "x = x + swiglu(params, x)")),
    fault("missing_residual_attention", "assigned", (FIRST, FIRST.replace("x = x + ", "x = "))),
    fault("missing_residual_ffn", "assigned", (SECOND, SECOND.replace("x = x + ", "x = "))),
    fault("residual_detached", "stop_gradient", (FIRST, FIRST.replace("x = x + ", "x = x.detach() + "))),
    fault(
        "ffn_residual_from_input",
        "second_name",
        (FIRST, FIRST.replace("x = x + ", "h = x + ")),
        (SECOND, SECOND.replace("x, eps", "h, eps")),
    ),
    fault(
        "parallel_sublayers",
        "second_name_unused",
        (FIRST, FIRST.replace("x = x + ", "h = x + ")),
        (SECOND, SECOND.replace("x = x + ", "x = h + ")),
    ),
    fault("shared_norm", "same_key", ('rmsnorm(params["norm_mlp"]', 'rmsnorm(params["norm_attention"]')),
    fault(
        "norm_created_each_call",
        "ones_in_forward",
        ('rmsnorm(params["norm_attention"], x', "rmsnorm(torch.ones(x.shape[-1], device=x.device), x"),
    ),
    fault("norm_over_sequence", "last_two", (INVERSE, INVERSE.replace("dim=-1", "dim=(-1, -2)"))),
    fault("norm_without_sqrt", "power_minus_one", (INVERSE, INVERSE.replace("pow(-0.5)", "pow(-1)"))),
    fault(
        "norm_wrong_mean",
        "cube_root",
        (INVERSE, "inverse = (wide.pow(2).mean(dim=-1, keepdim=True) + eps).pow(-1 / 3)"),
        also="norm_without_sqrt",
    ),
    fault("norm_without_upcast", "narrow", ("wide = x.float()", "wide = x")),
    fault(
        "eps_outside_sqrt",
        "bracket_moved",
        (INVERSE, "inverse = (wide.pow(2).mean(dim=-1, keepdim=True).pow(0.5) + eps).pow(-1)"),
    ),
    fault(
        "eps_ignored",
        "default_of_the_function",
        ("def rmsnorm(params, x, *, eps):", "def rmsnorm(params, x, *, eps):\n    eps = 1e-8"),
    ),
    fault("norm_weight_missing", "params_not_used", ("(wide * inverse * params)", "(wide * inverse)")),
    fault("missing_rope", "never_called", (f"    {TURN_Q}\n    {TURN_K}\n", "")),
    fault("rope_on_values", "all_projections", (TURN_K, f"{TURN_K}\n    v = rotate(v, position, theta=theta)")),
    fault("rope_on_queries_only", "second_line_rotates_q_again", (TURN_K, "k = k.clone()")),
    fault(
        "rope_in_block",
        "normed_before_projections",
        ("q, k, v = (split(x @", "x = join(rotate(split(x, heads), position, theta=theta))\n    q, k, v = (split(x @"),
        (f"    {TURN_Q}\n    {TURN_K}\n", ""),
    ),
    fault(
        "rope_over_heads",
        "before_split",
        (TURN_Q, "q = split(rotate(join(q).unsqueeze(-3), position, theta=theta).squeeze(-3), heads)"),
        (TURN_K, "k = split(rotate(join(k).unsqueeze(-3), position, theta=theta).squeeze(-3), heads)"),
        also="rope_wrong_frequency",
    ),
    fault("rope_wrong_direction", "minus_phase", target="paper"),
    fault("rope_interleaved", "complex_numbers", base=LLAMA_BUT_PAIRS, target="llama"),
    fault(
        "rope_bf16_tables",
        "wave_in_half",
        (
            "phase = position.float()[..., None, :, None] * rate",
            "phase = (position.float()[..., None, :, None] * rate).bfloat16().float()",
        ),
    ),
    fault(
        "rope_theta_ignored",
        "default_argument_not_passed",
        ("def rotate(x, position, *, theta):", "def rotate(x, position, *, theta=10000.0):"),
        (TURN_Q, "q = rotate(q, position)"),
        (TURN_K, "k = rotate(k, position)"),
    ),
    fault(
        "rope_wrong_frequency",
        "halved_twice",
        (RATE, RATE.replace("device=x.device) / half)", "device=x.device) / (2 * half))")),
    ),
    fault(
        "rope_wrong_frequency",
        "linear",
        (RATE, "rate = 1 / (1 + theta * torch.arange(half, dtype=torch.float32, device=x.device) / half)"),
    ),
    fault(
        "token_positions_ignored",
        "range_in_attention",
        (TURN_Q, "position = torch.arange(x.shape[-2], device=x.device)\n    " + TURN_Q),
    ),
    fault("positions_off_by_one", "keys_ahead", (TURN_K, "k = rotate(k, position + 1, theta=theta)")),
    fault("causal_off_by_one", "strict_past", (".tril()", ".tril(-1)"), base=CAUSAL),
    fault("mask_inverted", "not_forgotten", ("masked_fill(~mask,", "masked_fill(mask,"), target="paper"),
    fault(
        "mask_ignored",
        "none_handed_on",
        ("self.params, x, token_positions, mask, heads", "self.params, x, token_positions, None, heads"),
    ),
    fault("mask_value_too_small", "minus_fifty", (FILL, FILL.replace("-math.inf", "-50.0"))),
    fault("softmax_wrong_dim", "axis_minus_two", ("torch.softmax(score, dim=-1)", "torch.softmax(score, dim=-2)")),
    fault("missing_attention_scale", "forgotten", (SCORE, SCORE.replace(" / math.sqrt(q.shape[-1])", ""))),
    fault("wrong_attention_scale", "length_of_sequence", (SCORE, SCORE.replace("q.shape[-1]", "q.shape[-2]"))),
    fault(
        "wrong_head_split",
        "no_swap",
        (
            "return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)",
            "return x.reshape(*x.shape[:-2], heads, x.shape[-2], -1)",
        ),
    ),
    fault(
        "heads_not_merged",
        "join_without_swap",
        ("return x.swapaxes(-2, -3).flatten(-2)", "return x.reshape(*x.shape[:-3], x.shape[-2], -1)"),
    ),
    fault(
        "missing_output_projection",
        "join_only",
        ('return join(mixed) @ params["wo"].T', "return join(mixed)"),
        ('        "wo": (d_model, d_model),\n', ""),
    ),
    fault("wrong_activation", "softplus", (GLU, GLU.replace("functional.silu", "functional.softplus"))),
    fault("gate_after_product", "silu_outside", (GLU, GLU.replace("silu(gate) * up", "silu(gate * up)"))),
    fault("swapped_gate_up", "arguments", (GLU, GLU.replace("silu(gate) * up", "silu(up) * gate"))),
    fault("modifies_input", "iadd", (FIRST, FIRST.replace("x = x + ", "x += "))),
    fault(
        "batch_coupled",
        "norm_over_everything",
        (INVERSE, "inverse = (wide.pow(2).mean() + eps).pow(-0.5)"),
        also="norm_over_sequence norm_wrong_mean",
    ),
    fault("gradient_missing", "params_as_numbers", ('up = x @ params["up"].T', 'up = x @ params["up"].detach().T')),
    fault(
        "gradient_missing",
        "values_frozen",
        (
            "        self.num_heads = num_heads\n",
            '        self.params["wv"].requires_grad_(False)\n        self.num_heads = num_heads\n',
        ),
    ),
    fault(
        "wrong_device_buffer",
        "positions_on_cpu",
        ("torch.arange(x.shape[-2], device=x.device)\n        return", "torch.arange(x.shape[-2])\n        return"),
    ),
    fault(
        "retains_state",
        "positions_go_on",
        (
            "        if token_positions is None:\n            token_positions = torch.arange(x.shape[-2], device=x.device)",
            "        if token_positions is None:\n            token_positions = (1 + self.calls) * torch.arange(x.shape[-2], device=x.device)\n            self.calls += 1",
        ),
        ("        self.eps = eps\n", "        self.eps = eps\n        self.calls = 0\n"),
    ),
    fault("constructor_error", "shape_as_string", ('"down": (d_model, d_ff),', '"down": "d_model, d_ff",')),
    fault("forward_error", "key_unknown", ('params["wo"]', 'params["w_o"]')),
    fault(
        "timeout",
        "halves_for_ever",
        (
            "    half = x.shape[-1] // 2\n",
            "    half = x.shape[-1] // 2\n    remaining = 1.0\n    while remaining > -1:\n        remaining = remaining / 2\n",
        ),
    ),
]

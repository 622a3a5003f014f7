"""One module, bare parameters in x @ W layout (in, out), everything inline, angles computed on the fly."""

from ..editing import Style

STYLE = Style(
    "bare",
    "PreNormBlock",
    '''import torch
from torch import nn


class PreNormBlock(nn.Module):
    """All in one place: weights are (in, out) and multiply from the right."""

    def __init__(self, d_model, num_heads, d_ff, rope_theta=10000.0, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.heads = num_heads
        self.size = d_model // num_heads
        self.theta = rope_theta
        self.eps = eps

        def matrix(rows, columns):
            return nn.Parameter(torch.randn(rows, columns, device=device, dtype=dtype) * rows**-0.5)

        self.scale_attention = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.query = matrix(d_model, d_model)
        self.key = matrix(d_model, d_model)
        self.value = matrix(d_model, d_model)
        self.output = matrix(d_model, d_model)
        self.scale_mlp = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.gate = matrix(d_model, d_ff)
        self.up = matrix(d_model, d_ff)
        self.down = matrix(d_ff, d_model)

    def forward(self, x, token_positions=None, mask=None):
        n = x.shape[-2]

        # attention
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = (wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_attention).to(x.dtype)
        q = torch.unflatten(normed @ self.query, -1, (self.heads, self.size)).movedim(-2, -3)
        k = torch.unflatten(normed @ self.key, -1, (self.heads, self.size)).movedim(-2, -3)
        v = torch.unflatten(normed @ self.value, -1, (self.heads, self.size)).movedim(-2, -3)

        # rotary positions
        if token_positions is None:
            token_positions = torch.arange(n, device=x.device)
        pair = torch.arange(self.size // 2, device=x.device)
        angle = token_positions.double().unsqueeze(-1) * self.theta ** (-2 * pair.double() / self.size)
        angle = angle.unsqueeze(-3)  # for all heads
        cos, sin = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)
        q_re, q_im = q[..., 0::2], q[..., 1::2]
        k_re, k_im = k[..., 0::2], k[..., 1::2]
        q = torch.stack([q_re * cos - q_im * sin, q_re * sin + q_im * cos], -1).flatten(-2).to(x.dtype)
        k = torch.stack([k_re * cos - k_im * sin, k_re * sin + k_im * cos], -1).flatten(-2).to(x.dtype)

        scores = q @ k.mT * self.size**-0.5
        if mask is not None:
            scores = torch.where(mask, scores, -torch.inf)
        mixed = torch.softmax(scores, -1) @ v
        x = x + mixed.movedim(-3, -2).flatten(-2) @ self.output

        # feed-forward
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = (wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_mlp).to(x.dtype)
        g = normed @ self.gate
        hidden = g * torch.sigmoid(g) * (normed @ self.up)
        return x + hidden @ self.down
''',
)

CAUSAL = STYLE.right(
    "causal",
    (
        "mixed = torch.softmax(",
        "scores = scores + torch.full((n, n), -torch.inf, dtype=x.dtype, device=x.device).triu(1)\n        mixed = torch.softmax(",
    ),
)
TURNING_BACK = STYLE.right(
    "turning_back",
    ("q_re * cos - q_im * sin, q_re * sin + q_im * cos", "q_re * cos + q_im * sin, q_im * cos - q_re * sin"),
    ("k_re * cos - k_im * sin, k_re * sin + k_im * cos", "k_re * cos + k_im * sin, k_im * cos - k_re * sin"),
)
RIGHT = [STYLE.right(), CAUSAL, TURNING_BACK]

NORM_1 = "normed = (wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_attention).to(x.dtype)"
NORM_2 = "normed = (wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_mlp).to(x.dtype)"
FIRST = "x = x + mixed.movedim(-3, -2).flatten(-2) @ self.output"
SECOND = "return x + hidden @ self.down"
MIXED = "mixed = torch.softmax(scores, -1) @ v"
ANGLE = "angle = token_positions.double().unsqueeze(-1) * self.theta ** (-2 * pair.double() / self.size)"
Q_HEADS = "q = torch.unflatten(normed @ self.query, -1, (self.heads, self.size)).movedim(-2, -3)"
V_HEADS = "v = torch.unflatten(normed @ self.value, -1, (self.heads, self.size)).movedim(-2, -3)"
K_TURNED = "k = torch.stack([k_re * cos - k_im * sin, k_re * sin + k_im * cos], -1).flatten(-2).to(x.dtype)"
Q_TURNED = "q = torch.stack([q_re * cos - q_im * sin, q_re * sin + q_im * cos], -1).flatten(-2).to(x.dtype)"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "sum_is_normed",
        (NORM_1, "normed = x"),
        (
            FIRST,
            f"{FIRST}\n        wide = x.to(torch.promote_types(x.dtype, torch.float32))\n        x = (wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_attention).to(x.dtype)",
        ),
    ),
    fault("no_norm", "x_itself", (NORM_1, "normed = x")),
    fault("missing_residual_attention", "x_overwritten", (FIRST, FIRST.replace("x = x + ", "x = "))),
    fault("missing_residual_ffn", "return_of_hidden", (SECOND, "return hidden @ self.down")),
    fault("residual_from_normed", "normed_added", (SECOND, "return normed + hidden @ self.down")),
    fault("residual_detached", "first", (FIRST, FIRST.replace("x = x + ", "x = x.detach() + "))),
    fault("doubled_residual", "two_x", (SECOND, "return 2 * x + hidden @ self.down")),
    fault("shared_norm", "name_copied", (NORM_2, NORM_2.replace("scale_mlp", "scale_attention"))),
    fault(
        "layer_norm",
        "torch_var",
        (
            NORM_1,
            "normed = ((wide - wide.mean(-1, keepdim=True)) * torch.rsqrt(wide.var(-1, keepdim=True, correction=0) + self.eps) * self.scale_attention).to(x.dtype)",
        ),
        (
            NORM_2,
            "normed = ((wide - wide.mean(-1, keepdim=True)) * torch.rsqrt(wide.var(-1, keepdim=True, correction=0) + self.eps) * self.scale_mlp).to(x.dtype)",
        ),
    ),
    fault(
        "norm_without_sqrt",
        "divided",
        (
            NORM_2,
            NORM_2.replace(
                "wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps)",
                "wide / ((wide**2).mean(-1, keepdim=True) + self.eps)",
            ),
        ),
    ),
    fault(
        "norm_wrong_mean",
        "length_of_vector",
        (
            NORM_1,
            NORM_1.replace(
                "torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps)",
                "torch.rsqrt((wide**2).sum(-1, keepdim=True) + self.eps)",
            ),
        ),
    ),
    fault(
        "norm_without_upcast",
        "narrow",
        (f"wide = x.to(torch.promote_types(x.dtype, torch.float32))\n        {NORM_1}", f"wide = x\n        {NORM_1}"),
        (f"wide = x.to(torch.promote_types(x.dtype, torch.float32))\n        {NORM_2}", f"wide = x\n        {NORM_2}"),
        (
            "cos, sin = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)",
            "cos, sin = angle.cos().float(), angle.sin().float()",
        ),
    ),
    fault(
        "eps_outside_sqrt",
        "clamped_root",
        (
            NORM_2,
            NORM_2.replace(
                "wide * torch.rsqrt((wide**2).mean(-1, keepdim=True) + self.eps)",
                "wide / ((wide**2).mean(-1, keepdim=True).sqrt() + self.eps)",
            ),
        ),
    ),
    fault(
        "norm_weight_missing",
        "second",
        (NORM_2, NORM_2.replace(" * self.scale_mlp", "")),
        ("        self.scale_mlp = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))\n", ""),
    ),
    fault("eps_ignored", "one_of_two", (NORM_2, NORM_2.replace("self.eps", "1e-6"))),
    fault("missing_rope", "overwritten", (Q_TURNED, "q = q.to(x.dtype)"), (K_TURNED, "k = k.to(x.dtype)")),
    fault(
        "rope_on_values",
        "values_with_keys",
        (
            K_TURNED,
            f"{K_TURNED}\n        v_re, v_im = v[..., 0::2], v[..., 1::2]\n        v = torch.stack([v_re * cos - v_im * sin, v_re * sin + v_im * cos], -1).flatten(-2).to(x.dtype)",
        ),
    ),
    fault("rope_on_queries_only", "keys_only", (f"        {Q_TURNED}\n", "")),
    fault(
        "rope_in_block",
        "before_the_first_norm",
        (
            "        # attention\n        wide",
            "        # positions\n        places = torch.arange(n, device=x.device) if token_positions is None else token_positions\n        steps = torch.arange(x.shape[-1] // 2, device=x.device)\n        turn = places.double().unsqueeze(-1) * self.theta ** (-2 * steps.double() / x.shape[-1])\n        cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)\n        re, im = x[..., 0::2], x[..., 1::2]\n        x = torch.stack([re * cos - im * sin, re * sin + im * cos], -1).flatten(-2)\n\n        # attention\n        wide",
        ),
        (Q_TURNED, "q = q.to(x.dtype)"),
        (K_TURNED, "k = k.to(x.dtype)"),
    ),
    fault("rope_theta_ignored", "literal", ("* self.theta ** (-2 * pair", "* 10000.0 ** (-2 * pair")),
    fault(
        "rope_wrong_frequency",
        "factor_two_missing",
        ("(-2 * pair.double() / self.size)", "(-pair.double() / self.size)"),
    ),
    fault("rope_wrong_frequency", "degrees", (ANGLE, f"{ANGLE}\n        angle = torch.deg2rad(angle)")),
    fault("rope_interleaved", "even_and_odd", base=CAUSAL, target="llama"),
    fault("rope_wrong_direction", "both_turned_back", base=TURNING_BACK, target="paper"),
    fault(
        "rope_bf16_tables",
        "angle_in_input_dtype",
        (
            ANGLE,
            "angle = token_positions.to(x.dtype).unsqueeze(-1) * (self.theta ** (-2 * pair.double() / self.size)).to(x.dtype)",
        ),
    ),
    fault(
        "token_positions_ignored",
        "never_read",
        ("        if token_positions is None:\n            token_positions =", "        token_positions ="),
    ),
    fault(
        "positions_off_by_one",
        "keys_turned_further",
        (
            K_TURNED,
            "step = angle + self.theta ** (-2 * pair.double() / self.size)\n        cos, sin = step.cos().to(wide.dtype), step.sin().to(wide.dtype)\n        "
            + K_TURNED,
        ),
    ),
    fault(
        "mask_inverted",
        "where_arguments",
        ("torch.where(mask, scores, -torch.inf)", "torch.where(mask, -torch.inf, scores)"),
        target="paper",
    ),
    fault("mask_ignored", "result_unused", ("scores = torch.where(mask,", "masked = torch.where(mask,")),
    fault(
        "mask_value_too_small",
        "minus_hundred",
        ("torch.where(mask, scores, -torch.inf)", "torch.where(mask, scores, -100.0)"),
    ),
    fault("softmax_wrong_dim", "over_queries", ("torch.softmax(scores, -1)", "torch.softmax(scores, -2)")),
    fault("missing_attention_scale", "forgotten", (" * self.size**-0.5", "")),
    fault("wrong_attention_scale", "no_root", ("self.size**-0.5", "self.size**-1.0")),
    fault(
        "wrong_head_split",
        "heads_first",
        (Q_HEADS, "q = (normed @ self.query).reshape(*x.shape[:-2], self.heads, n, self.size)"),
    ),
    fault("shared_projection", "keys_of_queries", ("normed @ self.key", "normed @ self.query")),
    fault("heads_not_merged", "reshape_of_everything", (FIRST, "x = x + mixed.reshape(x.shape) @ self.output")),
    fault(
        "missing_output_projection",
        "parameter_unused",
        (FIRST, FIRST.replace(" @ self.output", "")),
        ("        self.output = matrix(d_model, d_model)\n", ""),
    ),
    fault("wrong_activation", "sigmoid_gate", ("hidden = g * torch.sigmoid(g) *", "hidden = torch.sigmoid(g) *")),
    fault(
        "gate_after_product",
        "product_first",
        (
            "hidden = g * torch.sigmoid(g) * (normed @ self.up)",
            "g = g * (normed @ self.up)\n        hidden = g * torch.sigmoid(g)",
        ),
    ),
    fault(
        "swapped_gate_up",
        "matrices_exchanged",
        ("hidden = g * torch.sigmoid(g) * (normed @ self.up)", "hidden = g * torch.sigmoid(u) * u"),
        ("g = normed @ self.gate", "g = normed @ self.gate\n        u = normed @ self.up"),
    ),
    fault("modifies_input", "in_place", (FIRST, FIRST.replace("x = x + ", "x += "))),
    fault(
        "wrong_device_buffer",
        "device_left_out",
        ("pair = torch.arange(self.size // 2, device=x.device)", "pair = torch.arange(self.size // 2)"),
    ),
    fault(
        "wrong_dtype",
        "double_angles",
        ("cos, sin = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)", "cos, sin = angle.cos(), angle.sin()"),
        ("q_re * sin + q_im * cos], -1).flatten(-2).to(x.dtype)", "q_re * sin + q_im * cos], -1).flatten(-2)"),
        ("k_re * sin + k_im * cos], -1).flatten(-2).to(x.dtype)", "k_re * sin + k_im * cos], -1).flatten(-2)"),
        (MIXED, "mixed = torch.softmax(scores, -1) @ v.double()"),
        (FIRST, FIRST.replace("@ self.output", "@ self.output.double()")),
        ("g = normed @ self.gate", "g = normed @ self.gate.double()"),
        ("(normed @ self.up)", "(normed @ self.up.double())"),
        (SECOND, "return x + hidden @ self.down.double()"),
    ),
    fault(
        "gradient_missing",
        "key_not_trained",
        ("self.key = matrix(d_model, d_model)", "self.key = matrix(d_model, d_model).requires_grad_(False)"),
    ),
    fault(
        "batch_coupled",
        "mean_over_first_axis",
        (
            "(wide**2).mean(-1, keepdim=True) + self.eps) * self.scale_attention",
            "(wide**2).mean((0, -1), keepdim=True) + self.eps) * self.scale_attention",
        ),
        also="norm_wrong_mean norm_over_sequence",
    ),
    fault("forward_error", "wrong_matrix", ("hidden @ self.down", "hidden @ self.down.T")),
    fault("import_error", "name_unknown", ("class PreNormBlock(nn.Module):", "class PreNormBlock(nn.Modul):")),
]

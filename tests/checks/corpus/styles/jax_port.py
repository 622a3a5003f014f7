"""Ported from JAX: kernels (in, out), tables from NumPy, and a norm that multiplies by 1 + scale, as Gemma's does."""

from ..editing import Style

STYLE = Style(
    "jax_port",
    "EncoderBlock",
    '''"""Port of the JAX block; kernels keep their (in, out) layout so that checkpoints load as they are."""

import numpy as np
import torch
from torch import nn


def sinusoids(length, width, base):
    """Tables of shape (length, width // 2), computed in float64 and stored in float32."""
    fraction = 2 * np.arange(0, width // 2) / width
    timescale = np.float64(base) ** fraction
    radians = np.arange(length)[:, np.newaxis] / timescale[np.newaxis, :]
    return np.sin(radians).astype(np.float32), np.cos(radians).astype(np.float32)


class Dense(nn.Module):
    def __init__(self, features_in, features_out, device=None, dtype=None):
        super().__init__()
        kernel = torch.empty((features_in, features_out), device=device, dtype=dtype)
        self.kernel = nn.Parameter(nn.init.normal_(kernel, std=1 / np.sqrt(features_in)))

    def forward(self, inputs):
        return torch.matmul(inputs, self.kernel)


class RMSNorm(nn.Module):
    """The scale starts at zero, and 1 + scale multiplies."""

    def __init__(self, features, epsilon, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        self.epsilon = epsilon

    def forward(self, inputs):
        x = inputs.to(torch.float32)
        var = torch.mean(torch.square(x), dim=-1, keepdim=True)
        normed_inputs = x * torch.reciprocal(torch.sqrt(var + self.epsilon))
        normed_inputs = normed_inputs * (1 + self.scale.to(torch.float32))
        return normed_inputs.to(inputs.dtype)


class Attention(nn.Module):
    def __init__(self, features, num_heads, max_len, base, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.query = Dense(features, features, device, dtype)
        self.key = Dense(features, features, device, dtype)
        self.value = Dense(features, features, device, dtype)
        self.out = Dense(features, features, device, dtype)
        sin, cos = sinusoids(max_len, features // num_heads, base)
        self.register_buffer("sin", torch.as_tensor(sin, device=device), persistent=False)
        self.register_buffer("cos", torch.as_tensor(cos, device=device), persistent=False)

    def apply_rope(self, x, position):
        # x: ... length heads depth
        sin = self.sin[position].unsqueeze(-2)
        cos = self.cos[position].unsqueeze(-2)
        x = x.unflatten(-1, (-1, 2))
        even, odd = x.select(-1, 0), x.select(-1, 1)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)

    def forward(self, x, position, mask=None):
        dtype = x.dtype
        q = self.query(x).unflatten(-1, (self.num_heads, -1))
        k = self.key(x).unflatten(-1, (self.num_heads, -1))
        v = self.value(x).unflatten(-1, (self.num_heads, -1))
        q = self.apply_rope(q, position).to(dtype)
        k = self.apply_rope(k, position).to(dtype)
        q = q / np.sqrt(q.shape[-1]).item()
        logits = torch.einsum("...qhd,...khd->...hqk", q, k)
        if mask is not None:
            logits = torch.where(mask, logits, torch.full_like(logits, -torch.inf))
        weights = torch.exp(logits - torch.logsumexp(logits, dim=-1, keepdim=True))
        x = torch.einsum("...hqk,...khd->...qhd", weights, v)
        return self.out(x.flatten(-2))


class MlpBlock(nn.Module):
    def __init__(self, features, hidden, device=None, dtype=None):
        super().__init__()
        self.wi_0 = Dense(features, hidden, device, dtype)
        self.wi_1 = Dense(features, hidden, device, dtype)
        self.wo = Dense(hidden, features, device, dtype)

    def forward(self, inputs):
        x = self.wi_0(inputs)
        x = x / (1 + torch.exp(-x))
        x = x * self.wi_1(inputs)
        return self.wo(x)


class EncoderBlock(nn.Module):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=1024, rope_theta=10000.0, eps=1e-6, device=None, dtype=None
    ):
        super().__init__()
        self.pre_attention_layer_norm = RMSNorm(d_model, eps, device, dtype)
        self.attention = Attention(d_model, num_heads, max_seq_len, rope_theta, device, dtype)
        self.pre_mlp_layer_norm = RMSNorm(d_model, eps, device, dtype)
        self.mlp = MlpBlock(d_model, d_ff, device, dtype)

    def forward(self, inputs, token_positions=None, mask=None):
        if token_positions is None:
            token_positions = torch.arange(inputs.size(-2), device=inputs.device)
        x = self.pre_attention_layer_norm(inputs)
        x = self.attention(x, token_positions, mask)
        x = x + inputs
        y = self.pre_mlp_layer_norm(x)
        y = self.mlp(y)
        return x + y
''',
)

CAUSAL = STYLE.right(
    "causal",
    (
        "        if mask is not None:\n",
        "        past = torch.tril(torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device))\n        mask = past if mask is None else mask & past\n        if mask is not None:\n",
    ),
)
RIGHT = [STYLE.right(), CAUSAL]

FIRST_NORM, SECOND_NORM = "x = self.pre_attention_layer_norm(inputs)", "y = self.pre_mlp_layer_norm(x)"
FIRST_SUM, SECOND_SUM = "x = x + inputs", "return x + y"
VAR = "var = torch.mean(torch.square(x), dim=-1, keepdim=True)"
NORMED = "normed_inputs = x * torch.reciprocal(torch.sqrt(var + self.epsilon))"
TURN_Q, TURN_K = "q = self.apply_rope(q, position).to(dtype)", "k = self.apply_rope(k, position).to(dtype)"
SCALE = "q = q / np.sqrt(q.shape[-1]).item()"
WHERE = "logits = torch.where(mask, logits, torch.full_like(logits, -torch.inf))"
SOFTMAX = "weights = torch.exp(logits - torch.logsumexp(logits, dim=-1, keepdim=True))"
SILU = "x = x / (1 + torch.exp(-x))"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "layers_moved",
        (FIRST_NORM, "x = inputs"),
        (FIRST_SUM, "x = self.pre_attention_layer_norm(x + inputs)"),
        (SECOND_NORM, "y = x"),
        (SECOND_SUM, "return self.pre_mlp_layer_norm(x + y)"),
    ),
    fault("no_norm", "first", (FIRST_NORM, "x = inputs")),
    fault("missing_residual_attention", "sum_missing", (f"        {FIRST_SUM}\n", "")),
    fault("missing_residual_ffn", "y_returned", (SECOND_SUM, "return y")),
    fault(
        "residual_from_normed",
        "name_reused",
        (FIRST_NORM, "inputs = self.pre_attention_layer_norm(inputs)\n        x = inputs"),
    ),
    fault("residual_detached", "stop_gradient", (FIRST_SUM, "x = x + inputs.detach()")),
    fault("doubled_residual", "inputs_as_well", (SECOND_SUM, "return x + y + inputs")),
    fault("ffn_residual_from_input", "inputs_for_x", (SECOND_SUM, "return inputs + y")),
    fault("parallel_sublayers", "normed_inputs", (SECOND_NORM, "y = self.pre_mlp_layer_norm(inputs)")),
    fault(
        "layer_norm",
        "mean_subtracted",
        (
            "x = inputs.to(torch.float32)",
            "x = inputs.to(torch.float32)\n        x = x - torch.mean(x, dim=-1, keepdim=True)",
        ),
    ),
    fault(
        "norm_without_sqrt", "reciprocal_of_var", (NORMED, "normed_inputs = x * torch.reciprocal(var + self.epsilon)")
    ),
    fault("norm_over_sequence", "axis_one_from_the_end", (VAR, VAR.replace("dim=-1", "dim=-2"))),
    fault(
        "norm_wrong_mean", "mean_absolute", (VAR, "var = torch.square(torch.mean(torch.abs(x), dim=-1, keepdim=True))")
    ),
    fault("norm_wrong_mean", "median", (VAR, "var = torch.median(torch.square(x), dim=-1, keepdim=True).values")),
    fault(
        "norm_without_upcast",
        "dtype_of_the_input",
        ("x = inputs.to(torch.float32)", "x = inputs"),
        ("self.scale.to(torch.float32)", "self.scale"),
    ),
    fault(
        "eps_outside_sqrt", "order", (NORMED, "normed_inputs = x * torch.reciprocal(torch.sqrt(var) + self.epsilon)")
    ),
    fault("eps_ignored", "constant_of_the_module", ("var + self.epsilon", "var + 1e-6")),
    fault(
        "wrong_eps",
        "maximum",
        (NORMED, "normed_inputs = x * torch.reciprocal(torch.sqrt(torch.clamp(var, min=self.epsilon)))"),
        also="eps_ignored eps_outside_sqrt",
    ),
    fault(
        "norm_weight_missing",
        "no_scale",
        ("        normed_inputs = normed_inputs * (1 + self.scale.to(torch.float32))\n", ""),
    ),
    fault("missing_rope", "positions_zeroed", (TURN_Q, "position = torch.zeros_like(position)\n        " + TURN_Q)),
    fault(
        "missing_rope",
        "sum_of_squares_only",
        (
            "even * cos - odd * sin, odd * cos + even * sin",
            "even * cos**2 + even * sin**2, odd * cos**2 + odd * sin**2",
        ),
    ),
    fault("rope_on_values", "v_too", (TURN_K, f"{TURN_K}\n        v = self.apply_rope(v, position).to(dtype)")),
    fault("rope_on_queries_only", "only_k", (f"        {TURN_Q}\n", "")),
    fault(
        "rope_in_block",
        "inputs_encoded",
        (
            FIRST_NORM,
            "inputs = self.attention.apply_rope(inputs.unflatten(-1, (self.attention.num_heads, -1)), token_positions).flatten(-2).to(inputs.dtype)\n        "
            + FIRST_NORM,
        ),
    ),
    fault(
        "rope_in_block",
        "normed_encoded_instead",
        (
            FIRST_NORM,
            FIRST_NORM
            + "\n        x = self.attention.apply_rope(x.unflatten(-1, (self.attention.num_heads, -1)), token_positions).flatten(-2).to(x.dtype)",
        ),
        (f"        {TURN_Q}\n        {TURN_K}\n", ""),
    ),
    fault(
        "rope_over_heads",
        "heads_as_sequence",
        ("sin = self.sin[position].unsqueeze(-2)", "sin = self.sin[: x.shape[-2]]"),
        ("cos = self.cos[position].unsqueeze(-2)", "cos = self.cos[: x.shape[-2]]"),
        also="missing_rope token_positions_ignored",
    ),
    fault("rope_interleaved", "even_and_odd", base=CAUSAL, target="llama"),
    fault(
        "rope_wrong_direction",
        "minus_sine",
        ("even * cos - odd * sin, odd * cos + even * sin", "even * cos + odd * sin, odd * cos - even * sin"),
        target="paper",
    ),
    fault(
        "rope_bf16_tables",
        "half_in_numpy",
        (
            "np.sin(radians).astype(np.float32), np.cos(radians).astype(np.float32)",
            "np.sin(radians).astype(np.float16), np.cos(radians).astype(np.float16)",
        ),
    ),
    fault(
        "rope_bf16_tables",
        "radians_in_float16",
        ("return np.sin(radians)", "radians = radians.astype(np.float16)\n    return np.sin(radians)"),
    ),
    fault("rope_theta_ignored", "base_of_the_port", ("np.float64(base) ** fraction", "1e4**fraction")),
    fault("rope_wrong_frequency", "factor_two", ("fraction = 2 * np.arange", "fraction = np.arange")),
    fault(
        "rope_wrong_frequency",
        "multiplied",
        ("np.arange(length)[:, np.newaxis] / timescale", "np.arange(length)[:, np.newaxis] * timescale"),
    ),
    fault(
        "rope_wrong_frequency",
        "endpoints_included",
        ("fraction = 2 * np.arange(0, width // 2) / width", "fraction = np.linspace(0, 1, width // 2)"),
    ),
    fault(
        "token_positions_ignored",
        "length_of_inputs",
        (
            "        if token_positions is None:\n            token",
            "        token_positions = None\n        if token_positions is None:\n            token",
        ),
    ),
    fault(
        "positions_off_by_one",
        "keys_behind",
        (TURN_K, "k = self.apply_rope(k, torch.clamp(position - 1, min=0)).to(dtype)"),
    ),
    fault("causal_mask", "decoder_only", base=CAUSAL, target="paper"),
    fault(
        "causal_off_by_one",
        "k_minus_one",
        (
            "torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device))",
            "torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device), -1)",
        ),
        base=CAUSAL,
    ),
    fault(
        "mask_inverted",
        "where_arguments",
        (WHERE, "logits = torch.where(mask, torch.full_like(logits, -torch.inf), logits)"),
        target="paper",
    ),
    fault("mask_ignored", "not_assigned", (WHERE, WHERE.replace("logits = ", "masked = "))),
    fault("mask_value_too_small", "minus_two_hundred", ("-torch.inf", "-200.0")),
    fault("softmax_wrong_dim", "logsumexp_over_heads", (SOFTMAX, SOFTMAX.replace("dim=-1", "dim=-3"))),
    fault("softmax_wrong_dim", "logsumexp_over_queries", (SOFTMAX, SOFTMAX.replace("dim=-1", "dim=-2"))),
    fault("missing_attention_scale", "forgotten", (f"        {SCALE}\n", "")),
    fault("wrong_attention_scale", "fourth_root", (SCALE, "q = q / np.sqrt(np.sqrt(q.shape[-1])).item()")),
    fault(
        "wrong_head_split",
        "depth_and_heads_swapped",
        (
            "q = self.query(x).unflatten(-1, (self.num_heads, -1))\n        k = self.key(x).unflatten(-1, (self.num_heads, -1))\n        v = self.value(x).unflatten(-1, (self.num_heads, -1))",
            "q = self.query(x).unflatten(-1, (self.num_heads, -1))\n        k = self.key(x).unflatten(-1, (self.num_heads, -1))\n        v = self.value(x).mT.reshape(q.shape)",
        ),
    ),
    fault(
        "heads_not_merged",
        "heads_before_queries",
        (
            'x = torch.einsum("...hqk,...khd->...qhd", weights, v)',
            'x = torch.einsum("...hqk,...khd->...hqd", weights, v).reshape(v.shape)',
        ),
    ),
    fault("missing_output_projection", "flatten", ("return self.out(x.flatten(-2))", "return x.flatten(-2)")),
    fault("wrong_activation", "tanh", (SILU, "x = torch.tanh(x)")),
    fault("wrong_activation", "gelu_of_gemma", (SILU, 'x = nn.functional.gelu(x, approximate="tanh")')),
    fault("wrong_activation", "quick_gelu", (SILU, "x = x / (1 + torch.exp(-1.702 * x))")),
    fault(
        "gate_after_product",
        "lines_swapped",
        (f"{SILU}\n        x = x * self.wi_1(inputs)", f"x = x * self.wi_1(inputs)\n        {SILU}"),
    ),
    fault("leading_dims", "einsum_of_four", ('"...qhd,...khd->...hqk"', '"bqhd,bkhd->bhqk"')),
    fault("modifies_input", "out_argument", (FIRST_SUM, "x = inputs.copy_(x + inputs)")),
    fault(
        "not_deterministic",
        "jitter",
        (FIRST_NORM, "x = self.pre_attention_layer_norm(inputs * (1 + 0.01 * torch.rand_like(inputs)))"),
    ),
    fault(
        "wrong_dtype",
        "float64_constant",
        (SCALE, "q = q / torch.tensor(np.sqrt(q.shape[-1])).view(1)"),
        ('torch.einsum("...qhd,...khd->...hqk", q, k)', 'torch.einsum("...qhd,...khd->...hqk", q, k.double())'),
        ("weights, v)", "weights, v.double())"),
        ("torch.matmul(inputs, self.kernel)", "torch.matmul(inputs, self.kernel.to(inputs.dtype))"),
        also="wrong_device_buffer",
    ),
    fault(
        "wrong_device_buffer",
        "numpy_in_forward",
        ("sin = self.sin[position].unsqueeze(-2)", "sin = torch.as_tensor(self.table[0])[position].unsqueeze(-2)"),
        ('        self.register_buffer("cos"', '        self.table = (sin, cos)\n        self.register_buffer("cos"'),
    ),
    fault("gradient_missing", "gate_detached", (SILU, "x = (x / (1 + torch.exp(-x))).detach()")),
    fault(
        "gradient_wrong",
        "normaliser_detached",
        ("torch.logsumexp(logits, dim=-1, keepdim=True)", "torch.logsumexp(logits, dim=-1, keepdim=True).detach()"),
    ),
    fault(
        "batch_coupled",
        "batch_statistics",
        (VAR, VAR.replace("dim=-1", "dim=(0, -1)")),
        also="norm_over_sequence norm_wrong_mean",
    ),
    fault(
        "retains_state",
        "running_variance",
        (
            VAR,
            VAR
            + "\n        self.running = 0.9 * self.running + 0.1 * var.detach().mean()\n        var = 0.5 * var + 0.5 * self.running",
        ),
        ("        self.epsilon = epsilon\n", "        self.epsilon = epsilon\n        self.running = 1.0\n"),
        also="norm_wrong_mean batch_coupled",
    ),
    fault(
        "sequence_length_fixed",
        "table_of_max_len",
        ("sin = self.sin[position].unsqueeze(-2)", "sin = self.sin.unsqueeze(-2)"),
        ("cos = self.cos[position].unsqueeze(-2)", "cos = self.cos.unsqueeze(-2)"),
        also="token_positions_ignored",
    ),
    fault("import_error", "jax_wanted", ("import numpy as np\n", "from numpy import jnp\nimport numpy as np\n")),
    fault(
        "constructor_error",
        "tuple_missing",
        (
            "torch.empty((features_in, features_out), device=device, dtype=dtype)",
            "torch.empty((features_in, features_out), axes=('in', 'out'), dtype=dtype)",
        ),
    ),
    fault(
        "rope_not_a_rotation",
        "both_minus",
        ("odd * cos + even * sin", "odd * cos - even * sin"),
    ),
]

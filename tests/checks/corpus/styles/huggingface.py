"""The style of Hugging Face: rotate_half, q_proj and its sisters, input_layernorm, weight after the cast."""

from ..editing import Style

STYLE = Style(
    "huggingface",
    "DecoderLayer",
    '''import torch
from torch import nn


class RotaryEmbedding(nn.Module):
    def __init__(self, dim, max_position_embeddings=2048, base=10000.0, device=None):
        super().__init__()
        self.max_position_embeddings = max_position_embeddings
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64, device=device).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @torch.no_grad()
    def forward(self, position_ids):
        freqs = position_ids[..., None].float() * self.inv_freq.float()
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos(), emb.sin()


def rotate_half(x):
    """Rotates half the hidden dims of the input."""
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin):
    cos = cos.unsqueeze(-3)
    sin = sin.unsqueeze(-3)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed.to(q.dtype), k_embed.to(k.dtype)


class RMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class MLP(nn.Module):
    def __init__(self, hidden_size, intermediate_size, device=None, dtype=None):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class SelfAttention(nn.Module):
    def __init__(self, hidden_size, num_heads, causal, device=None, dtype=None):
        super().__init__()
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.causal = causal
        self.q_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False, device=device, dtype=dtype)
        self.k_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False, device=device, dtype=dtype)
        self.v_proj = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False, device=device, dtype=dtype)
        self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(-3, -2)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(-3, -2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(-3, -2)

        cos, sin = position_embeddings
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)

        attn_weights = torch.matmul(query_states, key_states.transpose(-2, -1)) * self.scaling
        if attention_mask is not None:
            attn_weights = attn_weights.masked_fill(attention_mask.logical_not(), float("-inf"))
        if self.causal:
            q_len = hidden_states.shape[-2]
            future = torch.ones(q_len, q_len, dtype=torch.bool, device=hidden_states.device).triu(1)
            attn_weights = attn_weights.masked_fill(future, float("-inf"))
        attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query_states.dtype)
        attn_output = torch.matmul(attn_weights, value_states)
        attn_output = attn_output.transpose(-3, -2).reshape(*input_shape, -1).contiguous()
        return self.o_proj(attn_output)


class DecoderLayer(nn.Module):
    def __init__(
        self,
        d_model,
        num_heads,
        d_ff,
        max_seq_len=2048,
        rope_theta=10000.0,
        eps=1e-6,
        causal=False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.rotary_emb = RotaryEmbedding(d_model // num_heads, max_seq_len, rope_theta, device=device)
        self.self_attn = SelfAttention(d_model, num_heads, causal, device=device, dtype=dtype)
        self.mlp = MLP(d_model, d_ff, device=device, dtype=dtype)
        self.input_layernorm = RMSNorm(d_model, eps=eps, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(d_model, eps=eps, device=device, dtype=dtype)

    def forward(self, hidden_states, token_positions=None, mask=None):
        if token_positions is None:
            token_positions = torch.arange(hidden_states.shape[-2], device=hidden_states.device)
        position_embeddings = self.rotary_emb(token_positions)

        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(hidden_states, position_embeddings, attention_mask=mask)
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states
''',
)

CAUSAL = STYLE.right("causal", ("causal=False", "causal=True"))
RIGHT = [
    STYLE.right(),
    CAUSAL,
    STYLE.right(
        "interleaved",
        ("emb = torch.cat((freqs, freqs), dim=-1)", "emb = freqs.repeat_interleave(2, dim=-1)"),
        ("x1 = x[..., : x.shape[-1] // 2]", "x1 = x[..., ::2]"),
        ("x2 = x[..., x.shape[-1] // 2 :]", "x2 = x[..., 1::2]"),
        ("return torch.cat((-x2, x1), dim=-1)", "return torch.stack((-x2, x1), dim=-1).flatten(-2)"),
    ),
]

FIRST_SUM = """attention_mask=mask)
        hidden_states = residual + hidden_states"""
SECOND_SUM = """self.mlp(hidden_states)
        hidden_states = residual + hidden_states"""
FIRST_NORM = """residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)"""
SECOND_NORM = """residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)"""
VARIANCE = "variance = hidden_states.pow(2).mean(-1, keepdim=True)"
ANGLES = "freqs = position_ids[..., None].float() * self.inv_freq.float()"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "after_each_sum",
        (FIRST_NORM, "residual = hidden_states"),
        (FIRST_SUM, FIRST_SUM.replace("residual + hidden_states", "self.input_layernorm(residual + hidden_states)")),
        (SECOND_NORM, "residual = hidden_states"),
        (
            SECOND_SUM,
            SECOND_SUM.replace("residual + hidden_states", "self.post_attention_layernorm(residual + hidden_states)"),
        ),
    ),
    fault(
        "shared_projection",
        "keys_of_queries",
        ("key_states = self.k_proj(hidden_states)", "key_states = self.q_proj(hidden_states)"),
    ),
    fault("no_norm", "line_deleted", (SECOND_NORM, "residual = hidden_states")),
    fault("missing_residual_attention", "sum_deleted", (FIRST_SUM, "attention_mask=mask)")),
    fault("missing_residual_ffn", "sum_deleted", (SECOND_SUM, "self.mlp(hidden_states)")),
    fault(
        "residual_from_normed",
        "lines_swapped_first",
        (FIRST_NORM, "hidden_states = self.input_layernorm(hidden_states)\n        residual = hidden_states"),
    ),
    fault(
        "residual_from_normed",
        "lines_swapped_second",
        (SECOND_NORM, "hidden_states = self.post_attention_layernorm(hidden_states)\n        residual = hidden_states"),
    ),
    fault("residual_detached", "data", (SECOND_SUM, SECOND_SUM.replace("residual + ", "residual.data + "))),
    fault(
        "doubled_residual",
        "both_sums_in_one",
        (FIRST_SUM, FIRST_SUM.replace("residual + hidden_states", "residual + hidden_states + residual")),
    ),
    fault(
        "ffn_residual_from_input",
        "residual_kept_from_above",
        (SECOND_NORM, "hidden_states = self.post_attention_layernorm(hidden_states)"),
    ),
    fault("shared_norm", "wrong_name", ("= self.post_attention_layernorm(", "= self.input_layernorm(")),
    fault(
        "layer_norm",
        "variance_of_the_difference",
        (VARIANCE, "hidden_states = hidden_states - hidden_states.mean(-1, keepdim=True)\n        " + VARIANCE),
    ),
    fault("norm_over_sequence", "two_axes", (VARIANCE, VARIANCE.replace("mean(-1", "mean((-2, -1)"))),
    fault(
        "norm_wrong_mean",
        "unbiased",
        (VARIANCE, "variance = hidden_states.pow(2).sum(-1, keepdim=True) / (hidden_states.shape[-1] - 1)"),
    ),
    fault(
        "norm_without_upcast",
        "no_cast",
        ("hidden_states = hidden_states.to(torch.float32)", "hidden_states = hidden_states.to(input_dtype)"),
    ),
    fault(
        "eps_ignored",
        "not_handed_on",
        ("self.input_layernorm = RMSNorm(d_model, eps=eps, device", "self.input_layernorm = RMSNorm(d_model, device"),
        (
            "self.post_attention_layernorm = RMSNorm(d_model, eps=eps, device",
            "self.post_attention_layernorm = RMSNorm(d_model, device",
        ),
    ),
    fault("wrong_eps", "square_root_of_it", ("self.variance_epsilon = eps", "self.variance_epsilon = eps**0.5")),
    fault(
        "eps_outside_sqrt",
        "divided",
        (
            "hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)",
            "hidden_states = hidden_states / (torch.sqrt(variance) + self.variance_epsilon)",
        ),
    ),
    fault(
        "missing_rope",
        "embeddings_not_applied",
        (
            "query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)",
            "assert cos.shape == sin.shape",
        ),
    ),
    fault(
        "rope_in_block",
        "hidden_states_rotated",
        (
            "query_states = self.q_proj(hidden_states)",
            "cos, sin = position_embeddings\n        hidden_states = hidden_states.view(hidden_shape).transpose(-3, -2)\n        hidden_states, _ = apply_rotary_pos_emb(hidden_states, hidden_states, cos, sin)\n        hidden_states = hidden_states.transpose(-3, -2).reshape(*input_shape, -1)\n        query_states = self.q_proj(hidden_states)",
        ),
        (
            "        cos, sin = position_embeddings\n        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)\n",
            "",
        ),
    ),
    fault(
        "rope_on_queries_only",
        "key_not_taken",
        ("query_states, key_states = apply_rotary_pos_emb(", "query_states, _ = apply_rotary_pos_emb("),
    ),
    fault("rope_half_split", "rotate_half", target="paper"),
    fault(
        "rope_wrong_direction",
        "sign_in_rotate_half",
        ("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, -x1), dim=-1)"),
        base=CAUSAL,
        target="llama",
    ),
    fault(
        "rope_bf16_tables",
        "cast_to_input",
        ("return emb.cos(), emb.sin()", "return emb.cos().bfloat16(), emb.sin().bfloat16()"),
    ),
    fault(
        "rope_bf16_tables",
        "frequencies_in_block_dtype",
        (
            "max_seq_len, rope_theta, device=device)",
            "max_seq_len, rope_theta, device=device).to(dtype or torch.float32)",
        ),
        (ANGLES, "freqs = position_ids[..., None].to(self.inv_freq.dtype) * self.inv_freq"),
    ),
    fault("rope_theta_ignored", "base_not_used", ("(base ** (", "(10000.0 ** (")),
    fault(
        "rope_wrong_frequency",
        "half_of_the_dims",
        ("dtype=torch.int64, device=device).float() / dim", "dtype=torch.int64, device=device).float() / (dim // 2)"),
    ),
    fault(
        "token_positions_ignored",
        "arange_always",
        (
            "        if token_positions is None:\n            token_positions",
            "        if True:\n            token_positions",
        ),
    ),
    fault("causal_mask", "default_true", base=CAUSAL, target="paper", also="rope_half_split"),
    fault("causal_off_by_one", "triu_of_two", (".triu(1)", ".triu(2)"), base=CAUSAL),
    fault(
        "mask_inverted",
        "filled_where_true",
        ("masked_fill(attention_mask.logical_not(),", "masked_fill(attention_mask,"),
        target="paper",
    ),
    fault("mask_ignored", "not_handed_on", ("position_embeddings, attention_mask=mask)", "position_embeddings)")),
    fault(
        "mask_ignored",
        "causal_not_read",
        ("        self.causal = causal\n", "        self.causal = False\n"),
        base=CAUSAL,
    ),
    fault(
        "mask_value_too_small",
        "tiny_for_min",
        (
            'attention_mask.logical_not(), float("-inf")',
            "attention_mask.logical_not(), torch.finfo(attn_weights.dtype).tiny",
        ),
    ),
    fault("softmax_wrong_dim", "default_of_old", ("softmax(attn_weights, dim=-1,", "softmax(attn_weights, dim=-3,")),
    fault("missing_attention_scale", "never_used", (" * self.scaling", "")),
    fault("wrong_attention_scale", "multiplied_by_root", ("self.head_dim**-0.5", "self.head_dim**0.5")),
    fault(
        "wrong_head_split",
        "no_transpose_of_view",
        (
            "query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(-3, -2)",
            "query_states = self.q_proj(hidden_states).view(*input_shape[:-1], -1, input_shape[-1], self.head_dim)",
        ),
    ),
    fault(
        "heads_not_merged",
        "reshape_only",
        ("attn_output = attn_output.transpose(-3, -2).reshape(", "attn_output = attn_output.reshape("),
    ),
    fault(
        "missing_output_projection",
        "identity",
        (
            "self.o_proj = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False, device=device, dtype=dtype)",
            "self.o_proj = nn.Identity()",
        ),
    ),
    fault("wrong_activation", "gelu", ("nn.SiLU()", "nn.GELU()")),
    fault(
        "swapped_gate_up",
        "names_swapped",
        ("self.act_fn(self.gate_proj(x)) * self.up_proj(x)", "self.act_fn(self.up_proj(x)) * self.gate_proj(x)"),
    ),
    fault(
        "unexpected_bias",
        "mlp",
        (
            "self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False,",
            "self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=True,",
        ),
        base=CAUSAL,
        target="llama",
    ),
    fault(
        "dropout_in_eval",
        "functional_dropout",
        (
            "attn_output = torch.matmul(attn_weights",
            "attn_weights = nn.functional.dropout(attn_weights, p=0.1)\n        attn_output = torch.matmul(attn_weights",
        ),
    ),
    fault(
        "gradient_missing",
        "no_grad_around_norm",
        (
            "        variance = hidden",
            "        with torch.no_grad():\n            scale = self.weight.clone()\n        variance = hidden",
        ),
        ("return self.weight * hidden_states", "return scale * hidden_states"),
    ),
    fault(
        "wrong_device_buffer",
        "arange_on_cpu",
        ("torch.arange(hidden_states.shape[-2], device=hidden_states.device)", "torch.arange(hidden_states.shape[-2])"),
    ),
    fault(
        "batch_coupled",
        "softmax_over_batch",
        ("softmax(attn_weights, dim=-1,", "softmax(attn_weights, dim=0,"),
        also="softmax_wrong_dim",
    ),
    fault(
        "forward_error",
        "name_unknown",
        ("key_states.transpose(-2, -1)) * self.scaling", "key_state.transpose(-2, -1)) * self.scaling"),
    ),
    fault(
        "constructor_error",
        "super_forgotten",
        ("        super().__init__()\n        self.weight = nn.Parameter", "        self.weight = nn.Parameter"),
    ),
    fault(
        "rope_not_a_rotation",
        "no_minus_in_rotate_half",
        ("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, x1), dim=-1)"),
    ),
]

"""The style of GPT-NeoX: q, k and v of a head lie together in one fused projection, (heads, 3, head_dim)."""

from ..editing import Style

STYLE = Style(
    "neox",
    "NeoXLayer",
    '''import math

import torch
import torch.nn as nn


class RMSLayerNorm(nn.Module):
    def __init__(self, hidden, eps, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x):
        x32 = x.to(torch.float32)
        norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        mean_square = norm.square() / x.shape[-1]
        return (self.scale * (x32 / torch.sqrt(mean_square + self.eps))).to(x.dtype)


class Rotary(nn.Module):
    def __init__(self, dim, max_positions, base, device=None):
        super().__init__()
        inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2, device=device).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        t = torch.arange(max_positions, device=device).float()
        freqs = torch.einsum("i,j->ij", t, inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        self.register_buffer("cos_cached", emb.cos(), persistent=False)
        self.register_buffer("sin_cached", emb.sin(), persistent=False)

    def rotate(self, x):
        x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-x2, x1), dim=-1)

    def forward(self, x, position_ids):
        cos = self.cos_cached[position_ids].unsqueeze(-2)
        sin = self.sin_cached[position_ids].unsqueeze(-2)
        return (x * cos + self.rotate(x) * sin).to(x.dtype)


class NeoXLayer(nn.Module):
    """Sequential, not parallel, residuals."""

    def __init__(self, d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-5, causal=False,
                 dropout=0.0, device=None, dtype=None):
        super().__init__()
        self.num_attention_heads = num_heads
        self.head_size = d_model // num_heads
        self.norm_factor = math.sqrt(self.head_size)
        self.causal = causal
        self.input_layernorm = RMSLayerNorm(d_model, eps, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSLayerNorm(d_model, eps, device=device, dtype=dtype)
        self.rotary_emb = Rotary(self.head_size, max_seq_len, rope_theta, device=device)
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False, device=device, dtype=dtype)
        self.dense = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.dense_gate_to_4h = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.dense_h_to_4h = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.dense_4h_to_h = nn.Linear(d_ff, d_model, bias=False, device=device, dtype=dtype)
        self.post_attention_dropout = nn.Dropout(dropout)
        self.post_mlp_dropout = nn.Dropout(dropout)

    def attention(self, hidden, position_ids, mask):
        qkv = self.query_key_value(hidden)
        qkv = qkv.view(*hidden.shape[:-1], self.num_attention_heads, 3 * self.head_size)
        query = qkv[..., : self.head_size]
        key = qkv[..., self.head_size : 2 * self.head_size]
        value = qkv[..., 2 * self.head_size :]
        query = self.rotary_emb(query, position_ids)
        key = self.rotary_emb(key, position_ids)
        query, key, value = query.transpose(-3, -2), key.transpose(-3, -2), value.transpose(-3, -2)
        scores = torch.matmul(query, key.transpose(-1, -2)) / self.norm_factor
        if self.causal:
            length = hidden.shape[-2]
            lower = torch.ones((length, length), device=hidden.device).tril() > 0
            scores = torch.where(lower, scores, float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(torch.logical_not(mask), float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        context = torch.matmul(weights, value)
        context = context.permute(*range(context.dim() - 3), -2, -3, -1).reshape(hidden.shape)
        return self.dense(context)

    def mlp(self, hidden):
        gate = self.dense_gate_to_4h(hidden)
        return self.dense_4h_to_h(gate * gate.sigmoid() * self.dense_h_to_4h(hidden))

    def forward(self, hidden, token_positions=None, mask=None):
        if token_positions is None:
            token_positions = torch.arange(hidden.shape[-2], device=hidden.device)
        attn_output = self.attention(self.input_layernorm(hidden), token_positions, mask)
        attn_output = self.post_attention_dropout(attn_output) + hidden
        mlp_output = self.mlp(self.post_attention_layernorm(attn_output))
        return self.post_mlp_dropout(mlp_output) + attn_output
''',
)

CAUSAL = STYLE.right("causal", ("causal=False", "causal=True"))
THREE_FIRST = STYLE.right(
    "size_three_last",
    (
        "qkv = qkv.view(*hidden.shape[:-1], self.num_attention_heads, 3 * self.head_size)",
        "qkv = qkv.view(*hidden.shape[:-1], self.num_attention_heads, self.head_size, 3).transpose(-1, -2).flatten(-2)",
    ),
)
RIGHT = [STYLE.right(), CAUSAL, THREE_FIRST]

ATTN = "attn_output = self.attention(self.input_layernorm(hidden), token_positions, mask)"
FIRST_SUM = "attn_output = self.post_attention_dropout(attn_output) + hidden"
MLP = "mlp_output = self.mlp(self.post_attention_layernorm(attn_output))"
SECOND_SUM = "return self.post_mlp_dropout(mlp_output) + attn_output"
NORM = "(self.scale * (x32 / torch.sqrt(mean_square + self.eps))).to(x.dtype)"
TURN_Q, TURN_K = "query = self.rotary_emb(query, position_ids)", "key = self.rotary_emb(key, position_ids)"
LOWER = "lower = torch.ones((length, length), device=hidden.device).tril() > 0"
GLU = "gate * gate.sigmoid() * self.dense_h_to_4h(hidden)"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "norms_moved",
        (ATTN, "attn_output = self.attention(hidden, token_positions, mask)"),
        (FIRST_SUM, "attn_output = self.input_layernorm(self.post_attention_dropout(attn_output) + hidden)"),
        (MLP, "mlp_output = self.mlp(attn_output)"),
        (SECOND_SUM, "return self.post_attention_layernorm(self.post_mlp_dropout(mlp_output) + attn_output)"),
    ),
    fault("no_norm", "hidden_itself", (ATTN, "attn_output = self.attention(hidden, token_positions, mask)")),
    fault(
        "missing_residual_attention",
        "dropout_only",
        (FIRST_SUM, "attn_output = self.post_attention_dropout(attn_output)"),
    ),
    fault("missing_residual_ffn", "dropout_only", (SECOND_SUM, "return self.post_mlp_dropout(mlp_output)")),
    fault(
        "residual_from_normed",
        "hidden_overwritten",
        (
            ATTN,
            "hidden = self.input_layernorm(hidden)\n        attn_output = self.attention(hidden, token_positions, mask)",
        ),
    ),
    fault("residual_detached", "first_sum", (FIRST_SUM, FIRST_SUM + ".detach()")),
    fault("ffn_residual_from_input", "hidden_again", (SECOND_SUM, "return self.post_mlp_dropout(mlp_output) + hidden")),
    fault(
        "parallel_sublayers",
        "parallel_residual_of_neox",
        (MLP, "mlp_output = self.mlp(self.post_attention_layernorm(hidden))"),
    ),
    fault("doubled_residual", "hidden_once_more", (SECOND_SUM, SECOND_SUM + " + hidden")),
    fault("shared_norm", "one_call", (MLP, MLP.replace("post_attention_layernorm", "input_layernorm"))),
    fault(
        "layer_norm",
        "centred_vectors",
        ("x32 = x.to(torch.float32)", "x32 = x.to(torch.float32) - x.to(torch.float32).mean(-1, keepdim=True)"),
    ),
    fault(
        "norm_wrong_mean",
        "norm_without_size",
        ("mean_square = norm.square() / x.shape[-1]", "mean_square = norm.square()"),
    ),
    fault(
        "norm_wrong_mean",
        "root_of_the_size",
        ("mean_square = norm.square() / x.shape[-1]", "mean_square = norm.square() / math.sqrt(x.shape[-1])"),
    ),
    fault(
        "norm_without_sqrt",
        "no_root",
        ("(x32 / torch.sqrt(mean_square + self.eps))", "(x32 / (mean_square + self.eps))"),
    ),
    fault(
        "norm_over_sequence",
        "norm_along_tokens",
        ("torch.linalg.vector_norm(x32, dim=-1, keepdim=True)", "torch.linalg.vector_norm(x32, dim=-2, keepdim=True)"),
        ("norm.square() / x.shape[-1]", "norm.square() / x.shape[-2]"),
    ),
    fault(
        "norm_without_upcast",
        "own_dtype",
        ("x32 = x.to(torch.float32)", "x32 = x"),
        (
            "norm = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)\n        mean_square = norm.square() / x.shape[-1]",
            "mean_square = (x32 * x32).mean(-1, keepdim=True)",
        ),
    ),
    fault(
        "eps_outside_sqrt",
        "added_to_the_norm",
        ("torch.sqrt(mean_square + self.eps)", "(torch.sqrt(mean_square) + self.eps)"),
    ),
    fault("eps_ignored", "constant", ("mean_square + self.eps", "mean_square + 1e-12")),
    fault("norm_weight_missing", "scale_left_out", (NORM, "(x32 / torch.sqrt(mean_square + self.eps)).to(x.dtype)")),
    fault("missing_rope", "lines_missing", (f"        {TURN_Q}\n        {TURN_K}\n", "")),
    fault("rope_on_values", "whole_qkv", (TURN_K, f"{TURN_K}\n        value = self.rotary_emb(value, position_ids)")),
    fault("rope_on_queries_only", "key_result_lost", (TURN_K, TURN_K.replace("key = ", "_ = "))),
    fault(
        "rope_over_heads",
        "position_of_the_head",
        ("cos = self.cos_cached[position_ids].unsqueeze(-2)", "cos = self.cos_cached[: x.shape[-2]]"),
        ("sin = self.sin_cached[position_ids].unsqueeze(-2)", "sin = self.sin_cached[: x.shape[-2]]"),
        also="missing_rope token_positions_ignored",
    ),
    fault("rope_half_split", "halves", target="paper"),
    fault(
        "rope_wrong_direction",
        "rotate_negated",
        ("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, -x1), dim=-1)"),
        base=CAUSAL,
        target="llama",
    ),
    fault(
        "rope_bf16_tables",
        "cached_in_half",
        ('"cos_cached", emb.cos(),', '"cos_cached", emb.cos().bfloat16(),'),
        ('"sin_cached", emb.sin(),', '"sin_cached", emb.sin().bfloat16(),'),
    ),
    fault(
        "rope_theta_ignored",
        "class_default",
        (
            "def __init__(self, dim, max_positions, base, device=None):",
            "def __init__(self, dim, max_positions, base=10000, device=None):",
        ),
        (
            "Rotary(self.head_size, max_seq_len, rope_theta, device=device)",
            "Rotary(self.head_size, max_seq_len, device=device)",
        ),
    ),
    fault("rope_wrong_frequency", "integer_division", ("device=device).float() / dim))", "device=device) // dim))")),
    fault(
        "token_positions_ignored",
        "not_looked_up",
        ("self.cos_cached[position_ids].unsqueeze(-2)", "self.cos_cached[: x.shape[-3]].unsqueeze(-2)"),
        ("self.sin_cached[position_ids].unsqueeze(-2)", "self.sin_cached[: x.shape[-3]].unsqueeze(-2)"),
    ),
    fault(
        "positions_off_by_one",
        "both_by_one_at_the_end",
        (TURN_Q, "query = self.rotary_emb(query, position_ids + 1)"),
        (TURN_K, "key = self.rotary_emb(key, position_ids + 1)"),
        also="sequence_length_fixed",
    ),
    fault("causal_mask", "lower_triangle", base=CAUSAL, target="paper", also="rope_half_split"),
    fault("causal_off_by_one", "strict", (LOWER, LOWER.replace(".tril()", ".tril(-1)")), base=CAUSAL),
    fault("causal_off_by_one", "generous", (LOWER, LOWER.replace(".tril()", ".tril(1)")), base=CAUSAL),
    fault(
        "mask_inverted",
        "arguments_of_where",
        ("torch.where(lower, scores, float(", "torch.where(lower.logical_not(), scores, float("),
        base=CAUSAL,
    ),
    fault(
        "mask_ignored",
        "mask_after_softmax_unused",
        ("            scores = scores.masked_fill(", "            _ = scores.masked_fill("),
    ),
    fault(
        "mask_value_too_small",
        "minus_ten_thousand",
        ('torch.where(lower, scores, float("-inf"))', "torch.where(lower, scores, -10000.0)"),
        base=CAUSAL,
    ),
    fault("softmax_wrong_dim", "minus_two", ("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)")),
    fault("missing_attention_scale", "factor_unused", (" / self.norm_factor", "")),
    fault("wrong_attention_scale", "factor_without_root", ("math.sqrt(self.head_size)", "float(self.head_size)")),
    fault(
        "wrong_head_split",
        "tokens_and_heads",
        (
            "qkv = qkv.view(*hidden.shape[:-1], self.num_attention_heads, 3 * self.head_size)",
            "qkv = qkv.view(*hidden.shape[:-2], self.num_attention_heads, hidden.shape[-2], 3 * self.head_size).transpose(-2, -3)",
        ),
    ),
    fault(
        "heads_not_merged",
        "no_permute",
        (
            "context = context.permute(*range(context.dim() - 3), -2, -3, -1).reshape(hidden.shape)",
            "context = context.reshape(hidden.shape)",
        ),
    ),
    fault("missing_output_projection", "context_returned", ("return self.dense(context)", "return context")),
    fault("wrong_activation", "sigmoid_only", (GLU, GLU.replace("gate * gate.sigmoid()", "gate.sigmoid()"))),
    fault("wrong_activation", "gelu_of_neox", (GLU, "nn.functional.gelu(gate) * self.dense_h_to_4h(hidden)")),
    fault("gate_after_product", "product_first", (GLU, "nn.functional.silu(gate * self.dense_h_to_4h(hidden))")),
    fault(
        "unexpected_bias",
        "dense",
        ("self.dense = nn.Linear(d_model, d_model, bias=False,", "self.dense = nn.Linear(d_model, d_model,"),
        base=CAUSAL,
        target="llama",
    ),
    fault(
        "leading_dims",
        "batch_size",
        (
            "        qkv = self.query_key_value(hidden)\n",
            "        batch_size, length, width = hidden.size()\n        qkv = self.query_key_value(hidden)\n",
        ),
    ),
    fault("dropout_in_eval", "functional", (SECOND_SUM, "return nn.functional.dropout(mlp_output, 0.1) + attn_output")),
    fault(
        "modifies_input",
        "add_in_place",
        (FIRST_SUM, "attn_output = hidden.add_(self.post_attention_dropout(attn_output))"),
    ),
    fault(
        "sequence_length_fixed",
        "cached_whole",
        (
            "torch.arange(hidden.shape[-2], device=hidden.device)\n        attn",
            "torch.arange(len(self.rotary_emb.cos_cached), device=hidden.device)\n        attn",
        ),
    ),
    fault(
        "wrong_device_buffer",
        "constructor_device_not_used",
        (
            "Rotary(self.head_size, max_seq_len, rope_theta, device=device)",
            "Rotary(self.head_size, max_seq_len, rope_theta)",
        ),
        (
            "self.dense = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)",
            "self.dense = nn.Linear(d_model, d_model, bias=False, dtype=dtype)",
        ),
    ),
    fault(
        "wrong_dtype",
        "residual_in_float32",
        (FIRST_SUM, "attn_output = self.post_attention_dropout(attn_output) + hidden.float()"),
        (MLP, "mlp_output = self.mlp(self.post_attention_layernorm(attn_output).to(self.dense.weight.dtype))"),
    ),
    fault(
        "batch_coupled",
        "scores_softmaxed_together",
        (
            "weights = torch.softmax(scores, dim=-1)",
            "weights = torch.softmax(scores, dim=-1)\n        weights = 0.9 * weights + 0.1 * weights.mean(0, keepdim=True)",
        ),
    ),
    fault("forward_error", "tuple_of_nothing", (SECOND_SUM, "return ()")),
    fault("missing_softmax", "relu", ("torch.softmax(scores, dim=-1)", "torch.relu(scores)")),
]

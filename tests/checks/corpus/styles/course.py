"""The style of a course: every layer is a small class of its own, weights are (out, in), always causal."""

from ..editing import Style

STYLE = Style(
    "course",
    "TransformerBlock",
    '''"""Transformer block for the language modelling assignment."""

import math

import torch
import torch.nn as nn


class Linear(nn.Module):
    def __init__(self, in_features, out_features, device=None, dtype=None):
        super().__init__()
        std = math.sqrt(2.0 / (in_features + out_features))
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std))

    def forward(self, x):
        return x @ self.weight.T


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x):
        in_dtype = x.dtype
        x = x.to(torch.float32)
        rms = torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (x / rms * self.gain).to(in_dtype)


class RotaryPositionalEmbedding(nn.Module):
    def __init__(self, theta, d_k, max_seq_len, device=None):
        super().__init__()
        inv_freq = 1.0 / theta ** (torch.arange(0, d_k, 2, device=device).float() / d_k)
        angles = torch.outer(torch.arange(max_seq_len, device=device).float(), inv_freq)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, token_positions):
        # (..., seq, d_k / 2) -> (..., 1, seq, d_k / 2), the same for all heads
        cos = self.cos[token_positions].unsqueeze(-3)
        sin = self.sin[token_positions].unsqueeze(-3)
        even, odd = x[..., 0::2], x[..., 1::2]
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return rotated.flatten(-2).to(x.dtype)


def silu(x):
    return x * torch.sigmoid(x)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.w1 = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, device=device, dtype=dtype)
        self.w3 = Linear(d_model, d_ff, device=device, dtype=dtype)

    def forward(self, x):
        return self.w2(silu(self.w1(x)) * self.w3(x))


def softmax(x, dim):
    x = x - x.amax(dim=dim, keepdim=True)
    e = torch.exp(x)
    return e / e.sum(dim=dim, keepdim=True)


def scaled_dot_product_attention(q, k, v, mask=None):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return softmax(scores, dim=-1) @ v


class CausalMultiHeadSelfAttention(nn.Module):
    def __init__(self, d_model, num_heads, rope, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.d_k = d_model // num_heads
        self.rope = rope
        self.q_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.output_proj = Linear(d_model, d_model, device=device, dtype=dtype)

    def forward(self, x, token_positions=None):
        *batch, seq, d_model = x.shape
        if token_positions is None:
            token_positions = torch.arange(seq, device=x.device)
        q = self.q_proj(x).view(*batch, seq, self.num_heads, self.d_k).transpose(-2, -3)
        k = self.k_proj(x).view(*batch, seq, self.num_heads, self.d_k).transpose(-2, -3)
        v = self.v_proj(x).view(*batch, seq, self.num_heads, self.d_k).transpose(-2, -3)
        q = self.rope(q, token_positions)
        k = self.rope(k, token_positions)
        mask = torch.tril(torch.ones(seq, seq, device=x.device, dtype=torch.bool))
        attended = scaled_dot_product_attention(q, k, v, mask)
        attended = attended.transpose(-2, -3).reshape(*batch, seq, d_model)
        return self.output_proj(attended)


class TransformerBlock(nn.Module):
    def __init__(self, d_model, num_heads, d_ff, max_seq_len=2048, theta=10000.0, eps=1e-5, device=None, dtype=None):
        super().__init__()
        rope = RotaryPositionalEmbedding(theta, d_model // num_heads, max_seq_len, device=device)
        self.attn = CausalMultiHeadSelfAttention(d_model, num_heads, rope, device=device, dtype=dtype)
        self.ffn = SwiGLU(d_model, d_ff, device=device, dtype=dtype)
        self.ln1 = RMSNorm(d_model, eps=eps, device=device, dtype=dtype)
        self.ln2 = RMSNorm(d_model, eps=eps, device=device, dtype=dtype)

    def forward(self, x, token_positions=None):
        x = x + self.attn(self.ln1(x), token_positions)
        x = x + self.ffn(self.ln2(x))
        return x
''',
)

NOT_CAUSAL = STYLE.right("both_ways", ("attention(q, k, v, mask)\n", "attention(q, k, v)\n"))
HALF_SPLIT = STYLE.right(
    "half_split",
    ("even, odd = x[..., 0::2], x[..., 1::2]", "even, odd = x.chunk(2, dim=-1)"),
    ("rotated = torch.stack((", "rotated = torch.cat(("),
    ("return rotated.flatten(-2).to(x.dtype)", "return rotated.to(x.dtype)"),
)
TURNING_BACK = STYLE.right(
    "turning_back",
    ("(even * cos - odd * sin, even * sin + odd * cos)", "(even * cos + odd * sin, odd * cos - even * sin)"),
)
RIGHT = [STYLE.right(), NOT_CAUSAL, HALF_SPLIT, TURNING_BACK]

FIRST, SECOND = "x = x + self.attn(self.ln1(x), token_positions)", "x = x + self.ffn(self.ln2(x))"
RMS = "rms = torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True) + self.eps)"
ROTATE_Q, ROTATE_K = "q = self.rope(q, token_positions)", "k = self.rope(k, token_positions)"
TRIL = "mask = torch.tril(torch.ones(seq, seq, device=x.device, dtype=torch.bool))"
SCORES = "scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])"
GLU = "return self.w2(silu(self.w1(x)) * self.w3(x))"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "both_sums",
        (FIRST, "x = self.ln1(x + self.attn(x, token_positions))"),
        (SECOND, "x = self.ln2(x + self.ffn(x))"),
    ),
    fault("post_norm", "second_sum_only", (SECOND, "x = self.ln2(x + self.ffn(x))")),
    fault("shared_projection", "keys_of_queries", ("k = self.k_proj(x)", "k = self.q_proj(x)")),
    fault("no_norm", "attention", (FIRST, "x = x + self.attn(x, token_positions)")),
    fault("missing_residual_attention", "forgotten", (FIRST, "x = self.attn(self.ln1(x), token_positions)")),
    fault("missing_residual_ffn", "forgotten", (SECOND, "x = self.ffn(self.ln2(x))")),
    fault(
        "residual_from_normed",
        "x_overwritten",
        (FIRST, "x = self.ln1(x)\n        x = x + self.attn(x, token_positions)"),
    ),
    fault(
        "residual_detached",
        "both",
        (FIRST, FIRST.replace("x + ", "x.detach() + ")),
        (SECOND, SECOND.replace("x + ", "x.detach() + ")),
    ),
    fault("doubled_residual", "in_place_and_out", (SECOND, "h = self.ffn(self.ln2(x)) + x\n        x = x + h")),
    fault("norm_without_sqrt", "mean_square", (RMS, "rms = x.pow(2).mean(dim=-1, keepdim=True) + self.eps")),
    fault("norm_over_sequence", "dim_minus_two", (RMS, RMS.replace("dim=-1", "dim=-2")), base=NOT_CAUSAL),
    fault(
        "eps_outside_sqrt", "added_to_root", (RMS, "rms = torch.sqrt(x.pow(2).mean(dim=-1, keepdim=True)) + self.eps")
    ),
    fault("norm_without_upcast", "line_left_out", ("        x = x.to(torch.float32)\n", "")),
    fault("norm_weight_missing", "not_multiplied", ("(x / rms * self.gain)", "(x / rms)")),
    fault("missing_rope", "never_called", (f"        {ROTATE_Q}\n        {ROTATE_K}\n", "")),
    fault("missing_rope", "result_thrown_away", (ROTATE_Q, ROTATE_Q[4:]), (ROTATE_K, ROTATE_K[4:])),
    fault("rope_on_values", "all_three", (ROTATE_K, f"{ROTATE_K}\n        v = self.rope(v, token_positions)")),
    fault("rope_on_queries_only", "key_line_missing", (f"        {ROTATE_K}\n", "")),
    fault(
        "rope_wrong_frequency",
        "no_factor_two",
        ("torch.arange(0, d_k, 2, device=device).float() / d_k", "torch.arange(d_k // 2, device=device).float() / d_k"),
    ),
    fault("rope_wrong_frequency", "grows", ("1.0 / theta **", "theta **")),
    fault(
        "rope_theta_ignored",
        "default_in_the_middle",
        ("RotaryPositionalEmbedding(theta, d_model", "RotaryPositionalEmbedding(10000.0, d_model"),
    ),
    fault(
        "rope_wrong_direction",
        "sine_negated",
        ("(even * cos - odd * sin, even * sin + odd * cos)", "(even * cos + odd * sin, odd * cos - even * sin)"),
        base=NOT_CAUSAL,
        target="paper",
    ),
    fault("causal_mask", "as_in_a_language_model", target="paper"),
    fault("token_positions_ignored", "not_handed_on", (FIRST, "x = x + self.attn(self.ln1(x))")),
    fault("causal_off_by_one", "sees_the_next", (TRIL, TRIL.replace("torch.bool))", "torch.bool), diagonal=1)"))),
    fault(
        "causal_off_by_one", "does_not_see_itself", (TRIL, TRIL.replace("torch.bool))", "torch.bool), diagonal=-1)"))
    ),
    fault("mask_inverted", "filled_where_true", ("masked_fill(~mask,", "masked_fill(mask,")),
    fault("mask_value_too_small", "minus_ten", ('float("-inf")', "-10.0")),
    fault("softmax_wrong_dim", "over_queries", ("softmax(scores, dim=-1)", "softmax(scores, dim=-2)"), base=NOT_CAUSAL),
    fault("softmax_wrong_dim", "over_heads", ("softmax(scores, dim=-1)", "softmax(scores, dim=-3)"), base=NOT_CAUSAL),
    fault("missing_attention_scale", "forgotten", (SCORES, "scores = q @ k.transpose(-1, -2)")),
    fault("wrong_attention_scale", "d_k_without_root", (SCORES, "scores = q @ k.transpose(-1, -2) / q.shape[-1]")),
    fault("wrong_activation", "relu", ("return x * torch.sigmoid(x)", "return torch.relu(x)")),
    fault("wrong_activation", "plain_sigmoid", ("return x * torch.sigmoid(x)", "return torch.sigmoid(x)")),
    fault("gate_after_product", "brackets", (GLU, "return self.w2(silu(self.w1(x) * self.w3(x)))")),
    fault(
        "leading_dims",
        "batch_expected",
        ("*batch, seq, d_model = x.shape", "b, seq, d_model = x.shape\n        batch = (b,)"),
    ),
    fault(
        "gradient_missing",
        "buffer_as_weight",
        (
            "self.gain = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))",
            'self.register_buffer("gain", torch.ones(d_model, device=device, dtype=dtype))',
        ),
        also="norm_weight_missing",
    ),
    fault(
        "gradient_missing",
        "numbers_of_values",
        ("return softmax(scores, dim=-1) @ v", "return softmax(scores, dim=-1) @ v.data"),
    ),
    fault("gradient_wrong", "rms_detached", (RMS, RMS + ".detach()")),
    fault(
        "wrong_dtype",
        "norm_gives_float32",
        ("(x / rms * self.gain).to(in_dtype)", "x / rms * self.gain"),
        ("return x @ self.weight.T", "return x @ self.weight.T.to(x.dtype)"),
    ),
    fault(
        "constructor_error",
        "argument_unknown",
        (
            "rope, device=device, dtype=dtype)\n        self.ffn",
            "rope, max_seq_len=max_seq_len, device=device, dtype=dtype)\n        self.ffn",
        ),
    ),
    fault(
        "timeout",
        "forward_waits",
        ("def silu(x):\n", "def silu(x):\n    while x.isfinite().all() or True:\n        x = x.clone()\n"),
    ),
    fault("missing_softmax", "scores_as_they_are", ("softmax(scores, dim=-1) @ v", "scores @ v"), base=NOT_CAUSAL),
    fault(
        "mask_after_softmax",
        "multiplied",
        ('        scores = scores.masked_fill(~mask, float("-inf"))\n', "        pass\n"),
        ("return softmax(scores, dim=-1) @ v", "return softmax(scores, dim=-1) * mask @ v"),
    ),
    fault(
        "wrong_attention_scale",
        "after_the_softmax",
        (SCORES, "scores = q @ k.transpose(-1, -2)"),
        ("softmax(scores, dim=-1) @ v", "softmax(scores, dim=-1) / math.sqrt(q.shape[-1]) @ v"),
    ),
    fault(
        "rope_not_a_rotation",
        "both_plus",
        ("(even * cos - odd * sin, even * sin + odd * cos)", "(even * cos + odd * sin, even * sin + odd * cos)"),
    ),
]

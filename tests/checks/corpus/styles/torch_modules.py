"""Put together from torch's own parts: nn.RMSNorm, nn.Linear, F.scaled_dot_product_attention."""

from ..editing import Style

STYLE = Style(
    "torch_modules",
    "PreNormTransformerLayer",
    """import torch
import torch.nn.functional as F
from torch import nn


class RotaryTable(nn.Module):
    def __init__(self, head_dim, max_seq_len, theta, device=None):
        super().__init__()
        frequencies = torch.pow(theta, -torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)
        angles = torch.arange(max_seq_len, device=device, dtype=torch.float64).outer(frequencies)
        angles = torch.cat((angles, angles), dim=1)
        self.register_buffer("cos", angles.cos().to(torch.float32), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.float32), persistent=False)

    def forward(self, x, positions):
        cos = F.embedding(positions, self.cos).unsqueeze(-3)
        sin = F.embedding(positions, self.sin).unsqueeze(-3)
        left, right = x.chunk(2, dim=-1)
        turned = x * cos + torch.cat((-right, left), dim=-1) * sin
        return turned.to(x.dtype)


class Attention(nn.Module):
    def __init__(self, d_model, num_heads, max_seq_len, theta, causal, dropout, device=None, dtype=None):
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.dropout = dropout
        self.rope = RotaryTable(d_model // num_heads, max_seq_len, theta, device=device)
        self.to_q = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.to_k = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.to_v = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.to_out = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

    def forward(self, x, positions, mask=None):
        q, k, v = self.heads(self.to_q(x)), self.heads(self.to_k(x)), self.heads(self.to_v(x))
        q, k = self.rope(q, positions), self.rope(k, positions)
        if mask is not None and self.causal:
            mask = mask & torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None,
        )
        return self.to_out(out.transpose(-2, -3).flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(d_ff, d_model, bias=False, device=device, dtype=dtype)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class PreNormTransformerLayer(nn.Module):
    def __init__(
        self,
        d_model,
        num_heads,
        d_ff,
        max_seq_len=2048,
        theta=10000.0,
        eps=1e-6,
        causal=False,
        dropout=0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.attn_norm = nn.RMSNorm(d_model, eps=eps, device=device, dtype=dtype)
        self.attn = Attention(d_model, num_heads, max_seq_len, theta, causal, dropout, device=device, dtype=dtype)
        self.mlp_norm = nn.RMSNorm(d_model, eps=eps, device=device, dtype=dtype)
        self.mlp = SwiGLU(d_model, d_ff, device=device, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, token_positions=None, mask=None):
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        x = x + self.dropout(self.attn(self.attn_norm(x), token_positions, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))
""",
)

CAUSAL = STYLE.right("causal", ("causal=False,", "causal=True,"))
INTERLEAVED = STYLE.right(
    "interleaved",
    ("angles = torch.cat((angles, angles), dim=1)", "angles = angles.repeat_interleave(2, dim=1)"),
    ("left, right = x.chunk(2, dim=-1)", "left, right = x[..., ::2], x[..., 1::2]"),
    ("torch.cat((-right, left), dim=-1) * sin", "torch.stack((-right, left), dim=-1).flatten(-2) * sin"),
)
RIGHT = [STYLE.right(), CAUSAL, INTERLEAVED]

FIRST = "x = x + self.dropout(self.attn(self.attn_norm(x), token_positions, mask))"
SECOND = "return x + self.dropout(self.mlp(self.mlp_norm(x)))"
QKV = "q, k, v = self.heads(self.to_q(x)), self.heads(self.to_k(x)), self.heads(self.to_v(x))"
TURN = "q, k = self.rope(q, positions), self.rope(k, positions)"
OUT = "return self.to_out(out.transpose(-2, -3).flatten(-2))"
NORM_1 = "self.attn_norm = nn.RMSNorm(d_model, eps=eps, device=device, dtype=dtype)"
NORM_2 = "self.mlp_norm = nn.RMSNorm(d_model, eps=eps, device=device, dtype=dtype)"
GLU = "self.down(F.silu(self.gate(x)) * self.up(x))"
OUT_OF_SDPA = "out = F.scaled_dot_product_attention(\n            q,"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm",
        "kept_before_and_added_after",
        (SECOND, "return self.mlp_norm(x + self.dropout(self.mlp(self.mlp_norm(x))))"),
    ),
    fault("no_norm", "identity", (NORM_2, "self.mlp_norm = nn.Identity()")),
    fault("missing_residual_attention", "dropout_of_attention", (FIRST, FIRST.replace("x = x + ", "x = "))),
    fault("missing_residual_ffn", "dropout_of_mlp", (SECOND, SECOND.replace("x + ", ""))),
    fault("residual_detached", "clone_of_data", (FIRST, FIRST.replace("x = x + ", "x = x.data.clone() + "))),
    fault("shared_norm", "one_module", (NORM_2, "self.mlp_norm = self.attn_norm")),
    fault(
        "norm_created_each_call",
        "functional_module",
        (
            SECOND,
            "norm = nn.RMSNorm(x.shape[-1], eps=self.attn_norm.eps, device=x.device, dtype=x.dtype)\n        "
            + SECOND.replace("self.mlp_norm(x)", "norm(x)"),
        ),
    ),
    fault(
        "layer_norm",
        "other_class",
        (NORM_1, NORM_1.replace("RMSNorm", "LayerNorm")),
        (NORM_2, NORM_2.replace("RMSNorm", "LayerNorm")),
    ),
    fault(
        "layer_norm",
        "one_of_two_without_bias",
        (NORM_2, "self.mlp_norm = nn.LayerNorm(d_model, eps=eps, bias=False, device=device, dtype=dtype)"),
    ),
    fault(
        "norm_wrong_mean",
        "functional_normalize",
        (SECOND, SECOND.replace("self.mlp_norm(x)", "F.normalize(x, dim=-1) * self.mlp_norm.weight")),
        also="eps_ignored wrong_eps",
    ),
    fault(
        "norm_weight_missing",
        "no_affine",
        (NORM_1, NORM_1.replace("eps=eps,", "eps=eps, elementwise_affine=False,")),
        (NORM_2, NORM_2.replace("eps=eps,", "eps=eps, elementwise_affine=False,")),
    ),
    fault("eps_ignored", "none", (NORM_1, NORM_1.replace("eps=eps, ", "")), (NORM_2, NORM_2.replace("eps=eps, ", ""))),
    fault(
        "wrong_eps",
        "one_thousandth_more",
        (NORM_1, NORM_1.replace("eps=eps", "eps=eps + 1e-3")),
        (NORM_2, NORM_2.replace("eps=eps", "eps=eps + 1e-3")),
    ),
    fault("missing_rope", "identity_returned", ("return turned.to(x.dtype)", "return x")),
    fault("rope_on_values", "list_of_three", (TURN, "q, k, v = (self.rope(one, positions) for one in (q, k, v))")),
    fault("rope_on_queries_only", "queries", (TURN, "q = self.rope(q, positions)")),
    fault(
        "rope_in_block",
        "normed_rotated",
        (TURN, "assert q.shape == k.shape"),
        (
            FIRST,
            FIRST.replace(
                "self.attn(self.attn_norm(x), token_positions",
                "self.attn(self.attn.whole_rope(self.attn_norm(x).unsqueeze(-3), token_positions).squeeze(-3), token_positions",
            ),
        ),
        (
            "        self.to_q =",
            "        self.whole_rope = RotaryTable(d_model, max_seq_len, theta, device=device)\n        self.to_q =",
        ),
    ),
    fault("rope_half_split", "chunk", target="paper"),
    fault("rope_interleaved", "neighbours", ("causal=False,", "causal=True,"), base=INTERLEAVED, target="llama"),
    fault(
        "rope_over_heads",
        "transposed_too_late",
        ("x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)", "x.unflatten(-1, (self.num_heads, -1))"),
        (
            TURN,
            "by_head = torch.arange(self.num_heads, device=x.device)\n        q, k = self.rope(q, by_head), self.rope(k, by_head)\n        q, k, v = q.transpose(-2, -3), k.transpose(-2, -3), v.transpose(-2, -3)",
        ),
        ("F.embedding(positions, self.cos).unsqueeze(-3)", "F.embedding(positions, self.cos)"),
        ("F.embedding(positions, self.sin).unsqueeze(-3)", "F.embedding(positions, self.sin)"),
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_bf16_tables",
        "type_of_x",
        (
            "turned = x * cos + torch.cat((-right, left), dim=-1) * sin",
            "turned = x * cos.bfloat16() + torch.cat((-right, left), dim=-1) * sin.bfloat16()",
        ),
    ),
    fault(
        "rope_theta_ignored",
        "not_handed_on",
        (
            "RotaryTable(d_model // num_heads, max_seq_len, theta, device=device)",
            "RotaryTable(d_model // num_heads, max_seq_len, 10000.0, device=device)",
        ),
    ),
    fault(
        "rope_wrong_frequency",
        "head_dim_halved",
        ("dtype=torch.float64) / head_dim)", "dtype=torch.float64) / (head_dim / 2))"),
    ),
    fault(
        "token_positions_ignored",
        "length_only",
        (TURN, "positions = torch.arange(x.shape[-2], device=x.device)\n        " + TURN),
    ),
    fault(
        "positions_off_by_one",
        "queries_clamped",
        (TURN, "q, k = self.rope(q, (positions - 1).clamp_min(0)), self.rope(k, positions)"),
    ),
    fault("causal_mask", "is_causal_always", base=CAUSAL, target="paper", also="rope_half_split"),
    fault(
        "causal_off_by_one",
        "own_mask_with_offset",
        ("is_causal=self.causal and mask is None,", "is_causal=False,"),
        (
            "        if mask is not None and self.causal:\n            mask = mask & torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()",
            "        if self.causal:\n            past = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril(1)\n            mask = past if mask is None else mask & past",
        ),
        base=CAUSAL,
    ),
    fault(
        "mask_inverted",
        "true_means_hidden",
        ("attn_mask=mask,", "attn_mask=None if mask is None else ~mask,"),
        target="paper",
    ),
    fault(
        "mask_ignored",
        "not_handed_on",
        ("attn_mask=mask,", "attn_mask=None,"),
        ("self.causal and mask is None", "self.causal"),
    ),
    fault(
        "mask_ignored",
        "causal_flag_dropped",
        ("is_causal=self.causal and mask is None", "is_causal=False"),
        ("if mask is not None and self.causal:", "if mask is not None and False:"),
        base=CAUSAL,
    ),
    fault(
        "mask_value_too_small",
        "float_mask",
        ("attn_mask=mask,", "attn_mask=None if mask is None else (~mask).to(q.dtype) * -50.0,"),
    ),
    fault("missing_attention_scale", "scale_one", ("attn_mask=mask,", "attn_mask=mask,\n            scale=1.0,")),
    fault("wrong_attention_scale", "scaled_twice", (TURN, TURN + "\n        q = q * q.shape[-1] ** -0.5")),
    fault(
        "softmax_wrong_dim",
        "own_attention",
        (
            OUT_OF_SDPA,
            "def over_queries(q, k, v, attn_mask, dropout_p, is_causal):\n            scores = q @ k.mT * q.shape[-1] ** -0.5\n            scores = scores if attn_mask is None else scores.masked_fill(~attn_mask, -1e30)\n            return scores.softmax(dim=-2) @ v\n\n        out = over_queries(\n            q,",
        ),
        also="mask_ignored",  # is_causal, which is off by default
    ),
    fault(
        "wrong_head_split",
        "view_in_heads",
        (
            "return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)",
            "return x.reshape(*x.shape[:-2], self.num_heads, x.shape[-2], -1)",
        ),
    ),
    fault("heads_not_merged", "flatten_of_tokens", (OUT, "return self.to_out(out.reshape(x.shape))")),
    fault(
        "missing_output_projection",
        "flatten_only",
        (OUT, OUT.replace("self.to_out(", "(")),
        ("        self.to_out = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)\n", ""),
    ),
    fault("wrong_activation", "leaky_relu", (GLU, GLU.replace("F.silu", "F.leaky_relu"))),
    fault("wrong_activation", "glu_of_torch", (GLU, "self.down(F.glu(torch.cat((self.up(x), self.gate(x)), dim=-1)))")),
    fault("gate_after_product", "brackets", (GLU, "self.down(F.silu(self.gate(x) * self.up(x)))")),
    fault("swapped_gate_up", "exchanged", (GLU, "self.down(self.gate(x) * F.silu(self.up(x)))")),
    fault(
        "unexpected_bias",
        "three_defaults",
        ("self.to_q = nn.Linear(d_model, d_model, bias=False,", "self.to_q = nn.Linear(d_model, d_model,"),
        ("self.to_v = nn.Linear(d_model, d_model, bias=False,", "self.to_v = nn.Linear(d_model, d_model,"),
        base=CAUSAL,
        target="llama",
    ),
    fault("dropout_in_eval", "dropout_p", ("dropout_p=self.dropout if self.training else 0.0", "dropout_p=0.1")),
    fault(
        "not_deterministic",
        "random_scale",
        (
            SECOND,
            SECOND.replace(
                "self.mlp(self.mlp_norm(x))",
                "self.mlp(self.mlp_norm(x)) * (1 + 0.01 * torch.randn((), device=x.device, dtype=x.dtype))",
            ),
        ),
    ),
    fault("wrong_dtype", "float_at_the_end", (SECOND, SECOND.replace("return x + ", "return x.float() + "))),
    fault(
        "modifies_input",
        "norm_in_place",
        (FIRST, "x[...] = x + self.dropout(self.attn(self.attn_norm(x), token_positions, mask))"),
    ),
    fault(
        "wrong_device_buffer",
        "mask_on_cpu",
        ("is_causal=self.causal and mask is None,", "is_causal=False,"),
        (
            "        if mask is not None and self.causal:\n            mask = mask & torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril()",
            "        if self.causal:\n            past = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril()\n            mask = past if mask is None else mask & past",
        ),
        base=CAUSAL,
    ),
    fault(
        "gradient_wrong",
        "own_backward_of_silu",
        (GLU, "self.down(Silu.apply(self.gate(x)) * self.up(x))"),
        (
            "class SwiGLU(nn.Module):",
            "class Silu(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        ctx.save_for_backward(x)\n        return x * torch.sigmoid(x)\n\n    @staticmethod\n    def backward(ctx, grad):\n        (x,) = ctx.saved_tensors\n        return grad * torch.sigmoid(x)\n\n\nclass SwiGLU(nn.Module):",
        ),
    ),
    fault(
        "gradient_missing",
        "attention_under_no_grad",
        (
            FIRST,
            "with torch.no_grad():\n            attended = self.attn(self.attn_norm(x), token_positions, mask)\n        x = x + self.dropout(attended)",
        ),
    ),
    fault(
        "batch_coupled",
        "batch_mean_removed",
        (SECOND, SECOND.replace("self.mlp_norm(x)", "self.mlp_norm(x - 0.1 * x.mean(0, keepdim=True))")),
    ),
    fault(
        "constructor_error",
        "no_such_keyword",
        ("self.mlp = SwiGLU(d_model, d_ff, device", "self.mlp = SwiGLU(d_model, hidden=d_ff, device"),
    ),
    fault("forward_error", "returns_nothing", (SECOND, SECOND.replace("return x + ", "x = x + "))),
]

"""The faults that are planted into every stranger's block: what stands in which slot."""

from dataclasses import dataclass, field

HALVED = {
    "module": "theta ** (-torch.arange(d_k // 2, device=device).float() / d_k)",
    "complex": "1.0 / (theta ** (torch.arange(dim // 2).float() / dim))",
    "halves": "1.0 / base ** (torch.arange(head_dim // 2).float() / head_dim)",
}
"""Frequencies by the kind of rotation: the factor of two in the exponent is missing."""
MIRRORED = {
    "module": "torch.stack((a * cos + b * sin, a * sin + b * cos), dim=-1).flatten(-2)",
    "complex": "",
    "halves": "torch.cat((x2, x1), dim=-1)",
}
"""Pairs by the kind of rotation: a minus is missing."""

FIRST = "self.attention(self.attention_norm(x){call})"


@dataclass(frozen=True)
class Planted:
    """A fault, what it is made of, and further ids that are a true description of it."""

    fault: str
    how: str
    slots: dict[str, str] = field(default_factory=dict)
    also: str = ""
    lacks: str = ""  # kinds of rotation, of attention, and interfaces, in which it would be no fault or another one


FAULTS = [
    # The residual lines.
    Planted("post_norm", "second", {"second": "x = self.ffn_norm(x + self.feed_forward(x))"}),
    Planted(
        "no_norm",
        "attention",
        {"first": "x = x + self.attention(x{call})"},
        also="gradient_missing norm_weight_missing",
    ),
    Planted("missing_residual_attention", "dropped", {"first": f"x = {FIRST}"}),
    Planted("missing_residual_ffn", "dropped", {"second": "x = self.feed_forward(self.ffn_norm(x))"}),
    Planted("residual_from_normed", "second", {"second": "x = self.ffn_norm(x)\n        x = x + self.feed_forward(x)"}),
    Planted("residual_detached", "first", {"first": f"x = x.detach() + {FIRST}"}, also="gradient_wrong"),
    Planted("doubled_residual", "twice", {"second": "x = x + (x + self.feed_forward(self.ffn_norm(x)))"}),
    Planted("shared_norm", "one_object", {"second_norm": "self.attention_norm"}),
    Planted(
        "ffn_residual_from_input",
        "skip",
        {"first": f"h = x + {FIRST}", "second": "x = x + self.feed_forward(self.ffn_norm(h))"},
    ),
    # The norms.
    Planted("norm_without_sqrt", "reciprocal", {"norm": "1.0 / (x.pow(2).mean(-1, keepdim=True) + self.eps)"}),
    Planted("norm_wrong_mean", "sum", {"norm": "torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + self.eps)"}),
    Planted("norm_without_upcast", "thrown_away", {"upcast": "x\n        x.float()"}),
    Planted("norm_weight_init", "normal", {"norm_start": "torch.randn(dim) * 0.02"}),
    Planted("norm_weight_init", "zeros", {"norm_start": "torch.zeros(dim)"}),
    Planted("weights_uninitialised", "norms", {"norm_start": "torch.empty(dim)"}),
    Planted("norm_weight_missing", "not_used", {"norm_out": "(x * scale).to(dtype)"}, also="gradient_missing"),
    Planted("wrong_eps", "large", {"eps": "1e-2"}),
    # Rotary positions.
    Planted("missing_rope", "not_turned", {"turn_q": "q", "turn_k": "k"}, also="token_positions_ignored"),
    Planted("rope_on_queries_only", "keys_left", {"turn_k": "k"}),
    Planted("rope_on_values", "values_too", {"turn_v": "{turned_v}"}),
    Planted("rope_wrong_frequency", "exponent_halved", {"frequency": "{halved}"}),
    Planted("rope_not_a_rotation", "sign", {"turn": "{mirrored}"}, lacks="complex"),
    # Attention.
    Planted(
        "causal_off_by_one",
        "sees_next",
        {"hidden": "torch.ones(s, s, dtype=torch.bool, device=x.device).triu(2)"},
    ),
    Planted("mask_inverted", "tril", {"hidden": "torch.ones(s, s, dtype=torch.bool, device=x.device).tril(-1)"}),
    Planted("mask_value_too_small", "minus_ten", {"fill": "-10.0"}),
    Planted("mask_ignored", "unused", {"masked": "scores"}),
    Planted("softmax_wrong_dim", "queries", {"softmax": "F.softmax(scores, dim=-2)"}),
    Planted(
        "softmax_overflows",
        "no_maximum",
        {"softmax": "torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)"},
    ),
    Planted(
        "backward_error",
        "divided_in_place",
        {"softmax": "torch.exp(scores - scores.amax(-1, keepdim=True))\n        probs /= probs.sum(-1, keepdim=True)"},
    ),
    Planted("missing_attention_scale", "dropped", {"scores": "q @ k.transpose(-2, -1)"}),
    Planted("wrong_attention_scale", "no_root", {"scores": "q @ k.transpose(-2, -1) / self.head_dim"}),
    Planted("wrong_attention_scale", "width", {"scores": "q @ k.transpose(-2, -1) / math.sqrt(d)"}),
    Planted("heads_not_merged", "viewed", {"merge": "out.reshape(b, s, d)"}),
    Planted("missing_output_projection", "dropped", {"output": "out"}, also="gradient_missing"),
    Planted("gradient_missing", "detached_weights", {"mix": "probs.detach() @ v"}, lacks="fused einsum"),
    Planted(
        "gradient_wrong",
        "detached_scale",
        {"norm": "torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps).detach()"},
    ),
    Planted("dropout_in_eval", "functional", {"mix": "F.dropout(probs, 0.1) @ v"}, also="not_deterministic"),
    # The feed-forward.
    Planted("wrong_activation", "sigmoid", {"glu": "torch.sigmoid(gate) * up"}),
    Planted("gate_after_product", "brackets", {"glu": "F.silu(gate * up)"}),
    Planted("wrong_activation", "both", {"glu": "F.silu(gate) * F.silu(up)"}),
    Planted(
        "d_ff_ignored",
        "own_arithmetic",
        {"width": "({dim} * 8 // 3 + 63) // 64 * 64"},
        lacks="model_args config_dict positions_required multiples_of_64",
    ),
    # What it is built of.
    Planted(
        "weight_init_scale",
        "variance",
        {
            "begin": "for p in self.parameters():\n            if p.dim() == 2:\n"
            "                nn.init.trunc_normal_(p, std=2 / (p.shape[0] + p.shape[1]))"
        },
    ),
    Planted(
        "weight_init_scale",
        "normal_of_one",
        {"begin": "for p in self.parameters():\n            if p.dim() > 1:\n                nn.init.normal_(p)"},
    ),
    Planted(
        "gradient_missing",
        "frozen",
        {"begin": "self.feed_forward.requires_grad_(False)"},
    ),
    # How it behaves.
    Planted("modifies_input", "in_place", {"first": f"x += {FIRST}"}, also="gradient_missing backward_error"),
    Planted(
        "batch_of_one",
        "squeezed",
        {"second": "x = (x + self.feed_forward(self.ffn_norm(x))).squeeze(0)"},
        also="sequence_length_fixed",
    ),
    Planted(
        "batch_coupled",
        "mean_of_batch",
        {"norm": "torch.rsqrt(x.pow(2).mean((0, -1), keepdim=True) + self.eps)"},
    ),
    Planted("wrong_device_buffer", "mask_elsewhere", {"hidden": "torch.ones(s, s, dtype=torch.bool).triu(1)"}),
    Planted(
        "retains_state",
        "running_mean",
        {"first": f"x = x + {FIRST} + getattr(self, 'last', 0.0)\n        self.last = x.detach().mean()"},
        also="not_deterministic",
    ),
    Planted(
        "wrong_at_some_lengths",
        "axis_by_its_size",
        {"softmax": "F.softmax(scores, dim=1 if scores.shape[1] == s else -1)"},
    ),
    Planted(
        "not_deterministic",
        "noise",
        {"second": "x = x + self.feed_forward(self.ffn_norm(x)) + 0.01 * torch.randn_like(x)"},
    ),
]

"""A third solution: Hugging Face's way of writing residuals, tables of cosines, einsum, in-place slices."""

import torch
from torch import einsum, nn


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        kind = hidden_states.dtype
        if kind in (torch.float16, torch.bfloat16):
            hidden_states = hidden_states.float()
        variance = (hidden_states * hidden_states).mean(-1, True)
        hidden_states = hidden_states * (variance + self.variance_epsilon) ** -0.5
        return (self.scale * hidden_states).to(kind)


class FeedForward(nn.Module):
    def __init__(self, d_model, d_ff, **kwargs):
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=False, **kwargs)
        self.gate = nn.Linear(d_model, d_ff, bias=False, **kwargs)
        self.down = nn.Linear(d_ff, d_model, bias=False, **kwargs)
        self.act = nn.SiLU()

    def forward(self, x):
        gated = self.act(self.gate(x)) * self.up(x)
        return self.down(gated)


def apply_rotary(q, k, cos, sin):
    rotated = []
    for x in (q, k):
        y = torch.empty_like(x)
        y[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        y[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
        rotated.append(y)
    return rotated[0], rotated[1]


class Attention(nn.Module):
    def __init__(self, d_model, num_heads, max_seq_len, theta, **kwargs):
        super().__init__()
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        self.q = nn.Linear(d_model, d_model, bias=False, **kwargs)
        self.k = nn.Linear(d_model, d_model, bias=False, **kwargs)
        self.v = nn.Linear(d_model, d_model, bias=False, **kwargs)
        self.out = nn.Linear(d_model, d_model, bias=False, **kwargs)
        self.scale = self.d_head**-0.5
        t = torch.arange(max_seq_len, dtype=torch.float64)
        inverse = torch.pow(theta, -torch.arange(0, self.d_head, 2, dtype=torch.float64) / self.d_head)
        grid = torch.outer(t, inverse).to(kwargs.get("device"))
        self.register_buffer("cosines", torch.cos(grid), persistent=False)
        self.register_buffer("sines", torch.sin(grid), persistent=False)

    def forward(self, x, positions=None):
        seq = x.size(-2)
        if positions is None:
            positions = torch.arange(seq, device=x.device)
        split = (*x.shape[:-1], self.num_heads, self.d_head)
        q = self.q(x).view(split).transpose(-2, -3)
        k = self.k(x).view(split).transpose(-2, -3)
        v = self.v(x).view(split).transpose(-2, -3)
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = self.cosines[positions].to(wide), self.sines[positions].to(wide)
        q, k = apply_rotary(q, k, cos, sin)
        weights = (einsum("...qd,...kd->...qk", q, k) * self.scale).softmax(dim=-1)
        y = einsum("...qk,...kd->...qd", weights, v)
        y = y.transpose(-2, -3).contiguous().view(x.shape)
        return self.out(y)


class TransformerBlock(nn.Module):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-6, device=None, dtype=None
    ):
        super().__init__()
        kwargs = {"device": device, "dtype": dtype}
        self.input_layernorm = RMSNorm(d_model, eps=eps, **kwargs)
        self.self_attn = Attention(d_model, num_heads, max_seq_len, theta=rope_theta, **kwargs)
        self.post_attention_layernorm = RMSNorm(d_model, eps=eps, **kwargs)
        self.mlp = FeedForward(d_model, d_ff, **kwargs)

    def forward(self, x, token_positions=None):
        residual = x
        hidden = self.input_layernorm(x)
        hidden = self.self_attn(hidden, token_positions)
        hidden = residual + hidden

        residual = hidden
        hidden = self.post_attention_layernorm(hidden)
        hidden = self.mlp(hidden)
        hidden = residual + hidden
        return hidden

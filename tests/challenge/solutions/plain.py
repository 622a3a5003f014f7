"""A solution of the challenge as the template suggests it: every part a class of its own."""

import math

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, in_features, out_features, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        std = math.sqrt(2 / (in_features + out_features))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        in_dtype = x.dtype
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # squares of half-precision numbers overflow
        rms = torch.sqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (wide / rms * self.weight).to(in_dtype)


class SwiGLU(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.gate_proj = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.up_proj = Linear(d_model, d_ff, device=device, dtype=dtype)
        self.down_proj = Linear(d_ff, d_model, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class RotaryEmbedding(nn.Module):
    def __init__(self, head_dim, max_seq_len, theta=10000.0, device=None):
        super().__init__()
        frequencies = theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim)
        angles = torch.arange(max_seq_len, device=device)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        cos, sin = self.cos[token_positions], self.sin[token_positions]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return turned.flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, d_model, num_heads, max_seq_len=2048, rope_theta=10000.0, device=None, dtype=None):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.q_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.o_proj = Linear(d_model, d_model, device=device, dtype=dtype)
        self.rope = RotaryEmbedding(self.head_dim, max_seq_len, rope_theta, device=device)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        q, k, v = self.split(self.q_proj(x)), self.split(self.k_proj(x)), self.split(self.v_proj(x))
        q = self.rope(q, token_positions)
        k = self.rope(k, token_positions)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        attended = torch.softmax(scores, dim=-1) @ v
        return self.o_proj(attended.transpose(-3, -2).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """(..., seq, d_model) to (..., heads, seq, head_dim)."""
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(-3, -2)


class TransformerBlock(nn.Module):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-6, device=None, dtype=None
    ):
        super().__init__()
        self.norm1 = RMSNorm(d_model, eps, device=device, dtype=dtype)
        self.attn = SelfAttention(d_model, num_heads, max_seq_len, rope_theta, device=device, dtype=dtype)
        self.norm2 = RMSNorm(d_model, eps, device=device, dtype=dtype)
        self.ffn = SwiGLU(d_model, d_ff, device=device, dtype=dtype)

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), token_positions)
        return x + self.ffn(self.norm2(x))

"""The parts of a block as strangers write them. <<name: text>> is a slot: a fault puts another text there."""

IMPORTS = """import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

"""

NORM = """
class RMSNorm(nn.Module):
    def __init__(self, dim, eps=<<eps: 1e-5>>):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(<<norm_start: torch.ones(dim)>>)

    def forward(self, x):
        dtype = x.dtype
        x = <<upcast: x.float()>>
        scale = <<norm: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)>>
        return <<norm_out: self.weight * (x * scale).to(dtype)>>

"""

# --- feed-forward ---

FEED_FORWARD = {
    "numbered": """
class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x):
        gate, up = self.w1(x), self.w3(x)
        return self.w2(<<glu: F.silu(gate) * up>>)

""",
    "named": """
class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(<<glu: self.act_fn(gate) * up>>)

""",
    "fused": """
class FeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden, bias=False)
        self.w3 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        gate, up = self.w12(x).chunk(2, dim=-1)
        return self.w3(<<glu: F.silu(gate) * up>>)

""",
}

# --- rotary positions: how tables are made, and how q and k of (batch, heads, seq, head_dim) are turned ---

ROPE = {
    "module": """
class RoPE(nn.Module):
    def __init__(self, theta, d_k, max_seq_len, device=None):
        super().__init__()
        freqs = <<frequency: theta ** (-torch.arange(0, d_k, 2, device=device).float() / d_k)>>
        angles = torch.outer(torch.arange(max_seq_len, device=device).float(), freqs)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x, token_positions):
        cos, sin = self.cos[token_positions].to(x.dtype), self.sin[token_positions].to(x.dtype)
        if cos.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return <<turn: torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)>>

""",
    "complex": """
def precompute_freqs_cis(dim, end, theta=10000.0):
    freqs = <<frequency: 1.0 / (theta ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))>>
    angles = torch.outer(torch.arange(end).float(), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def apply_rotary_emb(x, freqs_cis):
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(<<turn: pairs * freqs_cis>>).flatten(-2).type_as(x)

""",
    "halves": """
def build_rope_cache(max_seq_len, head_dim, base=10000.0):
    inv_freq = <<frequency: 1.0 / base ** (torch.arange(0, head_dim, 2).float() / head_dim)>>
    angles = torch.arange(max_seq_len).float()[:, None] * inv_freq[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return <<turn: torch.cat((-x2, x1), dim=-1)>>


def apply_rope(x, cos, sin):
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + rotate_half(x) * sin

""",
}

# --- attention: {arguments} of the constructor, {rope} kept there, {inputs} of forward, {turn_q} {turn_k}, {mask} ---

AFTER_SPLIT = """        q = <<turn_q: {turn_q}>>
        k = <<turn_k: {turn_k}>>
        v = <<turn_v: v>>
        scores = <<scores: q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)>>
{mask}        probs = <<softmax: F.softmax(scores, dim=-1)>>
        out = <<mix: probs @ v>>
        out = <<merge: out.transpose(1, 2).contiguous().view(b, s, d)>>
        return <<output: self.{output}(out)>>

"""

ATTENTION = {
    "separate": """
class Attention(nn.Module):
    def __init__(self, dim, n_heads{arguments}):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, dim, bias=False)
        self.wv = nn.Linear(dim, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
{rope}
    def forward(self, x{inputs}):
        b, s, d = x.shape
        q = <<split: self.wq(x).view(b, s, self.n_heads, self.head_dim).transpose(1, 2)>>
        k = self.wk(x).view(b, s, self.n_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, s, self.n_heads, self.head_dim).transpose(1, 2)
"""
    + AFTER_SPLIT.replace("{output}", "wo"),
    "fused": """
class Attention(nn.Module):
    def __init__(self, dim, n_heads{arguments}):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.c_attn = nn.Linear(dim, 3 * dim, bias=False)
        self.c_proj = nn.Linear(dim, dim, bias=False)
{rope}
    def forward(self, x{inputs}):
        b, s, d = x.size()
        q, k, v = self.c_attn(x).split(d, dim=2)
        q = <<split: q.view(b, s, self.n_heads, self.head_dim).transpose(1, 2)>>
        k = k.view(b, s, self.n_heads, self.head_dim).transpose(1, 2)
        v = v.view(b, s, self.n_heads, self.head_dim).transpose(1, 2)
"""
    + AFTER_SPLIT.replace("{output}", "c_proj"),
    "einsum": """
class Attention(nn.Module):
    def __init__(self, dim, n_heads{arguments}):
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.w_qkv = nn.Parameter(torch.randn(3, n_heads, dim, self.head_dim) * dim**-0.5)
        self.to_out = nn.Linear(dim, dim, bias=False)
{rope}
    def forward(self, x{inputs}):
        b, s, d = x.shape
        q, k, v = torch.einsum("bsd,chde->cbhse", x, self.w_qkv).unbind(0)
"""
    + AFTER_SPLIT.replace("{output}", "to_out"),
}

# --- masks ---

MASKS = {
    "inside": """        hidden = <<hidden: torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)>>
        scores = scores.masked_fill(hidden, <<fill: float("-inf")>>)
""",
    "added": "        scores = <<masked: scores + mask>>\n",
    "attend": '        scores = <<masked: scores.masked_fill(~mask, float("-inf"))>>\n',
    "masked": '        scores = <<masked: scores.masked_fill(mask, float("-inf"))>>\n',
}

# --- the block: {signature}, {make}, {forward}, {before}, {call} ---

BLOCK = """
class {name}(nn.Module):
    def __init__(self, {signature}):
        super().__init__()
{make}
        self.attention_norm = RMSNorm({dim})
        self.ffn_norm = <<second_norm: RMSNorm({dim})>>
        self.attention = Attention({dim}, {heads}{given})
        self.feed_forward = FeedForward({dim}, <<width: {hidden}>>)
        <<begin: pass>>

    def forward(self, {forward}):
{before}        <<first: x = x + self.attention(self.attention_norm(x){call})>>
        <<second: x = x + self.feed_forward(self.ffn_norm(x))>>
        return {result}
"""

"""Another solution: other names, fewer classes, PyTorch's own layers and attention, complex rotation."""

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, size, epsilon, **where):
        super().__init__()
        self.epsilon = epsilon
        self.g = nn.Parameter(torch.ones(size, **where))

    def forward(self, inp):
        a = inp.double() if inp.dtype == torch.float64 else inp.float()
        a = a * torch.rsqrt(a.square().mean(-1, keepdim=True) + self.epsilon)
        return (a * self.g).type_as(inp)


def turn(z, table):
    """Neighbours are one complex number each; multiplied by a number of length 1, it turns."""
    pairs = torch.view_as_complex(z.to(torch.promote_types(z.dtype, torch.float32)).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2).to(z.dtype)


class TransformerBlock(nn.Module):
    def __init__(
        self, d_model, num_heads, d_ff, max_seq_len=2048, rope_theta=10000.0, eps=1e-6, device=None, dtype=None
    ):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.heads = num_heads
        self.base, self.length = rope_theta, max_seq_len
        self.n_a = Norm(d_model, eps, **where)
        self.n_f = Norm(d_model, eps, **where)
        self.wq = nn.Linear(d_model, d_model, bias=False, **where)
        self.wk = nn.Linear(d_model, d_model, bias=False, **where)
        self.wv = nn.Linear(d_model, d_model, bias=False, **where)
        self.wo = nn.Linear(d_model, d_model, bias=False, **where)
        self.w1 = nn.Linear(d_model, d_ff, bias=False, **where)
        self.w2 = nn.Linear(d_ff, d_model, bias=False, **where)
        self.w3 = nn.Linear(d_model, d_ff, bias=False, **where)

    def forward(self, inp, token_positions=None):
        att = self.attend(self.n_a(inp), token_positions)
        mid = inp + att
        z = self.n_f(mid)
        g = self.w1(z)
        out = self.w2(g * torch.sigmoid(g) * self.w3(z))
        return mid + out

    def attend(self, inp, pos):
        *batch, length, width = inp.shape
        size = width // self.heads
        q = self.wq(inp).reshape(*batch, length, self.heads, size).transpose(-2, -3)
        k = self.wk(inp).reshape(*batch, length, self.heads, size).transpose(-2, -3)
        v = self.wv(inp).reshape(*batch, length, self.heads, size).transpose(-2, -3)
        if pos is None:
            pos = torch.arange(length, device=inp.device)
        speed = 1.0 / self.base ** (torch.arange(0, size, 2, device=inp.device).double() / size)
        angle = pos[..., None].double() * speed
        table = torch.polar(torch.ones_like(angle), angle)
        table = table if inp.dtype == torch.float64 else table.to(torch.complex64)
        y = F.scaled_dot_product_attention(turn(q, table), turn(k, table), v)
        return self.wo(y.transpose(-2, -3).reshape(*batch, length, width))

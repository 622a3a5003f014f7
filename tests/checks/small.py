"""Small blocks that differ from a right one in one thing each: what it is, is the class's name."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rope(x: Tensor, positions: Tensor, theta: float = 10000.0) -> Tensor:
    """Pairs 2i, 2i+1 turned."""
    frequencies = theta ** (-torch.arange(0, x.shape[-1], 2, device=x.device).double() / x.shape[-1])
    angle = positions[..., None].double() * frequencies
    cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class Right(nn.Module):
    """Causal, no biases, any leading dimensions."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.heads = num_heads
        self.norm1, self.norm2 = self.norms(d_model)
        self.qkv, self.o = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.gate, self.up = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def norms(self, d_model):
        return nn.RMSNorm(d_model, 1e-5), nn.RMSNorm(d_model, 1e-5)

    def rotated(self, x, positions):
        return rope(x, positions)

    def mixed(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def attention(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        positions = torch.arange(x.shape[-2], device=x.device)
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v)
        return self.projected(x, y.transpose(-3, -2).flatten(-2))

    def projected(self, x, y):
        return self.o(y)

    def feed_forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def scores_of(q: Tensor, k: Tensor) -> Tensor:
    """Causal scores, by hand."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(hidden, float("-inf"))


class HandNorm(nn.Module):
    """RMSNorm by hand; upcast: computed in float32."""

    def __init__(self, dim, upcast=True, start=None):
        super().__init__()
        self.upcast, self.weight = upcast, nn.Parameter(torch.ones(dim) if start is None else start(dim))

    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32) if self.upcast else x
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).to(dtype) * self.weight


# --- what counts ---


class UpcastMissing(Right):
    def norms(self, d_model):
        return HandNorm(d_model, upcast=False), HandNorm(d_model, upcast=False)


class NoMaximum(Right):
    def mixed(self, q, k, v):
        e = scores_of(q, k).exp()
        return e / e.sum(-1, keepdim=True) @ v


class DividesInPlace(Right):
    def mixed(self, q, k, v):
        e = (scores_of(q, k) - scores_of(q, k).amax(-1, keepdim=True)).exp()
        e /= e.sum(-1, keepdim=True)
        return e @ v


class ChangedUnderTheNorm(Right):
    def norms(self, d_model):
        return HandNorm(d_model), HandNorm(d_model)

    def forward(self, x):
        y = x + self.attention(self.norm1(x))
        y += self.feed_forward(self.norm2(y))
        return y


class GraphOfTheConstructor(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.scale = nn.Parameter(torch.ones(()))
        self.ones = self.scale.exp() / self.scale.exp()

    def feed_forward(self, x):
        return super().feed_forward(x) * self.ones.to(x.dtype)


class WidthOfItsOwn(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, (d_ff + 63) // 64 * 64)


class WidthOfEightInputs(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, 8 * d_model)


class WidthThatIsFixed(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, 256)


class NormsFromNoise(Right):
    def norms(self, d_model):
        return HandNorm(d_model, start=torch.randn), HandNorm(d_model, start=torch.randn)


class NormsFromZero(Right):
    def norms(self, d_model):
        return HandNorm(d_model, start=torch.zeros), HandNorm(d_model, start=torch.zeros)


class NeverFilled(Right):
    def norms(self, d_model):
        return HandNorm(d_model, start=torch.empty), HandNorm(d_model)


class VarianceForDeviation(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for weight in (one for one in self.parameters() if one.dim() == 2):
            nn.init.trunc_normal_(weight, std=2 / sum(weight.shape))


class DeviationOfAProduct(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for weight in (one for one in self.parameters() if one.dim() == 2):
            nn.init.normal_(weight, std=(2 / weight.numel()) ** 0.5)


class DeviationOfOne(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for weight in (one for one in self.parameters() if one.dim() == 2):
            nn.init.normal_(weight)


class Frozen(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.down.requires_grad_(False)


class AddsInPlace(Right):
    def forward(self, x):
        x += self.attention(self.norm1(x))
        x += self.feed_forward(self.norm2(x))
        return x


class BringsBack(Right):
    """A table is made on the CPU and asked back from the device, as tables are that are updated."""

    def rotated(self, x, positions):
        return rope(x, positions.cpu()) if x.device.type == "cpu" else x.to("cpu") * positions[:, None]


class Squeezed(Right):
    def forward(self, x):
        return super().forward(x).squeeze(0)


class UnscaledUnderAMaskOfOneLength(Right):
    def mixed(self, q, k, v):
        hidden = torch.ones(24, 24, dtype=torch.bool, device=q.device).triu(1)
        return (q @ k.mT).masked_fill(hidden, float("-inf")).softmax(-1) @ v


class GateAfterProductAndSqueezed(Right):
    def mixed(self, q, k, v):
        return scores_of(q, k).squeeze().softmax(-1) @ v

    def feed_forward(self, x):
        return self.down(F.silu(self.gate(x) * self.up(x)))


class OneNormAndMultiplesOfEight(Right):
    def forward(self, x):
        assert x.shape[-2] % 8 == 0
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(x)


class UpcastMissingAndTableOfTheLastCall(UpcastMissing):
    """The table of a longer call is not cut for one token."""

    table = None

    def attention(self, x):
        if self.table is None or x.shape[-2] > 1:
            self.table = torch.zeros_like(x[..., :1])
        return super().attention(x) + self.table


class TablesForHalves(Right):
    """Pairs 2i, 2i+1, with tables for pairs i, i + head_dim/2."""

    def rotated(self, x, positions):
        frequencies = 10000.0 ** (-torch.arange(0, x.shape[-1], 2, device=x.device).double() / x.shape[-1])
        angle = self.laid_out(positions[:, None] * frequencies)
        return x * angle.cos().to(x.dtype) + self.turned(x) * angle.sin().to(x.dtype)

    def laid_out(self, angle):
        return torch.cat((angle, angle), -1)

    def turned(self, x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


class TablesForNeighbours(TablesForHalves):
    """Pairs i, i + head_dim/2, with tables for pairs 2i, 2i+1."""

    def laid_out(self, angle):
        return angle.repeat_interleave(2, -1)

    def turned(self, x):
        return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


class FrequenciesThatGrow(Right):
    """theta^(2i/head_dim): float32 keeps three or four digits of such angles."""

    def rotated(self, x, positions):
        frequencies = 10000.0 ** (torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
        angle = positions[..., None] * frequencies
        cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class TablesInFloat16(Right):
    """As NumPy makes them from angles in float16."""

    def rotated(self, x, positions):
        frequencies = 10000.0 ** (-torch.arange(0, x.shape[-1], 2, device=x.device).double() / x.shape[-1])
        angle = (positions[..., None].double() * frequencies).half()
        cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class ValuesReshaped(Right):
    """From (d_model, seq) to (seq, d_model), without a transpose back."""

    def mixed(self, q, k, v):
        joined = v.transpose(-3, -2).flatten(-2)
        reshaped = joined.mT.reshape(joined.shape)
        return super().mixed(q, k, reshaped.unflatten(-1, (self.heads, -1)).transpose(-3, -2))


class SiluAfterDown(Right):
    def feed_forward(self, x):
        return F.silu(super().feed_forward(x))


class ReluAfterAttention(Right):
    def attention(self, x):
        return F.relu(super().attention(x))


class NormAfterDown(Right):
    def feed_forward(self, x):
        return F.rms_norm(super().feed_forward(x), x.shape[-1:], eps=1e-6)


class AxisByItsSize(Right):
    def mixed(self, q, k, v):
        scores = scores_of(q, k)
        return scores.softmax(-3 if scores.shape[-3] == scores.shape[-1] else -1) @ v


class RaisesInBfloat16AndIsOdd(Right):
    def __init__(self, d_model, num_heads, d_ff, dtype=None):
        super().__init__(d_model, num_heads, d_ff)
        self.to(dtype)

    def mixed(self, q, k, v):
        q, k = q.to(torch.promote_types(q.dtype, torch.float32)), k.to(torch.promote_types(k.dtype, torch.float32))
        return scores_of(q, k).softmax(-1).roll(1, -3) @ v


# --- what is named, or a convention ---


class BatchSeqOnly(Right):
    def forward(self, x):
        batch, seq, d_model = x.shape
        return super().forward(x).view(batch, seq, d_model)


class AnyTheta(Right):
    def rotated(self, x, positions):
        return rope(x, positions, 123456.0)


class OnePairTurned(Right):
    """As GPT-NeoX: of eight dimensions two turn, so that halves and neighbours give the same numbers."""

    def rotated(self, x, positions):
        size = x.shape[-1] // 4
        frequencies = 10000.0 ** (-torch.arange(0, size, 2, device=x.device).double() / size)
        angle = positions[..., None].double() * frequencies
        cos, sin, (a, b) = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., :size].chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos, x[..., size:]), -1)


class StretchedFrequencies(Right):
    def rotated(self, x, positions):
        frequencies = torch.tensor([1.0, 0.08, 0.006, 0.0001], dtype=torch.float64)
        angle = positions[..., None].double() * frequencies
        cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class GatedByANumber(Right):
    """As ReZero: a factor that begins at zero."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        x = x + self.alpha.tanh() * self.attention(self.norm1(x))
        return x + self.alpha.tanh() * self.feed_forward(self.norm2(x))


class Windowed(Right):
    def __init__(self, d_model, num_heads, d_ff, sliding_window=4):
        super().__init__(d_model, num_heads, d_ff)
        self.window = sliding_window

    def mixed(self, q, k, v):
        positions = torch.arange(q.shape[-2], device=q.device)
        distance = positions[:, None] - positions
        return F.scaled_dot_product_attention(q, k, v, (distance >= 0) & (distance < self.window))


class PositionsAdded(Right):
    """Learned positions, added to what queries and keys are made of; the table has the shape of a projection."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.pos = nn.Parameter(0.02 * torch.randn(64, d_model))

    def attention(self, x):
        turned = x + self.pos[: x.shape[-2]]
        q, k, v = (F.linear(of, w) for of, w in zip((turned, turned, x), self.qkv.weight.chunk(3), strict=True))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in (q, k, v))
        return self.o(self.mixed(q, k, v).transpose(-3, -2).flatten(-2))


class GateAndUpInOne(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.gate = self.up = self.down = None
        width = (d_model * 8 // 3 + 255) // 256 * 256
        self.w12, self.w3 = nn.Linear(d_model, 2 * width, bias=False), nn.Linear(width, d_model, bias=False)

    def feed_forward(self, x):
        gate, up = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * up)


class WidthInMultiples(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, (2 * d_ff // 3 + 255) // 256 * 256)


class HalfOfItsOwn(Right):
    """No positions, and a number of its own that has nothing to do with them."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.one_half = torch.tensor(0.5)

    def rotated(self, x, positions):
        return x

    def feed_forward(self, x):
        return super().feed_forward(x) * self.one_half.to(x.dtype) * 2


class Gpt2(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.gate = self.up = None
        self.fc, self.down = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def norms(self, d_model):
        return nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def rotated(self, x, positions):
        return x

    def feed_forward(self, x):
        return self.down(F.gelu(self.fc(x)))


class SideBySide(Right):
    def forward(self, x):
        return x + self.attention(self.norm1(x)) + self.feed_forward(self.norm2(x))


class NormsBehind(Right):
    def forward(self, x):
        x = x + self.norm1(self.attention(x))
        return x + self.norm2(self.feed_forward(x))


class NormsAround(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.norm3, self.norm4 = self.norms(d_model)

    def forward(self, x):
        x = x + self.norm2(self.attention(self.norm1(x)))
        return x + self.norm4(self.feed_forward(self.norm3(x)))


class CappedScores(Right):
    def mixed(self, q, k, v):
        scores = 30 * torch.tanh(q @ k.mT / q.shape[-1] ** 0.5 / 30)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v


class NormsOverAllHeads(Right):
    def __init__(self, d_model, num_heads, d_ff, num_kv_heads=None):
        super().__init__(d_model, num_heads, d_ff)
        kv_width = d_model // num_heads * (num_kv_heads or num_heads)
        self.qkv = None
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.k, self.v = nn.Linear(d_model, kv_width, bias=False), nn.Linear(d_model, kv_width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(d_model, 1e-5), nn.RMSNorm(kv_width, 1e-5)

    def attention(self, x):
        parts = self.q_norm(self.q(x)), self.k_norm(self.k(x)), self.v(x)
        q, k, v = (t.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(-3, -2) for t in parts)
        positions = torch.arange(x.shape[-2], device=x.device)
        k, v = (t.repeat_interleave(self.heads // t.shape[-3], -3) for t in (k, v))
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v)
        return self.o(y.transpose(-3, -2).flatten(-2))


class QueriesScaledByDimension(Right):
    """By softplus(scale), which is 1 at first."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.scale = nn.Parameter(torch.zeros(d_model // num_heads))

    def mixed(self, q, k, v):
        return super().mixed(q * F.softplus(self.scale) / F.softplus(torch.zeros_like(self.scale)), k, v)


class WithoutNormWeights(Right):
    def norms(self, d_model):
        return (nn.RMSNorm(d_model, 1e-5, elementwise_affine=False),) * 2


class SmallBranches(Right):
    def forward(self, x):
        x = x + 0.22 * self.attention(self.norm1(x))
        return x + 0.22 * self.feed_forward(self.norm2(x))


class TrueIsMasked(Right):
    def forward(self, x, mask=None):
        self.hidden = mask
        return super().forward(x)

    def mixed(self, q, k, v):
        scores = scores_of(q, k)
        scores = scores if self.hidden is None else scores.masked_fill(self.hidden, float("-inf"))
        return scores.softmax(-1) @ v


class ZeroAtFirst(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.down.weight)


class SmallAsInGpt2(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for weight in (one for one in self.parameters() if one.dim() == 2):
            nn.init.normal_(weight, std=0.02)


class SmallForDepth(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for weight in (one for one in self.parameters() if one.dim() == 2):
            nn.init.normal_(weight, std=(24 * weight.shape[1]) ** -0.5)


class RoundedBeforeItsWeight(Right):
    def norms(self, d_model):
        return HandNorm(d_model), HandNorm(d_model)


class ScaleInFloat32(HandNorm):
    def forward(self, x):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
        return self.weight * (x * scale.to(x.dtype))


class RootInFloat32(HandNorm):
    def forward(self, x):
        root = torch.sqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-5)
        return x / root.to(x.dtype) * self.weight


class ScaleIsRounded(Right):
    def norms(self, d_model):
        return ScaleInFloat32(d_model), ScaleInFloat32(d_model)


class RootIsRounded(Right):
    def norms(self, d_model):
        return RootInFloat32(d_model), RootInFloat32(d_model)


class NothingInFloat32(nn.Module):
    """The mean and the root are rounded, each: the root is often what it would be, and often is not."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        mean_square = torch.einsum("...d,...d->...", x, x) / x.shape[-1]
        return x / (mean_square + 1e-5).sqrt()[..., None] * self.weight


class NormsInTheirInputsDtype(Right):
    def norms(self, d_model):
        return NothingInFloat32(d_model), NothingInFloat32(d_model)


class RaisesInBfloat16(Right):
    """Its rotation gives float32, and PyTorch's attention does not mix dtypes."""

    def norms(self, d_model):
        return HandNorm(d_model), HandNorm(d_model)

    def rotated(self, x, positions):
        return super().rotated(x.float() if x.dtype == torch.bfloat16 else x, positions)


class RaisesInBfloat16AndRoundsNorms(RaisesInBfloat16):
    def norms(self, d_model):
        return NothingInFloat32(d_model), NothingInFloat32(d_model)


class StackOfLayers(nn.Module):
    def __init__(self, d_model, depth, num_heads, d_ff):
        super().__init__()
        self.layers = nn.ModuleList(Right(d_model, num_heads, d_ff) for _ in range(depth))
        self.last = nn.LayerNorm(d_model)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


class OddAndScaledForDepth(Right):
    def __init__(self, d_model, num_layers, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.depth = num_layers

    def mixed(self, q, k, v):
        return scores_of(q, k).softmax(-1).roll(1, -3) @ v


class Experts(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.router = nn.Linear(d_model, 4, bias=False)
        self.experts = nn.ModuleList(Right(d_model, num_heads, d_ff).gate for _ in range(8))
        del self.gate, self.up

    def feed_forward(self, x):
        weights = self.router(x).softmax(-1).unbind(-1)
        pairs = zip(self.experts[::2], self.experts[1::2], weights, strict=True)
        return self.down(sum(w[..., None] * F.silu(gate(x)) * up(x) for gate, up, w in pairs))


class EightHeads(Right):
    """Without an argument that says so."""

    def __init__(self, d_model, d_ff):
        super().__init__(d_model, 8, d_ff)


class OneFlatVector(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.inner = [Right(d_model, num_heads, d_ff)]
        self.flat = nn.Parameter(torch.cat([one.detach().flatten() for one in self.inner[0].parameters()]))

    def forward(self, x):
        inner, parts = self.inner[0], {}
        rest: torch.Tensor = self.flat
        for name, one in inner.named_parameters():
            parts[name], rest = rest[: one.numel()].view_as(one), rest[one.numel() :]
        return torch.func.functional_call(inner, parts, (x,))

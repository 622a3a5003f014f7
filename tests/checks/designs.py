"""Designs of published models, right or with one fault: what each is, is the class's name."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .small import AnyTheta, Gpt2, HandNorm, Right, rope, scores_of

# --- right ---


class PerHeadLayerNorm(nn.Module):
    """As in Chameleon: statistics of each head, weights and biases of its own for each."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(heads, head_dim)), nn.Parameter(torch.zeros(heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:  # (..., heads, seq, head_dim)
        return F.layer_norm(x, x.shape[-1:]) * self.weight[:, None] + self.bias[:, None]


class NormedQueriesAndKeys(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.q_norm, self.k_norm = (self.head_norm(num_heads, d_model // num_heads) for _ in range(2))

    def head_norm(self, heads, head_dim):
        return nn.RMSNorm(head_dim, 1e-5)

    def mixed(self, q, k, v):
        positions = torch.arange(q.shape[-2], device=q.device)
        q, k = (rope(norm(one), positions) for norm, one in ((self.q_norm, q), (self.k_norm, k)))
        return super().mixed(self.scaled(q), k, v)

    def scaled(self, q):
        return q

    def rotated(self, x, positions):
        return x  # after their norms


class LayerNormOfQueriesAndKeys(NormedQueriesAndKeys):
    def head_norm(self, heads, head_dim):
        return PerHeadLayerNorm(heads, head_dim)


class ScaleOfItsOwn(NormedQueriesAndKeys):
    """As in Gemma 3: queries and keys are normalised, and scores have a scale of their own."""

    def scaled(self, q):
        return q * (q.shape[-1] ** 0.5 / 16)


class HandsPositionsOn(Gpt2):
    """As OPT, whose layers take positions and leave them to the model's embeddings."""

    def forward(self, x, position_ids=None):
        return super().forward(x)


class WidthOfBoth(Right):
    """As in Moshi: d_ff is the width of gate and up together."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.gate = self.up = None
        self.both, self.down = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff // 2, d_model, bias=False)

    def feed_forward(self, x):
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class SwitchesInAConfiguration(NormedQueriesAndKeys):
    def __init__(self, cfg):
        super().__init__(cfg["emb_dim"], cfg["n_heads"], cfg["hidden_dim"])
        self.normed, self.turned = cfg["qk_norm"], cfg["use_rope"]
        if not self.normed:
            self.q_norm = self.k_norm = nn.Identity()

    def mixed(self, q, k, v):
        return super().mixed(q, k, v) if self.turned else v


class Gated(Right):
    """A sigmoid of its input multiplies attention's output, before it is projected."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.attn_gate = self.gates(d_model, num_heads)

    def gates(self, d_model, num_heads):
        return nn.Linear(d_model, d_model, bias=False)

    def projected(self, x, y):
        return self.o(y * self.attn_gate(x).sigmoid())


class GatedAtTheEnd(Gated):
    def projected(self, x, y):
        return self.o(y) * self.attn_gate(x).sigmoid()


class GatedHeads(Gated):
    """A number for each head, with a bias."""

    def gates(self, d_model, num_heads):
        return nn.Linear(d_model, num_heads)

    def projected(self, x, y):
        gated = y.unflatten(-1, (self.heads, -1)) * self.attn_gate(x).sigmoid()[..., None]
        return self.o(gated.flatten(-2))


class GatedByOneProjection(Right):
    """As in Qwen3-Next: each head's queries and gates are rows of one matrix."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.qkv = None
        self.q_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(d_model, d_model, bias=False) for _ in "kv")

    def attention(self, x):
        positions = torch.arange(x.shape[-2], device=x.device)
        q, gates = self.q_proj(x).unflatten(-1, (self.heads, -1)).chunk(2, -1)
        k, v = (one(x).unflatten(-1, (self.heads, -1)) for one in (self.k_proj, self.v_proj))
        q, k, v = (one.transpose(-3, -2) for one in (q, k, v))
        y = self.mixed(self.rotated(q, positions), self.rotated(k, positions), v).transpose(-3, -2)
        return self.o((y * gates.sigmoid()).flatten(-2))


# --- with a fault ---


class GatedWithoutScale(Gated):
    def mixed(self, q, k, v):
        return super().mixed(q * q.shape[-1] ** 0.5, k, v)


class GatedWithoutResidual(GatedAtTheEnd):
    def forward(self, x):
        x = self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class GatedWithoutUpcast(GatedHeads):
    def norms(self, d_model):
        return HandNorm(d_model, upcast=False), HandNorm(d_model, upcast=False)


class GatedAndValuesTurned(GatedByOneProjection):
    def mixed(self, q, k, v):
        return super().mixed(q, k, self.rotated(v, torch.arange(v.shape[-2], device=v.device)))


class ScaleOfItsOwnAndQueriesOnly(ScaleOfItsOwn):
    def mixed(self, q, k, v):
        q = rope(self.q_norm(q), torch.arange(q.shape[-2], device=q.device))
        return Right.mixed(self, self.scaled(q), self.k_norm(k), v)


class LayerNormByHand(nn.Module):
    """upcast: computed in float32."""

    def __init__(self, dim, upcast=True):
        super().__init__()
        self.upcast, self.gamma, self.beta = upcast, nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) if self.upcast else x
        centred = wide - wide.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return scaled.to(x.dtype) * self.gamma + self.beta


class LayerNormUpcast(Right):
    def norms(self, d_model):
        return LayerNormByHand(d_model), LayerNormByHand(d_model)


class LayerNormWithoutUpcast(Right):
    def norms(self, d_model):
        return LayerNormByHand(d_model, upcast=False), LayerNormByHand(d_model, upcast=False)


class HalfTurned(Right):
    """Half of each head is rotated."""

    def rotated(self, x, positions):
        half = x.shape[-1] // 2
        return torch.cat((rope(x[..., :half], positions), x[..., half:]), -1)


class HalfTurnedWithoutScale(HalfTurned):
    def mixed(self, q, k, v):
        return super().mixed(q * q.shape[-1] ** 0.5, k, v)


class AnyThetaWithoutScale(AnyTheta):
    def mixed(self, q, k, v):
        return super().mixed(q * q.shape[-1] ** 0.5, k, v)


class Around(Right):
    """Norms around both sublayers, and Gemma's activation."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.norm3, self.norm4 = self.norms(d_model)

    def forward(self, x):
        x = self.added(x, self.norm2(self.attention(self.norm1(x))))
        return x + self.norm4(self.feed_forward(self.norm3(x)))

    def added(self, x, y):
        return x + y

    def feed_forward(self, x):
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class AroundWithoutResidual(Around):
    def added(self, x, y):
        return y


class AroundGateAfterProduct(Around):
    def feed_forward(self, x):
        return self.down(F.gelu(self.gate(x) * self.up(x), approximate="tanh"))


class OverTheSequence(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-2, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


class WithoutEps(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True))).to(x.dtype) * self.weight


class NormsOfHeadsWithoutEps(NormedQueriesAndKeys):
    """Of queries and keys that are zero they make NaN, which the fused attention takes for nothing to attend to."""

    def head_norm(self, heads, head_dim):
        return WithoutEps(head_dim)


class NormsOfOneClassWithoutEps(NormsOfHeadsWithoutEps):
    def norms(self, d_model):
        return WithoutEps(d_model), WithoutEps(d_model)


class NormsOfOneClassWithoutEpsByHand(NormsOfOneClassWithoutEps):
    def mixed(self, q, k, v):
        positions = torch.arange(q.shape[-2], device=q.device)
        q, k = (rope(norm(one), positions) for norm, one in ((self.q_norm, q), (self.k_norm, k)))
        return scores_of(q, k).softmax(-1) @ v


class NormsOfOneClassOverTheSequence(NormedQueriesAndKeys):
    """A fault of the class of all norms, of which those of queries and keys have other axes."""

    def norms(self, d_model):
        return OverTheSequence(d_model), OverTheSequence(d_model)

    def head_norm(self, heads, head_dim):
        return OverTheSequence(head_dim)

    def mixed(self, q, k, v):
        swapped = [norm(one.transpose(-3, -2)).transpose(-3, -2) for norm, one in ((self.q_norm, q), (self.k_norm, k))]
        positions = torch.arange(q.shape[-2], device=q.device)
        return Right.mixed(self, *(rope(one, positions) for one in swapped), v)


class OverTheSequenceUnderAMask(Right):
    """No mask hides anything from such a norm."""

    def norms(self, d_model):
        return OverTheSequence(d_model), OverTheSequence(d_model)

    def forward(self, x, hidden_mask):
        self.hidden = hidden_mask
        return super().forward(x)

    def mixed(self, q, k, v):
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        return scores.masked_fill(self.hidden, float("-inf")).softmax(-1) @ v


class Lecture(Gpt2):
    """As in lectures: ReLU, and all in small steps."""

    def feed_forward(self, x):
        return self.down(F.relu(self.fc(x)))


class LectureWithoutResidual(Lecture):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return self.feed_forward(self.norm2(x))


class LectureOverHeads(Lecture):
    def mixed(self, q, k, v):
        return scores_of(q, k).softmax(-3) @ v


class LectureWithOneNorm(Lecture):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(x)


class TakesPositionsAndNeverRotates(Right):
    def forward(self, x, token_positions=None):
        return super().forward(x)

    def rotated(self, x, positions):
        return x


# --- not judged ---


class GatedByATangent(Gated):
    def projected(self, x, y):
        return self.o(y * self.attn_gate(x).tanh())


class EntryThatNobodyKnows(Right):
    def __init__(self, cfg):
        super().__init__(cfg["emb_dim"], cfg["n_heads"], cfg["hidden_dim"])
        self.depth_of_the_well = cfg["depth_of_the_well"]

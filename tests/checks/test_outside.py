"""Right blocks with habits that other people have: no false alarm. With one fault each: it is named."""

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

RIGHT = """\
import dataclasses

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def turn(x):
    places = torch.arange(x.shape[-2], device=x.device)[:, None]
    angles = places * 10000.0 ** (-torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
    cos, sin = angles.cos().type_as(x), angles.sin().type_as(x)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Block(nn.Module):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__()
        self.heads = num_heads
        self.norm1, self.norm2 = nn.RMSNorm(d_model, 1e-6), nn.RMSNorm(d_model, 1e-6)
        self.qkv, self.o = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.both, self.down = nn.Linear(d_model, 2 * d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def attend(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        return self.o(y.transpose(-3, -2).flatten(-2))

    def feed_forward(self, x):
        gate, up = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))
"""
ALIBI = """
    def attend(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        places = torch.arange(x.shape[-2], device=x.device)
        slopes = 2.0 ** (-8 * torch.arange(1, self.heads + 1, device=x.device) / self.heads)
        far = places[:, None] - places
        bias = (-far * slopes[:, None, None]).masked_fill(far < 0, -torch.inf).to(x.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.o(y.transpose(-3, -2).flatten(-2))
"""
HABITS: dict[str, str] = {
    "WeightNorm": """
class WeightNorm(Block):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.o, self.down = parametrizations.weight_norm(self.o), parametrizations.weight_norm(self.down)
""",
    "LayerScale": """
class LayerScale(Block):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((d_model,), 1e-5)) for _ in range(2))

    def forward(self, x):
        x = x + self.gamma1 * self.attend(self.norm1(x))
        return x + self.gamma2 * self.feed_forward(self.norm2(x))
""",
    "Slopes": f"""
class Slopes(Block):
{ALIBI}
""",
    "SeqFirst": """
class SeqFirst(Block):
    def forward(self, x):
        T, B, C = x.shape
        x = x + self.attend(self.norm1(x).transpose(0, 1)).transpose(0, 1)
        return x + self.feed_forward(self.norm2(x))
""",
    "Record": """
@dataclasses.dataclass
class Output:
    cache: tuple
    hidden: torch.Tensor


class Record(Block):
    def forward(self, x):
        return Output((), super().forward(x))
""",
    "Spread": """
class Spread(Block):
    def __init__(self, *sizes):
        super().__init__(*sizes)
""",
    "HandedUp": """
class HandedUp(Block):
    def __init__(self, **sizes):
        super().__init__(**sizes)
""",
    "KeywordsForNorms": """
class KeywordsForNorms(Block):
    def __init__(self, d_model, num_heads, d_ff, **of_norms):
        super().__init__(d_model, num_heads, d_ff)
        self.norm1, self.norm2 = nn.RMSNorm(d_model, **of_norms), nn.RMSNorm(d_model, **of_norms)
""",
    "PreciseNorms": """
class PreciseNorms(Block):
    def __init__(self, d_model, num_heads, d_ff, dtype=None):
        super().__init__(d_model, num_heads, d_ff)
        self.to(dtype)
        self.norm1, self.norm2 = Wide(d_model), Wide(d_model)


class Wide(nn.RMSNorm):
    def forward(self, x):
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)
""",
    "UnusedEntry": """
@dataclasses.dataclass
class Config:
    hidden_size: int = 32
    num_attention_heads: int = 4
    intermediate_size: int = 64
    num_key_value_heads: int = 4


class UnusedEntry(Block):
    def __init__(self, config: Config):
        super().__init__(config.hidden_size, config.num_attention_heads, config.intermediate_size)
""",
    "Deviations": """
class Deviation(nn.Module):
    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.a_2, self.b_2 = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        far = wide - wide.mean(-1, keepdim=True)
        return (self.a_2 * far / (wide.std(-1, keepdim=True) + self.eps) + self.b_2).to(x.dtype)


class Deviations(Block):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.norm1, self.norm2 = Deviation(d_model), Deviation(d_model)
""",
    "Unrotated": """
class Unrotated(Block):
    def attend(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2))
""",
    "ForInference": """
class ForInference(Block):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for one in (self.qkv, self.o, self.both, self.down):
            one.weight = nn.Parameter(torch.empty(one.weight.shape), requires_grad=False)
""",
    "BothTables": """
class BothTables(Block):
    def attend(self, x, cos_sin):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        cos, sin = cos_sin
        q, k = (torch.cat((a * cos - b * sin, a * sin + b * cos), -1) for a, b in (q.chunk(2, -1), k.chunk(2, -1)))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2))

    def forward(self, x, cos_sin):
        x = x + self.attend(self.norm1(x), cos_sin)
        return x + self.feed_forward(self.norm2(x))
""",
    "of_weights": """
def of_weights(num_heads, weights, in_features):
    def norm(x, weight):
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), 1e-5).type_as(x)

    n = norm(in_features, weights["ln1.weight"])
    projected = (n @ weights[f"attn.{one}_proj.weight"].mT for one in "qkv")
    q, k, v = (one.unflatten(-1, (num_heads, -1)).transpose(-3, -2) for one in projected)
    y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True).transpose(-3, -2).flatten(-2)
    h = in_features + y @ weights["attn.output_proj.weight"].mT
    n = norm(h, weights["ln2.weight"])
    gate, up = n @ weights["ffn.w1.weight"].mT, n @ weights["ffn.w3.weight"].mT
    return h + (F.silu(gate) * up) @ weights["ffn.w2.weight"].mT
""",
}
FAULTS: dict[str, tuple[str, str, str]] = {
    # the fault, what stands in the source, what is put there
    "WeightNorm": ("doubled_residual", "return x + self.feed", "return x + x + self.feed"),
    "LayerScale": ("missing_residual_ffn", "return x + self.gamma2", "return self.gamma2"),
    "Slopes": ("gate_after_product", "F.silu(gate) * up", "F.silu(gate * up)"),
    "SeqFirst": ("missing_residual_attention", "x = x + self.attend(self.norm1(x).", "x = self.attend(self.norm1(x)."),
    "Record": ("no_norm", "self.attend(self.norm1(x))", "self.attend(x)"),
    "Spread": ("rope_on_queries_only", "turn(q), turn(k)", "turn(q), k"),
    "HandedUp": ("rope_not_a_rotation", "a * cos - b * sin", "a * cos + b * sin"),
    "PreciseNorms": ("residual_detached", "return x + self.feed_forward", "return x.detach() + self.feed_forward"),
    "UnusedEntry": ("missing_attention_scale", "v, is_causal=True", "v, is_causal=True, scale=1.0"),
    "Deviations": ("doubled_residual", "return x + self.feed", "return x + x + self.feed"),
    "Unrotated": ("missing_attention_scale", "v, is_causal=True", "v, is_causal=True, scale=1.0"),
    "ForInference": ("gradient_missing", "nn.Parameter(torch.empty", "nn.Parameter(0.1 * torch.randn"),
    "BothTables": ("doubled_residual", "return x + self.feed", "return x + x + self.feed"),
    "of_weights": ("rope_on_queries_only", "turn(q), turn(k)", "turn(q), k"),
}  # fmt: skip
STRETCHED = RIGHT.replace(
    "angles = places * 10000.0 ** (-torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])",
    "angles = places * torch.tensor([1.0, 0.08, 0.006, 0.0001], device=x.device)",
)
BESIDE_FREQUENCIES = {
    "rope_on_queries_only": ("turn(q), turn(k)", "turn(q), k"),
    "rope_not_a_rotation": ("a * cos - b * sin", "a * cos + b * sin"),
    "missing_attention_scale": ("v, is_causal=True", "v, is_causal=True, scale=1.0"),
}


def judged(file: str, name: str) -> Verdict:
    torch.set_num_threads(1)
    return judge(LocalSubject(), locate(f"{file}:{name}"), seed=0)


@pytest.fixture(scope="module")
def verdict_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Verdict]]:
    """Judges a source in a process of its own, where no type checker slows the search."""

    def written(source: str, name: str) -> Path:
        file = tmp_path_factory.mktemp("outside") / f"{name.lower()}.py"
        file.write_text(source)
        return file

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.cache(lambda source, name: pool.submit(judged, str(written(source, name)), name).result())


@pytest.mark.long
@pytest.mark.parametrize("name", HABITS)
def test_a_habit_is_no_fault(name, verdict_of):
    verdict = verdict_of(RIGHT + HABITS[name], name)
    assert [one.id for one in verdict.faults] == []
    assert verdict.exit_code == 0


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_beside_a_habit_is_named(name, verdict_of):
    fault, old, new = FAULTS[name]
    source = RIGHT + HABITS[name]
    assert old in source
    assert [one.id for one in verdict_of(source.replace(old, new), name).faults] == [fault]


@pytest.mark.long
@pytest.mark.parametrize("fault", BESIDE_FREQUENCIES)
def test_a_fault_beside_frequencies_of_its_own_is_named(fault, verdict_of):
    assert [one.id for one in verdict_of(STRETCHED.replace(*BESIDE_FREQUENCIES[fault]), "Block").faults] == [fault]

"""Blocks whose parameters are kept in unusual ways are right all the same, or it is said that nobody can read them."""

import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from prenorm import TransformerBlock
from prenorm.checks.formula.assign_attention import attention_readings
from prenorm.checks.formula.assign_feed_forward import feed_forward_readings
from prenorm.checks.formula.assign_norms import norm_readings
from prenorm.checks.formula.parameters import Sizes, possible_d_ff, sort_parameters, weights
from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject


class LowRank(nn.Module):
    """A linear layer with an adapter."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        rows, columns = inner.weight.shape
        self.lora_A = nn.Parameter(torch.randn(3, columns))
        self.lora_B = nn.Parameter(torch.zeros(rows, 3))  # as they start: without effect

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.lora_A.to(x.dtype).T @ self.lora_B.to(x.dtype).T


class Shards(nn.Module):
    """A linear layer in two parts, cut along one axis."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__()
        self.dim, self.parts = dim, nn.ParameterList(part.detach().clone() for part in inner.weight.chunk(2, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat(list(self.parts), self.dim).T


@dataclass(frozen=True)
class Make:
    """Builds our own block, changed."""

    change: Callable[[nn.Module], nn.Module]
    num_kv_heads: int = 4

    def __call__(self, d_model: int, num_heads: int, d_ff: int, eps: float = 1e-6) -> nn.Module:
        return self.change(TransformerBlock(d_model, num_heads, d_ff, eps=eps, num_kv_heads=self.num_kv_heads))


def judged(make: Make) -> list[tuple[str, str]]:
    torch.set_num_threads(1)
    found = judge(LocalSubject(make), Code(root="", module="reading", file=None, name="make"), seed=0)
    return [(one.id, one.evidence) for one in found.findings]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Processes of their own, where no type checker slows the search."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def with_adapters(block: nn.Module) -> nn.Module:
    block.attn.q_proj, block.ffn.up_proj = LowRank(block.attn.q_proj), LowRank(block.ffn.up_proj)
    return block


def with_adapters_that_count(block: nn.Module) -> nn.Module:
    block = with_adapters(block)
    nn.init.normal_(block.attn.q_proj.lora_B)
    return block


def in_shards(block: nn.Module) -> nn.Module:
    for name in ("q_proj", "k_proj", "v_proj"):
        setattr(block.attn, name, Shards(getattr(block.attn, name), 0))
    block.attn.o_proj, block.ffn.down_proj = Shards(block.attn.o_proj, 1), Shards(block.ffn.down_proj, 1)
    block.ffn.gate_proj, block.ffn.up_proj = Shards(block.ffn.gate_proj, 0), Shards(block.ffn.up_proj, 0)
    return block


def with_a_table(block: nn.Module) -> nn.Module:
    block.attn.register_parameter("table", nn.Parameter(torch.randn(11, 3), requires_grad=False))
    block.attn.register_forward_hook(lambda module, args, y: y + 0 * module.table.sum())
    return block


class Flat(nn.Module):
    """A block whose weights are views of one vector."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.held = (block,)  # no child of this module
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for p in block.parameters()]))

    def forward(self, x: Tensor) -> Tensor:
        sizes = [p.numel() for p in self.held[0].parameters()]
        named = zip(self.held[0].named_parameters(), self.flat.split(sizes), strict=True)
        given = {name: part.view_as(p).to(x.dtype) for (name, p), part in named}
        return torch.func.functional_call(self.held[0], given, (x,))


def fused(block: nn.Module) -> nn.Module:
    attn = block.attn
    weight = torch.cat([attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight])
    attn.register_parameter("qkv", nn.Parameter(weight.detach()))
    del attn.q_proj, attn.k_proj, attn.v_proj

    def part(which: slice) -> Callable[[Tensor], Tensor]:
        return lambda x: x @ attn.qkv[which].T

    attn.q_proj, attn.k_proj, attn.v_proj = (part(slice(*at)) for at in ((0, 32), (32, 48), (48, 64)))
    return block


def without_scale(block: nn.Module) -> nn.Module:
    block = with_adapters(block)
    block.attn.k_proj.register_forward_hook(times_root)
    return block


def times_root(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return y * 8**0.5


class Shifted(nn.Module):
    """LayerNorm, whose weight and bias have other names, or stand in another order."""

    def __init__(self, dim: int, names: tuple[str, str], eps: float) -> None:
        super().__init__()
        self.names, self.eps = names, eps
        for name in sorted(names):
            start = torch.ones(dim) if name == names[0] else torch.zeros(dim)
            self.register_parameter(name, nn.Parameter(start))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (getattr(self, name).to(x.dtype) for name in self.names)
        return nn.functional.layer_norm(x, weight.shape, weight, bias, self.eps)


class Offset(nn.Module):
    """A linear layer with a bias of another name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.matrix, self.offset = inner.weight, nn.Parameter(torch.zeros(len(inner.weight)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x.dtype).T + self.offset.to(x.dtype)


@dataclass(frozen=True)
class WithShifted:
    """Puts LayerNorms with these names of weight and bias into a block, and such biases beside its matrices."""

    names: tuple[str, str]

    def __call__(self, block: nn.Module) -> nn.Module:
        block.norm1, block.norm2 = (Shifted(32, self.names, block.norm1.eps) for _ in range(2))
        block.attn.q_proj, block.attn.o_proj = Offset(block.attn.q_proj), Offset(block.attn.o_proj)
        block.ffn.down_proj = Offset(block.ffn.down_proj)
        return block


NAMES = st.text("abWqkvo01._", min_size=1, max_size=8) | st.sampled_from(
    ["q.weight", "q.bias", "norm.weight", "lora_A"]
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 16, 26, 32, 52, 64, 96, 104]), max_size=4)


@example({"v.lora_B": [16, 4]}, 2)  # as many numbers as two norms have
@given(st.dictionaries(NAMES, SHAPES, max_size=12), st.sampled_from([4, 2, 1]))
def test_parameters_of_any_names_and_shapes_are_sorted(shapes: dict[str, list[int]], num_kv_heads: int) -> None:
    listed = [{"name": name, "shape": shape, "same_as": name} for name, shape in shapes.items()]
    sizes = Sizes(num_kv_heads=num_kv_heads)
    assert possible_d_ff(listed, sizes)[0] == sizes.d_ff
    found = sort_parameters(listed, sizes)
    entries = {*found.attention, *found.feed_forward, *found.unknown, *found.head_norms, *found.biases.values()}
    sorted_ones = {one for entry in entries for one in found.names(entry)}
    assert sorted_ones | {one for norm in found.norms for one in norm.parameters} == shapes.keys()
    raw = {name: torch.randn(shape) for name, shape in shapes.items()}
    for readings in (attention_readings(found, sizes), feed_forward_readings(found, sizes), norm_readings(found)):
        for reading in itertools.islice(readings, 3):
            weights([reading], raw)


@pytest.mark.parametrize(
    ("names", "norms"),
    [
        (("attn.q_norm.weight", "attn.k_norm.weight"), 2),
        (("attn.query_ln.scale", "attn.key_ln.scale", "attn.per_dim.scale"), 2),
        (("attn.q_scale", "attn.k_scale"), 2),
        (("attn.norm.weight",), 1),
        (("attn.scale",), 0),
    ],
)
def test_a_vector_of_a_heads_size_is_a_norm_by_its_name_or_in_a_pair(names: tuple[str, ...], norms: int) -> None:
    listed = [{"name": name, "shape": [Sizes().head_dim], "same_as": name} for name in names]
    found = sort_parameters(listed, Sizes())
    assert found.head_norms == [*names[:norms]]
    assert found.unknown == [*names[norms:]]


CASES = {
    "adapters": (Make(with_adapters), []),
    "adapters that have an effect": (Make(with_adapters_that_count), []),
    "shards": (Make(in_shards), []),
    "a table among the parameters": (Make(with_a_table), []),
    "fewer key-value heads that nobody asked for": (Make(fused, num_kv_heads=2), []),
    "weights and biases called scale and shift": (Make(WithShifted(("scale", "shift"))), ["layer_norm"]),
    "weights and biases called gamma and beta": (Make(WithShifted(("gamma", "beta"))), ["layer_norm"]),
    "one vector": (Make(Flat), ["unreadable"]),
    "a fault beside adapters": (Make(without_scale), ["missing_attention_scale"]),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES)
def test_unusual_parameters(case: str, pool: ProcessPoolExecutor) -> None:
    make, ids = CASES[case]
    found = pool.submit(judged, make).result()
    assert [id for id, _ in found] == ids, found

"""Experts, of which each rank has rows for other ones: with copies some may be left out, with shards none may."""

import copy
from typing import Any

import torch
from torch import nn

from prenorm import ConfigError, parallelize
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh

from .one_process import distance, whole
from .processes import run


class Mixture(nn.Module):
    """Each row goes to one of eight experts, so that no rank has rows for all of them."""

    def __init__(self, leaves_out):
        super().__init__()
        self.router = nn.Linear(16, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(8))
        self.leaves_out = leaves_out

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            (rows,) = (chosen == number).nonzero(as_tuple=True)
            if len(rows) or not self.leaves_out:
                y = y.index_add(0, rows, weights[rows, None] * expert(x[rows]))
        return y


def test_experts_that_run_on_no_rows_or_with_copies_not_at_all_have_the_gradients_of_one_process(tmp_path):
    for found in run(mixture_errors, 2, tmp_path):
        assert max(found) <= 1e-6


def mixture_errors():
    found, rank = [], torch.distributed.get_rank()
    for layout, leaves_out in ((Layout(dp=2), True), (Layout(dp=2), False), (Layout(fsdp=2), False)):
        torch.manual_seed(0)
        single, x = Mixture(leaves_out), torch.randn(6, 16)
        module = parallelize(copy.deepcopy(single), make_mesh(layout))
        module(x.chunk(2)[rank]).square().mean().backward()
        single(x).square().mean().backward()
        for mine, one in zip(module.parameters(), single.parameters(), strict=True):
            if one.grad is not None and one.grad.any():
                found.append(distance(whole(mine.grad), one.grad))
            elif mine.grad is not None:
                found.append(float(whole(mine.grad).norm()))
    return found


def test_a_list_of_containers_is_sharded_too(tmp_path):
    for found in run(container_errors, 2, tmp_path):
        assert max(found) <= 1e-6


def container_errors():
    torch.manual_seed(0)
    single, x = Heads(), torch.randn(4, 5, 16)
    module = parallelize(copy.deepcopy(single), make_mesh(Layout(fsdp=2)))
    module(x.chunk(2)[torch.distributed.get_rank()]).square().mean().backward()
    single(x).square().mean().backward()
    pairs = zip(module.parameters(), single.parameters(), strict=True)
    return [distance(whole(mine.grad), one.grad) for mine, one in pairs]


class Heads(nn.Module):
    """Each head keeps its maps in a dict, and one that is not there is None."""

    def __init__(self):
        super().__init__()
        heads = [nn.ModuleDict({name: nn.Linear(16, 8, bias=False) for name in "qkv"}) for _ in range(2)]
        self.heads = nn.ModuleList([*heads, None])

    def forward(self, x):
        attend = nn.functional.scaled_dot_product_attention
        heads: list[Any] = [one for one in self.heads if one is not None]
        return x + torch.cat([attend(one["q"](x), one["k"](x), one["v"](x)) for one in heads], -1)


def test_experts_that_are_left_out_are_refused_with_their_names(tmp_path):
    for rank, message in enumerate(run(refusal, 2, tmp_path)):
        assert f"rank {rank} did not run moe.experts.1, moe.experts.2, " in message
        assert "run it on none of them: moe.experts.1(x[:0])" in message


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = Mixture(leaves_out=True)

    def forward(self, x):
        return x + self.moe(x)


def refusal():
    """All rows go to the first expert, on both ranks, so that neither waits for the other."""
    block = Block()
    nn.init.zeros_(block.moe.router.weight)
    nn.init.zeros_(block.moe.router.bias)
    parallelize(block, make_mesh(Layout(fsdp=2)))
    try:
        block(torch.randn(6, 16))
    except ConfigError as error:
        return str(error)
    return "nothing was refused"

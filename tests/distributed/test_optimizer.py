"""The optimisers on sharded parameters take the steps that they take on whole ones."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from prenorm import ModelConfig, TransformerLM
from prenorm.models.with_loss import ModelWithLoss
from prenorm.training.config import TrainConfig
from prenorm.training.muon import Muon
from prenorm.training.optimizer import MuonAndAdamW

from .processes import run

SHAPES = [(9, 5), (5, 9), (16, 16), (7, 33), (3, 40), (64, 24), (1, 6)]
STEPS = 3


def gradients(step):
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def moved(shard):
    """The weights after some steps of Muon with given gradients, each matrix as `shard` makes it."""
    matrices = [shard(torch.nn.Parameter(one)) for one in gradients(0)]
    optimizer = Muon(matrices, lr=0.1, weight_decay=0.01)
    for step in range(1, STEPS + 1):
        for matrix, gradient in zip(matrices, gradients(step), strict=True):
            matrix.grad = shard(gradient)
        optimizer.step()
    return [getattr(one, "full_tensor", lambda one=one: one)().detach() for one in matrices]


def moved_on_ranks():
    """The same for several placements, on this rank."""
    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    placements = [
        (line, [Shard(0)]),
        (line, [Shard(1)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Shard(0), Shard(1)]),
        (square, [Shard(1), Replicate()]),
    ]

    def sharded(mesh, how):
        def shard(one):
            spread = distribute_tensor(one.detach(), mesh, how)
            return torch.nn.Parameter(spread) if isinstance(one, torch.nn.Parameter) else spread

        return shard

    return [moved(sharded(*one)) for one in placements] + [moved(strided(square))]


def strided(mesh):
    """FSDP2 on top of tensor parallelism, both along the rows."""

    def shard(one):
        if not isinstance(one, torch.nn.Parameter):
            return distribute_tensor(one, like.device_mesh, [Replicate(), Replicate()]).redistribute(
                placements=like.placements
            )
        linear = torch.nn.Linear(one.shape[1], one.shape[0], bias=False)
        linear.weight = one
        parallelize_module(linear, mesh["tp"], ColwiseParallel())
        fully_shard(linear, mesh=mesh["fsdp"])
        return linear.weight

    like = shard(torch.nn.Parameter(torch.empty(8, 4)))
    return shard


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    return run(moved_on_ranks, 4, tmp_path_factory.mktemp("muon"))


def test_muon_takes_the_same_steps_bit_for_bit_however_matrices_are_sharded(on_ranks):
    expected = moved(lambda one: one)
    for rank in on_ranks:
        for matrices in rank:
            for one, other in zip(matrices, expected, strict=True):
                assert torch.equal(one, other), one.shape


def test_on_whole_matrices_it_is_pytorchs_muon_bit_for_bit():
    ours = moved(lambda one: one)
    matrices = [torch.nn.Parameter(one) for one in gradients(0)]
    optimizer = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.01)
    for step in range(1, STEPS + 1):
        for matrix, gradient in zip(matrices, gradients(step), strict=True):
            matrix.grad = gradient
        optimizer.step()
    assert all(map(torch.equal, ours, matrices))


ROWS, SEQ = 8, 16


def losses(optimizer, shards):
    """The losses of 12 steps on rows of which each of `shards` ranks has its part, all of them sharding the model."""
    rate = {"lr": 0.01} if optimizer == "adamw" else {}
    config = TrainConfig.from_fields({"preset": "tiny", "optimizer": optimizer, "weight_decay": 0.1, **rate})
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(40, 16, 3, 2, max_seq_len=SEQ, qkv_bias=True)).train()
    rank, run = 0, ModelWithLoss(model)
    if shards > 1:
        rank = dist.get_rank()
        for part in (*model.layers, run):
            fully_shard(part, mesh=init_device_mesh("cpu", (shards,)))
        assert all(isinstance(one, DTensor) for one in model.parameters())
    steps = MuonAndAdamW(model, config)
    found = []
    for step in range(12):
        draw = torch.Generator().manual_seed(step)
        tokens = (torch.randint(0, 40, (ROWS, 1), generator=draw) + torch.arange(SEQ + 1)) % 40
        tokens = tokens.chunk(shards)[rank]
        loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        steps.step(min(1.0, (step + 1) / 4))
        total = loss.detach() / shards
        if shards > 1:
            dist.all_reduce(total)
        found.append(total.item())
    return found


@pytest.mark.long
@pytest.mark.parametrize(("optimizer", "apart"), [("adamw", 1e-5), ("muon", 1e-3)])
def test_over_twelve_steps_losses_are_those_of_one_process(optimizer, apart, tmp_path):
    expected = losses(optimizer, 1)
    assert expected[-1] < 0.9 * expected[0]
    for rank in run(losses, 4, tmp_path, optimizer, 4):
        assert rank == pytest.approx(expected, rel=apart)

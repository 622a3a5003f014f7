"""A model that is spread before it has weights gets the bits of one process, and no process has it whole."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from prenorm import ModelConfig, TransformerLM
from prenorm.distributed.fill import SAMPLE, fill
from prenorm.distributed.layout import Layout
from prenorm.distributed.mesh import make_mesh
from prenorm.distributed.parallelize import parallelize
from prenorm.distributed.pipeline import Pipeline
from prenorm.layers.sharded import local_part
from prenorm.models.init import first_weights, initialise

from ..costs.cluster.fake_ranks import Peak, alone, fake_mesh
from .processes import run

SIZES = {"vocab_size": 51, "d_model": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "d_ff": 64}
TIED = {"tie_embeddings": True, "qkv_bias": True, "o_bias": True, "qk_norm": True}


def without_data(fields):
    with torch.device("meta"):
        return TransformerLM(ModelConfig.from_dict({**SIZES, **fields}))


def weights(fields):
    torch.manual_seed(3)
    return first_weights(without_data(fields), SIZES["num_layers"])


def filled(fields, layout, stages, mesh):
    """A spread model with its weights, and what spreads it."""
    model, owner = without_data(fields), None
    if layout.pp > 1:
        owner = Pipeline(model, mesh, stages_per_rank=stages, device=torch.device("cpu"))
    else:
        parallelize(model, mesh)
    fill(model, weights(fields), "cpu")
    return model, owner


def differing(fields, layouts):
    """The weights of this process that are not those of one process, by layout; and the names of all that it has."""
    one = TransformerLM(ModelConfig.from_dict({**SIZES, **fields}))
    torch.manual_seed(3)
    initialise(one, SIZES["num_layers"])
    expected = one.state_dict()
    found, names = [], []
    for layout, stages in layouts:
        mesh = make_mesh(layout)
        model, owner = filled(fields, layout, stages, mesh)
        mine = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in model.named_parameters()}
        found += [(layout, name) for name, one in mine.items() if not torch.equal(one, expected[name])]
        names.append(sorted(mine))
        assert not any(one.is_meta for one in model.buffers())
        del owner
    return found, names


@pytest.mark.long
@pytest.mark.parametrize("fields", [{}, TIED], ids=["plain", "tied"])
def test_every_layout_has_the_bits_of_one_process(tmp_path, fields):
    layouts = [(Layout(fsdp=4), 1), (Layout(fsdp=2, tp=2), 1), (Layout(dp=2, pp=2), 1), (Layout(fsdp=2, pp=2), 2)]
    ranks = run(differing, 4, tmp_path, fields, [*layouts, (Layout(tp=2, pp=2), 1)])
    assert [found for found, _ in ranks] == [[]] * 4
    whole = set(without_data(fields).state_dict())
    for number in range(len(layouts) + 1):
        assert set().union(*(names[number] for _, names in ranks)) == whole


def memory(layout):
    """The most bytes of all tensors while a rank gets its weights; of its part, the largest weight, and all."""
    model = without_data({})
    parallelize(model, fake_mesh(layout))
    with Peak([]) as peak:
        fill(model, weights({}), "cpu")
    whole = [one.numel() * 4 for one in model.parameters()]
    return peak.bytes, sum(local_part(one).nbytes for one in model.parameters()), max(whole), sum(whole)


@pytest.mark.parametrize(
    "layout", [Layout(fsdp=8), pytest.param(Layout(fsdp=4, tp=2), marks=pytest.mark.long)], ids=str
)
def test_a_process_has_no_more_in_memory_than_its_part_and_one_weight(layout):
    peak, part, largest, whole = alone(memory, layout)
    assert peak <= part + largest + 2 * 8 * SAMPLE < whole / 4

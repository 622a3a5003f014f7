"""Collectives as they are counted, against those of a rank of 256 that do not exist."""

from collections import Counter

import pytest

from prenorm import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.cluster.collectives import block_collectives, collectives_of_a_step
from prenorm.costs.cluster.plan import Plan
from prenorm.costs.cluster.stages import Stages
from prenorm.distributed.layout import Layout

from .fake_ranks import alone, run_a_step

SIZES = {"vocab_size": 2048, "d_model": 256, "num_layers": 3, "num_heads": 32, "num_kv_heads": 8, "head_dim": 8}


def model_of(**options):
    return ModelConfig(**{**SIZES, "d_ff": 512, **options})


def plan_of(config, layout, *, micro_batches=1, **options):
    rows = {"batch": 2 * micro_batches * layout.data_ranks, "micro_batch": 2, "context": 64}
    return Plan(model=architecture_of(config), layout=layout, **rows, **{"dtype": "float32", "every": 0, **options})


def check(layout, *, pp_rank=0, micro_batches=1, every=0, dtype="float32", pp_stages=1, **options):
    config = model_of(**options)
    plan = plan_of(config, layout, micro_batches=micro_batches, every=every, dtype=dtype, pp_stages=pp_stages)
    predicted: Counter[tuple[str, str, int]] = Counter()
    for one in collectives_of_a_step(Stages(plan, pp_rank)):
        predicted[one.axis, one.kind, one.bytes] += one.count
    found = alone(run_a_step, config, plan, pp_rank)[1]
    assert predicted == found


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (Layout(fsdp=256), {}),
        (Layout(fsdp=256), {"every": 1, "dtype": "bfloat16", "micro_batches": 3}),
        (Layout(dp=8, fsdp=32), {"micro_batches": 2}),
        (Layout(dp=256), {"num_layers": 20}),
        (Layout(dp=256), {"micro_batches": 2, "tie_embeddings": True}),
        (Layout(fsdp=32, tp=8), {}),
        (Layout(fsdp=32, tp=8), {"every": 1, "dtype": "bfloat16"}),
        (Layout(fsdp=32, tp=8), {"every": 2, "micro_batches": 2}),
        (Layout(fsdp=32, tp=8), {"tie_embeddings": True, "vocab_size": 2000}),
        (Layout(fsdp=32, tp=8), {"qk_norm": True, "qkv_bias": True, "o_bias": True}),
        (Layout(fsdp=16, tp=16), {"dtype": "bfloat16"}),  # more ranks than key heads
        (Layout(dp=8, fsdp=4, tp=8), {"every": 1}),
        (Layout(dp=32, tp=8), {}),
    ],
)
def test_a_step_has_the_collectives_that_are_counted_with_their_bytes(layout, options):
    check(layout, **options)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("layout", "pp_rank", "options"),
    [
        (Layout(pp=4, dp=64), 1, {}),
        (Layout(pp=4, dp=8, fsdp=8), 0, {"every": 1}),
        (Layout(pp=4, dp=8, fsdp=8), 2, {"dtype": "bfloat16"}),
        (Layout(pp=4, fsdp=8, tp=8), 3, {"every": 1}),
        (Layout(pp=2, dp=128), 0, {"pp_stages": 2}),
        (Layout(pp=2, dp=128), 1, {"pp_stages": 2}),
        (Layout(pp=4, dp=64), 3, {"tie_embeddings": True}),
    ],
)
def test_a_stage_has_the_collectives_that_are_counted_with_their_bytes(layout, pp_rank, options):
    check(layout, pp_rank=pp_rank, micro_batches=8, num_layers=8, **options)


def test_a_block_of_llama_3_8b_on_256_ranks_gathers_twice_and_scatters_once():
    """All of its parameters, 872 MB in float32; and the sequence four times in each pass, 67 MB."""
    config = ModelConfig.preset("llama-3-8b")
    layout = Layout(fsdp=32, tp=8)
    plan = Plan(model=architecture_of(config), layout=layout, batch=64, micro_batch=2, context=2048, every=0)
    found = {(one.axis, one.phase, one.kind): (one.count, one.bytes) for one in block_collectives(plan)}
    gathered = found["fsdp", "forward", "all_gather"]
    assert gathered == found["fsdp", "backward", "all_gather"] == found["fsdp", "step", "reduce_scatter"]
    assert gathered == (1, (218103808 - 2 * 4096) // 8 * 4 + 2 * 4096 * 4)
    stream = 2 * 2048 * 4096
    assert found["tp", "forward", "all_gather"] == found["tp", "backward", "reduce_scatter"] == (2, 4 * stream)
    assert found["tp", "forward", "reduce_scatter"] == found["tp", "backward", "all_gather"] == (2, 2 * stream)

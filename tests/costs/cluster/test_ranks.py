"""What is counted for a rank, its collectives and its memory, against a step of one among many that do not exist."""

from collections import Counter
from dataclasses import replace

import pytest

from prenorm import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.cluster.collectives import block_collectives, collectives_of_a_step
from prenorm.costs.cluster.plan import Plan
from prenorm.costs.cluster.rank_memory import peak_of, rank_bytes
from prenorm.costs.cluster.stages import Stages
from prenorm.costs.memory import optimizer_state
from prenorm.costs.parameters import total
from prenorm.distributed.layout import Layout

from .fake_ranks import alone, run_a_step

SIZES = {"vocab_size": 8192, "d_model": 512, "num_layers": 4, "num_heads": 8, "num_kv_heads": 4, "d_ff": 1408}
BFLOAT16 = {"dtype": "bfloat16"}
PHASES = ("forward", "backward")
WIDE_VOCABULARY = {"vocab_size": 32768, "num_layers": 2, "d_ff": 512}


def plan_of(config, layout, *, micro_batches=1, dtype="float32", every=0, pp_stages=1):
    return Plan(
        model=architecture_of(config),
        layout=layout,
        batch=2 * micro_batches * layout.data_ranks,
        micro_batch=2,
        context=512,
        dtype=dtype,
        every=every,
        pp_stages=pp_stages,
    )


def check(layout, *, pp_rank=0, micro_batches=1, dtype="float32", every=0, pp_stages=1, **options):
    config = ModelConfig(**{**SIZES, **options})
    plan = plan_of(config, layout, micro_batches=micro_batches, dtype=dtype, every=every, pp_stages=pp_stages)
    rank = Stages(plan, pp_rank)
    counted: Counter[tuple[str, str, int]] = Counter()
    for one in collectives_of_a_step(rank):
        counted[one.axis, one.kind, one.bytes] += one.count
    peak, found = alone(run_a_step, config, plan, pp_rank)
    assert counted == found
    assert peak_of(rank)["total"] == pytest.approx(peak, rel=0.05)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (Layout(fsdp=32, tp=8), {"every": 1, **BFLOAT16}),
        (Layout(fsdp=256), {}),
        (Layout(fsdp=256), {"every": 1, "micro_batches": 3, **BFLOAT16}),
        (Layout(fsdp=256), {"every": 1, "tie_embeddings": True, **WIDE_VOCABULARY}),
        (Layout(dp=8, fsdp=32), {"micro_batches": 2}),
        (Layout(dp=4, fsdp=64), {"qk_norm": True, "tie_embeddings": True, **BFLOAT16}),
        (Layout(dp=256), {"num_layers": 8, "d_model": 128, "d_ff": 384, "num_heads": 2, "num_kv_heads": 2}),
        (Layout(dp=256), {"micro_batches": 2, "tie_embeddings": True, "num_layers": 1}),
        (Layout(fsdp=32, tp=8), {}),
        (Layout(fsdp=64, tp=4), {"every": 2, "micro_batches": 2, **BFLOAT16}),
        (Layout(fsdp=32, tp=8), {"tie_embeddings": True, "vocab_size": 2004}),
        (Layout(fsdp=64, tp=4), {"qk_norm": True, "qkv_bias": True, "o_bias": True}),
        (Layout(fsdp=64, tp=4), {"qk_norm": True, **BFLOAT16}),
        (Layout(dp=8, fsdp=8, tp=4), {"every": 1}),
        (Layout(dp=64, tp=4), BFLOAT16),
    ],
)
def test_a_rank_of_256_has_the_collectives_that_are_counted_and_the_bytes_within_5_percent(layout, options):
    check(layout, **options)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("layout", "pp_rank", "options"),
    [
        (Layout(pp=4, dp=64), 1, {"micro_batches": 4, "every": 1}),
        (Layout(pp=4, dp=8, fsdp=8), 2, {"every": 1, **BFLOAT16}),
        (Layout(pp=4, fsdp=16, tp=4), 3, {"every": 1}),
        (Layout(pp=2, dp=128), 0, {"pp_stages": 2}),
        (Layout(pp=2, dp=128), 1, {"pp_stages": 2}),
        (Layout(pp=4, dp=64), 3, {"tie_embeddings": True}),
        (Layout(pp=4, dp=64), 0, {"tie_embeddings": True, "every": 1}),
    ],
)
def test_a_stage_of_256_ranks_has_the_collectives_that_are_counted_and_the_bytes_within_5_percent(
    layout, pp_rank, options
):
    check(layout, pp_rank=pp_rank, **{"num_layers": 8, "micro_batches": 8, **options})


def test_a_block_of_llama_3_8b_gathers_its_parameters_in_each_pass_and_the_sequence_twice():
    config = ModelConfig.preset("llama-3-8b")
    plan = plan_of(config, Layout(fsdp=32, tp=8), dtype="bfloat16")
    all_of_them = block_collectives(plan)
    found = {(one.axis, one.phase, one.kind): (one.count, one.bytes) for one in all_of_them if one.axis == "tp"}
    gathers = [one for one in all_of_them if (one.axis, one.kind) == ("fsdp", "all_gather")]
    gathered = {phase: [(one.count, one.bytes) for one in gathers if one.phase == phase] for phase in PHASES}
    scattered = [(one.count, one.bytes) for one in all_of_them if one.kind == "reduce_scatter" and one.axis == "fsdp"]
    matrices, norm = 218_103_808 // 8, 4096  # a norm is whole on every tensor-parallel rank, and stays gathered
    assert gathered["forward"] == [(1, 2 * matrices), (1, 4 * norm), (1, 4 * norm)]
    assert gathered["backward"] == [(1, 2 * matrices)]
    assert scattered == [(1, 4 * matrices), (1, 4 * norm), (1, 4 * norm)]
    stream = 2 * 512 * 4096
    assert found["tp", "forward", "all_gather"] == found["tp", "backward", "reduce_scatter"] == (2, 4 * stream)
    assert found["tp", "forward", "reduce_scatter"] == found["tp", "backward", "all_gather"] == (2, 2 * stream)


def test_the_fullest_rank_is_that_of_all_ranks():
    config = ModelConfig(**{**SIZES, "num_layers": 10})
    for every in (0, 1):
        for layout in (Layout(pp=4), Layout(pp=4, fsdp=2), Layout(pp=2, tp=2)):
            plan = plan_of(config, layout, micro_batches=8, every=every)
            peaks = [peak_of(Stages(plan, rank))["total"] for rank in range(layout.pp)]
            assert rank_bytes(plan)["total"] == max(peaks)


def test_more_of_any_axis_never_takes_more_weights():
    config = ModelConfig(**{**SIZES, "num_layers": 8})
    whole = rank_bytes(plan_of(config, Layout(), micro_batches=8))["weights"]
    for layout in (Layout(fsdp=4), Layout(tp=4), Layout(pp=4)):
        assert rank_bytes(plan_of(config, layout, micro_batches=8))["weights"] < whole
    assert rank_bytes(plan_of(config, Layout(dp=4), micro_batches=8))["weights"] == whole


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_device_has_the_weights_and_the_optimiser_state_of_the_one_device_sheet(optimizer):
    for options in ({}, {"tie_embeddings": True, "qk_norm": True}, {"qkv_bias": True, "o_bias": True}):
        config = ModelConfig(**{**SIZES, **options})
        model = architecture_of(config)
        found = rank_bytes(replace(plan_of(config, Layout()), optimizer=optimizer))
        assert found["optimizer"] == optimizer_state(model, optimizer)
        assert found["weights"] == 4 * total(model)

"""Layouts that cannot work are refused with the numbers and the nearest layout that works."""

import dataclasses
import re

import pytest

from prenorm import ConfigError, ModelConfig
from prenorm.distributed.layout import Layout, layouts
from prenorm.distributed.mesh import Place
from prenorm.family import Family

CONFIG = ModelConfig(vocab_size=96, d_model=48, num_layers=6, num_heads=12, num_kv_heads=4, d_ff=96)


def refusal(layout, config=CONFIG, **run):
    run = {"world_size": layout.world_size, "batch_size": 16, "context": 64} | run
    with pytest.raises(ConfigError) as refused:
        layout.check(config, **run)
    return str(refused.value)


def test_the_product_and_the_ways_that_rows_split():
    layout = Layout(dp=2, fsdp=3, tp=4, pp=5)
    assert (layout.world_size, layout.data_ranks) == (120, 6)


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(2, 2, 2, 2), Layout(tp=4), Layout(tp=12), Layout(pp=6), Layout(16)]
)
def test_layouts_that_work_are_not_refused(layout):
    layout.check(CONFIG, world_size=layout.world_size, batch_size=16, micro_batch_size=1, context=64)


def test_the_wrong_number_of_processes():
    message = refusal(Layout(dp=2, tp=2), world_size=8)
    assert "2 x 1 x 2 x 1 = 4, and there are 8" in message
    assert message.endswith("The nearest layout that works is --dp 2 --fsdp 1 --tp 4 --pp 1.")


@pytest.mark.parametrize(
    ("layout", "run", "reason"),
    [
        (Layout(dp=3), {}, "dp x fsdp must divide batch_size, but 3 does not divide 16"),
        (Layout(tp=8), {}, "tp must divide num_heads, but 8 does not divide 12"),
        (Layout(tp=3), {}, "tp must divide num_kv_heads or be a multiple of it, but tp is 3 and num_kv_heads 4"),
        (Layout(tp=4), {"context": 3}, "tp must be at most context, because the sequence is split, too"),
        (Layout(pp=7), {"micro_batch_size": 2}, "pp must be at most num_layers, but it is 7 and num_layers 6"),
        (Layout(pp=2), {"micro_batch_size": 3}, "micro_batch_size must divide the 16 rows of a process"),
        (Layout(dp=4, pp=4), {"micro_batch_size": 2}, "pp must be at most the number of micro-batches"),
    ],
)
def test_each_reason_has_its_numbers(layout, run, reason):
    message = refusal(layout, **run)
    assert reason in message
    assert "nearest layout that works" in message


def test_a_vocabulary_may_be_split_unevenly_but_not_in_two_ways():
    odd = dataclasses.replace(CONFIG, vocab_size=97)
    Layout(fsdp=4, tp=2).check(odd, world_size=8, batch_size=16, context=64)
    message = refusal(Layout(fsdp=5, tp=2), odd, batch_size=10)
    assert "tp must divide vocab_size, or fsdp d_model, but tp is 2 and vocab_size 97, fsdp 5 and d_model 48" in message
    few = dataclasses.replace(CONFIG, vocab_size=5)
    assert "every rank must have some of the tokens" in refusal(Layout(tp=4), few)  # parts of 2, 2, 1 and 0


def test_all_reasons_are_told_at_once():
    message = refusal(Layout(dp=3, tp=5))
    assert all(reason in message for reason in ("batch_size", "num_heads", "d_ff"))


@pytest.mark.parametrize("field", ["wide_qk_norm", "per_head_qk_norm"])
def test_families_that_tensor_parallel_does_not_know_are_refused_by_name(field):
    norm = "layer_scale" if field == "per_head_qk_norm" else "rms"
    config = dataclasses.replace(CONFIG, qk_norm=True, family=Family(norm=norm, **{field: True}))
    assert field in refusal(Layout(tp=2), config)
    Layout(dp=2).check(config, world_size=2, batch_size=16, context=64)


def test_the_layout_that_is_suggested_works():
    run = {"batch_size": 16, "micro_batch_size": 4, "context": 64}
    for wrong in layouts(12):
        try:
            wrong.check(CONFIG, world_size=12, **run)
        except ConfigError as error:
            sizes = re.search(r"nearest layout that works is --dp (\d+) --fsdp (\d+) --tp (\d+) --pp (\d+)", str(error))
            nearest = Layout(*map(int, sizes.groups()))
            nearest.check(CONFIG, world_size=nearest.world_size, **run)


def test_where_no_layout_of_all_processes_works_fewer_are_suggested():
    assert "is --dp 6 --fsdp 1 --tp 1 --pp 1, on 6 of the 7 processes" in refusal(Layout(dp=7), batch_size=12)


def test_a_size_must_be_a_positive_integer():
    with pytest.raises(ConfigError, match="tp must be an integer of at least 1"):
        Layout(tp=0)


def test_the_places_of_all_ranks_fill_the_mesh():
    layout = Layout(dp=2, fsdp=3, tp=2, pp=2)
    places = [Place(layout, rank) for rank in range(layout.world_size)]
    found = [(place.pp, place.dp, place.fsdp, place.tp) for place in places]
    assert found == sorted(found)
    assert len(set(found)) == layout.world_size
    assert {place.data_rank for place in places} == set(range(6))
    assert found[1] == (0, 0, 0, 1)  # neighbours split the matrices


def test_a_rank_outside_the_layout_is_refused():
    with pytest.raises(ConfigError, match=r"must be in \[0, 2\)"):
        Place(Layout(dp=2), 2)

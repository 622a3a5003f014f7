import pytest

from prenorm.config import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.cluster.plan import Plan
from prenorm.distributed.layout import Layout
from prenorm.errors import ConfigError

MODEL = architecture_of(ModelConfig(vocab_size=32, d_model=16, num_layers=6, num_heads=4))


def plan(batch=16, micro_batch=1, layout=None, **options):
    return Plan(model=MODEL, layout=layout or Layout(), batch=batch, micro_batch=micro_batch, context=8, **options)


def test_rows_are_cut_by_data_ranks_and_then_by_micro_batches():
    one = plan(batch=24, micro_batch=2, layout=Layout(dp=2, fsdp=2, tp=4))
    assert (one.micro_batches, one.tokens) == (3, 16)
    assert (plan(batch=5, micro_batch=2).micro_batches, plan(batch=2, micro_batch=8).tokens) == (3, 16)


@pytest.mark.parametrize(
    ("pp", "stages", "micro_batches", "bubble"),
    [(1, 1, 8, 0), (4, 1, 4, 3 / 7), (4, 1, 12, 3 / 15), (2, 3, 8, 1 / 25)],
)
def test_the_bubble_is_that_of_narayanan_2021(pp, stages, micro_batches, bubble):
    one = plan(batch=micro_batches, layout=Layout(pp=pp), pp_stages=stages)
    assert one.bubble == pytest.approx(bubble)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": Layout(dp=3)}, "3 does not divide 16"),
        ({"batch": 0}, "batch must be an integer of at least 1"),
        ({"every": -1}, "every must be an integer of at least 1"),
        ({"pp_stages": 2}, "with pp = 1 it must be 1, not 2"),
        ({"layout": Layout(pp=4), "pp_stages": 2}, "4 x 2 = 8 is greater than num_layers = 6"),
        ({"layout": Layout(pp=2), "micro_batch": 3}, "must divide the 16 rows of a process, but 3 does not"),
        ({"layout": Layout(pp=2), "batch": 5, "pp_stages": 3}, "2 does not divide 5"),
    ],
)
def test_what_cannot_be_a_step_is_refused_with_the_numbers(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(**options)

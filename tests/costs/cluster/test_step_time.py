from dataclasses import replace

import pytest

from prenorm.config import ModelConfig
from prenorm.costs import flops
from prenorm.costs.architecture import architecture_of
from prenorm.costs.cluster.hardware import CLUSTERS
from prenorm.costs.cluster.plan import Plan
from prenorm.costs.cluster.step_time import model_flops_utilisation, step_seconds
from prenorm.distributed.layout import Layout

MODEL = architecture_of(ModelConfig.preset("llama-3-8b"))
H100 = CLUSTERS["h100-sxm"]


def plan(layout=None, **options):
    layout = layout or Layout(fsdp=8)
    settings = {"batch": 64, "micro_batch": 1, "context": 8192, "every": 0, **options}
    return Plan(model=MODEL, layout=layout, **settings)


def test_products_take_their_flops_at_the_rate_of_products():
    one = plan()
    parts = flops.forward(MODEL, 64, 8192, causal=True)
    products = 3 * (parts["projections"] + parts["feed_forward"] + parts["head"]) / 8
    assert step_seconds(one, H100)["products"] == pytest.approx(products / H100.product_flops)


@pytest.mark.parametrize("layout", [Layout(fsdp=8), Layout(tp=8), Layout(fsdp=2, tp=4), Layout(dp=2, pp=4)])
def test_parts_add_up_and_no_part_is_negative(layout):
    seconds = dict(step_seconds(plan(layout), H100))
    total = seconds.pop("total")
    assert sum(seconds.values()) == pytest.approx(total)
    assert min(seconds.values()) >= 0


def test_faster_hardware_never_takes_longer():
    one = plan(Layout(fsdp=4, tp=4, pp=4), batch=256)
    before = step_seconds(one, H100)["total"]
    names = ("product_flops", "peak_flops", "memory_bytes_per_second", "node_bytes_per_second")
    for name in (*names, "network_bytes_per_second"):
        after = step_seconds(one, replace(H100, **{name: 2 * getattr(H100, name)}))["total"]
        assert after <= before


def test_a_slow_network_is_seen_once_it_takes_longer_than_the_compute_that_hides_it():
    one = plan(Layout(fsdp=64))
    assert step_seconds(one, H100)["sharding"] < 0.1 * step_seconds(one, H100)["total"]
    slow = replace(H100, network_bytes_per_second=1e9)
    assert step_seconds(one, slow)["sharding"] > step_seconds(one, slow)["products"]


def test_checkpointing_costs_a_forward_pass_without_its_last_product():
    again = step_seconds(plan(every=1), H100)["recomputation"]
    parts = flops.recomputation(MODEL, 64, 8192, 1, causal=True)
    assert again > (parts["projections"] + parts["feed_forward"]) / 8 / H100.product_flops
    assert step_seconds(plan(every=2), H100)["recomputation"] == pytest.approx(again / 2)


def test_the_bubble_is_its_share_of_the_pipelines_own_time():
    one = plan(Layout(pp=4), batch=8)
    seconds = step_seconds(one, H100)
    passes = sum(seconds[name] for name in ("products", "attention", "elementwise", "recomputation", "tensor_parallel"))
    assert seconds["bubble"] / (seconds["bubble"] + passes) == pytest.approx(one.bubble)
    interleaved = step_seconds(plan(Layout(pp=4), batch=8, pp_stages=2), H100)
    assert interleaved["bubble"] < seconds["bubble"]


def test_utilisation_is_the_models_flops_over_the_published_rate():
    one, seconds = plan(), 2.0
    found = model_flops_utilisation(one, H100, seconds)
    usual = flops.six_n_and_attention(MODEL, 64 * 8192, 8192)
    assert found["mfu_6n_attention"] == pytest.approx(usual / (8 * H100.peak_flops * seconds))
    assert found["mfu_causal"] < found["mfu_6n_attention"]

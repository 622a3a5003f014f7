from dataclasses import replace

import pytest

from prenorm.config import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.cluster.hardware import CLUSTERS
from prenorm.costs.cluster.plan import Plan
from prenorm.costs.cluster.proposal import USABLE, Choices, best_plan, propose
from prenorm.costs.cluster.rank_memory import rank_bytes
from prenorm.costs.cluster.step_time import step_seconds
from prenorm.distributed.layout import Layout, layouts

H100 = CLUSTERS["h100-sxm"]
ANY = Choices()


def asked(name, devices, batch, context=4096):
    config = ModelConfig.preset(name)
    layout = Layout(dp=devices)
    plan = Plan(model=architecture_of(config), layout=layout, batch=batch, micro_batch=1, context=context)
    return config, plan


def test_every_layout_is_there_once_with_a_reason_unless_it_is_the_best():
    found = propose(*asked("llama-3-8b", 16, 64), H100, ANY)
    assert {one.layout for one in found} == set(layouts(16))
    assert [one.reason == "" for one in found] == [True] + [False] * (len(found) - 1)
    assert found[0].fits


def test_the_best_is_the_fastest_of_those_that_fit_and_its_figures_are_those_of_its_plan():
    config, plan = asked("llama-3-8b", 16, 64)
    found = [one for one in propose(config, plan, H100, ANY) if one.fits]
    times = [one.seconds["total"] for one in found]
    assert times == sorted(times)
    for one in found[:5]:
        assert one.seconds == step_seconds(one.plan, H100)
        assert one.bytes == rank_bytes(one.plan)["total"] <= H100.memory * USABLE


def test_less_memory_leaves_fewer_layouts_and_none_that_is_faster():
    config, plan = asked("llama-3-8b", 16, 64)
    small = replace(H100, memory=H100.memory // 2)
    much, little = (propose(config, plan, cluster, ANY) for cluster in (H100, small))
    assert sum(one.fits for one in little) < sum(one.fits for one in much)
    assert little[0].seconds["total"] >= much[0].seconds["total"]


def test_what_is_wrong_with_a_layout_has_its_numbers():
    config, plan = asked("llama-3-70b", 64, 64)
    reasons = {one.layout: one.reason for one in propose(config, plan, H100, ANY)}
    assert "does not divide 64" in reasons[Layout(tp=64)] or "at most a node's 8 devices" in reasons[Layout(tp=64)]
    assert "GB are usable" in reasons[Layout(dp=64)]
    assert "at most a node's 8 devices, but it is 16" in reasons[Layout(dp=4, tp=16)]
    assert "micro-batches" in reasons[Layout(pp=32, dp=2)] or "GB are usable" in reasons[Layout(pp=32, dp=2)]


def test_what_is_chosen_is_kept():
    config, plan = asked("llama-3-8b", 16, 64)
    choices = Choices(micro_batch=2, every=1, pp_stages=2)
    for one in propose(config, plan, H100, choices):
        if one.plan:
            assert (one.plan.micro_batch, one.plan.every, one.plan.pp_stages) == (2, 1, 2)
            assert one.layout.pp > 1


def test_a_layout_that_does_not_fit_has_the_smallest_plan_and_says_so():
    config, plan = asked("llama-3-70b", 8, 8)
    found = best_plan(config, plan, Layout(dp=8), H100, ANY)
    assert not found.fits
    assert found.plan.every == 1
    assert found.reason == f"needs {found.bytes / 1e9:,.1f} GB a device, and 73.6 GB are usable"


@pytest.mark.parametrize("devices", [1, 7, 12])
def test_any_number_of_devices_has_an_answer(devices):
    config, plan = asked("qwen3-0.6b", devices, devices)
    assert propose(config, plan, H100, ANY)[0].fits

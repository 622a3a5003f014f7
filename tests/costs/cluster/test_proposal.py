import re
from dataclasses import replace
from functools import lru_cache

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


@lru_cache
def proposed(memory=H100.memory):
    """Of one model on 16 devices."""
    config, plan = asked("llama-3-8b", 16)
    return propose(config, plan, 16, replace(H100, memory=memory), ANY)


def asked(name, batch):
    config = ModelConfig.preset(name)
    return config, Plan(model=architecture_of(config), layout=Layout(), batch=batch, micro_batch=1, context=4096)


def test_every_layout_is_there_once_with_a_reason_unless_it_is_the_best():
    found = proposed()
    assert {one.layout for one in found} == set(layouts(16))
    assert [one.reason == "" for one in found] == [True] + [False] * (len(found) - 1)
    assert found[0].fits


def test_the_best_is_the_fastest_of_those_that_fit_and_its_figures_are_those_of_its_plan():
    found = [one for one in proposed() if one.fits]
    times = [one.seconds["total"] for one in found]
    assert times == sorted(times)
    for one in found[:5]:
        assert one.seconds == step_seconds(one.plan, H100)
        assert one.bytes == rank_bytes(one.plan)["total"] <= H100.memory * USABLE


def test_less_memory_leaves_fewer_layouts_and_none_that_is_faster():
    much, little = proposed(), proposed(H100.memory // 2)
    assert sum(one.fits for one in little) < sum(one.fits for one in much)
    assert little[0].seconds["total"] >= much[0].seconds["total"]


def test_what_is_wrong_with_a_layout_has_its_numbers():
    reasons = {one.layout: one.reason for one in proposed()}
    assert re.fullmatch(r"needs \d+\.\d GB a device, and 73\.6 GB are usable", reasons[Layout(dp=16)])
    assert reasons[Layout(tp=16)] == "tp must be at most a node's 8 devices, but it is 16"
    assert re.fullmatch(r"\d+\.\d% slower: \d+\.\d% for [a-z ]+", proposed()[1].reason)
    config, plan = asked("llama-3-8b", 6)
    found = best_plan(config, plan, Layout(dp=16), H100, ANY)
    assert found.reason == "dp x fsdp must divide batch_size, but 16 does not divide 6"


def test_what_is_chosen_is_kept():
    config, plan = asked("llama-3-8b", 16)
    choices = Choices(micro_batch=2, every=1, pp_stages=2)
    for one in propose(config, plan, 4, H100, choices):
        if one.plan:
            assert (one.plan.micro_batch, one.plan.every, one.plan.pp_stages) == (2, 1, 2)
            assert one.layout.pp > 1


def test_a_layout_that_does_not_fit_has_the_smallest_plan_and_says_so():
    config, plan = asked("llama-3-70b", 8)
    found = best_plan(config, plan, Layout(dp=8), H100, ANY)
    assert not found.fits
    assert found.plan.every == 1
    assert found.reason == f"needs {found.bytes / 1e9:,.1f} GB a device, and 73.6 GB are usable"


@pytest.mark.parametrize("devices", [1, 7])
def test_any_number_of_devices_has_an_answer(devices):
    assert propose(*asked("qwen3-0.6b", devices), devices, H100, ANY)[0].fits

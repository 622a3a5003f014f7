import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenorm.training.config import TrainConfig
from prenorm.training.schedule import learning_rate_scale

TINY = TrainConfig.from_fields({"preset": "tiny"})


@given(
    steps=st.integers(1, 300),
    warmup_steps=st.integers(0, 400),
    decay_share=st.floats(0, 1),
    final_lr_share=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "wsd", "cosine"]),
)
def test_it_rises_then_is_level_then_falls_and_never_reaches_zero(steps, **fields):
    config = dataclasses.replace(TINY, steps=steps, **fields)
    scales = [learning_rate_scale(config, step) for step in range(1, steps + 1)]
    top = scales.index(max(scales))
    assert all(0 < scale <= 1 for scale in scales)
    assert scales[: top + 1] == sorted(scales[: top + 1])
    assert scales[top:] == sorted(scales[top:], reverse=True)


def test_the_corners_are_where_the_settings_say():
    config = dataclasses.replace(TINY, steps=100, warmup_steps=10, decay_share=0.2)
    scales = {step: learning_rate_scale(config, step) for step in range(1, 101)}
    assert scales[1] == 0.1
    assert scales[9] < scales[10] == scales[80] == 1.0
    assert scales[81] == pytest.approx(20 / 21)
    assert scales[100] == pytest.approx(1 / 21)


def test_cosine_goes_down_half_a_cosine_from_the_warm_up_to_the_share_that_is_left():
    config = dataclasses.replace(TINY, steps=110, warmup_steps=10, schedule="cosine", final_lr_share=0.1)
    scales = {step: learning_rate_scale(config, step) for step in (1, 10, 11, 60, 110)}
    assert scales[1] == 0.1
    assert scales[10] == 1.0
    for step in (11, 60, 110):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 101)) / 2
        assert scales[step] == pytest.approx(expected, rel=1e-12)


def test_warm_up_stable_decay_goes_down_as_one_minus_the_root():
    config = dataclasses.replace(TINY, steps=100, warmup_steps=10, decay_share=0.2, schedule="wsd", final_lr_share=0.05)
    scales = {step: learning_rate_scale(config, step) for step in (9, 10, 80, 81, 90, 100)}
    assert scales[9] == 0.9
    assert scales[10] == scales[80] == 1.0
    for step in (81, 90, 100):
        assert scales[step] == pytest.approx(0.05 + 0.95 * (1 - math.sqrt((step - 80) / 21)), rel=1e-12)


def test_without_warmup_and_decay_it_is_level():
    config = dataclasses.replace(TINY, steps=5, warmup_steps=0, decay_share=0.0)
    assert [learning_rate_scale(config, step) for step in range(1, 6)] == [1.0] * 5

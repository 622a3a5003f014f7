import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prenorm.training.config import TrainConfig
from prenorm.training.schedule import learning_rate_scale

TINY = TrainConfig.from_fields({"preset": "tiny"})


@given(steps=st.integers(1, 300), warmup_steps=st.integers(0, 400), decay_share=st.floats(0, 1))
def test_it_rises_then_is_level_then_falls_and_never_reaches_zero(steps, warmup_steps, decay_share):
    config = dataclasses.replace(TINY, steps=steps, warmup_steps=warmup_steps, decay_share=decay_share)
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


def test_without_warmup_and_decay_it_is_level():
    config = dataclasses.replace(TINY, steps=5, warmup_steps=0, decay_share=0.0)
    assert [learning_rate_scale(config, step) for step in range(1, 6)] == [1.0] * 5

import math

import pytest

from prenorm.errors import PrenormError
from prenorm.training.precision import LossScale
from prenorm.training.watch import MOST_BATCHES, MOST_SKIPPED, RECENT, Watch

NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def written():
    """The batches that were written, as (step, why)."""
    return []


@pytest.fixture
def watch_of(said, written):
    """A watch that writes no files."""

    def write(step, why):
        written.append((step, why))
        return f"{why}-{step}.json"

    return lambda on_nan="stop", scale=None: Watch(on_nan, scale, said.append, write)


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INFINITE, 1.0), (1.0, NAN), (1.0, INFINITE), (NAN, NAN)])
def test_what_is_not_finite_ends_the_run_or_is_skipped_and_its_batch_is_written(watch_of, said, written, loss, norm):
    with pytest.raises(PrenormError, match=r"at step 7 it is .*not-finite-7\.json.*--resume --on-nan skip"):
        watch_of("stop").reason_to_skip(7, loss, norm)
    watch = watch_of("skip")
    assert watch.reason_to_skip(8, loss, norm) == "not finite"
    assert watch.reason_to_skip(9, 1.0, 1.0) is None
    assert watch.skipped == {"overflow": 0, "not finite": 1}
    assert "Skipped step 8" in said[0]
    assert "not-finite-8.json" in said[0]
    assert written == [(7, "not-finite"), (8, "not-finite")]


def test_a_run_that_only_skips_ends(watch_of):
    watch = watch_of("skip")
    for step in range(1, MOST_SKIPPED):
        assert watch.reason_to_skip(step, NAN, NAN)
    watch.reason_to_skip(MOST_SKIPPED, 1.0, 1.0)
    for step in range(1, MOST_SKIPPED):
        assert watch.reason_to_skip(step, NAN, NAN)
    with pytest.raises(PrenormError, match=f"in the {MOST_SKIPPED - 1} steps before it"):
        watch.reason_to_skip(MOST_SKIPPED, NAN, NAN)


def test_an_overflow_at_a_high_scale_is_part_of_scaling_and_at_the_lowest_it_is_not(watch_of, said, written):
    scale = LossScale()
    watch = watch_of("stop", scale)
    first = scale.scale
    assert watch.reason_to_skip(1, 2.0, INFINITE) == "overflow"
    assert scale.scale == first / 2
    while scale.scale > 1:
        watch.reason_to_skip(2, 2.0, NAN)
    assert watch.skipped["overflow"] == round(math.log2(first))
    assert said == written == []
    with pytest.raises(PrenormError, match="its gradient's norm nan"):
        watch.reason_to_skip(3, 2.0, NAN)


def test_a_loss_that_is_not_finite_is_not_the_scales_fault(watch_of):
    scale = LossScale()
    with pytest.raises(PrenormError, match="it is inf"):
        watch_of("stop", scale).reason_to_skip(1, INFINITE, NAN)
    assert scale.scale == LossScale().scale


def noisy(step):
    """Losses that fall and tremble."""
    return 3 * 0.997**step + 0.05 * math.sin(step * step)


def test_a_jump_is_reported_with_its_batch_and_trembling_is_not(watch_of, said, written):
    watch = watch_of()
    for step in range(1, 200):
        assert watch.reason_to_skip(step, noisy(step), 1.0) is None
    assert said == written == []
    assert watch.reason_to_skip(200, 1.5 * noisy(200), 1.0) is None  # it is told, and the step is taken
    assert written == [(200, "spike")]
    assert "The loss jumped to" in said[0]
    assert "at step 200" in said[0]
    assert "spike-200.json" in said[0]


def test_without_enough_losses_nothing_is_a_jump(watch_of, said):
    watch = watch_of()
    for step in range(RECENT):
        watch.reason_to_skip(step, 1.0 if step < RECENT - 1 else 9.0, 1.0)
    assert said == []


def test_it_goes_on_from_its_fields(watch_of, said):
    one, other = watch_of("skip"), watch_of("skip")
    for step in range(1, 100):
        one.reason_to_skip(step, NAN if step in (50, 98, 99) else noisy(step), 1.0)
    said.clear()
    other.load_fields(one.to_fields())
    for watch in (one, other):
        for step in range(100, 100 + MOST_SKIPPED - 3):
            watch.reason_to_skip(step, NAN, 1.0)
        with pytest.raises(PrenormError, match="steps before it"):
            watch.reason_to_skip(200, NAN, 1.0)
    assert other.to_fields() == one.to_fields()
    assert len(said) % 2 == 0
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_a_folder_is_not_filled_with_batches(watch_of, written, said):
    watch = watch_of("skip")
    for step in range(2 * MOST_BATCHES + 10):
        watch.reason_to_skip(step, NAN if step % 2 else 1.0, 1.0)
    assert len(written) == MOST_BATCHES
    assert f"there are {MOST_BATCHES} already" in said[-1]

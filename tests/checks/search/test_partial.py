"""Slow pairs of a rotation look like pairs that are not turned: the nearer explanation is taken, whatever is drawn."""

import pytest
import torch

from prenorm.checks.search.explain import explain
from prenorm.checks.search.work import WHOLE, Work

from ..designs import HalfTurned
from ..probes.started import started
from ..small import Right


class FrequenciesTwiceAsSteep(Right):
    """Nearly those of HalfTurned: the other half turns, but hardly."""

    def rotated(self, x, positions):
        size = x.shape[-1]
        frequencies = 10000.0 ** (-4 * torch.arange(size // 2, dtype=torch.float64) / size)
        angle = positions[..., None].double() * frequencies
        cos, sin, a, b = angle.cos().to(x.dtype), angle.sin().to(x.dtype), x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


@pytest.mark.parametrize("seed", [5, 11])
@pytest.mark.parametrize(("block", "fraction"), [(HalfTurned, 0.5), (FrequenciesTwiceAsSteep, 1.0)])
def test_a_part_that_is_turned_is_told_from_frequencies_that_fall_twice_as_fast(block, fraction, seed):
    case = started(block)
    case.generator.manual_seed(seed)
    found = explain(case.wide(), case.generator, tolerance=1e-5, dtype=torch.float64, work=Work(WHOLE))
    assert found.spec.rotary_fraction == fraction
    assert (found.spec.frequency == "standard") == (fraction < 1)

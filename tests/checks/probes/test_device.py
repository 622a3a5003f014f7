"""Blocks that are moved to another device, or built there."""

import pytest
import torch
from torch import nn

from prenorm.checks.probes.case import Report
from prenorm.checks.probes.device import devices

from ..small import Right
from .started import started


class KeepsItsTable(Right):
    """The weights go where device says; a table stays."""

    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.to(device)
        self.register_buffer("table", torch.ones(d_model))

    def feed_forward(self, x):
        return super().feed_forward(x) * self.table


class BringsItsTable(KeepsItsTable):
    """It stays too, but each call brings it to its input's device."""

    def feed_forward(self, x):
        return Right.feed_forward(self, x) * self.table.to(x.device)


class KeepsItsWeights(Right):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)


class CopiesFromThere(Right):
    """A copy from a device to another runs everywhere but from meta; the weight stays."""

    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.down.weight.data.copy_(torch.zeros(d_model, d_ff, device=device))


class CopiesItsWeight(Right):
    """What .to returns is a parameter only if nothing had to be copied."""

    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.scale = nn.Parameter(torch.ones(()))
        self.scale = self.scale.to(device)  # type: ignore[assignment]  # as its author wrote it


class MadeByTheLegacyConstructor(Right):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.down.weight = nn.Parameter(torch.Tensor(size=(d_model, d_ff), device=device))


class MadeOfTwoDevices(Right):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.register_buffer("table", torch.arange(4) * torch.ones(4, device=device))


class MadeWithNumPy(Right):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.table = torch.arange(4, device=device).numpy().tolist()


class AsksForANumber(Right):
    """Every device but meta has it."""

    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.scale = torch.ones((), device=device).item()
        self.to(device)


class GoesThere(Right):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.register_buffer("table", torch.ones(4))
        self.to(device)


class RotaryEmbedding(nn.Module):
    def __init__(self, theta, head_dim, max_seq_len, device=None):
        super().__init__()
        speeds = theta ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
        angles = torch.arange(max_seq_len, device=device)[:, None] * speeds
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x):
        cos, sin, a, b = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]], x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


class TakesItsRotation(Right):
    """The line that builds it makes the rotation as well."""

    def __init__(self, d_model, num_heads, d_ff, rope, device=None):
        super().__init__(d_model, num_heads, d_ff)
        self.to(device)
        self.rope = rope

    def rotated(self, x, positions):
        return self.rope(x)


def judged(block: type[nn.Module]) -> Report:
    case = started(block)
    devices(case)
    return case.report


@pytest.mark.parametrize(
    ("block", "fault", "said"),
    [
        (KeepsItsTable, "wrong_device_buffer", "built there with device= it raises"),
        (
            KeepsItsWeights,
            "wrong_device_buffer",
            "built with device=, it has these weights on another device: norm1.weight",
        ),
        (
            CopiesFromThere,
            "wrong_device_buffer",
            "built with device=, it has these weights on another device: norm1.weight",
        ),
        (CopiesItsWeight, "constructor_error", "with device= of another device it raises TypeError: cannot assign"),
        (
            MadeByTheLegacyConstructor,
            "constructor_error",
            "with device= of another device it raises RuntimeError: legacy",
        ),
        (MadeOfTwoDevices, "constructor_error", "with device= of another device it raises RuntimeError: Expected all"),
        (MadeWithNumPy, "constructor_error", "with device= of another device it raises TypeError: can't convert meta"),
    ],
)
def test_what_the_argument_does_not_reach_is_a_fault(block, fault, said):
    report = judged(block)
    assert [*report.findings] == [fault]
    assert report.findings[fault].startswith(said)


class CopiesThere(GoesThere):
    def __init__(self, d_model, num_heads, d_ff, device=None):
        super().__init__(d_model, num_heads, d_ff, device)
        self.down.weight.data.copy_(torch.zeros(d_model, d_ff, device=device).cpu())


@pytest.mark.parametrize("block", [GoesThere, BringsItsTable, TakesItsRotation, CopiesThere, AsksForANumber])
def test_all_that_runs_there_is_right(block):
    assert not judged(block).findings


@pytest.mark.parametrize(
    ("block", "fix"),
    [
        (CopiesItsWeight, ".to(device) is a plain tensor"),
        (MadeByTheLegacyConstructor, "torch.empty"),
        (MadeOfTwoDevices, "device=device"),
        (MadeWithNumPy, "bring it to the CPU"),
    ],
)
def test_the_fix_is_one_for_what_the_constructor_does(block, fix):
    assert fix in judged(block).mends["constructor_error"]

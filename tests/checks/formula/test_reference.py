"""The reference with a number for each entry of its first axis gives what it gives with each of them alone."""

import dataclasses
from typing import Any

import pytest
import torch

from prenorm.checks.formula.reference import block
from prenorm.checks.formula.spec import Spec, Weights

SIZES = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "gate": (12, 8), "up": (12, 8), "down": (8, 12)}
NUMBERS = {
    "theta": (10.0, 1e4, 3e6),
    "softcap": (0.5, 5.0, 50.0),
    "factor": (0.1, 1.0, 4.0),
    "branch": (0.2, 1.0, 2.0),
    "frequencies": (1.0, 0.1, 3.0),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("spec", [Spec(), Spec(pairing="half", qk_norm="before_rope"), Spec(rope_axis="width")])
def test_many_numbers_at_once_give_what_each_gives(name: str, spec: Spec) -> None:
    generator = torch.Generator().manual_seed(1)
    weights: Weights = {
        role: torch.randn(1, 1, *size, generator=generator, dtype=torch.float64) for role, size in SIZES.items()
    }
    x, positions = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64), torch.arange(5)[None]

    def outputs(number: object) -> torch.Tensor:
        changes: dict[str, Any] = {name: (number,) * 4 if name == "frequencies" else number}
        return block(dataclasses.replace(spec, **changes), weights, x, positions, 2)

    each = torch.cat([outputs(number) for number in NUMBERS[name]])
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(outputs(torch.tensor(NUMBERS[name], dtype=torch.float64)), each)

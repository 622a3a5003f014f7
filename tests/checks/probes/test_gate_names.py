"""Whether silu is applied to the gate is known by names alone."""

import pytest
from torch import nn
from torch.nn import functional as F

from prenorm import testing

from ..small import Right


def named(activated: str, multiplied: str, last: str) -> type[nn.Module]:
    """A block whose feed-forward is last(silu(activated(x)) * multiplied(x))."""

    class FeedForward(nn.Module):
        def __init__(self, d_model, d_ff):
            super().__init__()
            for name, sizes in ((activated, (d_model, d_ff)), (multiplied, (d_model, d_ff)), (last, (d_ff, d_model))):
                setattr(self, name, nn.Linear(*sizes, bias=False))

        def forward(self, x):
            inner = F.silu(getattr(self, activated)(x)) * getattr(self, multiplied)(x)
            return getattr(self, last)(inner)

    class Block(Right):
        def __init__(self, d_model, num_heads, d_ff):
            super().__init__(d_model, num_heads, d_ff)
            del self.gate, self.up, self.down
            self.stages = nn.ModuleList([nn.Identity(), FeedForward(d_model, d_ff)])  # whose index is no gate's number

        def feed_forward(self, x):
            return self.stages[1](x)

    return Block


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("gate", "up", "down"), []),
        (("w1", "w3", "w2"), []),
        (("l1", "gate", "l2"), []),  # the handout's W2(silu(W1 x) * W3 x), with a name for W3 that means nothing there
        (("up", "gate", "down"), ["swapped_gate_up"]),
        (("w3", "w1", "w2"), ["swapped_gate_up"]),
        (("fc", "gate", "out"), ["swapped_gate_up"]),
    ],
)
def test_names_tell_which_projection_is_the_gate(names: tuple[str, str, str], expected: list[str]) -> None:
    assert [one.id for one in testing.check(named(*names), target="cs336").verdict.faults] == expected

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
            # Neither the path nor the index is a name of a projection.
            self.gated_stages = nn.ModuleList([nn.Identity(), FeedForward(d_model, d_ff)])

        def feed_forward(self, x):
            return self.gated_stages[1](x)

    return Block


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("gate", "up", "down"), []),
        (("w1", "w3", "w2"), []),
        (("l1", "gate", "l2"), []),  # the handout's W2(silu(W1 x) * W3 x), with a name for W3 that means nothing there
        (("up", "gate", "down"), ["swapped_gate_up"]),
        (("w3", "w1", "w2"), ["swapped_gate_up"]),
    ],
)
def test_names_tell_which_projection_is_the_gate(names: tuple[str, str, str], expected: list[str]) -> None:
    assert [one.id for one in testing.check(named(*names), target="cs336").verdict.faults] == expected


@pytest.mark.parametrize("names", [("fc", "gate", "out"), ("up", "v", "down"), ("w_up", "fc", "w_down")])
def test_one_known_name_is_too_few_to_count(names: tuple[str, str, str]) -> None:
    verdict = testing.check(named(*names), target="cs336").verdict
    assert (verdict.ids, verdict.faults) == (["swapped_gate_up"], ())

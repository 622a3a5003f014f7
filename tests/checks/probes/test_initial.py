"""The weights that a constructor leaves, and the code beside a block that excuses them."""

import pytest
from torch import nn

from prenorm.checks.probes.case import Report
from prenorm.checks.probes.initial import constructed

from ..small import DeviationOfOne, NeverFilled, Right
from .started import started


def judged(block: type[nn.Module], beside: str) -> Report:
    case = started(block)
    constructed(case, beside)
    return case.report


LOADS = "def load(path, model):\n    model.load_state_dict(torch.load(path))\n"


@pytest.mark.parametrize(
    ("beside", "counts"),
    [
        ("", True),
        (LOADS, False),  # for inference: the weights are never those of the constructor
        (LOADS + "optimizer = AdamW(model.parameters())", True),
        (LOADS + "loss.backward()", True),
        (LOADS + "# an optimized kernel", False),
        ("def _init_weights(self, module): ...", False),
    ],
)
def test_a_checkpoint_excuses_weights_only_where_nothing_is_trained(beside, counts):
    assert ("weight_init_scale" in judged(DeviationOfOne, beside).faults()) is counts


class LeftOverEmbedding(Right):
    """torch gives it a standard deviation of one."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.positions = nn.Embedding(100, d_model)


def test_an_embedding_is_no_matrix_of_the_block():
    assert not judged(LeftOverEmbedding, "").findings


def test_the_fix_of_a_norms_weight_is_one_for_a_norm():
    assert "torch.ones" in judged(NeverFilled, "").mends["weights_uninitialised"]

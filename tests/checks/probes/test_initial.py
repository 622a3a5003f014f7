"""The weights that a constructor leaves, and the code beside a block that excuses them."""

import pytest
import torch

from prenorm.checks.probes.case import Case, Report
from prenorm.checks.probes.initial import constructed
from prenorm.checks.source.code import Code
from prenorm.checks.start.start import start
from prenorm.checks.subject.learner import Learner
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.targets import Target

from ..small import DeviationOfOne

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
    learner = Learner(LocalSubject(DeviationOfOne))
    learner.load(Code(root="", module=DeviationOfOne.__module__, file="", name="DeviationOfOne"))
    case = Case(learner=learner, target=Target(), generator=torch.Generator().manual_seed(0), report=Report())
    start(case)
    constructed(case, beside)
    assert ("weight_init_scale" in case.report.faults()) is counts

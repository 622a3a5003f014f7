"""`prenorm lab activation`: SwiGLU against GELU with as many parameters."""

import math

from .comparison import Comparison
from .experiment import Experiment
from .folder import Cells
from .intervals import Claim
from .report import Report
from .sweep import Plan

SHAZEER = Claim(
    "at equal parameters SwiGLU ends with a lower loss than GELU",
    "Shazeer 2020, https://arxiv.org/abs/2002.05202, table 1",
    0.0,
    math.inf,
)
COMPARISON = Comparison(ours="pre-norm", other="GELU")


def activation_experiment(comparison: Comparison = COMPARISON) -> Experiment:
    """Pre-norm blocks with either feed-forward."""
    return Experiment(
        name="activation",
        plan=lambda cells: Plan(list(comparison.cells())),
        report=lambda cells: _report(comparison, cells),
    )


def _report(comparison: Comparison, cells: Cells) -> Report:
    names = {"pre-norm": "SwiGLU", "GELU": "GELU"}
    chapter = comparison.chapter(cells, "Is SwiGLU better than GELU at equal parameters?", SHAZEER, names)
    wider = 3 * comparison.sizes.d_ff // 2
    return Report(
        name="activation",
        title="SwiGLU or GELU? Measured on this machine",
        introduction=[
            f"The pre-norm block as it is, with SwiGLU of three matrices and width {comparison.sizes.d_ff}, and with "
            f"two matrices, GELU between them, and width {wider}: the same number of weights. Short trainings of small "
            "models on Python's own standard library: what differs in the beginning need not differ in the end.",
        ],
        chapters=[chapter],
        data={"trainings": comparison.data(cells)},
    )

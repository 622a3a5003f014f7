"""The depth experiment: its cells, and its report."""

from ..experiment import Experiment
from ..folder import Cells
from ..report import Report
from .initial import initial_data
from .initial_chapters import initial_chapters
from .plan import Scale, plan
from .training_chapters import training_chapters, training_data


def depth_experiment(scale: Scale) -> Experiment:
    """Eight variants, untrained and trained."""
    return Experiment(
        name="depth", plan=lambda cells: plan(scale, cells), report=lambda cells: depth_report(scale, cells)
    )


def depth_report(scale: Scale, cells: Cells) -> Report:
    """All chapters, when all cells are measured."""
    sizes = scale.sizes
    return Report(
        name="depth",
        title="Why does pre-norm train deeper? Measured on this machine",
        introduction=[
            "Eight ways of putting attention and feed-forward into a Transformer, made of the same layers (RMSNorm, "
            f"attention with rotary positions, SwiGLU), as language models over bytes of width {sizes.d_model}, on "
            f"{sizes.batch} x {sizes.context} bytes of Python's own standard library. First models that have learned "
            "nothing, then short trainings. Small models and few steps: what holds here need not hold at scale, and "
            "the page says where it cannot tell.",
        ],
        chapters=[*initial_chapters(scale, cells), *training_chapters(scale, cells)],
        data={"initialisation": initial_data(scale, cells), "trainings": training_data(scale, cells)},
    )

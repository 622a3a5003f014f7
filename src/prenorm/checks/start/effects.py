"""What a block's outputs show of a call: the order of tokens, its mask, its rotation, which axis is the sequence.

Each is tried with the lines in the learner's recipe, in float32, on new random parameters.
"""

import itertools
import math

import torch
from torch import Tensor

from ..probes.case import Case
from ..subject.learner import Built
from ..subject.raised import LearnerError

TOKENS = 7
IMAGE = (8, 6)
SAME = 1e-4  # of the output's size


def hides_what_comes_later(case: Case, built: Built) -> bool:
    """Whether no token has an effect on those before it."""
    return leak(case, built) <= SAME


def leak(case: Case, built: Built) -> float:
    """How much the last two tokens change the outputs before them; infinite if the mask is surely wrong."""
    x = _x(case)
    other = torch.cat((x[:, :-2], _x(case)[:, -2:]), 1)
    ys = _outputs(case, built, x, other)
    if ys is None or not all(torch.isfinite(y).all() for y in ys) or not _differ(ys[0][:, -1], ys[1][:, -1]):
        return math.inf
    return _difference(ys[0][:, :-2], ys[1][:, :-2])


def sees_everything(case: Case, built: Built) -> bool:
    """Whether the first and the last token attend to each other."""
    x, others = _x(case), _x(case)
    first, last = x.clone(), x.clone()
    first[:, 0], last[:, -1] = others[:, 0], others[:, -1]
    ys = _outputs(case, built, x, first, last)
    return ys is not None and _differ(ys[0][:, -1], ys[1][:, -1]) and _differ(ys[0][:, 0], ys[2][:, 0])


def order_counts(case: Case, built: Built) -> bool:
    """Whether the last output depends on the order of the tokens before it; True if that cannot be tested."""
    x = _x(case)
    ys = _outputs(case, built, x, x[:, [1, 0, *range(2, TOKENS)]])
    if ys is None or not all(torch.isfinite(y[:, -1]).all() for y in ys):  # it attends to nothing
        return True
    return _differ(ys[0][:, -1], ys[1][:, -1])


def turns(case: Case, built: Built) -> bool:
    """Whether outputs depend on tables, sines or cosines; True if that cannot be tested."""
    state = case.generator.get_state()  # what follows draws the same whether this was asked or not
    x, raw = _x(case), built.draw(case.generator, torch.float32)
    case.generator.set_state(state)
    try:
        return _differ(*(built.run(raw, x, scramble=seed).y for seed in (None, 1)))
    except LearnerError:
        return True


def turns_by_distance(case: Case, built: Built) -> bool:
    """Whether shifting all positions keeps the outputs, and stretching them does not."""
    x, near = _x(case), torch.arange(TOKENS)
    ys = _outputs(case, built, x, x, x, positions=(near, near + 5, near * 2))
    return ys is not None and not _differ(ys[0], ys[1]) and _differ(ys[0], ys[2])


def sequences_meet(case: Case, built: Built) -> bool:
    """Whether what seem to be two sequences see each other: then sequences run along the first axis."""
    x, other = _x(case), _x(case)
    ys = _outputs(case, built, x, torch.stack((x[0], other[1])), torch.stack((other[0], x[1])))
    return ys is None or _differ(ys[0][0], ys[1][0]) or _differ(ys[0][1], ys[2][1])


def tokens_meet(case: Case, built: Built) -> bool:
    """Whether what seem to be tokens of a sequence see each other; True if that cannot be tested."""
    x = _x(case)
    ys = _outputs(case, built, x, torch.cat((x[:, :1], _x(case)[:, 1:-1], x[:, -1:]), 1))
    return ys is None or _differ(ys[0][:, :1], ys[1][:, :1]) or _differ(ys[0][:, -1:], ys[1][:, -1:])


def axes_of_images(case: Case, built: Built) -> str | None:
    """The axes of the input, if it is an image: it runs, and pixels of one row have an effect on other rows."""
    for axes, channels in (("(batch, height, width, channels)", 3), ("(batch, channels, height, width)", 1)):
        x, others = (case.x(2, *IMAGE, dtype=torch.float32) for _ in range(2))
        changed = torch.cat((others[:, :1], x[:, 1:]), 1)
        ys = _outputs(case, built, x.movedim(3, channels), changed.movedim(3, channels))
        if ys is not None and _differ(*(y.movedim(channels, 3)[:, 1:] for y in ys)):
            return axes
    return None


def _x(case: Case) -> Tensor:
    return case.x(2, TOKENS, dtype=torch.float32)


def _outputs(
    case: Case, built: Built, *inputs: Tensor, positions: tuple[Tensor | None, ...] = ()
) -> list[Tensor] | None:
    raw = built.draw(case.generator, torch.float32)
    try:
        return [
            built.run(raw, x, positions=where).y
            for x, where in itertools.zip_longest(inputs, positions, fillvalue=None)
            if x is not None
        ]
    except LearnerError:
        return None


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or _difference(a, b) > SAME


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    size = float(torch.where(a.isfinite(), a, 0).abs().max()) or 1.0
    return float((a - b).abs().nan_to_num(0.0).max()) / size

"""The verdict on a cell: its errors as shares of what the numerics contract allows, so that 1 is the limit.

Outputs: the oracle is the papers' formulas in float64 NumPy, of the same weights and inputs. Gradients: the oracle is
autograd through the package's plain formulas (use_backend("reference")) in float64, in one plain pass; gradcheck proves
these in the tests of ops, blocks and models. The contract: the root mean square of the errors is at most twice that of
the plain formulas in the same dtype, plus one rounding of the oracle's numbers.

That measures a path against the plain formulas, so these are judged too, in every cell, by what rounding alone can do:
were they wrong, a path could be as wrong as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from prenorm import use_backend

from ..oracle.formulas import Array
from ..oracle.inputs import normal
from ..oracle.tolerance import array, rms
from .cases import Case
from .cells import Cell
from .paths import PATHS, Ran

# Of fewer numbers the root mean square is a matter of chance, and rounding alone has to explain the errors.
ENOUGH = 256
# What rounding alone explains, in roundings of the oracle's size: the plain formulas' own errors are at most 5 in
# outputs and 28 in gradients, in bfloat16 4. tolerance.TERMS is more, and in bfloat16 more than the numbers themselves.
ROUNDINGS = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 16}


@dataclass(frozen=True)
class Verdict:
    """A cell's figures by what was judged; none may exceed 1."""

    cell: Cell
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def figure(self) -> float:
        """The worst; what is not a number is worse than any."""
        return max((np.inf if np.isnan(figure) else figure for figure in self.figures.values()), default=0.0)


def judge(cell: Cell, run: Callable[[Case], Ran] | None = None) -> Verdict:
    """Run a cell and judge it; `run` stands in for the cell's path."""
    path, case = PATHS[cell.path], Case(cell)
    for leaf in case.leaves:
        leaf.requires_grad_(path.trains != "nothing")
    output, parameters = (run or path.run)(case)
    if path.twin is not None:
        return Verdict(cell, _bits(case, (output, parameters), path.twin(case)))
    oracle, plain = case.oracle(), plain_pass(case)
    if tuple(output.shape) != oracle.shape or output.dtype != case.dtype:
        return Verdict(cell, {f"an output {tuple(output.shape)} of {output.dtype}": np.inf})
    figures = _figures("output", array(output), oracle, array(plain), case.dtype)
    if path.trains == "nothing":
        return Verdict(cell, figures)
    wide = case.widened()
    for leaf in wide.leaves:
        leaf.requires_grad_()
    ours = gradients(case, output, parameters)
    theirs = gradients(case, plain, dict(case.module.named_parameters()))
    exact = gradients(case, plain_pass(wide), dict(wide.module.named_parameters()), wide.leaves)
    for what, parts in exact.items():
        sizes = _sizes(parts)
        mine, other, wanted = (
            np.concatenate([some[what][name] / size for name, size in sizes.items()]) for some in (ours, theirs, exact)
        )
        figures |= _figures(f"gradient of {what}", mine, wanted, other, case.dtype)
    return Verdict(cell, figures)


def _figures(what: str, actual: Array, oracle: Array, plain: Array, dtype: torch.dtype) -> dict[str, float]:
    by_gradient_of_float64 = dtype == torch.float64 and what != "output"  # the plain formulas are the oracle itself
    if oracle.size < ENOUGH or by_gradient_of_float64:
        figure = by_rounding(actual, oracle, dtype)
    else:
        figure = by_contract(actual, oracle, plain, dtype)
    return {what: figure, f"{what} by the plain formulas": by_rounding(plain, oracle, dtype)}


def _sizes(parts: dict[str, Array]) -> dict[str, float]:
    """What each parameter's gradient is divided by: its own size, as some alone are few numbers that all but cancel.

    One that is zero, but for the rounding of float64, has no size of its own and gets that of all.
    """
    overall = rms(np.concatenate([*parts.values()])) or 1.0
    return {name: size if (size := rms(part)) > 1e-9 * overall else overall for name, part in parts.items()}


def by_contract(actual: Array, oracle: Array, plain: Array, dtype: torch.dtype) -> float:
    """The error as a share of twice the plain formulas' and one rounding."""
    return _share(rms(actual - oracle), 2 * rms(plain - oracle) + torch.finfo(dtype).eps * rms(oracle))


def by_rounding(actual: Array, oracle: Array, dtype: torch.dtype) -> float:
    """The error as a share of what rounding alone explains."""
    return _share(rms(actual - oracle), ROUNDINGS[dtype] * torch.finfo(dtype).eps * rms(oracle))


def _share(error: float, limit: float) -> float:
    if error == 0:
        return 0.0
    return error / limit if limit else np.inf


def _bits(case: Case, ran: Ran, twin: Ran) -> dict[str, float]:
    """0 where all bits are the same, of the output and of every gradient."""
    ours, theirs = gradients(case, *ran), gradients(case, *twin)
    figures = {"output": 0.0 if torch.equal(ran[0], twin[0]) else np.inf}
    for what, parts in theirs.items():
        same = all(np.array_equal(part, ours[what][name]) for name, part in parts.items())
        figures[f"gradient of {what}"] = 0.0 if same else np.inf
    return figures


def plain_pass(case: Case) -> Tensor:
    """The calls by the plain formulas, one after another."""
    with use_backend("reference"):
        outputs = [case.module(*call.inputs, **call.options) for call in case.calls]
    return outputs[0] if case.cell.rows is None else torch.cat(outputs)


def gradients(
    case: Case, output: Tensor, parameters: dict[str, Tensor], leaves: list[Tensor] | None = None
) -> dict[str, dict[str, Array]]:
    """Of a weighted sum of the output: those of the inputs, and those of the parameters, a weight with its bias.

    Together, because the bias of keys may move all scores of a query alike: its gradient is rounding and nothing else.
    Where the last chunk alone is trained, its outputs alone are summed, and its input's gradient alone is asked.
    """
    leaves = case.leaves if leaves is None else leaves
    weigh = normal(*output.shape, seed=case.cell.inputs + 99, dtype=case.dtype).to(output.dtype)
    start, last_alone = 0, PATHS[case.cell.path].trains == "last chunk"
    if last_alone:
        start, parameters = output.shape[-2] - case.cell.chunks(output.shape[-2])[-1], {}
        weigh[..., :start, :] = 0
    tensors = [*leaves, *parameters.values()]
    grads = torch.autograd.grad((output * weigh).sum(), tensors, materialize_grads=True)
    given: dict[str, dict[str, Array]] = {}
    if leaves:
        given["the input"] = {
            "": np.concatenate([array(grad[..., start:, :]).ravel() for grad in grads[: len(leaves)]])
        }
    if parameters:
        named = sorted(zip(parameters, grads[len(leaves) :], strict=True), key=lambda item: item[0])
        given["the parameters"] = {
            layer: np.concatenate([array(grad).ravel() for _, grad in group])
            for layer, group in groupby(named, key=lambda item: item[0].rpartition(".")[0])
        }
    return given

"""The parts of a block, each judged on its own by its numbers: Linear, RMSNorm, SwiGLU, RotaryEmbedding, SelfAttention.

A part is run on small odd sizes and compared with formulas.py. If it differs, the wrong variants there are tried, and
the one that gives the learner's numbers is the likely mistake. Weights are matched by shape, and by trying.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checks.faults import FAULTS
from ...checks.subject.protocol import EndedError, Subject
from . import formulas

RIGHT, WRONG, NOT_WRITTEN, LEFT_OUT = "right", "wrong", "not written yet", "left out"
CLOSE = 1e-4  # relative root-mean-square error: float32 gives 1e-6, and every mistake here more than 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The result for one part."""

    name: str
    state: str
    reason: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it was run and gave the right numbers."""
        return self.state == RIGHT

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to judge, which is not a mistake."""
        return self.state in (NOT_WRITTEN, LEFT_OUT)


def judge(name: str, layers: Path, subject: Subject) -> Part:
    """Judge one part of a file. Raises EndedError if its process ends."""
    try:
        part = LearnersPart(name, layers, subject)
        JUDGES[name](part)
    except _NotWrittenError:
        return Part(name=name, state=NOT_WRITTEN)
    except _LeftOutError:
        return Part(name=name, state=LEFT_OUT)
    except _WrongError as wrong:
        return Part(name=name, state=WRONG, reason=str(wrong))
    return Part(name=name, state=RIGHT)


def is_written(name: str, layers: Path, subject: Subject, **arguments: Any) -> bool:
    """False if a class raises NotImplementedError itself, as in a new workspace."""
    try:
        part = LearnersPart(name, layers, subject)
        part.build(**arguments)
        part.run(_random(1, 3, arguments["d_model"]))
    except _NotWrittenError:
        return False
    except (_WrongError, _LeftOutError, EndedError):
        pass  # the checker reports it in detail
    return True


class _WrongError(Exception):
    """The reason why a part is wrong."""


class _NotWrittenError(Exception):
    """The part raises NotImplementedError itself."""


class _LeftOutError(Exception):
    """The file has no such name."""


class LearnersPart:
    """One class of the learner's file, built and called through a subject."""

    def __init__(self, name: str, layers: Path, subject: Subject) -> None:
        self.name, self.subject = name, subject
        self.built: dict[str, Any] = {}
        file = layers.resolve()
        reply = self._ask(op="load", root=str(file.parent), module=file.stem, file=str(file), name=name)
        if "missing" in reply:
            raise _LeftOutError

    def build(self, **arguments: Any) -> list[tuple[str, list[int]]]:
        """Build it; returns the names and shapes of its parameters."""
        self.built = self._ask(op="build", arguments=arguments, call=f"{self.name}({_spelled(arguments)})")
        return [(one["name"], one["shape"]) for one in self.built["parameters"]]

    def run(self, x: Tensor, *more: Any, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Its output for x."""
        call = f"{self.name} on x of shape {tuple(x.shape)} in {str(x.dtype).removeprefix('torch.')}"
        reply = self._ask(
            op="run", block=self.built["block"], inputs=[x, *more], parameters=parameters or {}, call=call
        )
        y = reply["y"]
        if y.shape != x.shape and self.name != "Linear":
            raise _WrongError(f"its output has shape {tuple(y.shape)} for x of shape {tuple(x.shape)}.")
        if not torch.equal(reply["x_after"], x):
            raise _WrongError(f"{FAULTS['modifies_input'].meaning}; {FAULTS['modifies_input'].mend}.")
        return y

    def _ask(self, *, call: str = "", **request: Any) -> dict[str, Any]:
        reply = self.subject.ask(request)
        if (error := reply.get("error")) is not None:
            frames = [frame for frame in error["frames"] if frame["code"]]
            if error["type"] == "NotImplementedError" and frames and frames[-1]["code"].startswith("raise NotImpl"):
                raise _NotWrittenError
            where = f" (line {frames[-1]['line']}: {frames[-1]['code']})" if frames else ""
            doing = f"{call} raises" if call else "the file cannot be imported:"
            raise _WrongError(f"{doing} {error['type']}: {error['message']}{where}.")
        return reply


def _judge_linear(part: LearnersPart) -> None:
    shapes = part.build(in_features=5, out_features=3)
    (weight,) = _named(part, shapes, 1, "one weight, (out_features, in_features), and no bias")
    x, values = _random(2, 4, 5), _random(3, 5)
    stored = values if dict(shapes)[weight] == [3, 5] else values.T.contiguous()
    _compare(part.run(x, parameters={weight: stored}), formulas.linear(x, values), {})
    _compare(part.run(x[0, 0]), formulas.linear(x[0, 0], values), {}, "for x without leading dimensions ")


def _judge_rms_norm(part: LearnersPart) -> None:
    shapes = part.build(d_model=6, eps=0.3)
    names = [name for name, shape in shapes if shape == [6]]
    if not names:
        raise _WrongError(f"{FAULTS['norm_weight_missing'].meaning}; {FAULTS['norm_weight_missing'].mend}.")
    (weight,) = _named(part, shapes, 1, "one weight of d_model numbers")
    x = _random(2, 4, 6) + 0.5
    y = part.run(x)
    values = _random(6) + 2
    mistakes = "layer_norm norm_without_sqrt eps_outside_sqrt wrong_eps norm_weight_missing norm_wrong_mean"
    variants = {name: formulas.rms_norm(x, values, 0.3, mistake=name) for name in mistakes.split()}
    variants["norm_over_sequence"] = formulas.rms_norm(x, values, 0.3, mistake="norm_over_sequence")
    _compare(part.run(x, parameters={weight: values}), formulas.rms_norm(x, values, 0.3), variants)
    _compare(y, formulas.rms_norm(x, torch.ones(6), 0.3), {}, "with its initial weight (not ones?) ")
    part.build(d_model=6, eps=1e-6, dtype={"dtype": "float16"})
    large = (1000 * _random(3, 6)).half()
    y = part.run(large)
    if y.dtype != torch.float16:
        raise _WrongError(f"for float16 input the output is {y.dtype}; convert the result back to x.dtype.")
    if not _is_close(y, formulas.rms_norm(large.double(), torch.ones(6), 1e-6), 1e-2):
        raise _WrongError(
            "float16 numbers around 1000 give wrong results: their squares exceed 65504, the largest float16; "
            f"{FAULTS['norm_without_upcast'].mend}."
        )


def _judge_swiglu(part: LearnersPart) -> None:
    shapes = part.build(d_model=6, d_ff=10)
    x, right = _random(2, 4, 6), [(10, 6), (10, 6), (6, 10)]
    given = {name: _random(*shape) for name, shape in shapes}
    pieces = [piece for value in given.values() for piece in _cut(value, 6, 10)]
    if sorted(map(_sorted_shape, pieces)) != [(6, 10)] * 3:
        expected = "three weights, (d_ff, d_model) twice and (d_model, d_ff), and no bias"
        raise _WrongError(f"it should have {expected}, but for d_model=6 and d_ff=10 it has {_listed(shapes)}.")
    orders = [weights for order in permutations(pieces) for weights in (order, tuple(piece.T for piece in order))]
    orders = [weights for weights in orders if [tuple(weight.shape) for weight in weights] == right]
    y = part.run(x, parameters=given)
    mistakes = ["gate_after_product", "up(x) left out", "no activation"]
    for mistake in ["", *mistakes, *(f"{name} instead of silu" for name in ("relu", "gelu", "sigmoid"))]:
        if any(_is_close(y, formulas.swiglu(x, *weights, mistake=mistake)) for weights in orders):
            if mistake:
                raise _WrongError(_explained(mistake))
            _compare(part.run(x[0, 0]), y[0, 0], {}, "for x without leading dimensions ")
            return
    raise _WrongError("the output is not down(silu(gate(x)) * up(x)), and no common mistake explains it.")


def _judge_rope(part: LearnersPart) -> None:
    part.build(head_dim=8, max_seq_len=16, theta=100.0)
    x, positions = _random(2, 3, 5, 8), torch.tensor([4, 0, 11, 15, 3])
    mistakes = "rope_half_split rope_wrong_direction rope_theta_ignored rope_wrong_frequency positions_off_by_one"
    for given in (None, positions):
        where = torch.arange(5) if given is None else given
        names = [*mistakes.split(), *([] if given is None else ["token_positions_ignored"])]
        variants = {name: formulas.rope(x, where, 100.0, mistake=name) for name in names}
        context = "without token_positions " if given is None else f"at positions {positions.tolist()} "
        _compare(part.run(x, given), formulas.rope(x, where, 100.0), variants, context)
    _compare(part.run(x[0, 0], positions), formulas.rope(x[0, 0], positions, 100.0), {}, "for x (seq, head_dim) ")


def _judge_attention(part: LearnersPart) -> None:
    shapes = part.build(d_model=12, num_heads=3, max_seq_len=32, rope_theta=100.0)
    if any("bias" in name.rsplit(".", 1)[-1] or len(shape) == 1 for name, shape in shapes):
        raise _WrongError(f"{FAULTS['unexpected_bias'].meaning}; {FAULTS['unexpected_bias'].mend}.")
    given = {name: 0.7 * _random(*shape) for name, shape in shapes}
    pieces = [piece for value in given.values() for piece in _cut(value, 12)]
    if [*map(_sorted_shape, pieces)] != [(12, 12)] * 4:
        raise _WrongError(f"it should have four weights of (d_model, d_model), but it has {_listed(shapes)}.")
    x, positions = _random(2, 5, 12), torch.tensor([4, 0, 11, 31, 3])
    y = part.run(x, positions, parameters=given)
    mistakes = """
        token_positions_ignored missing_rope rope_half_split rope_wrong_direction rope_on_queries_only rope_on_keys_only
        rope_on_values rope_theta_ignored rope_wrong_frequency causal_mask missing_attention_scale wrong_attention_scale
        scale softmax_wrong_dim wrong_head_split heads_not_merged missing_output_projection
    """
    orders = [tuple(order) for order in permutations(pieces)]
    orders += [(q.T, k.T, v.T, o.T) for q, k, v, o in permutations(pieces)]
    for mistake in ["", *mistakes.split()]:
        for weights in orders:
            if _is_close(y, formulas.attention(x, weights, 3, positions, 100.0, mistake=mistake)):
                if mistake:
                    raise _WrongError(_explained(mistake))
                alone = part.run(x[0])
                _compare(
                    alone, formulas.attention(x[:1], weights, 3, torch.arange(5), 100.0)[0], {}, "for x (seq, d_model) "
                )
                return
    raise _WrongError(
        "the output is not multi-head attention with rotary positions, and no common mistake explains it; check "
        "RotaryEmbedding first, then one head with d_model=2."
    )


def _cut(value: Tensor, *sizes: int) -> list[Tensor]:
    """A weight of these sizes unchanged; several in one (such as queries, keys and values) one by one."""
    for dim, length in enumerate(value.shape):
        if length not in sizes and length % max(sizes) == 0:
            return [*value.split(max(sizes), dim)]
    return [value]


def _sorted_shape(value: Tensor) -> tuple[int, ...]:
    return tuple(sorted(value.shape))


JUDGES: dict[str, Callable[[LearnersPart], None]] = {
    "Linear": _judge_linear,
    "RMSNorm": _judge_rms_norm,
    "SwiGLU": _judge_swiglu,
    "RotaryEmbedding": _judge_rope,
    "SelfAttention": _judge_attention,
}


def _named(part: LearnersPart, shapes: list[tuple[str, list[int]]], count: int, expected: str) -> list[str]:
    """The names of the parameters. Raises _WrongError if their number is wrong."""
    if len(shapes) != count:
        raise _WrongError(f"it should have {expected}, but it has {_listed(shapes)}.")
    return [name for name, _ in shapes]


def _compare(y: Tensor, right: Tensor, variants: dict[str, Tensor], context: str = "") -> None:
    """Raise _WrongError if y is wrong, with the variant that gives y if there is one."""
    if y.shape != right.shape:
        raise _WrongError(f"{context}the output has shape {tuple(y.shape)} instead of {tuple(right.shape)}.")
    if _is_close(y, right):
        return
    for mistake, wrong in variants.items():
        if _is_close(y, wrong):
            raise _WrongError(context + _explained(mistake))
    i = (y.double() - right).abs().flatten().argmax()
    raise _WrongError(
        f"{context}the numbers are wrong: {y.flatten()[i]:.4g} instead of {right.flatten()[i]:.4g}, and no common "
        "mistake explains it."
    )


def _is_close(y: Tensor, right: Tensor, bound: float = CLOSE) -> bool:
    if y.shape != right.shape:
        return False
    error = (y.double() - right.double()).square().mean().sqrt()
    return bool(error <= bound * right.double().square().mean().sqrt())  # NaN is not


def _explained(mistake: str) -> str:
    match mistake:
        case "rope_on_keys_only":
            mistake = "rope_on_queries_only"
        case "scale":
            return "likely, scores are divided by sqrt(d_model); divide by sqrt(head_dim), the length of q and k."
    if mistake in FAULTS:
        return f"likely, {FAULTS[mistake].meaning}; {FAULTS[mistake].mend}."
    return f"likely, {mistake}: {FAULTS['wrong_activation'].mend}."


def _listed(shapes: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes) or "none"


def _spelled(arguments: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}={value['dtype'] if isinstance(value, dict) else value}" for name, value in arguments.items()
    )


def _random(*shape: int) -> Tensor:
    """The same numbers in every process; the generator is seeded by the shape."""
    generator = torch.Generator().manual_seed(sum(7**i * size for i, size in enumerate(shape)))
    return torch.randn(shape, generator=generator)

"""What the checks share: the learner's class, what is known about it, and the report."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..faults import CRASHES, FAULTS
from ..formula.parameters import Raw, Sizes
from ..search.explanation import Explanation
from ..search.trials import agrees
from ..search.work import Work
from ..subject.learner import Built, Learner, Lengths
from ..subject.raised import LearnerError
from ..targets import Target
from ..verdict import FAILED, NOT_APPLICABLE, PASSED, Check

MAX_SEQ_LEN = 24
"""Small enough to try every length up to it."""
ROUNDED_TABLES = 0.03
"""The tolerance if tables are in bfloat16: it hides their rounding, but not other faults."""
ROUNDED_ANGLES = 0.01
"""The same if angles are so large that float32 rounds them."""


FLOAT32_TOLERANCE = 1e-4  # of numbers, where a block is compared in float32
BESIDE_NUMBERS = frozenset(
    {
        "wrong_dtype",
        "wrong_device_buffer",
        "norm_weight_init",
        "weights_uninitialised",
        "weight_init_scale",
        "d_ff_ignored",
        "backward_error",
        "gradient_missing",
        "gradient_wrong",
        "batch_of_one",
        "sequence_length_fixed",
        "softmax_overflows",
        "norm_without_upcast",
        "forward_error",
        "constructor_error",
    }
)
"""Faults that change no output in float64, and so explain no wrong number."""


@dataclass(slots=True)
class Report:
    """Findings (id -> evidence) and checks, in order."""

    findings: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    conventions: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)  # by finding, what the learner's code raised
    choices: set[str] = field(default_factory=set)  # findings that do not count
    mends: dict[str, str] = field(default_factory=dict)  # by finding, if a better fix than the usual one is known

    def found(self, id: str, evidence: str, *, counts: bool = True, mend: str | None = None) -> None:
        """Report a fault, or a choice that does not count.

        What is found under the same name later is added to the evidence, but for a second error, which is mostly the
        first one again; what counts takes the place of what does not. mend: a better fix than the usual one of FAULTS.
        """
        assert id in FAULTS, id
        if id not in self.findings or (counts and id in self.choices):
            self.findings[id] = evidence
            self.mends.pop(id, None)
        elif counts == (id not in self.choices) and id not in CRASHES and evidence not in self.findings[id]:
            self.findings[id] += f"; {evidence}"
        else:
            return
        (self.choices.discard if counts else self.choices.add)(id)
        if mend is not None:
            self.mends.setdefault(id, mend)

    def faults(self) -> set[str]:
        """The findings that count."""
        return set(self.findings) - self.choices

    def puzzled(self, evidence: str) -> None:
        """Report unexplained numbers, unless faults were found that may explain them."""
        if not self.faults() - BESIDE_NUMBERS:
            self.found("unexplained", evidence)

    def check(self, name: str, good: bool, reason: str) -> None:
        """Record a check."""
        self.checks.append(Check(name=name, result=PASSED if good else FAILED, reason=reason))

    def skip(self, name: str, reason: str) -> None:
        """Record a check that does not apply, which is not a fault."""
        self.checks.append(Check(name=name, result=NOT_APPLICABLE, reason=reason))


@dataclass(slots=True)
class Case:
    """One judgement."""

    learner: Learner
    target: Target
    generator: torch.Generator
    report: Report
    sizes: Sizes = field(default_factory=Sizes)
    lengths: Lengths = field(default_factory=Lengths)
    arguments: dict[str, Any] = field(default_factory=dict)  # of every build
    built: Built | None = None  # in the widest precision that it runs in
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-5
    size: float = 1.0  # of random vectors
    work: Work = field(default_factory=Work)  # that is left for the search
    raw: Raw = field(default_factory=dict)
    initial: Raw = field(default_factory=dict)  # the parameters as the constructor leaves them
    switched_off: bool = False  # whether a decorator of its forward turns gradients off, in code that trains nothing
    for_inference: bool = False  # whether its matrices are frozen, and a checkpoint is meant to fill them
    classes: dict[str, str] = field(default_factory=dict)  # by parameter, the class that holds it
    made_of: frozenset[str] = frozenset()  # the classes of its modules, with those that they inherit from
    explanation: Explanation | None = None
    tried: list[int] = field(default_factory=list)  # the lengths it was called with; empty if that was not checked
    dtype_raises: set[str] = field(default_factory=set)  # dtypes with which a block by its constructor's does not run

    def build(self, **arguments: Any) -> Built:
        """A block with the usual arguments, and these."""
        how = {name: arguments.pop(name) for name in ("to", "filled", "origins") if name in arguments}
        sizes = arguments.pop("sizes", self.sizes)
        built = self.learner.build(sizes, **how, **(self.arguments | arguments))
        built.lengths = self.lengths
        if self.built is not None:
            built.fresh, built.fixed_length = self.built.fresh, self.built.fixed_length
            built.kept, built.muted = self.built.kept, self.built.muted
            if self.built.plain_weights:
                built.take_plain_weights()
        return built

    @property
    def precision(self) -> dict[str, Any]:
        """The precision in which numbers are compared, for a search."""
        return {"tolerance": self.tolerance, "dtype": self.dtype}

    def wide(self, **arguments: Any) -> Built:
        """A block in the precision for comparing numbers."""
        if self.dtype == torch.float64:
            if self.learner.takes("dtype"):
                arguments["dtype"] = {"dtype": "float64"}
            else:
                arguments["to"] = "float64"
        return self.build(**arguments)

    def low(self, name: str, **arguments: Any) -> Built:
        """A block in bfloat16 or float16: by the constructor's dtype if that runs, otherwise by block.to(...)."""
        if self.learner.takes("dtype") and not {name, "bfloat16"} & self.dtype_raises:
            return self.build(dtype={"dtype": name}, **arguments)
        return self.build(to=name, **arguments)

    def runs(self, raw: Raw, shape: tuple[int, int]) -> bool:
        """Whether a new block runs on this (batch, seq)."""
        try:
            self.build().run(raw, self.x(*shape, dtype=torch.float32))
        except LearnerError:
            return False
        return True

    def x(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Random vectors."""
        values = torch.randn(*shape, self.sizes.d_model, generator=self.generator, dtype=torch.float64)
        return (values * self.size).to(dtype or self.dtype)

    def single(self, batch: int, *, dtype: torch.dtype | None = None) -> Tensor:
        """Random vectors, one a sequence: repeated where the block does not run on one token."""
        return self.x(batch, 1, dtype=dtype).expand(-1, self.lengths.single, -1).contiguous()

    @property
    def tokens(self) -> int:
        """The usual length of a sequence."""
        return self.lengths.usual

    def expected(
        self,
        raw: Raw,
        x: Tensor,
        positions: Tensor | None = None,
        *,
        allowed: Tensor | None = None,
        **changes: Any,
    ) -> Tensor:
        """The output that the explanation predicts, with these changes to its spec."""
        assert self.explanation is not None
        positions = torch.arange(x.shape[-2]) if positions is None else positions
        explanation = self.explanation.changed(**changes)
        with torch.no_grad():
            return explanation.forward(raw, x, torch.atleast_2d(positions), self.sizes.num_heads, allowed=allowed)

    def agrees(self, y: Tensor, expected: Tensor, x: Tensor) -> bool:
        """Whether both agree up to rounding."""
        rounded = "rope_bf16_tables" in self.report.findings
        return agrees(y, expected, x, max(self.tolerance, ROUNDED_TABLES if rounded else 0.0))


def raised(error: LearnerError) -> str:
    """An error of the learner's code in one line."""
    return f"{error.error['type']}: {in_short(error.error['message'])}"[:300]


SHOWN = 240  # characters of a message
TRACE = re.compile(r"\n\s*(?:-{4,}|Traceback|Exception raised from|frame #\d|For debugging|Compile with )")
"""Where a message has said what is wrong, and goes on with where it was."""


def in_short(message: str) -> str:
    """A message in one line; of a long one whose first line ends with a colon, that line and the last one."""
    lines = [" ".join(line.split()) for line in TRACE.split(message)[0].splitlines() if line.strip()] or [""]
    whole = " ".join(lines)
    if len(whole) > SHOWN and lines[0].endswith(":"):
        whole = f"{lines[0]} {lines[-1]}"
    return whole if len(whole) <= SHOWN else f"{whole[:SHOWN]} ..."

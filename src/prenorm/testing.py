"""For the tests of other projects: one line that says whether a block is right."""

from collections.abc import Callable

from torch import nn

from .checks.judge import judge
from .checks.source.code import Code
from .checks.subject.local import LocalSubject
from .checks.targets import TARGETS
from .checks.verdict import Finding, Verdict
from .errors import ConfigError


def check(
    make: Callable[..., nn.Module],
    *,
    target: str | None = None,
    build: str | None = None,
    call: str | None = None,
    seed: int | None = None,
) -> "Report":
    """What `prenorm check` says of a class or a function that builds a block, as a report that shows itself.

    A notebook shows it as a table, print(...) as text; `report.verdict` has all of it. build, call: how it is built and
    called, where that cannot be guessed, such as "Block(d_model, num_heads, d_ff, rope=rope)" and "block(x, mask)";
    docs/what-does-check-find.md has the names that they may use. target, seed and what is raised: as in
    assert_block_correct.
    """
    return Report(_judged(make, target=target, build=build, call=call, seed=seed))


class Report:
    """A verdict that a notebook shows as a table, and print(...) as text."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    @property
    def passed(self) -> bool:
        """Whether no fault was found."""
        return self.verdict.passed

    def __repr__(self) -> str:
        from .checks.report.text import written

        return written(self.verdict)

    def _repr_html_(self) -> str:
        from .checks.report.html import as_table

        return as_table(self.verdict)


def assert_block_correct(
    make: Callable[..., nn.Module],
    *,
    target: str | None = None,
    allow: tuple[str, ...] = (),
    seed: int | None = None,
    build: str | None = None,
    call: str | None = None,
) -> Verdict:
    """Raise AssertionError with every fault of a Transformer block, by name; give the verdict where there is none.

    make: the class, or a function make(d_model, num_heads, d_ff, ...) that gives a block; it is built with small sizes.
    build, call: how it is built and called, where that cannot be guessed (see check).
    target: paper, cs336, llama, llama-original, qwen2, qwen3, gpt-neox or causal; without one, conventions are free.
    allow: ids of faults that this project wants. seed: draw the same numbers every time. The code runs in this process,
    which trusts it; `prenorm check` has a sandbox. Raises ConfigError for a block that is built already, and for an
    unknown target.
    """
    verdict = _judged(make, target=target, build=build, call=call, seed=seed)
    name = getattr(make, "__qualname__", type(make).__name__)
    unjudged = () if verdict.judged else verdict.findings  # what nobody could judge is not right either
    faults = [one for one in dict.fromkeys([*verdict.faults, *unjudged]) if one.id not in allow]
    if faults:
        raise AssertionError(f"{name} has faults:\n" + "\n".join(map(_line, faults)))
    return verdict


def _judged(
    make: Callable[..., nn.Module], *, target: str | None, build: str | None, call: str | None, seed: int | None
) -> Verdict:
    if isinstance(make, nn.Module):
        raise ConfigError(
            f"the class of the block is judged, or a function that builds one, but this is a {type(make).__name__}, "
            "built already; hand in lambda d_model, num_heads, d_ff: ..., which builds it in the sizes that are needed."
        )
    if target is not None and target not in TARGETS:
        raise ConfigError(f"a target is one of {', '.join(TARGETS)}, but {target!r} is none.")
    name = getattr(make, "__qualname__", type(make).__name__)
    code = Code(root="", module=str(getattr(make, "__module__", "")), file=None, name=name)
    return judge(LocalSubject(make), code, target=target, seed=seed, build=build, call=call)


def _line(finding: Finding) -> str:
    return f"  {finding.id}: {finding.message}\n    shown by: {finding.evidence}\n    to mend it: {finding.mend}"

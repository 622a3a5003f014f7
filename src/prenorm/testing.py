"""For the tests of other projects: one line that says whether a block is right."""

from collections.abc import Callable

from torch import nn

from .checks.code import Code
from .checks.judge import judge
from .checks.local import LocalSubject
from .checks.targets import TARGETS
from .checks.verdict import Finding, Verdict
from .errors import ConfigError


def assert_block_correct(
    make: Callable[..., nn.Module], *, target: str | None = None, allow: tuple[str, ...] = (), seed: int | None = None
) -> Verdict:
    """Raise AssertionError with every fault of a Transformer block, by name; give the verdict where there is none.

    make: the class, or a function make(d_model, num_heads, d_ff, ...) that gives a block; it is built with small sizes,
    and with what else it takes of max_seq_len, rope_theta, eps, dtype, device, num_kv_heads, causal and dropout.
    target: paper, cs336, llama, llama-original, qwen2, qwen3, gpt-neox or causal; without one, conventions are free. allow: ids of faults that
    this project wants. seed: draw the same numbers every time. The code runs in this process, which trusts it;
    `prenorm check` has a sandbox. Raises ConfigError for a block that is built already, and for an unknown target.
    """
    if isinstance(make, nn.Module):
        raise ConfigError(
            f"the class of the block is judged, or a function that builds one, but this is a {type(make).__name__}, "
            "built already; assert_block_correct(lambda d_model, num_heads, d_ff: ...) builds it in the sizes it needs."
        )
    if target is not None and target not in TARGETS:
        raise ConfigError(f"a target is one of {', '.join(TARGETS)}, but {target!r} is none.")
    name = getattr(make, "__qualname__", type(make).__name__)
    code = Code(root="", module=str(getattr(make, "__module__", "")), file=None, name=name)
    verdict = judge(LocalSubject(make), code, target=target, seed=seed)
    unjudged = () if verdict.judged else verdict.findings  # what nobody could judge is not right either
    faults = [one for one in dict.fromkeys([*verdict.faults, *unjudged]) if one.id not in allow]
    if faults:
        raise AssertionError(f"{name} has faults:\n" + "\n".join(map(_line, faults)))
    return verdict


def _line(finding: Finding) -> str:
    return f"  {finding.id}: {finding.message}\n    shown by: {finding.evidence}\n    to mend it: {finding.mend}"

"""How the corpus is made: a style is one right source, and a fault is a small textual edit of it."""

from collections.abc import Iterable
from dataclasses import dataclass

Edit = tuple[str, str]
"""What stands there, exactly once, and what stands there instead."""

IMPLIED = {
    "missing_rope": {"token_positions_ignored"},
    "dropout_in_eval": {"not_deterministic"},
    "retains_state": {"not_deterministic"},
    "residual_detached": {"gradient_wrong"},
    "eps_ignored": {"wrong_eps"},
    "norm_created_each_call": {"norm_weight_missing", "gradient_missing"},
    "norm_weight_missing": {"gradient_missing"},
    "no_norm": {"gradient_missing"},
    "shared_norm": {"gradient_missing"},
    "missing_output_projection": {"gradient_missing"},
    "modifies_input": {"gradient_missing"},  # backward may raise, because what it needs was changed
}
"""Ids that are a true, if weaker, description of a block that has the first one."""
ASKED_BY_TARGET = frozenset({"leading_dims", "mask_inverted"})
"""What counts only under a target that asks for any leading dims, and that True in a mask means: may attend."""
ITS_CONVENTIONS = frozenset(
    {"causal_mask", "rope_half_split", "rope_wrong_direction", "unexpected_bias", "unexpected_qk_norm"}
)
"""What such a target says beside it about blocks of other conventions."""


@dataclass(frozen=True)
class Example:
    """A block somebody else might have written, and what is wrong with it."""

    name: str
    source: str  # a whole Python file
    attribute: str  # the class or factory in it
    faults: frozenset[str]  # ids of checks/faults.py; empty for a right block
    style: str
    target: str | None = None  # the --target under which it is judged; None where it is at fault whatever the target
    also_named: frozenset[str] = frozenset()  # further ids that would be a true description, never needed
    build: str | None = None  # the lines that say how it is built and called, where nobody can guess them
    call: str | None = None


@dataclass(frozen=True)
class Made:
    """An example, the right one that it was made from, and the edits in between."""

    example: Example
    original: Example
    edits: tuple[Edit, ...] = ()
    parts: tuple["Made", ...] = ()  # of a block with two faults: the blocks with one of them

    def without(self, fault: str) -> Example:
        """The block that lacks this fault and is otherwise the same."""
        return next((part.example for part in self.parts if fault not in part.example.faults), self.original)


@dataclass(frozen=True)
class Style:
    """One way of writing the block: a right source, from which right variants and faulty ones are made."""

    name: str
    attribute: str
    source: str

    def right(self, variant: str = "", *edits: Edit) -> Example:
        """The right block, or one with another free convention."""
        name = f"{self.name}/right" + (f"_{variant}" if variant else "")
        return Example(name, edited(self.source, edits), self.attribute, frozenset(), self.name)

    def faulty(
        self,
        fault: str,
        how: str,
        *edits: Edit,
        base: Example | None = None,
        target: str | None = None,
        also: str = "",
        source: str | None = None,
    ) -> Made:
        """The block with one fault, made in the way that `how` says. `base`: another right block than the first."""
        base = base or self.right()
        faults = frozenset(fault.split())
        implied = set(also.split()).union(*(IMPLIED.get(one, set()) for one in faults))
        if fault == "leading_dims":
            target = "paper"
        if target is not None and faults <= ASKED_BY_TARGET:
            implied |= ITS_CONVENTIONS
        example = Example(
            name=f"{base.name.replace('/right', '/')}/{fault}.{how}".replace("//", "/").replace("/_", "/"),
            source=edited(base.source, edits) if source is None else source,
            attribute=self.attribute,
            faults=faults,
            style=self.name,
            target=target,
            also_named=frozenset(implied) - faults,
        )
        return Made(example, base, edits)

    def both(self, first: Made, second: Made) -> Made:
        """The block with the faults of two, made by the edits of both."""
        edits = first.edits + second.edits
        one, other = first.example, second.example
        faults = one.faults | other.faults
        example = Example(
            name=f"{one.name}+{other.name.rpartition('/')[2]}",
            source=edited(self.source, edits),
            attribute=self.attribute,
            faults=faults,
            style=self.name,
            target=one.target or other.target,
            also_named=(one.also_named | other.also_named) - faults,
        )
        return Made(example, first.original, edits, (first, second))


def edited(source: str, edits: Iterable[Edit]) -> str:
    """The source with each edit made, one after the other; what an edit replaces must stand there exactly once."""
    for old, new in edits:
        count = source.count(old)
        if count != 1:
            raise ValueError(f"this must stand there once, but it stands there {count} times: {old!r}")
        source = source.replace(old, new)
    return source

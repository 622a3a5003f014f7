"""Candidates for the line that calls a block, from the names of forward's arguments and what the file defines.

best_call.py tries them.
"""

from collections.abc import Iterator, Sequence

from ..subject.child import meanings
from ..subject.child.meanings import meaning_of
from ..subject.child.names import WRITTEN
from ..subject.raised import Description
from ..subject.recipe import Argument, Line, products
from . import rotations
from .options import PLAIN

MOST = 180
MASKS = ("mask", "added(mask)", "~mask", "mask[None, None]", "added(mask)[None, None]", "~mask[None, None]",
         "mask[None]", "added(mask)[None]", "~mask[None]")  # fmt: skip
MASKS_OF_NUMBERS = ("mask.to(x.dtype)", "mask.to(x.dtype)[None, None]", "mask.to(x.dtype)[None]")
"""Ones and zeros: scores are multiplied by it, or by 1 - mask."""
OF_ALL_TOKENS = ("torch.ones(batch, seq, dtype=torch.bool)", "torch.ones(batch, seq)")
"""Masks that say which entries are tokens and no padding: here all of them."""


def calls(made: Description, forward: Sequence[Description] | None, *, multiplied: bool = False) -> list[Line]:
    """Lines that may call the block, those with the fewest arguments first; at the end those that only hide padding.

    multiplied: whether masks are numbers that scores are multiplied by, as the source says.
    """
    masks = (*MASKS_OF_NUMBERS, *MASKS) if multiplied else MASKS
    return sorted(_calls(made, forward, masks), key=hides_padding_only)


def hides_padding_only(line: Line) -> bool:
    """Whether it hands in a mask (batch, seq)."""
    return any(one.value in OF_ALL_TOKENS for one in line.arguments)


def _calls(made: Description, forward: Sequence[Description] | None, masks: Sequence[str]) -> Iterator[Line]:
    named = [one for one in forward or () if not one["kind"].startswith("VAR_")]
    x = _input(named)
    rest = [one for one in named if one is not x]
    by_name = x is not None and (x["kind"] == "KEYWORD_ONLY" or x is not named[0])
    slots: list[list[tuple[Argument, ...]]] = []
    skipped: set[str] = set()
    for number, one in enumerate(rest):
        if one["name"] in skipped:
            continue
        partner = rest[number + 1] if number + 1 < len(rest) else None
        if partner is not None and meanings.COS.search(one["name"]) and meanings.SIN.search(partner["name"]):
            skipped.add(partner["name"])
            slots.append(_pairs(one, partner, made))
        else:
            slots.append(_handed_in(one, made, masks))
    for chosen in products(slots, MOST):
        arguments = [argument for slot in chosen for argument in slot]
        first = Argument(x["name"] if x is not None and by_name else "", "x")
        yield Line("block", (first, *_by_keyword(rest, arguments)))


def _input(forward: Sequence[Description]) -> Description | None:
    """The parameter that takes x: the first one, unless that says it is something else and a later one says it is x."""
    first = next(iter(forward), None)
    if first is None:
        return None
    others = (meanings.MASK, meanings.POSITIONS, meanings.START, meanings.ROPE, meanings.COS, meanings.SIN)
    named_so = (one for one in forward if meanings.INPUT.search(one["name"]))
    is_another = any(other.search(first["name"]) for other in others)
    return next(named_so, first) if is_another or first["kind"] == "KEYWORD_ONLY" else first


def _by_keyword(rest: Sequence[Description], arguments: list[Argument]) -> Iterator[Argument]:
    """Arguments by name, unless they are positional only."""
    only_by_place = {one["name"] for one in rest if one["kind"] == "POSITIONAL_ONLY"}
    for one in arguments:
        yield Argument("" if one.name in only_by_place else one.name, one.value, one.needed, one.default)


def _handed_in(one: Description, made: Description, masks: Sequence[str]) -> list[tuple[Argument, ...]]:
    """The possible values of a parameter of forward."""
    name, needed = one["name"], one["required"]
    omitted: list[tuple[Argument, ...]] = [] if needed else [()]

    def each(values: Sequence[str]) -> list[tuple[Argument, ...]]:
        return [(Argument(name, value, True),) for value in dict.fromkeys(values)]

    if meanings.RESIDUAL.search(name):
        return omitted or each(["None"])
    if meanings.FIRST.search(name):
        return [*omitted, *each(["x"])]
    if meanings.START.search(name):
        return [*omitted, *each(["0"])]
    if meanings.POSITIONS.search(name):
        forms = ["positions", "positions.expand(batch, seq)", *(["0"] if one["annotation"] == "int" else [])]
        return each(forms) if needed else [(Argument(name, "positions"),), *each(forms)]
    if meanings.MASK.search(name):
        if needed:
            return each([*masks, "None", *OF_ALL_TOKENS])
        return [()] if meanings.PADDING.search(name) else [(Argument(name, "mask"),), *each(masks)]
    if meanings.COS.search(name) and meanings.SIN.search(name):
        return [*omitted, *each([*rotations.in_forward(name, made)])]
    if meanings.COS.search(name) or meanings.SIN.search(name):
        word = "cos" if meanings.COS.search(name) else "sin"
        return [*omitted, *each(rotations.laid_out(word))]
    if meanings.ROPE.search(name) and one["annotation"] not in PLAIN:
        return [*omitted, *each([*rotations.in_forward(name, made), *(["None"] if needed else [])])]
    if not needed:
        return omitted
    if meaning_of(name, loosely=True) == "causal":
        return each(["True"])
    loose = meaning_of(name, loosely=True)
    return each(
        [WRITTEN.get(loose or "") or {"int": "0"}.get(one["annotation"]) or PLAIN.get(one["annotation"], "None")]
    )


def _pairs(cosine: Description, sine: Description, made: Description) -> list[tuple[Argument, ...]]:
    """Possible pairs of tables, cos and sin."""
    tables = [f"rows({line.written()}, positions)" for line in rotations.table_functions(made)]
    tables += rotations.module_calls(made)
    found = [(f"{table}[0]{axes}", f"{table}[1]{axes}") for axes in ("", "[None]") for table in tables]
    found += rotations.cos_and_sin()
    slot: list[tuple[Argument, ...]] = [
        (Argument(cosine["name"], c, True), Argument(sine["name"], s, True)) for c, s in found
    ]
    return slot if cosine["required"] else [(), *slot]

"""Every fault in every stranger's block where it has its place, and right blocks with what their authors chose."""

import re
from functools import cache

from ..editing import IMPLIED, Example
from .faults import FAULTS, HALVED, MIRRORED, Planted
from .interfaces import INTERFACES, Interface

SLOT = re.compile(r"<<(\w+): (.*?)>>")

LAST_MATRIX = """for name, p in self.named_parameters():
            if name.endswith(("wo.weight", "c_proj.weight", "to_out.weight", "w2.weight", "down_proj.weight")):
                nn.init.zeros_(p)"""

CHOICES: dict[str, dict[str, str]] = {
    "as_it_is": {},
    "cast_last": {"norm_out": "(self.weight * x * scale).to(dtype)"},
    "one_plus_weight": {"norm_start": "torch.zeros(dim)", "norm_out": "((1 + self.weight) * x * scale).to(dtype)"},
    "gelu": {"glu": "F.gelu(gate) * up"},
    "zero_last": {"begin": LAST_MATRIX},
    "small_eps": {"eps": "1e-8"},
    "softmax_in_float32": {"softmax": "F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)"},
}
"""What a right block's author may have chosen: the slots that it changes."""
REPLACED = {"biases": ("bias=False", "bias=True"), "layer_norm": ("RMSNorm({dim})", "nn.LayerNorm({dim})")}
"""The same by what stands in the source."""


def filled(interface: Interface, slots: dict[str, str]) -> str | None:
    """The source with these slots changed; None where it lacks one of them."""
    source = interface.source()
    names = {name for name, _ in SLOT.findall(source)}
    if not slots.keys() <= names:
        return None
    texts = {
        "{call}": interface.call,
        "{dim}": interface.dim,
        "{turned_v}": interface.turn.format("v"),
        "{halved}": HALVED[interface.rope],
        "{mirrored}": MIRRORED[interface.rope],
    }

    def text(match: re.Match[str]) -> str:
        name, usual = match.groups()
        new = slots.get(name, usual)
        for mark, value in texts.items():
            new = new.replace(mark, value)
        return new

    return SLOT.sub(text, source)


def _example(interface: Interface, name: str, source: str, fault: Planted | None = None) -> Example:
    faults = frozenset() if fault is None else frozenset({fault.fault})
    also = frozenset() if fault is None else frozenset(fault.also.split()) | IMPLIED.get(fault.fault, set())
    return Example(
        name=f"strangers/{interface.name}/{name}",
        source=source,
        attribute=interface.attribute,
        faults=faults,
        style=interface.name,
        also_named=frozenset(also) - faults,
        build=interface.line_of_build,
        call=interface.line_of_call,
    )


@cache
def right() -> tuple[Example, ...]:
    """Blocks that are right, whatever they chose."""
    found = []
    for interface in INTERFACES:
        for name, slots in CHOICES.items():
            source = filled(interface, slots)
            assert source is not None
            found.append(_example(interface, f"right_{name}", source))
        for name, (old, new) in REPLACED.items():
            source = filled(interface, {})
            assert source is not None
            old, new = (one.replace("{dim}", interface.dim) for one in (old, new))
            found.append(_example(interface, f"right_{name}", source.replace(old, new)))
    return tuple(found)


@cache
def faulty() -> tuple[Example, ...]:
    """Every fault in every interface that has the slots for it."""
    found = []
    for interface in INTERFACES:
        for fault in FAULTS:
            if {interface.rope, interface.attention, interface.name} & set(fault.lacks.split()):
                continue
            source = filled(interface, fault.slots)
            if source is not None:
                found.append(_example(interface, f"{fault.fault}.{fault.how}", source, fault))
    return tuple(found)

"""The results of one call, held to the shapes that they must have."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .raised import Description, refused


@dataclass(slots=True)
class Answer:
    """The results of one call."""

    y: Tensor
    x_after: Tensor
    requires_grad: bool
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    x_gradient: Tensor | None = None
    operations: frozenset[str] = frozenset()
    created: frozenset[tuple[int, ...]] = frozenset()
    modules_created: int = 0
    masked: bool = False
    random: list[Description] = field(default_factory=list)  # where random numbers were drawn first
    stray: Description | None = None  # where the output left the input's dtype, see child/dtypes.py
    seen: dict[str, Description] = field(default_factory=dict)  # calls of its modules, see child/seen.py


def answer(reply: Description, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Answer:
    """The reply of child/running.py to a call with an input of this shape. shapes: of the parameters, by name.

    Raises LearnerError if the output, or a gradient, has another shape.
    """
    y, gradients, x_gradient = reply["y"], reply.get("gradients", {}), reply.get("x_gradient")
    if y.shape != shape or not y.is_floating_point():
        given = f"{tuple(y.shape)} in {str(y.dtype).removeprefix('torch.')}"
        raise refused("forward", f"the output must have the input's shape {shape}, but it is {given}")
    expected = [(name, gradient, shapes.get(name)) for name, gradient in gradients.items()]
    for name, gradient, wanted in [*expected, ("x", x_gradient, shape)]:
        if gradient is not None and (tuple(gradient.shape) != wanted or not gradient.is_floating_point()):
            raise refused("forward", f"the gradient of {name} must have its shape {wanted}")
    return Answer(
        y=y,
        x_after=reply["x_after"],
        requires_grad=reply["requires_grad"],
        gradients=gradients,
        x_gradient=x_gradient,
        operations=frozenset(reply.get("operations", ())),
        created=frozenset(tuple(shape) for shape in reply.get("created", ())),
        modules_created=reply.get("modules_created", 0),
        masked=bool(reply.get("masked", False)),
        random=reply.get("random", []),
        stray=reply.get("stray"),
        seen=reply.get("seen", {}),
    )
